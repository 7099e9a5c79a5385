//! A member that came back with another address, version or label says so until the fleet knows.

use std::{sync::Arc, time::Duration};

use flotilla_api::v1::{self, peer_client::PeerClient};
use flotilla_raft_store::{Change, Member};
use tracing::{debug, info};

use crate::{peer, replica::Replica, server::convert};

const TIMEOUT: Duration = Duration::from_secs(2);

/// `seeds`: addresses that may lead to a member when every other address is out of date.
pub(crate) async fn run(replica: Arc<Replica>, seeds: Vec<String>) -> anyhow::Result<()> {
    let mut fleet = replica.fleet.clone();
    loop {
        let known = fleet.borrow_and_update().members.get(&replica.me()).cloned();
        let wanted = known.as_deref().map(|known| as_of_now(known, &replica.member));
        match (known, wanted) {
            (Some(known), Some(wanted)) if *known != wanted => {
                announce(&replica, &seeds, wanted).await;
                // Cancel-safe: watch channels remember that they changed.
                tokio::select! {
                    changed = fleet.changed() => changed?,
                    () = tokio::time::sleep(replica.heartbeat * 2) => {}
                }
            }
            (Some(_) | None, _) => fleet.changed().await?,
        }
    }
}

/// The member record with what the node itself decides; whether it is cordoned is not its business.
fn as_of_now(known: &Member, mine: &Member) -> Member {
    Member { availability: known.availability, drain: known.drain, ..mine.clone() }
}

async fn announce(replica: &Replica, seeds: &[String], member: Member) {
    if replica.leads().is_some() {
        let change = Change::UpdateMember { node: replica.me(), member };
        match replica.propose(None, change).await {
            Ok(answer) => info!(?answer, "own member record updated"),
            Err(err) => debug!(error = %err, "own member record not updated yet"),
        }
        return;
    }
    let request = |to| v1::AnnounceRequest {
        envelope: replica.peers.envelope(to),
        member: Some(convert::member_to_pb(&member)),
    };
    let others: Vec<_> =
        replica.fleet().members.keys().copied().filter(|&node| node != replica.me()).collect();
    for node in others {
        if let Ok(client) = replica.peers.client(node) {
            send(client, request(node)).await;
        }
    }
    for seed in seeds {
        if let Ok(channel) = peer::channel(seed) {
            send(PeerClient::new(channel), request(convert::ANY_NODE)).await;
        }
    }
}

async fn send(mut client: PeerClient<tonic::transport::Channel>, request: v1::AnnounceRequest) {
    match tokio::time::timeout(TIMEOUT, client.announce(request)).await {
        Ok(Ok(_)) => {}
        Ok(Err(status)) => debug!(error = %status, "announcement refused"),
        Err(_) => debug!("announcement not answered"),
    }
}
