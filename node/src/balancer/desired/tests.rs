use std::{sync::Arc, time::Duration};

use flotilla_raft_store::{Availability, Change, GenerationState};

use super::*;
use crate::rollout::{
    observed::TargetReport,
    plan::testing::{self, Log, app, spec},
};

/// Three nodes that serve `web` on port 8080, and what they say.
struct Story {
    log: Log,
    observed: Observed,
}

const N2: NodeId = NodeId(2);

impl Story {
    fn new(listen: &str) -> Self {
        let mut log = Log::new();
        for name in ["n2", "n3"] {
            log.apply(Change::AddMember { member: member(name) }).unwrap();
        }
        log.apply(Change::UpdateMember { node: NodeId(1), member: member("n1") }).unwrap();
        log.take_control(NodeId(1));
        let observed = Observed {
            leader_for: Duration::from_secs(9),
            silence_max: Duration::from_secs(1),
            ..Observed::default()
        };
        let mut story = Self { log, observed };
        story.apply_app(listen);
        story
    }

    fn apply_app(&mut self, listen: &str) -> GenerationId {
        let spec = spec("web", listen, "");
        let placed = vec![NodeId(1), N2, NodeId(3)];
        let apps = vec![flotilla_raft_store::ApplyApp { spec, if_version: None, placed }];
        self.log.apply(Change::ApplyApps { apps }).unwrap();
        self.log.fleet.apps[&app("web")].wanted
    }

    /// Every node does as it is asked and says so.
    fn obey(&mut self) {
        for (&node, of_node) in &self.log.fleet.assignments {
            let generations = of_node.iter().filter_map(|(key, asked)| {
                let mut report = testing::obedient(&self.log.fleet, node, key, asked)?;
                report.targets = vec![target(1)];
                Some((key.clone(), Arc::new(report)))
            });
            let said = ObservedNode { generations: generations.collect(), ..ObservedNode::default() };
            self.observed.reports.insert(node, said);
        }
    }

    /// Rollouts are not what is tested here: every step at once.
    fn roll_out(&mut self) {
        let (generation, rollout) = self.log.fleet.newest_rollout(&app("web")).unwrap();
        let left = rollout.steps.iter().filter(|(_, step)| **step != flotilla_raft_store::Step::Done);
        let nodes: Vec<NodeId> = left.map(|(node, _)| *node).collect();
        self.shift(generation, &nodes);
        let complete = flotilla_raft_store::Transition::Complete { app: app("web"), generation };
        self.coordinate(complete);
        let state = self.log.fleet.generations[&(app("web"), generation)].state;
        assert_eq!(state, GenerationState::Serving);
        self.obey();
    }

    fn shift(&mut self, generation: GenerationId, nodes: &[NodeId]) {
        let steps = nodes.iter().map(|node| (*node, flotilla_raft_store::Step::Done)).collect();
        let (app, why) = (app("web"), String::new());
        self.coordinate(flotilla_raft_store::Transition::Advance { app, generation, steps, why });
    }

    fn coordinate(&mut self, transition: flotilla_raft_store::Transition) {
        let term = self.log.fleet.cluster.controller.term;
        self.log.apply(Change::Coordinate { term, transition }).unwrap();
    }

    /// `service: node address state`, one per line.
    #[track_caller]
    fn check(&self, expected: &[&str]) {
        let services = desired(&self.log.fleet, &self.observed);
        let lines = services.services.iter().flat_map(|service| {
            service.endpoints.iter().map(|endpoint| {
                let Endpoint { node_name, address, state, .. } = endpoint;
                format!("{}: {node_name} {address} {state:?}", service.name)
            })
        });
        assert_eq!(lines.collect::<Vec<_>>(), expected, "{:?}", services.problems);
    }
}

fn target(available: u32) -> TargetReport {
    TargetReport {
        target: "10.0.0.1:80".to_owned(),
        resolution: crate::rollout::observed::Resolution::Resolved,
        endpoints: 1,
        available,
        ejected: 0,
        detail: String::new(),
    }
}

fn member(name: &str) -> Member {
    let number = name.trim_start_matches('n');
    Member { traffic_address: format!("10.0.0.{number}"), ..testing::member(name) }
}

