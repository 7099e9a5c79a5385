//! How a node without a cluster comes into one: it asks members to admit it until one that leads does.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use flotilla_api::v1::{self, cluster_client::ClusterClient, fleet_client::FleetClient};
use flotilla_raft_store::{ClusterId, Identity, NodeId};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::Config,
    node::{Enter, Shared},
    peer,
    server::{convert, error::Refusal},
};

const ADMIT_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(1);
/// Under this id the node asks to be admitted. Kept on disk, so that a node which crashed between
/// being admitted and writing down who it is gets the same answer again instead of a second identity.
const REQUEST_FILE: &str = "join-request";

/// Joins the configured cluster, however long it takes for it to be there.
pub(crate) async fn until_joined(shared: Shared, stop: CancellationToken) -> anyhow::Result<()> {
    let mut replica = shared.replica.clone();
    while replica.borrow_and_update().is_none() {
        let (reply, answer) = oneshot::channel();
        let request = Enter::Join { addresses: shared.config.join.clone(), reply };
        let attempt = async {
            shared.requests.send(request).await.ok()?;
            answer.await.ok()
        };
        // Cancel-safe: a request that was sent is served whether or not the answer is read.
        let answer = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            answer = attempt => answer.context("the node stopped")?,
        };
        match answer {
            Ok(identity) => info!(cluster = %identity.cluster, node = %identity.node, "joined"),
            Err(refusal) => warn!(error = %refusal, "not admitted yet"),
        }
        // Cancel-safe: sleeping and waiting lose nothing.
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(RETRY) => {}
            changed = replica.changed() => changed?,
        }
    }
    Ok(())
}

/// Asks each address in turn. The error names what every one of them said.
pub(crate) async fn admit(config: &Arc<Config>, addresses: &[String]) -> Result<Identity, Refusal> {
    let request = v1::AdmitRequest {
        member: Some(convert::member_to_pb(&config.member())),
        request: Some(v1::RequestId {
            client: request_id(&config.data_dir).map_err(|err| Refusal::JoinFailed(format!("{err:#}")))?,
            sequence: 1,
        }),
    };
    let mut answers = Vec::new();
    for address in addresses {
        match ask(address, request.clone()).await {
            Ok(reply) => {
                return Ok(Identity {
                    cluster: ClusterId(reply.cluster_id),
                    cluster_name: reply.cluster_name,
                    node: NodeId(reply.node),
                    node_name: config.name.clone(),
                });
            }
            Err(why) => answers.push(format!("{address}: {why}")),
        }
    }
    Err(Refusal::JoinFailed(if answers.is_empty() {
        "no address given".to_owned()
    } else {
        answers.join("; ")
    }))
}

async fn ask(address: &str, request: v1::AdmitRequest) -> Result<v1::AdmitReply, String> {
    let channel = peer::channel(address).map_err(|_| "not host:port".to_owned())?;
    let mut client = ClusterClient::new(channel);
    match tokio::time::timeout(ADMIT_TIMEOUT, client.admit(request)).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err("no answer in 10 s".to_owned()),
    }
}

/// One explicit `init` per cluster: a node that was told where its cluster is must not make another.
pub(crate) async fn refuse_if_seeds_have_a_cluster(config: &Config) -> Result<(), Refusal> {
    for address in &config.join {
        let Ok(channel) = peer::channel(address) else { continue };
        let mut client = FleetClient::new(channel);
        let status =
            tokio::time::timeout(LOOK_TIMEOUT, client.cluster_status(v1::ClusterStatusRequest {})).await;
        if let Ok(Ok(reply)) = status {
            let v1::ClusterStatusReply { id, name, .. } = reply.into_inner();
            return Err(Refusal::SeedHasCluster { address: address.clone(), id, name });
        }
    }
    Ok(())
}

fn request_id(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join(REQUEST_FILE);
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.is_empty() => Ok(id),
        Ok(_) | Err(_) => {
            let id = format!("join-{:032x}", rand::random::<u128>());
            std::fs::create_dir_all(data_dir).with_context(|| format!("create {}", data_dir.display()))?;
            std::fs::write(&path, &id).with_context(|| format!("write {}", path.display()))?;
            Ok(id)
        }
    }
}
