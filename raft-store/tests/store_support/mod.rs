//! What the tests of the store share: entries that follow from their index, and a way to run this very test
//! binary a second time as the process that is killed.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::result_large_err, reason = "openraft's errors")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    ops::Range,
    path::Path,
    process::{Child, ChildStdout, Command as Process, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use flotilla_raft_store::{
    Availability, Batch, Change, ClusterId, Command, Identity, LogStore, Member, NodeId, OpenError, Opened,
    Store, StoreOptions, Timestamp, Transition,
    types::{Entry, LogId, Raft, Snapshot, Timings, TypeConfig, Vote, recommended_config},
};
use flotilla_spec::AppName;
use openraft::{
    BasicNode, CommittedLeaderId, EntryPayload, LogState, RaftLogReader, RaftSnapshotBuilder,
    error::{
        Fatal, Infallible, RPCError, RaftError, RemoteError, ReplicationClosed, StreamingError, Unreachable,
    },
    network::RPCOption,
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
    storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) const DIR: &str = "FLOTILLA_TEST_DIR";

pub(crate) fn identity() -> Identity {
    Identity {
        cluster: ClusterId("0123456789abcdef0123456789abcdef".to_owned()),
        cluster_name: "berlin".to_owned(),
        node: NodeId(7),
        node_name: "n7".to_owned(),
    }
}

pub(crate) async fn create(dir: &Path) -> Opened {
    Store::create(dir, &identity(), StoreOptions::default()).await.unwrap()
}

pub(crate) async fn open(dir: &Path) -> Result<Opened, OpenError> {
    Store::open(dir, StoreOptions::default()).await
}

/// Returns when another store may open the directory.
pub(crate) async fn close(opened: Opened) {
    let status = opened.status.clone();
    drop(opened);
    tokio::time::timeout(Duration::from_secs(10), status.closed()).await.expect("the store closes");
}

pub(crate) fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1, NodeId(7)), index)
}

/// Every 17th takes several chunks, the others one.
pub(crate) fn entry(index: u64) -> Entry {
    let bytes = if index % 17 == 3 { 20_000 } else { index * 37 % 500 };
    entry_of(index, usize::try_from(bytes).unwrap())
}

pub(crate) fn entry_of(index: u64, bytes: usize) -> Entry {
    let reason = format!("{index:08}").chars().cycle().take(bytes).collect();
    let transition =
        Transition::RollBack { app: AppName::parse("shop").unwrap(), generation: index.into(), reason };
    let change = Change::Coordinate { term: index, transition };
    normal(index, vec![Command { request: None, time: Timestamp(index), change }])
}

pub(crate) fn normal(index: u64, commands: Vec<Command>) -> Entry {
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(Batch(commands)) }
}

pub(crate) async fn append(log: &mut LogStore, indexes: Range<u64>) {
    log.blocking_append(indexes.map(entry)).await.unwrap();
}

/// Appends, commits and applies, as Raft does.
pub(crate) async fn write(opened: &mut Opened, indexes: Range<u64>) {
    append(&mut opened.log, indexes.clone()).await;
    opened.log.save_committed(Some(log_id(indexes.end - 1))).await.unwrap();
    opened.state_machine.apply(indexes.map(entry)).await.unwrap();
}

pub(crate) async fn build_snapshot(opened: &mut Opened) {
    opened.state_machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
}

/// The log goes from after its purged entries to its last one, every entry is the one that was written, and
/// it has reached `acked`.
pub(crate) async fn check_log(log: &mut LogStore, acked: Option<u64>) -> LogState<TypeConfig> {
    let state = log.get_log_state().await.unwrap();
    let begin = state.last_purged_log_id.map_or(0, |purged| purged.index + 1);
    let end = state.last_log_id.map_or(0, |last| last.index + 1);
    assert!(acked.is_none_or(|acked| acked < end), "{acked:?} was acknowledged, the log ends before {end}");
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries.len() as u64, end - begin, "{state:?}");
    for (found, index) in entries.iter().zip(begin..) {
        assert!(*found == entry(index), "entry {index} is not what was written");
    }
    state
}