#[test]
fn an_endpoint_appears_when_its_node_says_that_it_serves() {
    let mut story = Story::new("8080");
    story.obey();
    story.check(&[]);
    let (generation, _) = story.log.fleet.newest_rollout(&app("web")).unwrap();
    story.shift(generation, &[N2]);
    story.check(&[]);
    story.obey();
    story.check(&["web: n2 10.0.0.2:8080 Ready"]);
    story.roll_out();
    story.check(&[
        "web: n1 10.0.0.1:8080 Ready",
        "web: n2 10.0.0.2:8080 Ready",
        "web: n3 10.0.0.3:8080 Ready",
    ]);
}

#[test]
fn a_node_that_drains_or_stops_takes_nothing_new() {
    let mut story = Story::new("8080");
    story.roll_out();
    story.log.apply(Change::SetAvailability { node: N2, availability: Availability::Draining }).unwrap();
    story.observed.reports.get_mut(&NodeId(3)).unwrap().stopping = true;
    let expected =
        ["web: n1 10.0.0.1:8080 Ready", "web: n2 10.0.0.2:8080 Drain", "web: n3 10.0.0.3:8080 Drain"];
    story.check(&expected);
    // It has closed its ports, and says that nothing serves.
    story.observed.reports.get_mut(&NodeId(3)).unwrap().generations.clear();
    story.check(&expected);
}

#[test]
fn a_silent_node_is_down_unless_the_leader_is_new_or_nobody_else_is_left() {
    let mut story = Story::new("8080");
    story.roll_out();
    story.observed.reports.get_mut(&N2).unwrap().age = Duration::from_secs(5);
    story.check(&[
        "web: n1 10.0.0.1:8080 Ready",
        "web: n2 10.0.0.2:8080 Down",
        "web: n3 10.0.0.3:8080 Ready",
    ]);
    story.observed.leader_for = Duration::ZERO;
    story.check(&[
        "web: n1 10.0.0.1:8080 Ready",
        "web: n2 10.0.0.2:8080 Unknown",
        "web: n3 10.0.0.3:8080 Ready",
    ]);
    story.observed.leader_for = Duration::from_secs(9);
    story.observed.reports.clear();
    story.check(&[
        "web: n1 10.0.0.1:8080 Ready",
        "web: n2 10.0.0.2:8080 Ready",
        "web: n3 10.0.0.3:8080 Ready",
    ]);
}

#[test]
fn a_node_from_which_no_target_answers_is_down_while_others_can() {
    let mut story = Story::new("8080");
    story.roll_out();
    let generations = &mut story.observed.reports.get_mut(&N2).unwrap().generations;
    for key in generations.clone().keys() {
        Arc::make_mut(generations.get_mut(key).unwrap()).targets = vec![target(0)];
    }
    story.check(&[
        "web: n1 10.0.0.1:8080 Ready",
        "web: n2 10.0.0.2:8080 Down",
        "web: n3 10.0.0.3:8080 Ready",
    ]);
}

#[test]
fn a_moved_port_moves_node_by_node_as_each_shifts() {
    let mut story = Story::new("8080, 0");
    story.roll_out();
    let generation = story.apply_app("9090, 0");
    story.obey();
    story.shift(generation, &[N2]);
    story.obey();
    story.check(&[
        "web: n1 10.0.0.1:8080 Ready",
        "web: n2 10.0.0.2:9090 Ready",
        "web: n3 10.0.0.3:8080 Ready",
        "web-2: n1 10.0.0.1:20000 Ready",
        "web-2: n2 10.0.0.2:20000 Ready",
        "web-2: n3 10.0.0.3:20000 Ready",
    ]);
}

#[test]
fn a_deleted_app_drains_until_its_nodes_have_let_go_of_it() {
    let mut story = Story::new("8080");
    story.roll_out();
    story.log.apply(Change::DeleteApp { app: app("web"), if_version: None }).unwrap();
    story.obey();
    story.check(&[
        "web: n1 10.0.0.1:8080 Drain",
        "web: n2 10.0.0.2:8080 Drain",
        "web: n3 10.0.0.3:8080 Drain",
    ]);
}

#[test]
fn a_node_without_an_address_is_a_problem_and_not_an_endpoint() {
    let mut story = Story::new("8080");
    story.roll_out();
    let nameless = Member { traffic_address: "n2.example".to_owned(), ..member("n2") };
    story.log.apply(Change::UpdateMember { node: N2, member: nameless }).unwrap();
    story.check(&["web: n1 10.0.0.1:8080 Ready", "web: n3 10.0.0.3:8080 Ready"]);
    let problems = desired(&story.log.fleet, &story.observed).problems;
    assert!(problems[0].contains("node n2 has no IP address for traffic (\"n2.example\")"), "{problems:?}");
}
