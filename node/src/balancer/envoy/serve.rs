//! The xDS server of a node: answers streams where it leads, passes them on where it does not.

use std::{collections::BTreeMap, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use flotilla_api::envoy::service::{
    discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    endpoint::v3::endpoint_discovery_service_server::{
        EndpointDiscoveryService, EndpointDiscoveryServiceServer,
    },
};
use flotilla_raft_store::{BalancerKind, NodeId};
use futures_util::{Stream, StreamExt as _};
use openraft::RaftMetrics;
use tokio::{net::TcpListener, sync::watch};
use tonic::{
    Request, Response, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Server},
};
use tracing::{debug, info};

use super::{
    Subscriber,
    session::{Incremental, Session, StateOfTheWorld},
};
use crate::{
    balancer::{
        desired::{Service, Services},
        fence,
        status::Client,
    },
    peer,
    replica::Replica,
    server::incoming,
};

/// A client that vanished without a FIN is noticed after this.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Of one connection: an Envoy has one for all that is aggregated, and one per cluster otherwise.
const STREAMS_MAX: u32 = 1_024;
/// Names the node that passed a stream on. Two nodes that disagree about the leader must not send it back and forth.
const THROUGH: &str = "flotilla-through";

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Runs until it is dropped.
pub(in crate::balancer) async fn run(
    listener: TcpListener,
    replica: Arc<Replica>,
    balancer: String,
) -> Result<(), tonic::transport::Error> {
    let xds = Xds { replica, balancer };
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS_MAX)
        .add_service(AggregatedDiscoveryServiceServer::new(xds.clone()))
        .add_service(EndpointDiscoveryServiceServer::new(xds))
        .serve_with_incoming(incoming(listener))
        .await
}

#[derive(Clone)]
struct Xds {
    replica: Arc<Replica>,
    balancer: String,
}

/// Where a stream is answered.
enum Way {
    Here { term: u64 },
    Through(Channel),
}

impl Xds {
    fn way<T>(&self, request: &Request<T>) -> Result<Way, Status> {
        let replica = &self.replica;
        let leader = replica.leader().ok_or_else(|| Status::unavailable("no leader is known"))?;
        if leader == replica.me() {
            let term = replica.leads().ok_or_else(|| Status::unavailable("this node is about to lead"))?;
            return Ok(Way::Here { term });
        }
        if request.metadata().get(THROUGH).is_some() {
            return Err(Status::unavailable("the leader is another one by now"));
        }
        let fleet = replica.fleet();
        let port = fleet.balancers.get(&self.balancer).and_then(|balancer| match &balancer.kind {
            BalancerKind::Envoy { port, .. } => Some(*port),
            BalancerKind::Haproxy(_)
            | BalancerKind::Nginx { .. }
            | BalancerKind::AgentCheck { .. }
            | BalancerKind::TcpCheck { .. } => None,
        });
        let host = fleet.members.get(&leader).and_then(|member| member.cluster_address.rsplit_once(':'));
        let (Some(port), Some((host, _))) = (port, host) else {
            return Err(Status::unavailable("the leader has no address"));
        };
        let channel = peer::channel(&format!("{host}:{port}"));
        Ok(Way::Through(channel.map_err(|err| Status::unavailable(err.to_string()))?))
    }

    /// The other end may hang, and not be gone: the stream ends, and Envoy connects again.
    fn leader_changed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut metrics = self.replica.raft.metrics();
        let leader = metrics.borrow().current_leader;
        async move {
            let _stopped = metrics.wait_for(|metrics| metrics.current_leader != leader).await;
        }
    }

    fn answer<S: Session>(
        &self,
        term: u64,
        request: Request<Streaming<S::Request>>,
        kind: &'static str,
    ) -> Answers<S::Response> {
        let replica = self.replica.clone();
        let name = |node: NodeId| replica.fleet().node_name(node);
        let through = request.metadata().get(THROUGH).and_then(|node| node.to_str().ok());
        let by = through.map_or_else(|| name(replica.me()), str::to_owned);
        let client = Client { by, kind: kind.to_owned(), ..Client::default() };
        let subscriber = Subscriber { balancer: self.balancer.clone(), client, ..Subscriber::default() };
        info!(balancer = self.balancer, peer = ?request.remote_addr(), kind, "xDS client connected");
        let id = replica.envoys.enter(subscriber);
        let answering = Answering::<S> {
            requests: request.into_inner(),
            session: S::new(term),
            services: replica.services.subscribe(),
            metrics: replica.raft.metrics(),
            term,
            stream: Entered { replica, id },
            balancer: self.balancer.clone(),
        };
        Box::pin(futures_util::stream::unfold(Some(answering), Answering::next))
    }
}

/// Leaves the hub when the stream ends, however it does.
struct Entered {
    replica: Arc<Replica>,
    id: u64,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.replica.envoys.leave(self.id);
    }
}

struct Answering<S: Session> {
    requests: Streaming<S::Request>,
    session: S,
    services: watch::Receiver<Arc<Services>>,
    metrics: watch::Receiver<RaftMetrics<NodeId, openraft::BasicNode>>,
    term: u64,
    balancer: String,
    stream: Entered,
}

