//! `flotilla rollout …`: changes on their way through the fleet.

mod list;
mod status;
mod steer;

use clap::Subcommand;
use flotilla_api::v1::steer_rollout_request::Word;

use crate::{
    args::Shell,
    events,
    exit::{Exit, Failure},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    List(list::Args),
    Status(status::Args),
    Pause(steer::Pause),
    Resume(steer::Resume),
    Promote(steer::Promote),
    Abort(steer::Abort),
    Events(events::OfApp),
}

pub(crate) fn run(verb: Verb, shell: &Shell) -> Result<Exit, Failure> {
    match verb {
        Verb::List(args) => shell.block_on(list::run(args, shell)),
        Verb::Status(args) => shell.block_on(status::run(args, shell)),
        Verb::Pause(args) => shell.block_on(steer::run(args.target, Word::Pause, shell)),
        Verb::Resume(args) => shell.block_on(steer::run(args.target, Word::Resume, shell)),
        Verb::Promote(args) => {
            let word = if args.full { Word::PromoteInFull } else { Word::Promote };
            shell.block_on(steer::run(args.target, word, shell))
        }
        Verb::Abort(args) => shell.block_on(steer::run(args.target, Word::Abort, shell)),
        Verb::Events(args) => shell.block_on(events::of_app(args, shell)),
    }
}
