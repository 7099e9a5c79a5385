//! `flotilla node cordon`

use flotilla_api::v1::set_node_request::Action;

use super::set;
use crate::{
    args::Shell,
    exit::{Exit, Failure},
};

/// Give a node no new apps
///
/// It keeps those it has, and their traffic.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla node cordon n3")]
pub(crate) struct Args {
    node: String,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    set::run(shell, args.node, Action::Cordon, "gets no new apps").await
}