impl<S: Session> Answering<S> {
    async fn next(this: Option<Self>) -> Option<(Result<S::Response, Status>, Option<Self>)> {
        let mut this = this?;
        loop {
            let services = this.told();
            if let Some(services) = services
                && let Some(answer) = this.session.answer(&services)
            {
                if let Err(why) = fence(&this.stream.replica, this.term).await {
                    debug!(why, "xDS client not told");
                    return Some((Err(Status::unavailable(why)), None));
                }
                this.report(1);
                return Some((Ok(answer), Some(this)));
            }
            // Cancel-safe: a stream of messages and watch channels lose nothing.
            tokio::select! {
                request = this.requests.message() => match request {
                    Ok(Some(request)) => {
                        let before = this.session.stream().acknowledged.clone();
                        this.session.take(request);
                        if this.session.stream().acknowledged != before {
                            let made = this.services.borrow().made;
                            crate::metrics::balancer_followed(&this.balancer, made);
                        }
                        this.report(0);
                    }
                    Ok(None) | Err(_) => return None,
                },
                changed = this.services.changed() => if changed.is_err() { return None },
                changed = this.metrics.changed() => {
                    if changed.is_err() || crate::replica::leads(&this.metrics.borrow_and_update()) != Some(this.term) {
                        return Some((Err(Status::unavailable("this node no longer leads")), None));
                    }
                }
            }
        }
    }

    /// `None`: this leader does not know yet what there is.
    fn told(&mut self) -> Option<BTreeMap<String, Arc<Service>>> {
        let services = self.services.borrow_and_update().clone();
        let fleet = self.stream.replica.fleet();
        let settings = fleet.balancers.get(&self.balancer)?;
        if services.index == 0 {
            return None;
        }
        let told = services.of_apps(&settings.apps).into_iter();
        Some(told.map(|service| (service.name.clone(), Arc::new(service))).collect())
    }

    fn report(&self, pushes: u64) {
        let stream = self.session.stream();
        self.stream.replica.envoys.update(self.stream.id, |subscriber| {
            subscriber.client.id.clone_from(&stream.node);
            subscriber.client.sent = stream.version();
            subscriber.client.acknowledged.clone_from(&stream.acknowledged);
            subscriber.client.error.clone_from(&stream.error);
            subscriber.has.clone_from(&stream.has);
        });
        if pushes > 0 {
            crate::metrics::balancer_pushed(&self.balancer, pushes, "ok");
            self.stream.replica.board.update(&self.balancer, |status| {
                status.pushes += pushes;
                status.pushed = Some(tokio::time::Instant::now());
            });
        }
    }
}

/// What a client says, until it breaks off.
fn passed_on<T: Send + 'static>(
    replica: &Replica,
    requests: Streaming<T>,
) -> Result<Request<impl Stream<Item = T> + Send + 'static>, Status> {
    let said = futures_util::stream::unfold(requests, |mut requests| async {
        let request = requests.message().await.ok().flatten()?;
        Some((request, requests))
    });
    let mut request = Request::new(said);
    let me = replica.fleet().node_name(replica.me());
    let me = MetadataValue::try_from(me).map_err(|_| Status::internal("a node's name is ASCII"))?;
    request.metadata_mut().insert(THROUGH, me);
    Ok(request)
}

type Reply<T> = Result<Response<Answers<T>>, Status>;

impl Xds {
    async fn state_of_the_world(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
        kind: &'static str,
    ) -> Reply<DiscoveryResponse> {
        match self.way(&request)? {
            Way::Here { term } => Ok(Response::new(self.answer::<StateOfTheWorld>(term, request, kind))),
            Way::Through(channel) => {
                let said = passed_on(&self.replica, request.into_inner())?;
                let mut client = AggregatedDiscoveryServiceClient::new(channel);
                let answers = client.stream_aggregated_resources(said).await?.into_inner();
                Ok(Response::new(answers.take_until(self.leader_changed()).boxed()))
            }
        }
    }

    async fn incremental(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
        kind: &'static str,
    ) -> Reply<DeltaDiscoveryResponse> {
        match self.way(&request)? {
            Way::Here { term } => Ok(Response::new(self.answer::<Incremental>(term, request, kind))),
            Way::Through(channel) => {
                let said = passed_on(&self.replica, request.into_inner())?;
                let mut client = AggregatedDiscoveryServiceClient::new(channel);
                let answers = client.delta_aggregated_resources(said).await?.into_inner();
                Ok(Response::new(answers.take_until(self.leader_changed()).boxed()))
            }
        }
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Xds {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Reply<DiscoveryResponse> {
        self.state_of_the_world(request, "ADS").await
    }

    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;
    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Reply<DeltaDiscoveryResponse> {
        self.incremental(request, "delta ADS").await
    }
}

#[tonic::async_trait]
impl EndpointDiscoveryService for Xds {
    type StreamEndpointsStream = Answers<DiscoveryResponse>;
    async fn stream_endpoints(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Reply<DiscoveryResponse> {
        self.state_of_the_world(request, "EDS").await
    }

    type DeltaEndpointsStream = Answers<DeltaDiscoveryResponse>;
    async fn delta_endpoints(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Reply<DeltaDiscoveryResponse> {
        self.incremental(request, "delta EDS").await
    }
}

/// The address that Envoys reach a node at: that of its cluster port, which is in a private network.
pub(in crate::balancer) fn address(cluster_listen: SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(cluster_listen.ip(), port)
}
