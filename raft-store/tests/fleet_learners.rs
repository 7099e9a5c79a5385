//! A fleet of a thousand nodes, most of them learners: how long one change takes to be at all of them.
//!
//! Simulated: each learner is the state machine's value alone, in this process. It gets the bytes of the
//! snapshot and of each log entry, as the leader would send them to it, decodes and applies them on its
//! own, and finds what has changed for it. Not simulated: disks, the network, the proxies.
//!
//! The bytes are made once, whatever the number of learners. What each makes of them it does on a machine of
//! its own in a real fleet, so one learner's share is what it adds there; here a few processors do it a thousand times.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a measurement says what it measured in real time, and ends where it goes wrong"
)]

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use flotilla_raft_store::{
    ApplyApp, Availability, Batch, Change, ClusterId, Command, Desired, Fleet, GenerationId, Member, NodeId,
    Step, Timestamp, Transition,
    codec::{decode_batch, decode_fleet, encode_batch, encode_fleet},
};
use flotilla_spec::{AppName, AppSpec};

const NODES: usize = 1_000;
const REPLICAS: usize = 3;

struct Leader {
    fleet: Fleet,
    /// What was written since it was emptied last.
    entries: Vec<(u64, Vec<u8>)>,
}

impl Leader {
    fn write(&mut self, changes: Vec<Change>) {
        let index = self.fleet.index + 1;
        let time = Timestamp(index);
        let batch =
            Batch(changes.into_iter().map(|change| Command { request: None, time, change }).collect());
        batch.0.iter().for_each(|command| drop(self.fleet.apply(index, command).unwrap()));
        self.entries.push((index, encode_batch(&batch)));
    }

    /// A rollout without a bake: asked for, shifted, complete.
    fn change(&mut self, app: usize, port: u16) -> (AppName, GenerationId) {
        let json = format!(r#"{{"name":"app-{app}","listen":[0],"targets":["10.0.0.1:{port}"]}}"#);
        let spec = AppSpec::from_json(json.as_bytes()).unwrap();
        let name = spec.name.clone();
        let nodes = self.fleet.members.keys().copied();
        let placed: Vec<NodeId> = nodes.skip(app * REPLICAS % (NODES - REPLICAS)).take(REPLICAS).collect();
        let apps = vec![ApplyApp { spec, if_version: None, placed: placed.clone() }];
        self.write(vec![Change::ApplyApps { apps }]);
        let generation = GenerationId(self.fleet.index);
        for step in [Step::Shifting { since: Timestamp(1), percent: 100 }, Step::Done] {
            let steps = placed.iter().map(|node| (*node, step.clone())).collect();
            let (app, why) = (name.clone(), String::new());
            self.coordinate(Transition::Advance { app, generation, steps, why });
        }
        self.coordinate(Transition::Complete { app: name.clone(), generation });
        (name, generation)
    }

    fn coordinate(&mut self, transition: Transition) {
        self.write(vec![Change::Coordinate { term: 1, transition }]);
    }
}

/// One node's copy, from what came over the wire.
struct Learner {
    fleet: Arc<Fleet>,
    installed: Duration,
    followed: Duration,
}

impl Learner {
    fn install(snapshot: &[u8]) -> Self {
        let began = Instant::now();
        let fleet = Arc::new(decode_fleet(snapshot).unwrap());
        Self { fleet, installed: began.elapsed(), followed: Duration::ZERO }
    }

    /// Returns the apps of which something has changed.
    fn follow(&mut self, entries: &[(u64, Vec<u8>)]) -> usize {
        let began = Instant::now();
        let before = self.fleet.clone();
        for (index, bytes) in entries {
            let Batch(commands) = decode_batch(bytes).unwrap();
            let fleet = Arc::make_mut(&mut self.fleet);
            commands.iter().for_each(|command| drop(fleet.apply(*index, command)));
        }
        let changed = self.fleet.apps_changed_since(&before).len();
        self.followed = began.elapsed();
        changed
    }
}

/// The median and the longest.
fn of_one(learners: &[Learner], took: impl Fn(&Learner) -> Duration) -> (Duration, Duration) {
    let mut times: Vec<Duration> = learners.iter().map(took).collect();
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() - 1])
}

