//! `flotilla node uncordon`

use flotilla_api::v1::set_node_request::Action;

use super::set;
use crate::{
    args::Shell,
    exit::{Exit, Failure},
};

/// Give a cordoned node apps again
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla node uncordon n3")]
pub(crate) struct Args {
    node: String,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    set::run(shell, args.node, Action::Uncordon, "gets apps again").await
}
