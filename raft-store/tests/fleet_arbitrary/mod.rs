//! Random commands: some that fit the fleet at hand, some that make no sense at all.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::time::Duration;

use flotilla_raft_store::*;
use flotilla_spec::{AppName, AppSpec, Autoscale, Listen, Replicas, Target};
use proptest::{collection::vec, option, prelude::*};

pub(crate) fn name(number: usize) -> AppName {
    AppName::parse(&format!("app-{number}")).unwrap()
}

/// The smallest app there is, with these ports.
pub(crate) fn spec(app: &AppName, ports: &[u16]) -> AppSpec {
    AppSpec {
        name: app.clone(),
        description: String::new(),
        labels: Default::default(),
        listen: ports.iter().map(|port| Listen { port: *port, ..Listen::default() }).collect(),
        targets: vec![Target::new("10.0.0.1:80", 100)],
        pool: Default::default(),
        resolve: Default::default(),
        balance: Default::default(),
        check: Default::default(),
        probe: Vec::new(),
        outlier: Default::default(),
        breaker: None,
        retry: Default::default(),
        timeouts: Default::default(),
        limits: Default::default(),
        upstream: Default::default(),
        route: Vec::new(),
        access: Default::default(),
        compression: None,
        layers: Vec::new(),
        placement: Default::default(),
        rollout: Default::default(),
    }
}

pub(crate) fn member(name: &str) -> Member {
    Member {
        name: name.to_owned(),
        region: "fra".to_owned(),
        zone: "fra-1".to_owned(),
        cluster_address: format!("{name}.example:7400"),
        admin_address: format!("{name}.example:7401"),
        traffic_address: format!("{name}.example"),
        labels: Default::default(),
        port_pool: (20_000, 20_003),
        reserved_ports: vec![22, 20_001],
        availability: Availability::Active,
        drain: None,
        weight: 100,
        binary_version: "0.1.0".to_owned(),
    }
}

pub(crate) fn arbitrary_spec() -> impl Strategy<Value = AppSpec> {
    let ports = vec(prop_oneof![Just(0_u16), 8000..8004_u16, Just(20_002)], 0..3);
    (0..4_usize, ports, ".{0,8}", 0..5000_u64, any::<bool>()).prop_map(
        |(app, ports, description, drain, auto_rollback)| {
            let mut spec = spec(&name(app), &ports);
            spec.description = description;
            spec.rollout.drain = Duration::from_millis(drain);
            spec.rollout.auto_rollback = auto_rollback;
            spec.placement.autoscale = auto_rollback.then(|| Autoscale {
                min: 1,
                max: 3,
                target_connections: Some(10),
                target_requests_per_second: None,
                target_cpu_percent: None,
                cooldown: Duration::from_secs(1),
            });
            spec
        },
    )
}

fn arbitrary_node() -> impl Strategy<Value = NodeId> {
    prop_oneof![4 => 1..6_u64, 1 => any::<u64>()].prop_map(NodeId)
}

fn arbitrary_nodes() -> impl Strategy<Value = Vec<NodeId>> {
    vec(arbitrary_node(), 0..5)
}

fn arbitrary_app() -> impl Strategy<Value = AppName> {
    (0..5_usize).prop_map(name)
}

fn arbitrary_generation() -> impl Strategy<Value = GenerationId> {
    (0..40_u64).prop_map(GenerationId)
}

fn arbitrary_desired() -> impl Strategy<Value = Desired> {
    prop_oneof![Just(Desired::Prepare), Just(Desired::Serve), Just(Desired::Drain), Just(Desired::Remove)]
}

fn arbitrary_availability() -> impl Strategy<Value = Availability> {
    prop_oneof![
        8 => Just(Availability::Active),
        4 => Just(Availability::Cordoned),
        4 => Just(Availability::Draining),
        1 => Just(Availability::Left),
    ]
}

