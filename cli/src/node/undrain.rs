//! `flotilla node undrain`

use flotilla_api::v1::set_node_request::Action;

use super::set;
use crate::{
    args::Shell,
    exit::{Exit, Failure},
};

/// Call a drain off, from any phase of it
///
/// Until the drain is over the node has all its apps and goes on at once. After that it gets its
/// apps back as soon as their old ports have closed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla node undrain n3")]
pub(crate) struct Args {
    node: String,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    set::run(shell, args.node, Action::Undrain, "takes traffic again").await
}