fn leader(apps: usize) -> Leader {
    let mut leader = Leader { fleet: Fleet::default(), entries: Vec::new() };
    let (id, name) = (ClusterId("c1".to_owned()), "fra".to_owned());
    leader.write(vec![Change::InitCluster { id, name, member: member(1) }]);
    (2..=NODES).for_each(|node| leader.write(vec![Change::AddMember { member: member(node) }]));
    leader.write(vec![Change::TakeControl { term: 1, node: NodeId(1) }]);
    (0..apps).for_each(|app| drop(leader.change(app, 80)));
    leader.entries.clear();
    leader
}

fn member(number: usize) -> Member {
    let name = format!("n{number}");
    Member {
        zone: format!("zone-{}", number % 3),
        region: "fra".to_owned(),
        cluster_address: format!("{name}:7400"),
        admin_address: format!("{name}:7401"),
        traffic_address: name.clone(),
        labels: BTreeMap::new(),
        port_pool: (20_000, 29_999),
        reserved_ports: Vec::new(),
        availability: Availability::Active,
        drain: None,
        weight: 100,
        binary_version: "0.1.0".to_owned(),
        name,
    }
}

/// On all processors; the time until the last one is done.
fn on_all<T: Send>(learners: &mut [T], work: impl Fn(&mut T) + Sync) -> Duration {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let began = Instant::now();
    thread::scope(|scope| {
        for part in learners.chunks_mut(learners.len().div_ceil(threads)) {
            scope.spawn(|| part.iter_mut().for_each(&work));
        }
    });
    began.elapsed()
}

/// `APPS=100 cargo test --release -p flotilla-raft-store --test fleet_learners -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn one_change_is_at_a_thousand_learners_within_a_second() {
    let apps = std::env::var("APPS").map_or(100, |text| text.parse().unwrap());
    let mut leader = leader(apps);
    let snapshot = encode_fleet(&leader.fleet);
    let (app, generation) = leader.change(apps / 2, 81);
    let digest = leader.fleet.digest();

    let mut learners: Vec<Option<Learner>> = (0..NODES).map(|_| None).collect();
    let installed = on_all(&mut learners, |learner| *learner = Some(Learner::install(&snapshot)));
    let followed = on_all(&mut learners, |learner| {
        assert_eq!(learner.as_mut().unwrap().follow(&leader.entries), 1);
    });
    let learners: Vec<Learner> = learners.into_iter().flatten().collect();
    let bytes: usize = leader.entries.iter().map(|(_, entry)| entry.len()).sum();
    eprintln!(
        "{NODES} learners in one process, {apps} apps: snapshot of {} bytes in {installed:.1?}, {} entries of {bytes} bytes in {followed:.1?}",
        snapshot.len(),
        leader.entries.len(),
    );
    let (of_snapshot, of_entries) =
        (of_one(&learners, |learner| learner.installed), of_one(&learners, |learner| learner.followed));
    eprintln!(
        "of that one learner, median and longest: snapshot {:.1?}, {:.1?}; entries {:.1?}, {:.1?}",
        of_snapshot.0, of_snapshot.1, of_entries.0, of_entries.1
    );
    let mut serve = 0;
    for learner in learners {
        assert_eq!(learner.fleet.digest(), digest);
        let asked = |node: &&NodeId| {
            let asked = learner.fleet.assignment(**node, &app, generation);
            asked.is_some_and(|asked| asked.desired == Desired::Serve)
        };
        serve += learner.fleet.members.keys().filter(asked).count();
    }
    assert_eq!(serve, NODES * REPLICAS);
    assert!(followed < Duration::from_secs(1), "{followed:?}");
}