fn arbitrary_member() -> impl Strategy<Value = Member> {
    (0..6_usize, arbitrary_availability(), any::<(u16, u16)>(), vec(any::<u16>(), 0..3), ".{0,6}").prop_map(
        |(number, availability, pool, reserved_ports, zone)| Member {
            availability,
            // Mostly a pool that is small enough to run out of.
            port_pool: if number < 5 { (20_000, 20_003) } else { pool },
            reserved_ports,
            labels: [("zone".to_owned(), zone.clone())].into(),
            zone,
            ..member(&format!("n{number}"))
        },
    )
}

fn arbitrary_balancer() -> impl Strategy<Value = Balancer> {
    let kind = prop_oneof![
        (arbitrary_text(), option::of(arbitrary_node()), ".{0,3}").prop_map(|(address, node, options)| {
            let (backend, prefix) = ("{app}".to_owned(), "flotilla".to_owned());
            BalancerKind::Haproxy(Haproxy { address, node, backend, prefix, options })
        }),
        arbitrary_port().prop_map(|port| BalancerKind::AgentCheck { port }),
        (arbitrary_port(), any::<bool>())
            .prop_map(|(port, closes_on_drain)| BalancerKind::TcpCheck { port, closes_on_drain }),
        (arbitrary_port(), vec(arbitrary_text(), 0..2))
            .prop_map(|(port, admin)| BalancerKind::Envoy { port, admin }),
        arbitrary_node().prop_map(|node| BalancerKind::Nginx { node }),
    ];
    (proptest::collection::btree_set(arbitrary_app(), 0..3), 0..90_000_u64, kind).prop_map(
        |(apps, interval, kind)| Balancer { apps, min_interval: Duration::from_millis(interval), kind },
    )
}

/// Some that apps hold, some that they would like to.
fn arbitrary_port() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0_u16), 8000..8006_u16, 20_000..20_005_u16, 7400..7410_u16]
}

fn arbitrary_text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9.:]{1,9}", "/[a-z]{1,5}", ".{0,3}"]
}

fn arbitrary_step() -> impl Strategy<Value = Step> {
    let since = || (0..100_u64).prop_map(Timestamp);
    prop_oneof![
        since().prop_map(|since| Step::Preparing { since }),
        Just(Step::Ready),
        (since(), 0..=101_u8).prop_map(|(since, percent)| Step::Shifting { since, percent }),
        (since(), 1..=100_u8).prop_map(|(since, percent)| Step::Monitoring { since, percent }),
        Just(Step::Done),
        ".{0,5}".prop_map(|reason| Step::Failed { reason }),
    ]
}

fn arbitrary_steer() -> impl Strategy<Value = Steer> {
    prop_oneof![
        Just(Steer::Pause),
        Just(Steer::Resume),
        any::<bool>().prop_map(|full| Steer::Promote { full }),
        Just(Steer::Abort),
    ]
}

fn arbitrary_transition() -> impl Strategy<Value = Transition> {
    let steps = vec((arbitrary_node(), arbitrary_step()), 0..4);
    let about =
        (arbitrary_app(), arbitrary_generation(), arbitrary_node(), ".{0,5}", arbitrary_desired(), steps);
    (0..14_u8, about).prop_map(|(kind, (app, generation, node, reason, desired, steps))| match kind {
        0 => Transition::Advance { app, generation, steps, why: reason },
        1 => Transition::Complete { app, generation },
        2 | 11 | 12 => Transition::RollBack { app, generation, reason },
        3 => Transition::RolledBack { app, generation, missing: reason },
        4 => Transition::Pause { app, generation, reason },
        5 => Transition::Assign { node, app, generation, desired },
        6 => Transition::Forget { node, app, generation },
        7 => Transition::Place { app, generation, node },
        8 => Transition::ChoosePorts { node, app, generation, taken: vec![20_000, 20_002] },
        9 => {
            let phases = [DrainPhase::Quiet, DrainPhase::Draining, DrainPhase::Empty, DrainPhase::Cut];
            let phase = phases[steps.len() % phases.len()];
            Transition::AdvanceDrain { node, phase, why: reason }
        }
        10 => {
            let presences = [Presence::Up, Presence::Down, Presence::Stopped];
            let presence = presences[steps.len() % presences.len()];
            Transition::TellPresence { node, presence, why: reason }
        }
        _ => Transition::Scale { app, replicas: steps.len() as u32 + 1, short: reason.len() as u32, reason },
    })
}

