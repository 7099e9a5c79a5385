//! `flotilla balancer remove`

use flotilla_api::v1::RemoveBalancerRequest;
use serde_json::json;

use crate::{
    args::Shell,
    client::fleet,
    exit::{Exit, Failure},
};

/// Tell a load balancer nothing any more
///
/// It keeps what it has: take its servers out first if it shall not send to the nodes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla balancer remove edge")]
pub(crate) struct Args {
    name: String,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let client = shell.client();
    let request = RemoveBalancerRequest { request: Some(client.request_id()), name: args.name.clone() };
    client
        .write(shell.answer_within(), async |channel| fleet(channel).remove_balancer(request.clone()).await)
        .await?;
    shell.output.emit(
        "BalancerRemoved",
        || json!({ "name": args.name }),
        |style| {
            format!(
                "{} balancer {} is told nothing any more; it keeps what it has",
                style.green("✓"),
                args.name
            )
        },
    )?;
    Ok(Exit::Done)
}
