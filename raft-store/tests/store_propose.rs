//! The proposer in front of a real Raft and a real store.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use flotilla_raft_store::{
    Change, Command, FsyncObserver, Identity, NodeId, ProposeError, ProposeOptions, Proposer, Rejection,
    Reply, RequestId, Store, StoreOptions, Timestamp, Transition, types::Raft,
};
use flotilla_spec::AppName;
use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::task::JoinSet;

use self::store_support::*;

mod store_support;

/// A cluster of one, with a count of the syncs of its log.
struct Node {
    raft: Raft,
    proposer: Proposer,
    network: Network,
    syncs: Arc<AtomicU64>,
    tasks: JoinSet<()>,
    _dir: TempDir,
}

async fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let syncs = Arc::new(AtomicU64::new(0));
    let count = syncs.clone();
    let on_fsync = FsyncObserver(Arc::new(move |_took| {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    let options = StoreOptions { on_fsync: Some(on_fsync), ..Default::default() };
    let opened = Store::create(dir.path(), &identity(), options).await.unwrap();
    let network = Network::default();
    let raft = start(opened, &network).await;
    let (proposer, task) = Proposer::new(raft.clone(), ProposeOptions::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(task.run());
    Node { raft, proposer, network, syncs, tasks, _dir: dir }
}

async fn leader() -> Node {
    let node = node().await;
    lead(&node.raft).await;
    node
}

fn delete(app: usize) -> Command {
    let app = AppName::parse(&format!("app{app}")).unwrap();
    Command { request: None, time: Timestamp(1), change: Change::DeleteApp { app, if_version: None } }
}

#[tokio::test]
async fn a_node_that_does_not_lead_proposes_nothing() {
    let node = node().await;
    assert_eq!(node.proposer.propose(delete(1)).await, Err(ProposeError::NotLeader { leader: None }));
    assert_eq!(node.raft.metrics().borrow().last_log_index, None);
}

#[tokio::test]
async fn every_writer_gets_the_answer_to_its_own_command() {
    let node = leader().await;
    let Identity { cluster, cluster_name, .. } = identity();
    let init = Change::InitCluster { id: cluster, name: cluster_name, member: member("n1") };
    let init = Command { request: None, time: Timestamp(1), change: init };
    assert_eq!(node.proposer.propose(init).await, Ok(Ok(Reply::Member { node: NodeId(1) })));

    let before = node.syncs.load(Ordering::Relaxed);
    let answers = join_all((0..64).map(|app| node.proposer.propose(delete(app)))).await;
    for (app, answer) in answers.into_iter().enumerate() {
        let app = AppName::parse(&format!("app{app}")).unwrap();
        assert_eq!(answer, Ok(Err(Rejection::NoSuchApp { app })));
    }
    let syncs = node.syncs.load(Ordering::Relaxed) - before;
    assert!(syncs <= 3, "64 writers took {syncs} syncs");
}

#[tokio::test]
async fn a_retry_under_the_same_request_id_is_answered_as_the_first_time() {
    let node = leader().await;
    let request = Some(RequestId { client: "cli".to_owned(), sequence: 1 });
    let Identity { cluster, cluster_name, .. } = identity();
    let init = Change::InitCluster { id: cluster, name: cluster_name, member: member("n1") };
    let init = Command { request, time: Timestamp(1), change: init };
    let first = node.proposer.propose(init.clone()).await;
    assert!(matches!(first, Ok(Ok(_))));
    assert_eq!(node.proposer.propose(init).await, first);
}

#[tokio::test]
async fn a_command_that_no_message_could_carry_is_refused() {
    let node = leader().await;
    let reason = "x".repeat(4 << 20);
    let transition = Transition::RollBack { app: AppName::parse("a").unwrap(), generation: 1.into(), reason };
    let command =
        Command { request: None, time: Timestamp(1), change: Change::Coordinate { term: 1, transition } };
    assert!(matches!(node.proposer.propose(command).await, Err(ProposeError::TooLarge { .. })));
}

#[tokio::test]
async fn raft_that_has_stopped_is_fatal() {
    let node = leader().await;
    node.raft.shutdown().await.unwrap();
    assert!(matches!(node.proposer.propose(delete(1)).await, Err(ProposeError::Fatal(_))));
}

#[tokio::test]
async fn a_write_without_a_quorum_is_unknown_and_the_next_one_is_not_even_proposed() {
    let mut node = leader().await;
    let dir = tempfile::tempdir().unwrap();
    let mut second = identity();
    second.node = 9.into();
    let opened = Store::create(dir.path(), &second, StoreOptions::default()).await.unwrap();
    let follower = start(opened, &node.network).await;
    node.raft.add_learner(second.node, openraft::BasicNode::new("here"), true).await.unwrap();
    node.raft.change_membership(BTreeSet::from([identity().node, second.node]), false).await.unwrap();

    let (proposer, task) = Proposer::new(follower.clone(), ProposeOptions::default());
    node.tasks.spawn(task.run());
    follower.wait(PATIENCE).current_leader(identity().node, "knows the leader").await.unwrap();
    let leader = Some(identity().node);
    assert_eq!(proposer.propose(delete(1)).await, Err(ProposeError::NotLeader { leader }));

    let options = ProposeOptions {
        write_timeout: Duration::from_millis(600),
        quorum_timeout: Duration::from_millis(500),
    };
    let (proposer, task) = Proposer::new(node.raft.clone(), options);
    node.tasks.spawn(task.run());
    assert!(matches!(proposer.propose(delete(1)).await, Ok(Err(_))));
    node.network.peers.lock().unwrap().remove(&second.node);
    follower.shutdown().await.unwrap();
    assert_eq!(proposer.propose(delete(1)).await, Err(ProposeError::Unknown));
    assert_eq!(proposer.propose(delete(2)).await, Err(ProposeError::NoQuorum));
    node.raft.shutdown().await.unwrap();
}