pub(crate) fn arbitrary_change() -> impl Strategy<Value = Change> {
    let version = || option::of(0..4_u64);
    let apply = (arbitrary_spec(), version(), arbitrary_nodes());
    let apply = apply.prop_map(|(spec, if_version, placed)| ApplyApp { spec, if_version, placed });
    prop_oneof![
        1 => arbitrary_member().prop_map(|member| Change::InitCluster {
            id: ClusterId("c1".to_owned()),
            name: "fra".to_owned(),
            member,
        }),
        2 => arbitrary_member().prop_map(|member| Change::AddMember { member }),
        1 => (arbitrary_node(), arbitrary_member())
            .prop_map(|(node, member)| Change::UpdateMember { node, member }),
        2 => (arbitrary_node(), arbitrary_availability())
            .prop_map(|(node, availability)| Change::SetAvailability { node, availability }),
        4 => vec(apply, 0..3).prop_map(|apps| Change::ApplyApps { apps }),
        1 => (arbitrary_app(), version()).prop_map(|(app, if_version)| Change::DeleteApp { app, if_version }),
        1 => (arbitrary_app(), version(), version(), arbitrary_nodes())
            .prop_map(|(app, to, if_version, placed)| Change::Rollback { app, to, if_version, placed }),
            3 => (arbitrary_app(), version(), arbitrary_steer())
            .prop_map(|(app, if_version, steer)| Change::Steer { app, if_version, steer }),
            1 => (arbitrary_node(), 0..50_u64, any::<(bool, bool)>()).prop_map(|(node, deadline, (leaves, cut))| {
            let (deadline, quiet) = (Duration::from_millis(deadline), Duration::from_millis(deadline / 2));
            Change::DrainNode { node, deadline, quiet, leaves, cut }
        }),
        1 => (arbitrary_app(), option::of(0..3_u32), version()).prop_map(|(app, replicas, if_version)| {
            let replicas = replicas.map(|count| match count {
                0 => Replicas::All,
                count => Replicas::Count(count),
            });
            Change::ScaleApp { app, replicas, if_version }
        }),
        2 => (0..4_u8, arbitrary_balancer(), any::<bool>()).prop_map(|(number, balancer, replace)| {
            Change::PutBalancer { name: format!("lb-{number}"), balancer, replace }
        }),
        1 => (0..4_u8).prop_map(|number| Change::RemoveBalancer { name: format!("lb-{number}") }),
        1 => (0..5_u64, arbitrary_node()).prop_map(|(term, node)| Change::TakeControl { term, node }),
        48 => (0..5_u64, arbitrary_transition())
            .prop_map(|(term, transition)| Change::Coordinate { term, transition }),
    ]
}

pub(crate) fn arbitrary_command() -> impl Strategy<Value = Command> {
    let request = option::of((0..4_u8, 0..6_u64));
    (request, 0..1000_u64, arbitrary_change()).prop_map(|(request, time, change)| Command {
        request: request.map(|(client, sequence)| RequestId { client: format!("client-{client}"), sequence }),
        time: Timestamp(time),
        change,
    })
}

/// What to do next, to be made fit for the fleet it meets.
#[derive(Clone, Debug)]
pub(crate) struct Intent {
    pub(crate) pick: (usize, usize, usize),
    pub(crate) change: Change,
}

pub(crate) fn arbitrary_intent() -> impl Strategy<Value = Intent> {
    (any::<(usize, usize, usize)>(), arbitrary_change()).prop_map(|(pick, change)| Intent { pick, change })
}

