//! How members reach each other: one channel per peer, an address book, and openraft's network over
//! both.
//!
//! An identity is not an address. The book says where a member lives now: what the member itself
//! announced last, else what the fleet has agreed on, else what openraft's membership carries.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use flotilla_api::v1::{self, peer_client::PeerClient};
use flotilla_raft_store::{
    ClusterId, Fleet, NodeId,
    codec::raft::{encode_entry, encode_snapshot_meta},
    types::TypeConfig,
};
use futures_util::StreamExt as _;
use openraft::{
    BasicNode, RaftNetwork, RaftNetworkFactory, Snapshot, Vote,
    error::{Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use tokio::{fs::File, io::AsyncReadExt as _, sync::watch};
use tonic::transport::{Channel, Endpoint};

use crate::server::convert;

/// A message between nodes; snapshots travel in chunks well below it.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 << 20;
const SNAPSHOT_CHUNK_BYTES: usize = 256 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A peer that vanished without a FIN is noticed after this and one more timeout of the same length.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// The other members, as this one reaches them.
pub(crate) struct Peers {
    pub(crate) cluster: ClusterId,
    pub(crate) me: NodeId,
    fleet: watch::Receiver<Arc<Fleet>>,
    state: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    /// Addresses that members announced and the fleet does not know yet.
    announced: BTreeMap<NodeId, String>,
    channels: BTreeMap<NodeId, (String, Channel)>,
}

impl Peers {
    pub(crate) fn new(cluster: ClusterId, me: NodeId, fleet: watch::Receiver<Arc<Fleet>>) -> Arc<Self> {
        Arc::new(Self { cluster, me, fleet, state: Mutex::default() })
    }

    /// `node` says that it lives at `address` now. Used at once, before the fleet has agreed:
    /// otherwise a cluster in which every address changed could never elect a leader again.
    pub(crate) fn announced(&self, node: NodeId, address: String) {
        let mut book = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        book.announced.insert(node, address);
    }

    /// A channel to `node`, which connects when it is first used and again whenever it has to.
    pub(crate) fn channel(&self, node: NodeId, otherwise: Option<&str>) -> Result<Channel, NoAddress> {
        let agreed = self.fleet.borrow().members.get(&node).map(|member| member.cluster_address.clone());
        let mut book = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if agreed.is_some() && book.announced.get(&node) == agreed.as_ref() {
            book.announced.remove(&node);
        }
        let address = book.announced.get(&node).cloned().or(agreed).or_else(|| otherwise.map(str::to_owned));
        let address = address.ok_or(NoAddress { node })?;
        match book.channels.get(&node) {
            Some((known, channel)) if *known == address => Ok(channel.clone()),
            Some(_) | None => {
                let channel = channel(&address).map_err(|_| NoAddress { node })?;
                book.channels.insert(node, (address, channel.clone()));
                Ok(channel)
            }
        }
    }

    pub(crate) fn client(&self, node: NodeId) -> Result<PeerClient<Channel>, NoAddress> {
        Ok(peer_client(self.channel(node, None)?))
    }

    pub(crate) fn envelope(&self, to: NodeId) -> Option<v1::Envelope> {
        Some(v1::Envelope { cluster_id: self.cluster.0.clone(), from: self.me.0, to: to.0 })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no address is known of node {node}")]
pub(crate) struct NoAddress {
    node: NodeId,
}

/// Fails only when `address` is not `host:port`.
pub(crate) fn channel(address: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_lazy())
}

fn peer_client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Makes openraft's connections; see [`Peers`] for where they lead.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) peers: Arc<Peers>,
    /// First pause before an unreachable peer is tried again; doubles up to eight times it.
    pub(crate) retry: Duration,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: NodeId, node: &BasicNode) -> Connection {
        Connection { peers: self.peers.clone(), target, address: node.addr.clone(), retry: self.retry }
    }
}

pub(crate) struct Connection {
    peers: Arc<Peers>,
    target: NodeId,
    /// From openraft's membership: enough until this node has applied its first commands.
    address: String,
    retry: Duration,
}

type RpcError<E = RaftError<NodeId>> = RPCError<NodeId, BasicNode, E>;

impl Connection {
    fn client(&self) -> Result<PeerClient<Channel>, Unreachable> {
        let channel =
            self.peers.channel(self.target, Some(&self.address)).map_err(|err| Unreachable::new(&err))?;
        Ok(peer_client(channel))
    }
}

/// A file that cannot be read ends the stream early; the receiver sees that bytes are missing.
async fn next_chunk(mut file: File) -> Option<(v1::SnapshotChunk, File)> {
    let mut chunk = vec![0; SNAPSHOT_CHUNK_BYTES];
    let read = file.read(&mut chunk).await.unwrap_or(0);
    chunk.truncate(read);
    (read > 0).then_some((v1::SnapshotChunk { part: Some(v1::snapshot_chunk::Part::Data(chunk)) }, file))
}

/// Waits for the answer no longer than openraft is prepared to.
async fn call<T>(
    option: &RPCOption,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, RpcError> {
    match tokio::time::timeout(option.hard_ttl(), answer).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        // A node that refuses (it is starting, or another one has its address) does so again at once:
        // like one that cannot be reached, it is asked again after a pause.
        Ok(Err(status)) => Err(RPCError::Unreachable(Unreachable::new(&status))),
        Err(elapsed) => Err(RPCError::Unreachable(Unreachable::new(&elapsed))),
    }
}

impl RaftNetwork<TypeConfig> for Connection {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RpcError> {
        let request = v1::AppendEntriesRequest {
            envelope: self.peers.envelope(self.target),
            vote: Some(convert::vote_to_pb(&rpc.vote)),
            prev_log_id: rpc.prev_log_id.as_ref().map(convert::log_id_to_pb),
            entries: rpc.entries.iter().map(encode_entry).collect(),
            leader_commit: rpc.leader_commit.as_ref().map(convert::log_id_to_pb),
        };
        let mut client = self.client().map_err(RPCError::Unreachable)?;
        let reply = call(&option, client.append_entries(request)).await?;
        convert::append_reply(reply).map_err(|err| RPCError::Network(NetworkError::new(&err)))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RpcError> {
        let request = v1::VoteRequest {
            envelope: self.peers.envelope(self.target),
            vote: Some(convert::vote_to_pb(&rpc.vote)),
            last_log_id: rpc.last_log_id.as_ref().map(convert::log_id_to_pb),
        };
        let mut client = self.client().map_err(RPCError::Unreachable)?;
        let reply = call(&option, client.vote(request)).await?;
        convert::vote_reply(reply).map_err(|err| RPCError::Network(NetworkError::new(&err)))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<NodeId>,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<TypeConfig, Fatal<NodeId>>> {
        let size_bytes = snapshot
            .snapshot
            .metadata()
            .await
            .map_err(|err| StreamingError::Network(NetworkError::new(&err)))?
            .len();
        let head = v1::SnapshotHead {
            envelope: self.peers.envelope(self.target),
            vote: Some(convert::vote_to_pb(&vote)),
            meta: encode_snapshot_meta(&snapshot.meta),
            size_bytes,
        };
        let head = v1::SnapshotChunk { part: Some(v1::snapshot_chunk::Part::Head(head)) };
        let chunks = futures_util::stream::unfold(*snapshot.snapshot, next_chunk);
        let mut client = self.client().map_err(StreamingError::Unreachable)?;
        let answer = client.install_snapshot(futures_util::stream::iter([head]).chain(chunks));
        let reply = tokio::select! {
            // Nothing is half done when the transfer is dropped: the receiver installs only whole files.
            closed = cancel => return Err(StreamingError::Closed(closed)),
            reply = call(&option, answer) => reply.map_err(|err| match err {
                RPCError::Unreachable(err) => StreamingError::Unreachable(err),
                other => StreamingError::Network(NetworkError::new(&other)),
            })?,
        };
        let vote =
            convert::vote(reply.vote).map_err(|err| StreamingError::Network(NetworkError::new(&err)))?;
        Ok(SnapshotResponse { vote })
    }

    fn backoff(&self) -> Backoff {
        let retry = self.retry;
        Backoff::new((0..).map(move |attempt: u32| retry * 2_u32.pow(attempt.min(3))))
    }
}
