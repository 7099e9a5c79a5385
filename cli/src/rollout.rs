//! `flotilla rollout …`: changes on their way through the fleet.

mod list;
mod status;

use clap::Subcommand;

use crate::{
    args::Shell,
    exit::{Exit, Failure},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    List(list::Args),
    Status(status::Args),
}

pub(crate) fn run(verb: Verb, shell: &Shell) -> Result<Exit, Failure> {
    match verb {
        Verb::List(args) => shell.block_on(list::run(args, shell)),
        Verb::Status(args) => shell.block_on(status::run(args, shell)),
    }
}