pub(crate) fn member(name: &str) -> Member {
    Member {
        name: name.to_owned(),
        region: "eu".to_owned(),
        zone: String::new(),
        cluster_address: "127.0.0.1:7400".to_owned(),
        admin_address: "127.0.0.1:7401".to_owned(),
        traffic_address: "127.0.0.1".to_owned(),
        labels: Default::default(),
        port_pool: (20_000, 29_999),
        reserved_ports: Vec::new(),
        availability: Availability::Active,
        drain: None,
        weight: 100,
        binary_version: "0.1.0".to_owned(),
    }
}

pub(crate) fn vote(term: u64) -> Vote {
    Vote::new(term, NodeId(7))
}

/// Runs the ignored test `name` of this binary in a process of its own.
pub(crate) fn spawn_child(name: &str, dir: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Process::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", name, "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    (child, stdout)
}

/// Reads up to and including the line `wanted`.
pub(crate) fn wait_for_line(stdout: &mut BufReader<ChildStdout>, wanted: &str) {
    let mut line = String::new();
    while stdout.read_line(&mut line).unwrap() > 0 {
        if line.trim_end() == wanted {
            return;
        }
        line.clear();
    }
    panic!("the child ended without saying `{wanted}`");
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in from.read_dir().unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy_dir(&item.path(), &target);
        } else {
            std::fs::copy(item.path(), target).unwrap();
        }
    }
}

/// Calls the peers of this process directly; whoever is not in the map does not answer.
#[derive(Clone, Default)]
pub(crate) struct Network {
    pub(crate) peers: Arc<Mutex<BTreeMap<NodeId, Raft>>>,
}

/// The way to one peer.
pub(crate) struct Link {
    network: Network,
    target: NodeId,
}

type Called<T, E = Infallible> = Result<T, RPCError<NodeId, BasicNode, RaftError<NodeId, E>>>;

impl Link {
    fn peer<E: std::error::Error>(&self) -> Result<Raft, RPCError<NodeId, BasicNode, E>> {
        let peer = self.network.peers.lock().unwrap().get(&self.target).cloned();
        peer.ok_or_else(|| RPCError::Unreachable(Unreachable::new(&silence())))
    }

    fn answer<T, E: std::error::Error>(&self, answer: Result<T, RaftError<NodeId, E>>) -> Called<T, E> {
        answer.map_err(|err| RPCError::RemoteError(RemoteError::new(self.target, err)))
    }
}

impl openraft::RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, _node: &BasicNode) -> Link {
        Link { network: self.clone(), target }
    }
}

impl openraft::RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Called<AppendEntriesResponse<NodeId>> {
        self.answer(self.peer()?.append_entries(rpc).await)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        mut snapshot: Snapshot,
        _: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<TypeConfig, Fatal<NodeId>>> {
        let peer = self.peer::<Infallible>().map_err(|_| Unreachable::new(&silence()))?;
        let mut received = peer.begin_receiving_snapshot().await.unwrap();
        let mut chunk = [0; 256];
        loop {
            let bytes = snapshot.snapshot.read(&mut chunk).await.unwrap();
            if bytes == 0 {
                break;
            }
            received.write_all(&chunk[..bytes]).await.unwrap();
        }
        let installed =
            peer.install_full_snapshot(vote, Snapshot { meta: snapshot.meta, snapshot: received }).await;
        Ok(installed.unwrap())
    }

    async fn vote(&mut self, rpc: VoteRequest<NodeId>, _: RPCOption) -> Called<VoteResponse<NodeId>> {
        self.answer(self.peer()?.vote(rpc).await)
    }
}

fn silence() -> std::io::Error {
    std::io::ErrorKind::NotConnected.into()
}

/// A node that peers reach through `network`.
pub(crate) async fn start(opened: Opened, network: &Network) -> Raft {
    let config = Arc::new(recommended_config(Timings::faster(10)));
    let node = opened.identity.node;
    let raft = Raft::new(node, config, network.clone(), opened.log, opened.state_machine).await.unwrap();
    network.peers.lock().unwrap().insert(node, raft.clone());
    raft
}

pub(crate) const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));

/// Makes `raft` the only voter and waits until it leads.
pub(crate) async fn lead(raft: &Raft) {
    raft.initialize(BTreeSet::from([identity().node])).await.unwrap();
    raft.wait(PATIENCE).state(openraft::ServerState::Leader, "the only voter leads").await.unwrap();
}