impl Intent {
    /// Three times in four about something that exists, so that random walks get far.
    pub(crate) fn fit(&self, fleet: &Fleet) -> Change {
        let (first, second, third) = self.pick;
        if fleet.members.is_empty() {
            return Change::InitCluster {
                id: ClusterId("c1".into()),
                name: "fra".into(),
                member: member("n1"),
            };
        }
        if first.is_multiple_of(4) {
            return self.change.clone();
        }
        let members: Vec<NodeId> =
            fleet.members.keys().copied().filter(|node| fleet.member(*node).is_ok()).collect();
        match &self.change {
            Change::ApplyApps { apps } => {
                let fitted = apps.iter().map(|app| ApplyApp {
                    placed: members
                        .iter()
                        .copied()
                        .filter(|node| !(node.0 as usize ^ second).is_multiple_of(3))
                        .collect(),
                    if_version: None,
                    ..app.clone()
                });
                Change::ApplyApps { apps: fitted.collect() }
            }
            Change::Rollback { app, .. } => {
                Change::Rollback { app: app.clone(), to: None, if_version: None, placed: members }
            }
            Change::Steer { app, steer, .. } => {
                Change::Steer { app: app.clone(), if_version: None, steer: *steer }
            }
            Change::TakeControl { .. } if !members.is_empty() => Change::TakeControl {
                term: fleet.cluster.controller.term + 1,
                node: members[second % members.len()],
            },
            Change::Coordinate { transition, .. } => {
                let term = fleet.cluster.controller.term;
                Change::Coordinate { term, transition: fit_transition(fleet, transition, second, third) }
            }
            other => other.clone(),
        }
    }
}

fn fit_transition(fleet: &Fleet, transition: &Transition, second: usize, third: usize) -> Transition {
    let pick = |of: Vec<(AppName, GenerationId)>| {
        if of.is_empty() { None } else { Some(of[second % of.len()].clone()) }
    };
    let assigned: Vec<_> = fleet
        .assignments
        .iter()
        .flat_map(|(node, of_node)| of_node.keys().map(|(app, generation)| (*node, app.clone(), *generation)))
        .collect();
    let assigned = if assigned.is_empty() { None } else { Some(assigned[third % assigned.len()].clone()) };
    let unfinished = fleet.rollouts.iter().filter(|(_, rollout)| !rollout.state.is_finished());
    let rollout = pick(unfinished.map(|(key, _)| key.clone()).collect());
    let serving = fleet.apps.iter().filter_map(|(name, app)| Some((name.clone(), app.serving?)));
    let serving = pick(serving.collect());
    match (transition.clone(), rollout, serving, assigned) {
        (Transition::Advance { steps, why, .. }, Some((app, generation)), _, _) => {
            let nodes: Vec<_> = fleet.rollouts[&(app.clone(), generation)].steps.keys().copied().collect();
            let steps = nodes.into_iter().zip(steps).map(|(node, (_, step))| (node, step)).collect();
            Transition::Advance { app, generation, steps, why }
        }
        (Transition::Complete { .. }, Some((app, generation)), _, _) => {
            Transition::Complete { app, generation }
        }
        (Transition::RollBack { reason, .. }, Some((app, generation)), _, _) => {
            Transition::RollBack { app, generation, reason }
        }
        (Transition::RolledBack { missing, .. }, Some((app, generation)), _, _)
            if third.is_multiple_of(3) =>
        {
            Transition::RolledBack { app, generation, missing }
        }
        (Transition::Pause { reason, .. }, Some((app, generation)), _, _) if third.is_multiple_of(4) => {
            Transition::Pause { app, generation, reason }
        }
        (Transition::Place { node, .. }, _, Some((app, generation)), _) => {
            Transition::Place { app, generation, node }
        }
        (Transition::Assign { desired, .. }, _, _, Some((node, app, generation))) => {
            Transition::Assign { node, app, generation, desired }
        }
        (Transition::ChoosePorts { taken, .. }, _, _, Some((node, app, generation))) => {
            Transition::ChoosePorts { node, app, generation, taken }
        }
        (Transition::Forget { .. }, _, _, Some((node, app, generation))) => {
            Transition::Forget { node, app, generation }
        }
        (other, _, _, _) => other,
    }
}

/// The fleet after these intents, each applied at the next index.
pub(crate) fn grow(intents: &[Intent]) -> Fleet {
    let mut fleet = Fleet::default();
    for (index, intent) in (1..).zip(intents) {
        let command = Command { request: None, time: Timestamp(index * 10), change: intent.fit(&fleet) };
        let _answer = fleet.apply(index, &command);
    }
    fleet
}
