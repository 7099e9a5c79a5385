//! `flotilla cluster join`

use flotilla_api::v1::JoinRequest;
use serde_json::json;

use crate::{
    args::{Shell, with_port},
    client::cluster,
    exit::{Exit, Failure},
};

/// Bring the node at --addr into the cluster of other nodes
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla --addr 10.0.0.2 cluster join 10.0.0.1
  flotilla --addr 10.0.0.3 cluster join 10.0.0.1 10.0.0.2")]
pub(crate) struct Args {
    /// Members of the cluster; the first that answers lets the node in
    #[arg(required = true, value_name = "ADDR")]
    members: Vec<String>,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let request = JoinRequest { addresses: args.members.iter().map(|member| with_port(member)).collect() };
    let reply = shell
        .client()
        .once(shell.answer_within(), async |channel| cluster(channel).join(request.clone()).await)
        .await?;
    shell.output.emit(
        "ClusterJoined",
        || json!({ "clusterId": reply.cluster_id, "name": reply.cluster_name, "node": reply.node }),
        |style| format!("{} joined cluster {} as node {}", style.green("✓"), reply.cluster_name, reply.node),
    )?;
    shell.output.note("Look at it:  flotilla cluster status");
    Ok(Exit::Done)
}
