//! A node that says what a test wants it to say, over real gRPC on a port of its own.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    pin::Pin,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
};

use flotilla_api::v1::{fleet_server::FleetServer, *};
use tokio::{net::TcpListener, process::Command, task::JoinSet};
use tokio_stream::{Stream, StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};

type Answers<T> = Mutex<VecDeque<Result<T, Status>>>;
type Reply<T> = Result<Response<T>, Status>;

/// Empty queues answer "unimplemented", which no test expects.
#[derive(Default)]
pub(crate) struct Says {
    pub(crate) apply: Answers<ApplyAppsReply>,
    pub(crate) plan: Answers<PlanAppsReply>,
    pub(crate) list: Answers<ListAppsReply>,
    pub(crate) describe: Answers<AppDescription>,
    pub(crate) status: Answers<ClusterStatusReply>,
    /// One queue of messages per watch; a watch that runs dry stays open.
    pub(crate) watches: Mutex<VecDeque<Vec<Result<Rollout, Status>>>>,
    /// One queue of messages per watch; a watch that runs dry breaks off.
    pub(crate) events: Mutex<VecDeque<Vec<Result<EventsReply, Status>>>>,
    /// What was asked for, by `after`.
    pub(crate) events_asked: Mutex<Vec<WatchEventsRequest>>,
    pub(crate) delete: Answers<AppChanged>,
    /// Request ids of all writes.
    pub(crate) writes: Mutex<Vec<RequestId>>,
}

pub(crate) struct FakeFleet {
    pub(crate) address: SocketAddr,
    pub(crate) says: Arc<Says>,
    _serving: JoinSet<()>,
}

impl FakeFleet {
    pub(crate) async fn start(says: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let says = Arc::new(says);
        let server = tonic::transport::Server::builder()
            .add_service(FleetServer::new(Service(says.clone())))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let mut serving = JoinSet::new();
        serving.spawn(async { server.await.unwrap() });
        Self { address, says, _serving: serving }
    }
}

/// The program, asked to talk to `fleets`.
pub(crate) fn flotilla(fleets: &[&FakeFleet], args: &[&str]) -> Command {
    let addresses: Vec<String> = fleets.iter().map(|fleet| fleet.address.to_string()).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flotilla"));
    command.args(args).env("FLOTILLA_ADDR", addresses.join(",")).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub(crate) async fn run(fleets: &[&FakeFleet], args: &[&str]) -> Ran {
    flotilla(fleets, args).output().await.unwrap().into()
}

pub(crate) fn queue<T>(answers: impl IntoIterator<Item = T>) -> Mutex<VecDeque<T>> {
    Mutex::new(answers.into_iter().collect())
}

/// A refusal as nodes send them.
pub(crate) fn refusal(code: Code, flotilla_code: &'static str, message: &str) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert("flotilla-code", flotilla_code.parse().unwrap());
    metadata.insert("flotilla-help", "what to do%3F".parse().unwrap());
    Status::with_metadata(code, message, metadata)
}

fn next<T>(answers: &Answers<T>) -> Reply<T> {
    let answer = answers.lock().unwrap().pop_front();
    answer
        .unwrap_or_else(|| Err(Status::unimplemented("the test did not expect this call")))
        .map(Response::new)
}

struct Service(Arc<Says>);

impl Service {
    fn wrote(&self, request: Option<RequestId>) {
        self.0.writes.lock().unwrap().push(request.expect("every write has a request id"));
    }
}

#[tonic::async_trait]
impl fleet_server::Fleet for Service {
    async fn apply_apps(&self, request: Request<ApplyAppsRequest>) -> Reply<ApplyAppsReply> {
        self.wrote(request.into_inner().request);
        next(&self.0.apply)
    }

    async fn plan_apps(&self, _: Request<PlanAppsRequest>) -> Reply<PlanAppsReply> {
        next(&self.0.plan)
    }

    async fn delete_app(&self, request: Request<DeleteAppRequest>) -> Reply<AppChanged> {
        self.wrote(request.into_inner().request);
        next(&self.0.delete)
    }

    async fn rollback_app(&self, request: Request<RollbackAppRequest>) -> Reply<AppChanged> {
        self.wrote(request.into_inner().request);
        Err(Status::unimplemented(""))
    }

    async fn list_apps(&self, _: Request<ListAppsRequest>) -> Reply<ListAppsReply> {
        next(&self.0.list)
    }

    async fn describe_app(&self, _: Request<DescribeAppRequest>) -> Reply<AppDescription> {
        next(&self.0.describe)
    }

    async fn list_ports(&self, _: Request<ListPortsRequest>) -> Reply<ListPortsReply> {
        Err(Status::unimplemented(""))
    }

    async fn steer_rollout(&self, _: Request<SteerRolloutRequest>) -> Reply<Rollout> {
        Err(Status::unimplemented(""))
    }

    async fn list_rollouts(&self, _: Request<ListRolloutsRequest>) -> Reply<ListRolloutsReply> {
        Err(Status::unimplemented(""))
    }

    type WatchRolloutStream = Pin<Box<dyn Stream<Item = Result<Rollout, Status>> + Send>>;

    async fn watch_rollout(&self, _: Request<WatchRolloutRequest>) -> Reply<Self::WatchRolloutStream> {
        let messages = self.0.watches.lock().unwrap().pop_front();
        let messages = messages.ok_or_else(|| Status::unavailable("no more watches"))?;
        let stays_open = tokio_stream::pending();
        Ok(Response::new(Box::pin(tokio_stream::iter(messages).chain(stays_open))))
    }

    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<EventsReply, Status>> + Send>>;

    async fn watch_events(&self, request: Request<WatchEventsRequest>) -> Reply<Self::WatchEventsStream> {
        self.0.events_asked.lock().unwrap().push(request.into_inner());
        let messages = self.0.events.lock().unwrap().pop_front();
        let messages = messages.ok_or_else(|| Status::unavailable("no more events"))?;
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn scale_app(&self, _: Request<ScaleAppRequest>) -> Reply<AppChanged> {
        Err(Status::unimplemented("scale_app"))
    }

    async fn set_node(&self, _: Request<SetNodeRequest>) -> Reply<Node> {
        Err(Status::unimplemented("set_node"))
    }

    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Reply<ListNodesReply> {
        Ok(Response::new(ListNodesReply::default()))
    }

    async fn cluster_status(&self, _: Request<ClusterStatusRequest>) -> Reply<ClusterStatusReply> {
        next(&self.0.status)
    }

    async fn put_balancer(&self, request: Request<PutBalancerRequest>) -> Reply<PutBalancerReply> {
        self.wrote(request.into_inner().request);
        Err(Status::unimplemented(""))
    }

    async fn remove_balancer(&self, request: Request<RemoveBalancerRequest>) -> Reply<RemoveBalancerReply> {
        self.wrote(request.into_inner().request);
        Err(Status::unimplemented(""))
    }

    async fn list_balancers(&self, _: Request<ListBalancersRequest>) -> Reply<ListBalancersReply> {
        Err(Status::unimplemented(""))
    }

    type ExportStream = Pin<Box<dyn Stream<Item = Result<ExportReply, Status>> + Send>>;

    async fn export(&self, _: Request<ExportRequest>) -> Reply<Self::ExportStream> {
        Err(Status::unimplemented(""))
    }
}
