//! Several nodes become one cluster.

use flotilla_api::v1::{ClusterStatusReply, ClusterStatusRequest, InitRequest, JoinRequest};
use tokio::time::{Instant, sleep};

use super::{
    POLL, START_TIMEOUT,
    layout::{Layout, NodeLayout},
    not_up,
};
use crate::{
    client::{Client, cluster, fleet},
    exit::{Exit, Failure},
};

/// The code of a cluster that exists already: the data directory was kept.
const HAS_CLUSTER: &str = "E0501";

/// Makes the nodes one cluster, or waits until they are again what they were before.
pub(super) async fn form(layout: &Layout) -> Result<ClusterStatusReply, Failure> {
    let deadline = Instant::now() + START_TIMEOUT;
    let [first, others @ ..] = layout.nodes.as_slice() else { unreachable!("there is at least one node") };
    enter(first, deadline, async |client: &Client| {
        let request = InitRequest { name: "dev".to_owned() };
        client
            .once(START_TIMEOUT, async |channel| cluster(channel).init(request.clone()).await)
            .await
            .map(drop)
    })
    .await?;
    for node in others {
        enter(node, deadline, async |client: &Client| {
            let request = JoinRequest { addresses: vec![first.cluster.to_string()] };
            client
                .once(START_TIMEOUT, async |channel| cluster(channel).join(request.clone()).await)
                .await
                .map(drop)
        })
        .await?;
    }

    let client = Client::new(&layout.addresses());
    loop {
        let asked =
            client.read(async |channel| fleet(channel).cluster_status(ClusterStatusRequest {}).await).await;
        match asked {
            Ok(status) if is_complete(&status, layout.nodes.len()) => return Ok(status),
            _ if Instant::now() > deadline => return Err(not_up("the nodes did not form a cluster in time")),
            _ => sleep(POLL).await,
        }
    }
}

/// Asks one node to become a member, as soon as it answers. One that is a member already is fine.
async fn enter(
    node: &NodeLayout,
    deadline: Instant,
    ask: impl AsyncFn(&Client) -> Result<(), Failure>,
) -> Result<(), Failure> {
    loop {
        let failure = match ask(&Client::new(&[node.cluster.to_string()])).await {
            Ok(()) => return Ok(()),
            Err(failure) if failure.code.as_deref() == Some(HAS_CLUSTER) => return Ok(()),
            Err(failure) => failure,
        };
        let starting = matches!(failure.exit, Exit::Unreachable | Exit::NoLeader);
        if !starting {
            return Err(failure);
        }
        if Instant::now() > deadline {
            return Err(not_up(&format!("{} did not come up in time: {}", node.name, failure.message)));
        }
        sleep(POLL).await;
    }
}

/// A leader, and every node with a voice that is heard. Five voters are the most a cluster has.
fn is_complete(status: &ClusterStatusReply, nodes: usize) -> bool {
    let ready = status.nodes.iter().filter(|node| node.state == "ready").count();
    status.leader != 0 && ready >= nodes && status.voters_live == status.voters
}
