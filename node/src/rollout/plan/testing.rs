//! A log with one reader: what both test drivers of the plan need.
#![allow(clippy::unwrap_used, reason = "a test ends where it goes wrong")]

use std::time::Duration;

use flotilla_raft_store::{
    Answer, Assignment, Availability, Change, ClusterId, Command, Desired, Fleet, GenerationId, Member,
    NodeId, Timestamp,
};
use flotilla_spec::{AppName, AppSpec};

use crate::rollout::observed::{GenerationReport, Readiness};

#[derive(Default)]
pub(crate) struct Log {
    pub(crate) fleet: Fleet,
    index: u64,
    pub(crate) now: Timestamp,
}

impl Log {
    pub(crate) fn new() -> Self {
        let mut log = Self::default();
        let change =
            Change::InitCluster { id: ClusterId("c1".into()), name: "fra".into(), member: member("n1") };
        log.apply(change).unwrap();
        log
    }

    pub(crate) fn apply(&mut self, change: Change) -> Answer {
        self.index += 1;
        let answer = self.fleet.apply(self.index, &Command { request: None, time: self.now, change });
        assert_eq!(self.fleet.check(), Ok(()));
        answer
    }

    pub(crate) fn take_control(&mut self, node: NodeId) {
        let term = self.fleet.cluster.controller.term + 1;
        self.apply(Change::TakeControl { term, node }).unwrap();
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now = Timestamp(self.now.0 + u64::try_from(time.as_millis()).unwrap());
    }
}

pub(crate) fn member(name: &str) -> Member {
    Member {
        name: name.to_owned(),
        region: "fra".to_owned(),
        zone: format!("zone-of-{name}"),
        cluster_address: format!("{name}:7400"),
        admin_address: format!("{name}:7401"),
        traffic_address: name.to_owned(),
        labels: Default::default(),
        port_pool: (20_000, 29_999),
        reserved_ports: Vec::new(),
        availability: Availability::Active,
        drain: None,
        weight: 100,
        binary_version: "0.1.0".to_owned(),
    }
}

pub(crate) fn app(name: &str) -> AppName {
    AppName::parse(name).unwrap()
}

/// `listen` and further tables as JSON.
pub(crate) fn spec(app: &str, listen: &str, tables: &str) -> AppSpec {
    let json = format!(r#"{{"name":"{app}","listen":[{listen}],"targets":["10.0.0.1:80"]{tables}}}"#);
    AppSpec::from_json(json.as_bytes()).unwrap_or_else(|err| panic!("{json}: {err}"))
}

/// What a node that does as it is asked says of one generation; `None` when it has let go of it.
pub(crate) fn obedient(
    fleet: &Fleet,
    node: NodeId,
    key: &(AppName, GenerationId),
    asked: &Assignment,
) -> Option<GenerationReport> {
    let readiness = match asked.desired {
        Desired::Prepare => Readiness::Ready,
        Desired::Serve if share(fleet, node, key) > 0 => Readiness::Serving,
        Desired::Serve => Readiness::Ready,
        Desired::Drain => Readiness::Draining,
        Desired::Remove => return None,
    };
    let percent = if asked.desired == Desired::Serve { share(fleet, node, key) } else { 0 };
    Some(GenerationReport { percent, ..report(fleet, key, readiness) })
}

fn share(fleet: &Fleet, node: NodeId, key: &(AppName, GenerationId)) -> u8 {
    fleet.traffic(node, &key.0).map_or(0, |traffic| traffic.share_of(key.1))
}

pub(crate) fn report(fleet: &Fleet, key: &(AppName, GenerationId), readiness: Readiness) -> GenerationReport {
    GenerationReport {
        readiness,
        percent: if readiness == Readiness::Serving { 100 } else { 0 },
        detail: String::new(),
        warnings: Vec::new(),
        digest: fleet.generations.get(key).map_or([0; 32], |generation| generation.digest),
        pins: 0,
        targets: Vec::new(),
        taken_ports: Vec::new(),
        probes: Vec::new(),
        repairs: 0,
    }
}
