//! `flotilla cluster …`: who belongs together, and how they are.

mod init;
mod join;
mod status;

use clap::Subcommand;

use crate::{
    args::Shell,
    exit::{Exit, Failure},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Init(init::Args),
    Join(join::Args),
    Status(status::Args),
}

pub(crate) fn run(verb: Verb, shell: &Shell) -> Result<Exit, Failure> {
    match verb {
        Verb::Init(args) => shell.block_on(init::run(args, shell)),
        Verb::Join(args) => shell.block_on(join::run(args, shell)),
        Verb::Status(args) => shell.block_on(status::run(args, shell)),
    }
}
