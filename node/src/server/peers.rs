//! What members say to each other. A call that names another cluster or node is refused before
//! anything in it is looked at: addresses are reused, identities are not.

use std::sync::Arc;

use flotilla_api::v1::{self, peer_server::Peer, snapshot_chunk::Part};
use flotilla_raft_store::{Change, NodeId, codec::raft::decode_snapshot_meta};
use openraft::Snapshot;
use tokio::{
    io::{AsyncSeekExt as _, AsyncWriteExt as _},
    time::Instant,
};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

use super::{convert, error::Refusal};
use crate::{
    balancer::local::{self, Refused},
    node::Shared,
    replica::Replica,
};

pub(super) struct Service {
    pub(super) shared: Shared,
}

impl Service {
    /// The replica, if the message is meant for it and comes from a node of the same cluster.
    fn receiver(&self, envelope: Option<&v1::Envelope>) -> Result<(Arc<Replica>, NodeId), Status> {
        let replica = self.shared.replica()?;
        let envelope = envelope.ok_or_else(|| Refusal::WrongNode("it names no receiver".to_owned()))?;
        let me = &replica.identity;
        if envelope.cluster_id != me.cluster.0 {
            let why = format!(
                "it is for cluster {}, this is {} ({})",
                envelope.cluster_id, me.cluster, me.cluster_name
            );
            return Err(Refusal::WrongNode(why).into());
        }
        let to = NodeId(envelope.to);
        if to != me.node && to != convert::ANY_NODE {
            return Err(Refusal::WrongNode(format!("it is for node {to}, this is node {}", me.node)).into());
        }
        Ok((replica, NodeId(envelope.from)))
    }
}

fn raft_error(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

#[tonic::async_trait]
impl Peer for Service {
    async fn append_entries(
        &self,
        request: Request<v1::AppendEntriesRequest>,
    ) -> Result<Response<v1::AppendEntriesReply>, Status> {
        let request = request.into_inner();
        let (replica, _) = self.receiver(request.envelope.as_ref())?;
        let request = convert::append_request(request).map_err(Refusal::from)?;
        let answer = replica.raft.append_entries(request).await.map_err(raft_error)?;
        Ok(Response::new(convert::append_reply_to_pb(&answer)))
    }

    async fn vote(&self, request: Request<v1::VoteRequest>) -> Result<Response<v1::VoteReply>, Status> {
        let request = request.into_inner();
        let (replica, from) = self.receiver(request.envelope.as_ref())?;
        // A node that has left must not disturb those who stayed with its candidacy.
        let fleet = replica.fleet();
        if let Some(member) = fleet.members.get(&from)
            && member.availability == flotilla_raft_store::Availability::Left
        {
            return Err(Refusal::WrongNode(format!("node {from} has left the cluster")).into());
        }
        let answer = replica
            .raft
            .vote(convert::vote_request(request).map_err(Refusal::from)?)
            .await
            .map_err(raft_error)?;
        Ok(Response::new(convert::vote_reply_to_pb(&answer)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotChunk>>,
    ) -> Result<Response<v1::InstallSnapshotReply>, Status> {
        let mut chunks = request.into_inner();
        let Some(Part::Head(head)) = chunks.message().await?.and_then(|chunk| chunk.part) else {
            return Err(Status::invalid_argument("a snapshot begins with its head"));
        };
        let (replica, from) = self.receiver(head.envelope.as_ref())?;
        let vote = convert::vote(head.vote).map_err(Refusal::from)?;
        let meta =
            decode_snapshot_meta(&head.meta).map_err(|err| Status::invalid_argument(err.to_string()))?;

        let mut file = replica.raft.begin_receiving_snapshot().await.map_err(raft_error)?;
        let mut received: u64 = 0;
        while let Some(chunk) = chunks.message().await? {
            let Some(Part::Data(data)) = chunk.part else {
                return Err(Status::invalid_argument("a snapshot has one head"));
            };
            received += data.len() as u64;
            if received > head.size_bytes {
                return Err(Status::invalid_argument("a snapshot is longer than announced"));
            }
            file.write_all(&data).await.map_err(raft_error)?;
        }
        if received != head.size_bytes {
            let why = format!("a snapshot of {} bytes ended after {received}", head.size_bytes);
            return Err(Status::data_loss(why));
        }
        file.flush().await.map_err(raft_error)?;
        file.rewind().await.map_err(raft_error)?;
        info!(%from, bytes = received, "snapshot received");
        let answer = replica
            .raft
            .install_full_snapshot(vote, Snapshot { meta, snapshot: file })
            .await
            .map_err(raft_error)?;
        Ok(Response::new(v1::InstallSnapshotReply { vote: Some(convert::vote_to_pb(&answer.vote)) }))
    }

    async fn report(&self, request: Request<v1::NodeReport>) -> Result<Response<v1::ReportReply>, Status> {
        let report = request.into_inner();
        let (replica, from) = self.receiver(report.envelope.as_ref())?;
        let report = convert::report(report).map_err(Refusal::from)?;
        let stopping = report.stopping;
        let accepted = replica.reports.insert(from, report, Instant::now());
        let let_go = stopping && accepted && replica.is_let_go(from);
        let leader = replica.leader().filter(|&leader| leader != replica.me()).map_or(0, |leader| leader.0);
        Ok(Response::new(v1::ReportReply { leader, accepted, let_go, takes_changes: true }))
    }

    async fn balance(
        &self,
        request: Request<v1::BalanceRequest>,
    ) -> Result<Response<v1::BalanceReply>, Status> {
        let request = request.into_inner();
        let (replica, from) = self.receiver(request.envelope.as_ref())?;
        let fleet = replica.fleet();
        let fenced = |refused| match refused {
            Refused::Fenced(why) => Status::aborted(why),
            Refused::Failed(why) => Status::unavailable(why),
        };
        local::check_term(&fleet, request.term).map_err(fenced)?;
        let balancer = request.balancer.ok_or_else(|| Status::invalid_argument("no balancer"))?;
        let (name, balancer) = convert::balancer(&fleet, balancer).map_err(Refusal::from)?;
        let services = convert::services(request.services).map_err(Refusal::from)?;
        debug!(%from, term = request.term, balancer = name, "tell balancer for the leader");
        let outcome = replica.local.reconcile(request.term, &name, &balancer.kind, &services).await;
        Ok(Response::new(convert::outcome_to_pb(&outcome.map_err(fenced)?)))
    }

    async fn announce(
        &self,
        request: Request<v1::AnnounceRequest>,
    ) -> Result<Response<v1::AnnounceReply>, Status> {
        let request = request.into_inner();
        let (replica, from) = self.receiver(request.envelope.as_ref())?;
        let member = convert::member(request.member).map_err(Refusal::from)?;
        if !replica.fleet().members.contains_key(&from) {
            return Err(Refusal::WrongNode(format!("node {from} is no member")).into());
        }
        debug!(%from, address = %member.cluster_address, "member announced itself");
        replica.peers.announced(from, member.cluster_address.clone());
        if replica.leads().is_some() {
            // Whether it was accepted shows in the fleet; the sender repeats itself until it does.
            let answer = replica.propose(None, Change::UpdateMember { node: from, member }).await?;
            if let Err(rejection) = answer {
                return Err(super::error::rejected(&rejection));
            }
        }
        Ok(Response::new(v1::AnnounceReply {}))
    }
}
