//! What a change of one app costs a replica, by how many apps there are beside it: the entry is applied
//! while readers hold the fleet before it, and published.
//!
//! `cargo bench -p flotilla-raft-store --bench fleet`.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]
#![allow(clippy::unwrap_used, reason = "a benchmark that fails stops")]
#![allow(clippy::disallowed_methods, reason = "it measures real time")]

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use flotilla_raft_store::{
    ApplyApp, Availability, Change, ClusterId, Command, Fleet, GenerationId, Member, NodeId, Step, Timestamp,
    Transition,
};
use flotilla_spec::{AppName, AppSpec};

/// Apps of one entry while the fleet is filled.
const BATCH: usize = 250;
const CHANGES: u16 = 500;

fn main() {
    println!("{:<12}{:>12}{:>12}{:>14}", "apps", "p50 us", "p99 us", "bytes encoded");
    for apps in [100, 1_000, 10_000] {
        let mut log = Log::new();
        for first in (0..apps).step_by(BATCH) {
            log.change((first..apps.min(first + BATCH)).map(|app| spec(app, 80)).collect());
        }
        let bytes = flotilla_raft_store::codec::encode_fleet(&log.fleet).len();
        let mut times: Vec<_> = (0..CHANGES).map(|change| log.timed(spec(apps / 2, 81 + change))).collect();
        times.sort_unstable();
        let micros = |at: usize| times[times.len() * at / 100].as_secs_f64() * 1e6;
        println!("{apps:<12}{:>12.0}{:>12.0}{bytes:>14}", micros(50), micros(99));
    }
}

struct Log {
    fleet: Arc<Fleet>,
    index: u64,
}

impl Log {
    fn new() -> Self {
        let mut log = Self { fleet: Arc::default(), index: 0 };
        let (id, name) = (ClusterId("c1".to_owned()), "fra".to_owned());
        log.apply(Change::InitCluster { id, name, member: member("n1") });
        for name in ["n2", "n3"] {
            log.apply(Change::AddMember { member: member(name) });
        }
        log.apply(Change::TakeControl { term: 1, node: NodeId(1) });
        log
    }

    /// As the state machine does it: whoever reads the fleet before keeps it.
    fn apply(&mut self, change: Change) {
        self.index += 1;
        let command = Command { request: None, time: Timestamp(self.index), change };
        Arc::make_mut(&mut self.fleet).apply(self.index, &command).unwrap();
    }

    /// A whole rollout, without the nodes.
    fn change(&mut self, specs: Vec<AppSpec>) {
        let names: Vec<AppName> = specs.iter().map(|spec| spec.name.clone()).collect();
        let placed: Vec<NodeId> = self.fleet.members.keys().copied().collect();
        let apps = specs.into_iter().map(|spec| ApplyApp { spec, if_version: None, placed: placed.clone() });
        self.apply(Change::ApplyApps { apps: apps.collect() });
        let generation = GenerationId(self.index);
        let steps = [Step::Ready, Step::Shifting { since: Timestamp(1), percent: 100 }, Step::Done];
        for app in names {
            for step in &steps {
                let steps = placed.iter().map(|node| (*node, step.clone())).collect();
                let (app, why) = (app.clone(), String::new());
                self.coordinate(Transition::Advance { app, generation, steps, why });
            }
            self.coordinate(Transition::Complete { app, generation });
        }
    }

    fn coordinate(&mut self, transition: Transition) {
        self.apply(Change::Coordinate { term: 1, transition });
    }

    fn timed(&mut self, spec: AppSpec) -> std::time::Duration {
        let reader = self.fleet.clone();
        let placed = reader.members.keys().copied().collect();
        let apps = vec![ApplyApp { spec, if_version: None, placed }];
        let began = Instant::now();
        self.apply(Change::ApplyApps { apps });
        drop(reader);
        began.elapsed()
    }
}

fn spec(app: usize, port: u16) -> AppSpec {
    let json = format!(r#"{{"name":"app-{app}","listen":[0],"targets":["10.0.0.1:{port}"]}}"#);
    AppSpec::from_json(json.as_bytes()).unwrap()
}

fn member(name: &str) -> Member {
    Member {
        name: name.to_owned(),
        region: "fra".to_owned(),
        zone: name.to_owned(),
        cluster_address: format!("{name}:7400"),
        admin_address: format!("{name}:7401"),
        traffic_address: name.to_owned(),
        labels: BTreeMap::new(),
        port_pool: (20_000, 39_999),
        reserved_ports: Vec::new(),
        availability: Availability::Active,
        drain: None,
        weight: 100,
        binary_version: "0.1.0".to_owned(),
    }
}
