//! What a durable write costs: the log alone, and many writers through Raft with and without the proposer.
//!
//! `cargo bench -p flotilla-raft-store`. The numbers are those of the disk below the temporary directory.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]
#![allow(clippy::unwrap_used, reason = "a benchmark that fails stops")]
#![allow(clippy::disallowed_methods, reason = "it measures real time")]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use flotilla_raft_store::{
    Batch, Change, ClusterId, Command, FsyncObserver, Identity, NodeId, Opened, ProposeOptions, Proposer,
    Store, StoreOptions, Timestamp,
    types::{Entry, LogId, Raft, Snapshot, Timings, TypeConfig, Vote, recommended_config},
};
use flotilla_spec::AppName;
use openraft::{
    BasicNode, CommittedLeaderId, EntryPayload,
    error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError},
    network::RPCOption,
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
    storage::RaftLogStorageExt,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

const RUN: Duration = Duration::from_secs(3);

type Syncs = Arc<Mutex<Vec<Duration>>>;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        println!(
            "{:<34}{:>12}{:>12}{:>12}{:>12}",
            "log, entries of 200 bytes", "entries/s", "syncs/s", "p50 ms", "p99 ms"
        );
        for batch in [1, 8, 64] {
            let (opened, syncs, _dir) = open().await;
            let entries = append(opened, batch).await;
            row(&format!("batches of {batch}"), entries, &syncs);
        }
        println!(
            "\n{:<34}{:>12}{:>12}{:>12}{:>12}",
            "raft of one node", "writes/s", "syncs/s", "p50 ms", "p99 ms"
        );
        for writers in [1, 16, 64] {
            let (single, syncs) = raft(writers, false).await;
            row(&format!("{writers} writers, one entry each"), single, &syncs);
            let (grouped, syncs) = raft(writers, true).await;
            row(&format!("{writers} writers, grouped"), grouped, &syncs);
            #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
            let ratio = grouped as f64 / single as f64;
            println!("{:<34}{ratio:>11.1}x", "");
        }
    });
}

/// Percentiles are those of the sync alone.
fn row(what: &str, writes: u64, syncs: &Syncs) {
    let mut syncs = syncs.lock().unwrap().clone();
    syncs.sort();
    let at = |percent: usize| syncs[(syncs.len() - 1) * percent / 100].as_secs_f64() * 1_000.0;
    let seconds = RUN.as_secs();
    println!(
        "{what:<34}{:>12}{:>12}{:>12.2}{:>12.2}",
        writes / seconds,
        syncs.len() as u64 / seconds,
        at(50),
        at(99)
    );
}

async fn open() -> (Opened, Syncs, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let syncs = Syncs::default();
    let record = syncs.clone();
    let on_fsync = FsyncObserver(Arc::new(move |took| record.lock().unwrap().push(took)));
    let options = StoreOptions { on_fsync: Some(on_fsync), ..StoreOptions::default() };
    let identity = Identity {
        cluster: ClusterId("bench".to_owned()),
        cluster_name: "bench".to_owned(),
        node: NodeId(1),
        node_name: "n1".to_owned(),
    };
    (Store::create(dir.path(), &identity, options).await.unwrap(), syncs, dir)
}

async fn append(mut opened: Opened, batch: u64) -> u64 {
    let (started, mut next) = (Instant::now(), 0);
    while started.elapsed() < RUN {
        opened.log.blocking_append((next..next + batch).map(entry)).await.unwrap();
        next += batch;
    }
    next
}

fn entry(index: u64) -> Entry {
    let commands = (0..5).map(command).collect();
    let log_id = LogId::new(CommittedLeaderId::new(1, NodeId(1)), index);
    Entry { log_id, payload: EntryPayload::Normal(Batch(commands)) }
}

fn command(app: u64) -> Command {
    let app = AppName::parse(&format!("an-app-with-a-name-{app}")).unwrap();
    Command {
        request: None,
        time: Timestamp(1_700_000_000_000),
        change: Change::DeleteApp { app, if_version: None },
    }
}

/// Writes answered in `RUN`.
async fn raft(writers: u64, grouped: bool) -> (u64, Syncs) {
    let (opened, syncs, _dir) = open().await;
    let config = Arc::new(recommended_config(Timings::faster(5)));
    let raft = Raft::new(NodeId(1), config, Alone, opened.log, opened.state_machine).await.unwrap();
    raft.initialize(BTreeSet::from([NodeId(1)])).await.unwrap();
    raft.wait(None).state(openraft::ServerState::Leader, "leads").await.unwrap();
    syncs.lock().unwrap().clear();

    let (proposer, task) = Proposer::new(raft.clone(), ProposeOptions::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(async {
        task.run().await;
        0
    });
    let started = Instant::now();
    for writer in 0..writers {
        let (raft, proposer) = (raft.clone(), proposer.clone());
        tasks.spawn(async move {
            let mut written = 0;
            while started.elapsed() < RUN {
                match grouped {
                    true => proposer.propose(command(writer)).await.map(drop).unwrap(),
                    false => raft.client_write(Batch(vec![command(writer)])).await.map(drop).unwrap(),
                }
                written += 1;
            }
            written
        });
    }
    drop(proposer);
    let written = tasks.join_all().await.into_iter().sum();
    raft.shutdown().await.unwrap();
    (written, syncs)
}

/// The network of a cluster of one.
#[derive(Clone, Copy)]
struct Alone;

type Answer<T, E = openraft::error::Infallible> =
    Result<T, RPCError<NodeId, BasicNode, RaftError<NodeId, E>>>;

impl openraft::RaftNetworkFactory<TypeConfig> for Alone {
    type Network = Self;

    async fn new_client(&mut self, _target: NodeId, _node: &BasicNode) -> Self {
        Self
    }
}

impl openraft::RaftNetwork<TypeConfig> for Alone {
    async fn append_entries(
        &mut self,
        _: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Answer<AppendEntriesResponse<NodeId>> {
        unreachable!("there are no peers")
    }

    async fn full_snapshot(
        &mut self,
        _: Vote,
        _: Snapshot,
        _: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<TypeConfig, Fatal<NodeId>>> {
        unreachable!("there are no peers")
    }

    async fn vote(&mut self, _: VoteRequest<NodeId>, _: RPCOption) -> Answer<VoteResponse<NodeId>> {
        unreachable!("there are no peers")
    }
}
