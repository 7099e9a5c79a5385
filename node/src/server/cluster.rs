//! Making clusters and bringing nodes into them.

use flotilla_api::v1::{self, cluster_client::ClusterClient, cluster_server::Cluster};
use flotilla_raft_store::{Change, Identity, Reply, RequestId};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

use super::{
    convert,
    error::{Refusal, rejected},
    forward::{self, Leader},
};
use crate::node::{Enter, Shared};

pub(super) struct Service {
    pub(super) shared: Shared,
}

impl Service {
    async fn enter(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<Identity, Refusal>>) -> Enter,
    ) -> Result<Identity, Status> {
        let (reply, answer) = oneshot::channel();
        let stopping = || Refusal::Stopping("it takes no requests".to_owned());
        self.shared.requests.send(request(reply)).await.map_err(|_| stopping())?;
        Ok(answer.await.map_err(|_| stopping())??)
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn init(&self, request: Request<v1::InitRequest>) -> Result<Response<v1::InitReply>, Status> {
        let name = request.into_inner().name;
        let name = if name.is_empty() { self.shared.config.region.clone() } else { name };
        let identity = self.enter(|reply| Enter::Init { name, reply }).await?;
        Ok(Response::new(v1::InitReply {
            cluster_id: identity.cluster.0,
            node: identity.node.0,
            cluster_address: self.shared.config.cluster_advertise.clone(),
        }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let addresses = request.into_inner().addresses;
        let identity = self.enter(|reply| Enter::Join { addresses, reply }).await?;
        Ok(Response::new(v1::JoinReply {
            cluster_id: identity.cluster.0,
            cluster_name: identity.cluster_name,
            node: identity.node.0,
        }))
    }

    async fn admit(&self, request: Request<v1::AdmitRequest>) -> Result<Response<v1::AdmitReply>, Status> {
        let replica = self.shared.replica()?;
        if let Leader::Other(channel) = forward::leader(&replica, &request)? {
            return ClusterClient::new(channel).admit(forward::mark(request)).await;
        }
        let v1::AdmitRequest { member, request } = request.into_inner();
        let member = convert::member(member).map_err(Refusal::from)?;
        let request = request.map(|id| RequestId { client: id.client, sequence: id.sequence });
        match replica.propose(request, Change::AddMember { member }).await? {
            Ok(Reply::Member { node }) => Ok(Response::new(v1::AdmitReply {
                cluster_id: replica.identity.cluster.0.clone(),
                cluster_name: replica.fleet().cluster.name.clone(),
                node: node.0,
            })),
            Ok(Reply::Done | Reply::Apps { .. }) => Err(Status::internal("a member was added without an id")),
            Err(rejection) => Err(rejected(&rejection)),
        }
    }
}
