//! Asks a fleet: which node is asked, how long, and what is tried again.
//!
//! Any node answers, so a question that one node does not answer goes to the next. A write is
//! repeated under the same request id, which the fleet carries out once however often it arrives.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use flotilla_api::v1::{
    ListNodesRequest, RequestId, cluster_client::ClusterClient, fleet_client::FleetClient,
};
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep, timeout},
};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};
use tracing::debug;

use crate::exit::{self, Exit, Failure};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// One attempt of a call. A node that is stuck must not use up the whole `--timeout`.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// A watch is idle for minutes; this notices within seconds that its node lost power.
const KEEPALIVE: Duration = Duration::from_secs(3);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// A fleet of 10,000 apps answers `app list` with a few MiB.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

pub(crate) type Fleet = FleetClient<Channel>;
pub(crate) type Cluster = ClusterClient<Channel>;

pub(crate) struct Client {
    nodes: Vec<Node>,
    /// The node that answered last is asked first.
    preferred: AtomicUsize,
    /// Names this process in request ids.
    name: String,
    sequence: AtomicU64,
}

/// A stream, and the position of the node that it comes from.
pub(crate) struct Opened<T> {
    pub(crate) node: usize,
    pub(crate) stream: T,
}

struct Node {
    address: String,
    /// Connected at the first use; reconnects by itself after that.
    channel: OnceCell<Channel>,
}

/// Why a node has no answer for now.
enum Silence {
    /// No connection: the call was never made.
    Unreached(String),
    /// The call was made, and its fate is unknown, or the node asks to come back later.
    Transient(Status),
}

impl Client {
    /// `addresses` are tried in their order. Connects to none of them yet.
    pub(crate) fn new(addresses: &[String]) -> Self {
        Self {
            nodes: addresses.iter().map(|address| Node::new(address)).collect(),
            preferred: AtomicUsize::new(0),
            name: format!("{:016x}", rand::random::<u64>()),
            sequence: AtomicU64::new(0),
        }
    }

    /// Under this id a write happens once. Ids of one process rise.
    pub(crate) fn request_id(&self) -> RequestId {
        RequestId { client: self.name.clone(), sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// Asks each node once, until one answers.
    pub(crate) async fn read<T>(
        &self,
        call: impl AsyncFn(Channel) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        self.round(ATTEMPT_TIMEOUT, &call).await?.map_err(|silences| unanswered(&silences))
    }

    /// Repeats a write for up to `limit` while its fate is unknown or there is no leader. `call`
    /// must send the same request id each time. Does not wait for a fleet that was never reached:
    /// nothing is known to be there.
    pub(crate) async fn write<T>(
        &self,
        limit: Duration,
        call: impl AsyncFn(Channel) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + limit;
        let mut pause = RETRY_FIRST;
        let mut reached = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let silences = match self.round(left.min(ATTEMPT_TIMEOUT), &call).await? {
                Ok(answer) => return Ok(answer),
                Err(silences) => silences,
            };
            reached |= silences.iter().any(|(_, silence)| matches!(silence, Silence::Transient(_)));
            if !reached {
                return Err(unanswered(&silences));
            }
            if Instant::now() + pause >= deadline {
                return Err(unanswered(&silences).help(
                    "it is not known whether the change was made: look before you repeat it, for example \
                     with `flotilla app list`",
                ));
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Asks the first address only, once: for what must not happen at two nodes.
    pub(crate) async fn once<T>(
        &self,
        limit: Duration,
        call: impl AsyncFn(Channel) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        let node = &self.nodes[0];
        let silence = match node.channel().await {
            Err(reason) => Silence::Unreached(reason),
            Ok(channel) => match attempt(limit, &call, channel).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => Silence::Transient(status),
            },
        };
        Err(match silence {
            Silence::Transient(status) if exit::server_code(&status).is_some() => status.into(),
            silence => unanswered(&[(node.address.clone(), silence)]),
        })
    }

    /// Opens a stream at the preferred node. After a failure the next call asks the next node.
    pub(crate) async fn open<T>(
        &self,
        call: impl AsyncFn(Channel) -> Result<Response<T>, Status>,
    ) -> Result<Opened<T>, Status> {
        let node = self.preferred.load(Ordering::Relaxed) % self.nodes.len();
        let Node { address, .. } = &self.nodes[node];
        let opened = match self.nodes[node].channel().await {
            Err(reason) => Err(Status::unavailable(format!("{address}: {reason}"))),
            Ok(channel) => attempt(ATTEMPT_TIMEOUT, &call, channel).await.map(Response::into_inner),
        };
        if opened.is_err() {
            self.avoid(node);
        }
        Ok(Opened { node, stream: opened? })
    }

    /// A stream of this node broke: ask the next one from now on.
    pub(crate) fn avoid(&self, node: usize) {
        self.preferred.store((node + 1) % self.nodes.len(), Ordering::Relaxed);
    }

    /// Remembers the addresses of the other nodes, to ask them when those of the user are silent.
    /// An address that cannot be reached from here costs a connect timeout, nothing more.
    pub(crate) async fn learn(&mut self) {
        let asked = self.read(async |channel| fleet(channel).list_nodes(ListNodesRequest {}).await).await;
        let Ok(reply) = asked else { return };
        for node in reply.nodes {
            if !node.cluster_address.is_empty()
                && self.nodes.iter().all(|known| known.address != node.cluster_address)
            {
                self.nodes.push(Node::new(&node.cluster_address));
            }
        }
    }

    /// One attempt per node. The outer error is an answer that asking again would not change.
    async fn round<T>(
        &self,
        limit: Duration,
        call: &impl AsyncFn(Channel) -> Result<Response<T>, Status>,
    ) -> Result<Result<T, Vec<(String, Silence)>>, Failure> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut silences = Vec::new();
        for offset in 0..self.nodes.len() {
            let index = (first + offset) % self.nodes.len();
            let node = &self.nodes[index];
            let silence = match node.channel().await {
                Err(reason) => Silence::Unreached(reason),
                Ok(channel) => match attempt(limit, call, channel).await {
                    Ok(answer) => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Ok(Ok(answer.into_inner()));
                    }
                    Err(status) if exit::is_transient(&status) => Silence::Transient(status),
                    Err(status) => return Err(status.into()),
                },
            };
            debug!(address = node.address, reason = %silence.reason(), "no answer");
            silences.push((node.address.clone(), silence));
        }
        Ok(Err(silences))
    }
}

impl Node {
    fn new(address: &str) -> Self {
        Self { address: address.to_owned(), channel: OnceCell::new() }
    }

