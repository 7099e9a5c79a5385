//! `flotilla cluster init`

use flotilla_api::v1::InitRequest;
use serde_json::json;

use crate::{
    args::Shell,
    client::cluster,
    exit::{Exit, Failure},
};

/// Make a cluster, with the node at --addr as its first member
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla cluster init --name fra
  flotilla --addr 10.0.0.1 cluster init")]
pub(crate) struct Args {
    /// What people call the cluster, usually its region
    #[arg(long, default_value = "flotilla")]
    name: String,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let request = InitRequest { name: args.name.clone() };
    let reply = shell
        .client()
        .once(shell.answer_within(), async |channel| cluster(channel).init(request.clone()).await)
        .await?;
    shell.output.emit(
        "ClusterMade",
        || {
            json!({
                "clusterId": reply.cluster_id,
                "name": args.name,
                "node": reply.node,
                "clusterAddress": reply.cluster_address,
            })
        },
        |style| format!("{} cluster {} is made, with one node", style.green("✓"), args.name),
    )?;
    shell.output.note(format!(
        "Let other nodes in with:  flotilla --addr THEIR_ADDRESS cluster join {}",
        reply.cluster_address
    ));
    Ok(Exit::Done)
}