    async fn channel(&self) -> Result<Channel, String> {
        let connect = async || {
            let endpoint = Endpoint::from_shared(format!("http://{}", self.address))
                .map_err(|_| "this is not an address: `host:port` is expected".to_owned())?
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE)
                .keep_alive_while_idle(true);
            // The endpoint's own timeout does not cover name resolution.
            match timeout(CONNECT_TIMEOUT, endpoint.connect()).await {
                Ok(connected) => connected.map_err(|err| root_cause(&err)),
                Err(_) => Err(format!("no connection within {CONNECT_TIMEOUT:?}")),
            }
        };
        self.channel.get_or_try_init(connect).await.cloned()
    }
}

impl Silence {
    fn reason(&self) -> &str {
        match self {
            Self::Unreached(reason) => reason,
            Self::Transient(status) => status.message(),
        }
    }
}

pub(crate) fn fleet(channel: Channel) -> Fleet {
    FleetClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

pub(crate) fn cluster(channel: Channel) -> Cluster {
    ClusterClient::new(channel)
}

async fn attempt<T>(
    limit: Duration,
    call: &impl AsyncFn(Channel) -> Result<Response<T>, Status>,
    channel: Channel,
) -> Result<Response<T>, Status> {
    match timeout(limit, call(channel)).await {
        Ok(answered) => answered,
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {limit:.1?}"))),
    }
}

/// What no node could answer, as one failure. The word of a node that was reached weighs more than
/// a connection that was refused.
fn unanswered(silences: &[(String, Silence)]) -> Failure {
    let said = silences.iter().find_map(|(_, silence)| match silence {
        Silence::Transient(status) if exit::server_code(status).is_some() => Some(status.clone()),
        Silence::Transient(_) | Silence::Unreached(_) => None,
    });
    if let Some(status) = said {
        return status.into();
    }
    let addresses: Vec<&str> = silences.iter().map(|(address, _)| address.as_str()).collect();
    let mut message = format!("no node answers at {}", addresses.join(", "));
    for (address, silence) in silences {
        message += &format!("\n  {address}: {}", silence.reason());
    }
    Failure::new(Exit::Unreachable, message).code("E0400").help(
        "is a node running there? Start some with `flotilla dev`, or name the address of one with --addr or \
         FLOTILLA_ADDR",
    )
}

/// "Connection refused" is at the bottom of four wrappers that say "transport error".
fn root_cause(err: &tonic::transport::Error) -> String {
    let mut cause: &dyn std::error::Error = err;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string();
    // Rust appends "(os error 111)", which helps nobody.
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
