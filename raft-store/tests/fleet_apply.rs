//! What each command does to a fleet, told as short stories.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test ends where it goes wrong")]

use std::time::Duration;

use flotilla_raft_store::*;
use flotilla_spec::{AppName, Autoscale, Replicas};

mod fleet_arbitrary;
use fleet_arbitrary::{member, name, spec};

/// A fleet, and the index of its last command.
struct Story {
    fleet: Fleet,
    index: u64,
}

const APP: usize = 1;
const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);
const N3: NodeId = NodeId(3);

impl Story {
    /// Three nodes, of which the first leads in term 1.
    fn new() -> Self {
        let mut story = Self { fleet: Fleet::default(), index: 0 };
        let id = ClusterId("c1".to_owned());
        story.does(Change::InitCluster { id, name: "fra".to_owned(), member: member("n1") });
        story.does(Change::AddMember { member: member("n2") });
        story.does(Change::AddMember { member: member("n3") });
        story.does(Change::TakeControl { term: 1, node: N1 });
        story
    }

    fn command(&mut self, request: Option<RequestId>, change: Change) -> Answer {
        self.index += 1;
        let answer = self.fleet.apply(self.index, &Command { request, time: Timestamp(self.index), change });
        assert_eq!(self.fleet.check(), Ok(()));
        answer
    }

    fn tries(&mut self, change: Change) -> Answer {
        self.command(None, change)
    }

    #[track_caller]
    fn does(&mut self, change: Change) -> Reply {
        self.tries(change.clone()).unwrap_or_else(|rejection| panic!("{change:?}: {rejection}"))
    }

    #[track_caller]
    fn refuses(&mut self, change: Change, why: &str) {
        let before = Fleet { index: self.index + 1, ..self.fleet.clone() };
        assert_eq!(self.tries(change).expect_err(why).to_string(), why);
        assert!(self.fleet == before, "a refusal changed the fleet");
    }

    /// Returns the generation.
    #[track_caller]
    fn applies(&mut self, app: usize, ports: &[u16], placed: &[NodeId]) -> GenerationId {
        let Reply::Apps { apps } = self.does(apply(app, ports, placed)) else { panic!("apps are answered") };
        apps[0].generation
    }

    #[track_caller]
    fn coordinates(&mut self, transition: Transition) {
        self.does(Change::Coordinate { term: 1, transition });
    }

    #[track_caller]
    fn steps(&mut self, generation: GenerationId, nodes: &[NodeId], step: &Step) {
        let steps = nodes.iter().map(|node| (*node, step.clone())).collect();
        self.coordinates(advance(generation, steps));
    }

    #[track_caller]
    fn shifts(&mut self, generation: GenerationId, node: NodeId) {
        self.steps(generation, &[node], &Step::Ready);
        self.steps(generation, &[node], &Step::Shifting { since: Timestamp(0), percent: 100 });
    }

    /// A first generation that serves on these nodes.
    #[track_caller]
    fn serves(&mut self, ports: &[u16], nodes: &[NodeId]) -> GenerationId {
        let generation = self.applies(APP, ports, nodes);
        self.steps(generation, nodes, &Step::Done);
        self.coordinates(Transition::Complete { app: name(APP), generation });
        generation
    }

    fn asked(&self, node: NodeId) -> String {
        let of_node = self.fleet.assignments_of(node, &name(APP));
        let asked = of_node.map(|(generation, asked)| {
            format!("{generation} {:?} {:?}", asked.desired, asked.ports).to_lowercase()
        });
        asked.collect::<Vec<_>>().join(", ")
    }

    fn traffic(&self, node: NodeId) -> Option<GenerationId> {
        self.fleet.takes_traffic(node, &name(APP))
    }

    fn state(&self, generation: GenerationId) -> (RolloutState, GenerationState) {
        let key = (name(APP), generation);
        (self.fleet.rollouts[&key].state, self.fleet.generations[&key].state)
    }
}

fn apply(app: usize, ports: &[u16], placed: &[NodeId]) -> Change {
    let app = ApplyApp { spec: spec(&name(app), ports), if_version: None, placed: placed.to_vec() };
    Change::ApplyApps { apps: vec![app] }
}

fn refused_by_version(expected: u64) -> Change {
    let app = ApplyApp { spec: spec(&name(APP), &[81]), if_version: Some(expected), placed: vec![N1] };
    Change::ApplyApps { apps: vec![app] }
}

fn available(node: NodeId, availability: Availability) -> Change {
    Change::SetAvailability { node, availability }
}

#[test]
fn nothing_happens_before_the_cluster_is_initialised() {
    let mut story = Story { fleet: Fleet::default(), index: 0 };
    story.refuses(Change::AddMember { member: member("n1") }, "the cluster has not been initialised");
    let story = &mut Story::new();
    let again =
        Change::InitCluster { id: ClusterId("c2".to_owned()), name: String::new(), member: member("x") };
    story.refuses(again, "the cluster has been initialised already (id c1)");
}

#[test]
fn node_ids_are_log_indexes_and_names_are_unique_until_a_node_has_left() {
    let mut story = Story::new();
    assert_eq!(story.fleet.members.keys().copied().collect::<Vec<_>>(), [N1, N2, N3]);
    story.refuses(Change::AddMember { member: member("n2") }, "a node named `n2` is a member already (id 2)");
    story.does(available(N2, Availability::Left));
    let reply = story.does(Change::AddMember { member: member("n2") });
    assert_eq!(reply, Reply::Member { node: NodeId(7) });
    story.refuses(available(N2, Availability::Active), "there is no node 2");
}

#[test]
fn a_node_that_returns_under_another_address_is_still_cordoned() {
    let mut story = Story::new();
    story.does(available(N2, Availability::Cordoned));
    let moved = Member { cluster_address: "elsewhere:7400".to_owned(), ..member("n2") };
    story.does(Change::UpdateMember { node: N2, member: moved });
    assert_eq!(story.fleet.members[&N2].availability, Availability::Cordoned);
    assert_eq!(story.fleet.members[&N2].cluster_address, "elsewhere:7400");
}

#[test]
fn a_shift_leaves_the_old_generation_warm_until_the_rollout_completes() {
    let mut story = Story::new();
    let old = story.serves(&[80], &[N1, N2]);
    let new = story.applies(APP, &[80, 81], &[N1, N2]);
    assert_eq!(story.asked(N1), "5 serve [80], 8 prepare [80, 81]");
    story.shifts(new, N1);
    assert_eq!(story.asked(N1), "5 serve [80], 8 serve [80, 81]");
    assert_eq!((story.traffic(N1), story.traffic(N2)), (Some(new), Some(old)));
    story.steps(new, &[N1], &Step::Done);
    story.shifts(new, N2);
    story.steps(new, &[N2], &Step::Done);
    story.coordinates(Transition::Complete { app: name(APP), generation: new });
    assert_eq!(story.asked(N2), "5 drain [80], 8 serve [80, 81]");
    assert_eq!(story.state(old), (RolloutState::Completed, GenerationState::Draining));
    assert_eq!(story.state(new), (RolloutState::Completed, GenerationState::Serving));
}

#[test]
fn the_newest_takes_its_share_and_the_oldest_the_rest() {
    let mut story = Story::new();
    let old = story.serves(&[80], &[N1]);
    let share = |story: &Story| story.fleet.traffic(N1, &name(APP));
    let all = |newest| Some(Traffic { newest, percent: 100, rest: None });
    let split = |newest, percent, rest| Some(Traffic { newest, percent, rest: Some(rest) });
    assert_eq!(share(&story), all(old));
    let new = story.applies(APP, &[81], &[N1]);
    let shifting = |percent| Step::Shifting { since: Timestamp(0), percent };
    story.steps(new, &[N1], &Step::Ready);
    story.steps(new, &[N1], &shifting(10));
    assert_eq!(share(&story), split(new, 10, old));
    story.steps(new, &[N1], &Step::Monitoring { since: Timestamp(0), percent: 10 });
    let less = vec![(N1, shifting(5))];
    story.refuses(
        Change::Coordinate { term: 1, transition: advance(new, less) },
        "stale: the node is that far already",
    );
    story.steps(new, &[N1], &shifting(50));
    assert_eq!(share(&story), split(new, 50, old));
    // A successor takes from both, and what it replaces gets nothing more.
    let newer = story.applies(APP, &[82], &[N1]);
    assert_eq!(share(&story), split(new, 50, old));
    story.steps(newer, &[N1], &Step::Ready);
    story.steps(newer, &[N1], &shifting(1));
    assert_eq!(share(&story), split(newer, 1, old));
    story.coordinates(Transition::RollBack { app: name(APP), generation: newer, reason: "bad".into() });
    assert_eq!(share(&story), all(old));
}

#[test]
fn a_user_stops_a_rollout_and_lets_it_go_on() {
    let mut story = Story::new();
    story.serves(&[80], &[N1, N2]);
    let steer = |steer| Change::Steer { app: name(APP), if_version: None, steer };
    story.refuses(
        steer(Steer::Pause),
        "the rollout of app `app-1` cannot be told that: its last rollout has completed",
    );
    let new = story.applies(APP, &[81], &[N1, N2]);
    story.shifts(new, N1);
    story.steps(new, &[N2], &Step::Failed { reason: "no".to_owned() });
    story.does(steer(Steer::Pause));
    story.does(steer(Steer::Pause));
    assert_eq!(story.state(new).0, RolloutState::Paused);
    let ready = advance(new, vec![(N1, Step::Done)]);
    let by_leader = Change::Coordinate { term: 1, transition: ready };
    story.refuses(by_leader, "stale: the rollout is in another state by now");
    assert_eq!(story.traffic(N1), Some(new), "what has shifted stays");
    let same = apply(APP, &[81], &[N1, N2]);
    let Reply::Apps { apps } = story.does(same) else { panic!("apps are answered") };
    assert_eq!(apps[0].outcome, Outcome::Unchanged, "it is resumed, not applied again");
    story.does(steer(Steer::Resume));
    let steps = &story.fleet.rollouts[&(name(APP), new)].steps;
    assert!(matches!(steps[&N2], Step::Preparing { .. }), "what failed is tried again: {steps:?}");
    story.refuses(
        steer(Steer::Promote { full: false }),
        "the rollout of app `app-1` cannot be told that: it promotes itself; a full promotion skips bakes and gates",
    );
    story.does(steer(Steer::Promote { full: true }));
    assert_eq!(story.fleet.rollouts[&(name(APP), new)].promotion, Promotion::Full);
    story.does(steer(Steer::Abort));
    story.does(steer(Steer::Abort));
    assert_eq!(story.state(new), (RolloutState::RollingBack, GenerationState::Failed));
    story.refuses(
        steer(Steer::Pause),
        "the rollout of app `app-1` cannot be told that: it is on its way back already",
    );
    story.coordinates(Transition::Pause { app: name(APP), generation: new, reason: "stuck".to_owned() });
    story.does(steer(Steer::Resume));
    assert_eq!(story.state(new).0, RolloutState::RollingBack, "a rollback goes on as one");
}

#[test]
fn a_node_that_was_down_is_asked_to_serve_when_the_others_are_done() {
    let mut story = Story::new();
    story.serves(&[80], &[N1, N2]);
    let new = story.applies(APP, &[81], &[N1, N2]);
    story.steps(new, &[N1], &Step::Done);
    story.coordinates(Transition::Complete { app: name(APP), generation: new });
    assert_eq!(story.asked(N2), "5 drain [80], 8 serve [81]");
}

#[test]
fn a_rollback_is_one_commit() {
    let mut story = Story::new();
    let old = story.serves(&[80], &[N1, N2]);
    let new = story.applies(APP, &[80], &[N1, N2, N3]);
    assert_eq!(new, old, "the same spec again is no change");
    let new = story.applies(APP, &[80, 81], &[N1, N2, N3]);
    story.shifts(new, N1);
    story.coordinates(Transition::RollBack { app: name(APP), generation: new, reason: "no".to_owned() });
    assert_eq!((story.traffic(N1), story.traffic(N2), story.traffic(N3)), (Some(old), Some(old), None));
    assert_eq!(story.asked(N1), "5 serve [80], 9 drain [80, 81]");
    assert_eq!(story.asked(N3), "9 remove [80, 81]");
    assert_eq!(story.state(new), (RolloutState::RollingBack, GenerationState::Failed));
    story.coordinates(Transition::RolledBack { app: name(APP), generation: new, missing: String::new() });
    let outcomes: Vec<_> = story.fleet.apps[&name(APP)].history.iter().map(|entry| entry.outcome).collect();
    assert_eq!(outcomes, [Some(RolloutState::Completed), Some(RolloutState::RolledBack)]);
}

#[test]
fn a_first_generation_that_fails_is_taken_away() {
    let mut story = Story::new();
    let first = story.applies(APP, &[80], &[N1, N2]);
    story.shifts(first, N1);
    story.coordinates(Transition::RollBack { app: name(APP), generation: first, reason: "no".to_owned() });
    assert_eq!((story.asked(N1), story.asked(N2)), ("5 drain [80]".into(), "5 remove [80]".into()));
    assert_eq!(story.state(first), (RolloutState::Failed, GenerationState::Failed));
}

#[test]
fn without_auto_rollback_a_rollout_stops_where_it_stands() {
    let mut story = Story::new();
    let old = story.serves(&[80], &[N1, N2]);
    let new = story.applies(APP, &[81], &[N1, N2]);
    story.shifts(new, N1);
    story.coordinates(Transition::Pause { app: name(APP), generation: new, reason: "no".to_owned() });
    assert_eq!((story.traffic(N1), story.traffic(N2)), (Some(new), Some(old)));
    assert_eq!(story.applies(APP, &[81], &[N1, N2]), new, "it is resumed, not applied again");
    let next = story.applies(APP, &[82], &[N1, N2]);
    assert_eq!(story.fleet.rollouts[&(name(APP), next)].from, Some(old));
}

#[test]
fn a_superseded_generation_serves_on_where_it_had_begun_and_is_removed_elsewhere() {
    let mut story = Story::new();
    let old = story.serves(&[80], &[N1, N2]);
    let second = story.applies(APP, &[81], &[N1, N2]);
    story.shifts(second, N1);
    let third = story.applies(APP, &[82], &[N1, N2]);
    assert_eq!(story.asked(N1), "5 serve [80], 8 serve [81], 11 prepare [82]");
    assert_eq!(story.asked(N2), "5 serve [80], 8 remove [81], 11 prepare [82]");
    assert_eq!(story.state(second).0, RolloutState::Superseded);
    assert_eq!(story.fleet.rollouts[&(name(APP), third)].from, Some(old));
    // The third goes back to what completed last, and not to what was superseded.
    story.shifts(third, N2);
    story.coordinates(Transition::RollBack { app: name(APP), generation: third, reason: "no".to_owned() });
    assert_eq!((story.traffic(N1), story.traffic(N2)), (Some(old), Some(old)));
}

#[test]
fn an_app_keeps_a_port_until_its_last_generation_has_left_the_node() {
    let mut story = Story::new();
    let old = story.serves(&[80], &[N1]);
    story.refuses(apply(2, &[80], &[N1]), "port 80 is taken on node n1 by app `app-1`");
    let new = story.serves(&[81], &[N1]);
    let assign = |generation, desired| Transition::Assign { node: N1, app: name(APP), generation, desired };
    let forget = |generation| Transition::Forget { node: N1, app: name(APP), generation };
    let holders =
        |story: &Story, port| story.fleet.ports[&(N1, port)].apps.iter().cloned().collect::<Vec<_>>();
    let early = Change::Coordinate { term: 1, transition: forget(old) };
    story.refuses(early, "stale: the node is still asked for the generation");
    story.coordinates(assign(old, Desired::Remove));
    assert_eq!(holders(&story, 80), [name(APP)]);
    // What its wanted generation does not ask for another app may take meanwhile.
    story.applies(2, &[80], &[N1]);
    assert_eq!(holders(&story, 80), [name(APP), name(2)]);
    story.coordinates(forget(old));
    assert_eq!(story.state(old).1, GenerationState::Retired);
    assert_eq!(holders(&story, 80), [name(2)]);
    assert_eq!(story.asked(N1), format!("{new} serve [81]"));
    // One that is deleted has nothing to go on with.
    story.does(Change::DeleteApp { app: name(APP), if_version: None });
    let taken = "port 81 is taken on node n1 by app `app-1`";
    story.refuses(apply(3, &[81], &[N1]), taken);
    story.coordinates(assign(new, Desired::Remove));
    story.refuses(apply(3, &[81], &[N1]), taken);
    story.coordinates(forget(new));
    story.applies(3, &[81], &[N1]);
}

/// An HTTP app with port 80 for these hosts.
fn shares(app: usize, hosts: &[&str], placed: &[NodeId]) -> ApplyApp {
    let mut spec = spec(&name(app), &[80]);
    spec.listen[0].protocol = flotilla_spec::Protocol::Http;
    spec.listen[0].hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    ApplyApp { spec, if_version: None, placed: placed.to_vec() }
}

#[test]
fn apps_share_a_port_by_the_hosts_that_they_name() {
    let mut story = Story::new();
    let change = |apps: &[ApplyApp]| Change::ApplyApps { apps: apps.to_vec() };
    let one = |app, hosts: &[&str]| change(&[shares(app, hosts, &[N1, N2])]);
    story.does(one(1, &["a.test", "*.a.test"]));
    let refused = "port 80 on node n1: app `app-2` cannot share it with app `app-1`: ";
    story.refuses(
        one(2, &["b.test", "A.test."]),
        &format!("{refused}the host `a.test` is its already: take it from there first, or in the same apply"),
    );
    story.refuses(
        apply(2, &[80], &[N1]),
        &format!("{refused}one speaks HTTP there and the other TCP; make them alike, or take another port"),
    );
    // Also those of one change with each other.
    let both = [shares(2, &["b.test"], &[N1]), shares(3, &["c.test", "b.test"], &[N1])];
    story.refuses(
        change(&both),
        "port 80 on node n1: app `app-3` cannot share it with app `app-2`: the host `b.test` is its already: take it from there first, or in the same apply",
    );
    story.does(change(&[shares(2, &["b.test"], &[N1]), shares(3, &[], &[N1])]));
    story.refuses(one(4, &[]), "port 80 is taken on node n1 by app `app-3`");
    // The next generation of an app is not in its own way, and what that does not ask for others may take.
    story.refuses(one(4, &["*.a.test"]), "port 80 on node n1: app `app-4` cannot share it with app `app-1`: the host `*.a.test` is its already: take it from there first, or in the same apply");
    story.does(one(1, &["a.test"]));
    story.does(one(4, &["*.a.test"]));
    let holders: Vec<String> = story.fleet.ports[&(N1, 80)].apps.iter().map(ToString::to_string).collect();
    assert_eq!(holders, ["app-1", "app-2", "app-3", "app-4"]);
    // One goes, and the port stays with the others.
    story.does(Change::DeleteApp { app: name(2), if_version: None });
    let generation = story.fleet.assignments_of(N1, &name(2)).next().unwrap().0;
    story.coordinates(Transition::Forget { node: N1, app: name(2), generation });
    assert_eq!(story.fleet.ports[&(N1, 80)].hosts.get("b.test"), None);
    story.does(one(5, &["b.test"]));
}

#[test]
fn a_host_moves_between_two_apps_of_one_change() {
    let mut story = Story::new();
    let change = |apps: &[ApplyApp]| Change::ApplyApps { apps: apps.to_vec() };
    let both = [N1, N2];
    let host = |story: &Story, node, host: &str| story.fleet.ports[&(node, 80)].hosts[host].to_string();
    let moving = |story: &Story, node| {
        let moving = &story.fleet.ports[&(node, 80)].moving;
        let name = |apps: &std::collections::BTreeSet<AppName>| {
            apps.iter().map(ToString::to_string).collect::<Vec<_>>().join("+")
        };
        moving.iter().map(|(host, apps)| format!("{host} {}", name(apps))).collect::<Vec<_>>().join(", ")
    };
    let complete = |story: &mut Story, app, nodes: &[NodeId]| {
        let generation = story.fleet.apps[&name(app)].wanted;
        let steps = nodes.iter().map(|node| (*node, Step::Done)).collect();
        story.coordinates(Transition::Advance { app: name(app), generation, steps, why: String::new() });
        story.coordinates(Transition::Complete { app: name(app), generation });
        generation
    };
    let forget = |story: &mut Story, app, generation| {
        for node in both {
            let (app, desired) = (name(app), Desired::Remove);
            if story.fleet.assignment(node, &app, generation).unwrap().desired != desired {
                let app = app.clone();
                story.coordinates(Transition::Assign { node, app, generation, desired });
            }
            story.coordinates(Transition::Forget { node, app, generation });
        }
    };
    story.does(change(&[shares(1, &["a.test", "x.test"], &both), shares(2, &["b.test"], &both)]));
    let old = complete(&mut story, 1, &both);
    complete(&mut story, 2, &both);

    // Not as long as it is wanted there, and by one of them alone.
    let taker = shares(2, &["b.test", "x.test"], &both);
    let refused = "port 80 on node n1: app `app-2` cannot share it with app `app-1`: the host `x.test` is its already: take it from there first, or in the same apply";
    story.refuses(change(std::slice::from_ref(&taker)), refused);
    story.refuses(change(&[shares(1, &["a.test", "x.test", "c.test"], &both), taker.clone()]), refused);
    let third = shares(3, &["x.test"], &both);
    story.refuses(
        change(&[shares(1, &["a.test"], &both), taker.clone(), third.clone()]),
        "port 80 on node n1: app `app-3` cannot share it with app `app-2`: the host `x.test` is its already: take it from there first, or in the same apply",
    );
    story.does(change(&[shares(1, &["a.test"], &both), taker.clone()]));
    assert_eq!(host(&story, N1, "x.test"), "app-2", "its generation is the newest");
    assert_eq!(moving(&story, N1), "x.test app-1+app-2");
    assert_eq!(story.fleet.takers(&name(1)), [(name(2), "x.test".to_owned())].into());
    assert_eq!(story.fleet.takers(&name(2)), [].into());
    story.refuses(
        change(std::slice::from_ref(&third)),
        "port 80 on node n1: app `app-3` cannot share it with app `app-2`: the host `x.test` is its already: take it from there first, or in the same apply",
    );
    // The next one of the taker is not in its own way.
    story.does(change(std::slice::from_ref(&taker)));
    story.does(change(&[shares(2, &["b.test", "x.test", "y.test"], &both)]));
    complete(&mut story, 2, &both);
    assert_eq!(
        story.fleet.takers(&name(1)),
        [(name(2), "x.test".to_owned())].into(),
        "it serves it until then"
    );

    // The giver goes back: what it has no more is said, and falls to it again when the other one gives it up.
    let generation = story.fleet.apps[&name(1)].wanted;
    story.coordinates(Transition::RollBack { app: name(1), generation, reason: "it fails".into() });
    let told = story.fleet.events.back().unwrap().message.clone();
    assert_eq!(
        told,
        format!("generation {generation} goes back to {old}: it fails; the host `x.test` is app app-2's now")
    );
    story.coordinates(Transition::RolledBack { app: name(1), generation, missing: String::new() });
    assert_eq!(story.fleet.takers(&name(1)), [].into());
    story.refuses(change(std::slice::from_ref(&third)), &refused.replace("app-2", "app-3"));
    story.refuses(
        change(&[shares(1, &["a.test", "x.test"], &both)]),
        &refused.replace("app-1", "app-0").replace("app-2", "app-1").replace("app-0", "app-2"),
    );
    story.does(change(&[shares(2, &["b.test"], &both)]));
    let last = complete(&mut story, 2, &both);
    for before in story
        .fleet
        .assignments_of(N1, &name(2))
        .map(|(generation, _)| generation)
        .filter(|of| *of != last)
        .collect::<Vec<_>>()
    {
        forget(&mut story, 2, before);
    }
    assert_eq!((host(&story, N1, "x.test").as_str(), moving(&story, N1).as_str()), ("app-1", ""));
}

#[test]
fn hosts_are_not_exchanged_in_one_change() {
    let mut story = Story::new();
    let change = |hosts: [&[&str]; 3]| {
        let apps = (1..).zip(hosts).map(|(app, hosts)| shares(app, hosts, &[N1]));
        Change::ApplyApps { apps: apps.collect() }
    };
    story.does(change([&["a.test", "x.test"], &["b.test", "y.test"], &["c.test", "z.test"]]));
    for app in 1..=3 {
        let generation = story.fleet.apps[&name(app)].wanted;
        let steps = vec![(N1, Step::Done)];
        story.coordinates(Transition::Advance { app: name(app), generation, steps, why: String::new() });
        story.coordinates(Transition::Complete { app: name(app), generation });
    }
    let why = |taker, giver, host| {
        format!(
            "port 80 on node n1: app `app-{taker}` cannot share it with app `app-{giver}`: it takes the host `{host}` from \
             there, and hosts go back there in the same apply: move those in another one, before or after"
        )
    };
    story.refuses(
        change([&["a.test", "y.test"], &["b.test", "x.test"], &["c.test", "z.test"]]),
        &why(1, 2, "y.test"),
    );
    story.refuses(
        change([&["a.test", "z.test"], &["b.test", "x.test"], &["c.test", "y.test"]]),
        &why(1, 3, "z.test"),
    );
    // In a row they move on.
    story.does(change([&["a.test"], &["b.test", "x.test"], &["c.test", "z.test", "y.test"]]));
    assert_eq!(story.fleet.takers(&name(1)), [(name(2), "x.test".to_owned())].into());
    assert_eq!(story.fleet.takers(&name(2)), [(name(3), "y.test".to_owned())].into());
    // All that is left may move, and a port of one alone.
    story.does(change([&[], &["b.test", "x.test"], &["c.test", "z.test", "y.test"]]));
    story.does(change([&["a.test"], &[], &["c.test", "z.test", "y.test"]]));
    assert_eq!(story.fleet.takers(&name(1)), [].into(), "it never served the rest");
}

#[test]
fn port_zero_keeps_its_port_and_else_gets_the_lowest_free_one() {
    let mut story = Story::new();
    story.serves(&[0, 0], &[N1]);
    // 20001 is reserved.
    assert_eq!(story.asked(N1), "5 serve [20000, 20002]");
    story.applies(2, &[0], &[N1, N2]);
    assert!(story.fleet.ports[&(N1, 20_003)].apps.contains(&name(2)));
    assert!(story.fleet.ports[&(N2, 20_000)].apps.contains(&name(2)));
    story.refuses(apply(3, &[0], &[N1]), "node n1 has no free port left in its pool 20000-20003");
    let new = story.applies(APP, &[0, 0, 90], &[N1]);
    let ports = &story.fleet.assignment(N1, &name(APP), new).unwrap().ports;
    assert_eq!(ports, &[20_000, 20_002, 90]);
}

#[test]
fn ports_that_cannot_be_had_are_refused_by_name() {
    let mut story = Story::new();
    story.applies(2, &[80], &[N2]);
    story.refuses(apply(APP, &[80], &[N1, N2]), "port 80 is taken on node n2 by app `app-2`");
    story.refuses(apply(APP, &[22], &[N1]), "port 22 is reserved on node n1");
    story.refuses(apply(APP, &[81, 81], &[N1]), "port 81 is taken on node n1 by app `app-1`");
    story.refuses(
        apply(APP, &[81], &[]),
        "app `app-1` would be placed on no node: no node matches its placement",
    );
    story.refuses(apply(APP, &[81], &[NodeId(9)]), "there is no node 9");
    let both =
        [3, 4].map(|app| ApplyApp { spec: spec(&name(app), &[90]), if_version: None, placed: vec![N3] });
    let change = Change::ApplyApps { apps: both.into() };
    story.refuses(change, "port 90 is taken on node n3 by app `app-3`");
}

#[test]
fn a_chosen_port_makes_room_for_a_fixed_one_of_the_same_change() {
    let mut story = Story::new();
    let apps = [(3, 0), (4, 20_000)].map(|(app, port)| ApplyApp {
        spec: spec(&name(app), &[port]),
        if_version: None,
        placed: vec![N1],
    });
    story.does(Change::ApplyApps { apps: apps.into() });
    assert!(story.fleet.ports[&(N1, 20_002)].apps.contains(&name(3)));
}

#[test]
fn writes_compare_the_version() {
    let mut story = Story::new();
    story.refuses(refused_by_version(1), "app `app-1` is at version 0, not 1");
    story.does(refused_by_version(0));
    story.refuses(refused_by_version(0), "app `app-1` is at version 1, not 0");
    let delete = |if_version| Change::DeleteApp { app: name(APP), if_version };
    story.refuses(delete(Some(7)), "app `app-1` is at version 1, not 7");
    story.does(delete(Some(1)));
    story.does(refused_by_version(0));
    assert_eq!(story.fleet.apps[&name(APP)].version, 3, "versions go on while the app is not gone");
}

#[test]
fn a_deleted_app_is_gone_with_its_last_assignment() {
    let mut story = Story::new();
    let generation = story.serves(&[80], &[N1, N2]);
    story.does(Change::DeleteApp { app: name(APP), if_version: None });
    assert_eq!(story.asked(N1), "5 drain [80]");
    for node in [N1, N2] {
        let app = name(APP);
        story.coordinates(Transition::Assign {
            node,
            app: app.clone(),
            generation,
            desired: Desired::Remove,
        });
        assert!(story.fleet.apps.contains_key(&app));
        story.coordinates(Transition::Forget { node, app, generation });
    }
    assert!(
        story.fleet.apps.is_empty() && story.fleet.generations.is_empty() && story.fleet.ports.is_empty()
    );
    story.refuses(Change::DeleteApp { app: name(APP), if_version: None }, "there is no app `app-1`");
}

#[test]
fn a_user_can_return_to_any_version_of_the_history() {
    let mut story = Story::new();
    story.serves(&[80], &[N1]);
    story.serves(&[81], &[N1]);
    let back = |to| Change::Rollback { app: name(APP), to, if_version: None, placed: vec![N1] };
    story.does(back(None));
    let app = &story.fleet.apps[&name(APP)];
    assert_eq!((app.version, app.spec.listen[0].port), (3, 80));
    assert_eq!(app.history[2].cause, Cause::RolledBackTo { version: 1 });
    story.refuses(back(Some(9)), "app `app-1` has no version 9 in its history");
    for port in 100..110 {
        story.serves(&[port], &[N1]);
    }
    assert_eq!(story.fleet.apps[&name(APP)].history.len(), HISTORY_MAX);
    story.refuses(back(Some(1)), "app `app-1` has no version 1 in its history");
}

#[test]
fn only_the_leader_of_the_term_moves_rollouts() {
    let mut story = Story::new();
    let generation = story.applies(APP, &[80], &[N1]);
    story.does(Change::TakeControl { term: 3, node: N2 });
    let ready = advance(generation, vec![(N1, Step::Ready)]);
    let by = |term| Change::Coordinate { term, transition: ready.clone() };
    story.refuses(by(1), "term 1 is over: term 3 is in control");
    story.refuses(by(4), "term 4 is over: term 3 is in control");
    story.does(by(3));
    story.refuses(by(3), "stale: the node is that far already");
    story.refuses(Change::TakeControl { term: 2, node: N1 }, "term 2 is over: term 3 is in control");
}

#[test]
fn a_new_node_gets_the_serving_generation_between_rollouts() {
    let mut story = Story::new();
    let generation = story.serves(&[0], &[N1]);
    let place = |generation| Change::Coordinate {
        term: 1,
        transition: Transition::Place { app: name(APP), generation, node: N3 },
    };
    story.does(place(generation));
    assert_eq!(story.asked(N3), "5 serve [20000]");
    story.refuses(place(generation), "stale: the node has that generation already");
    story.applies(APP, &[80], &[N1]);
    story.refuses(place(generation), "stale: the app is rolling out");
}

#[test]
fn a_node_that_gives_an_app_back_may_have_it_again_before_it_has_let_go() {
    let mut story = Story::new();
    let generation = story.serves(&[0, 80], &[N1, N2]);
    let asks = |desired| Transition::Assign { node: N2, app: name(APP), generation, desired };
    let coordinate = |transition| Change::Coordinate { term: 1, transition };
    let place = || Transition::Place { app: name(APP), generation, node: N2 };
    for giving_back in [&[Desired::Drain][..], &[Desired::Drain, Desired::Remove]] {
        giving_back.iter().for_each(|desired| story.coordinates(asks(*desired)));
        story.coordinates(place());
        assert_eq!(story.asked(N2), format!("{generation} serve [20000, 80]"));
        assert_eq!(story.fleet.assignment(N2, &name(APP), generation).unwrap().index, story.index);
        // What the coordinator proposed of the node before it saw that is too late.
        story.refuses(coordinate(asks(Desired::Remove)), "stale: the node has to drain first");
        let forget = Transition::Forget { node: N2, app: name(APP), generation };
        story.refuses(coordinate(forget), "stale: the node is still asked for the generation");
    }
    story.coordinates(asks(Desired::Drain));
    story.does(Change::DeleteApp { app: name(APP), if_version: None });
    story.refuses(coordinate(place()), "stale: the app does not serve that generation");
}

#[test]
fn a_node_that_has_left_takes_its_assignments_and_ports_with_it() {
    let mut story = Story::new();
    story.serves(&[80], &[N1, N2]);
    let new = story.applies(APP, &[81], &[N1, N2]);
    story.does(available(N2, Availability::Left));
    assert_eq!(story.asked(N2), "");
    assert_eq!(story.fleet.ports.keys().map(|(node, _)| *node).max(), Some(N1));
    assert_eq!(story.fleet.rollouts[&(name(APP), new)].steps.keys().copied().collect::<Vec<_>>(), [N1]);
}

fn balancer(kind: BalancerKind, apps: &[usize]) -> Balancer {
    Balancer {
        apps: apps.iter().map(|app| name(*app)).collect(),
        min_interval: std::time::Duration::ZERO,
        kind,
    }
}

#[test]
fn a_port_that_nodes_open_for_a_balancer_is_nobody_elses() {
    let mut story = Story::new();
    let generation = story.applies(APP, &[8080, 0], &[N1]);
    let put = |kind, apps: &[usize]| Change::PutBalancer {
        name: "lb".to_owned(),
        balancer: balancer(kind, apps),
        replace: true,
    };
    let agent = |port| put(BalancerKind::AgentCheck { port }, &[]);
    story.refuses(agent(8080), "port 8080 is taken on node n1 by app `app-1`");
    story.refuses(agent(20_000), "port 20000 is taken on node n1 by app `app-1`");
    story.refuses(agent(22), "port 22 is reserved on node n1");
    story.refuses(agent(0), "a balancer cannot find port 0");
    story.does(agent(20_002));
    let taken = vec![20_000, 20_003];
    let other = Transition::ChoosePorts { node: N1, app: name(APP), generation, taken };
    let other = Change::Coordinate { term: 1, transition: other };
    story.refuses(other, "node n1 has no free port left in its pool 20000-20003");
    story.refuses(apply(2, &[20_002], &[N2]), "port 20002 is reserved on node n2");
    story.applies(2, &[0, 0], &[N2]);
    let ports: Vec<u16> =
        story.fleet.ports.iter().filter(|((node, _), _)| *node == N2).map(|((_, port), _)| *port).collect();
    assert_eq!(ports, [20_000, 20_003], "20001 is reserved, 20002 the balancer's");
    let other = Change::PutBalancer {
        name: "other".to_owned(),
        balancer: balancer(BalancerKind::Envoy { port: 20_002, admin: Vec::new() }, &[]),
        replace: false,
    };
    story.refuses(other, "port 20002 is that of balancer `lb`");
    story.does(agent(7402));
    story.applies(3, &[20_002], &[N2]);
}

#[test]
fn a_balancer_that_cannot_work_is_refused_and_one_that_is_there_is_not_replaced_by_accident() {
    let mut story = Story::new();
    let haproxy = |address: &str, node, backend: &str| Change::PutBalancer {
        name: "edge".to_owned(),
        balancer: balancer(
            BalancerKind::Haproxy(Haproxy {
                address: address.to_owned(),
                node,
                backend: backend.to_owned(),
                prefix: "flotilla".to_owned(),
                options: "check".to_owned(),
            }),
            &[],
        ),
        replace: false,
    };
    story.refuses(
        haproxy("/run/haproxy.sock", None, "{app}"),
        "a unix socket is on one machine: say which node runs there, or give HAProxy a TCP address",
    );
    story.refuses(haproxy("/run/haproxy.sock", Some(NodeId(99)), "{app}"), "there is no node 99");
    story.refuses(
        haproxy("10.0.0.9:9999", None, "web"),
        "backend \"web\" is the same for every app: say where the name of the app goes, as in \"be_{app}\"",
    );
    story.refuses(
        haproxy("10.0.0.9:9999; shutdown", None, "{app}"),
        "the address \"10.0.0.9:9999; shutdown\" is not 1 to 256 printable characters without spaces, quotes, `;`, `#`",
    );
    story.does(haproxy("/run/haproxy.sock", Some(N2), "{app}"));
    story.does(haproxy("/run/haproxy.sock", Some(N2), "{app}"));
    story.refuses(haproxy("/run/haproxy.sock", Some(N3), "{app}"), "there is a balancer `edge` already");
    let check = Change::PutBalancer {
        name: "check".to_owned(),
        balancer: balancer(BalancerKind::TcpCheck { port: 7402, closes_on_drain: true }, &[1, 2]),
        replace: false,
    };
    story.refuses(check, "a check port is for exactly one app");
    story.refuses(Change::RemoveBalancer { name: "nobody".to_owned() }, "there is no balancer `nobody`");
    story.does(Change::RemoveBalancer { name: "edge".to_owned() });
    assert!(story.fleet.balancers.is_empty());
}

#[test]
fn a_request_that_comes_twice_happens_once() {
    let mut story = Story::new();
    let request = |sequence| Some(RequestId { client: "cli".to_owned(), sequence });
    let first = story.command(request(5), apply(APP, &[80], &[N1]));
    assert_eq!(story.command(request(5), apply(APP, &[80], &[N1])), first);
    assert_eq!(story.command(request(5), Change::DeleteApp { app: name(APP), if_version: None }), first);
    assert_eq!(story.fleet.apps[&name(APP)].version, 1);
    let late = story.command(request(4), apply(APP, &[81], &[N1])).unwrap_err();
    assert_eq!(late.to_string(), "request 4 of client cli is older than its last one");
}

#[test]
fn the_client_that_wrote_least_recently_is_forgotten() {
    let mut story = Story::new();
    let request = |client: usize| Some(RequestId { client: format!("cli-{client}"), sequence: 1 });
    let nothing = || available(N1, Availability::Active);
    for client in 0..CLIENTS_MAX {
        story.command(request(client), nothing()).unwrap();
    }
    assert!(story.fleet.requests.contains_key("cli-0"));
    story.command(request(CLIENTS_MAX), nothing()).unwrap();
    assert!(!story.fleet.requests.contains_key("cli-0"));
    assert_eq!(story.fleet.requests.len(), CLIENTS_MAX);
}

#[test]
fn changes_of_one_app_in_one_log_entry_are_refused_after_the_first() {
    let mut story = Story::new();
    story.applies(APP, &[80], &[N1]);
    let command = Command { request: None, time: Timestamp(9), change: apply(APP, &[81], &[N1]) };
    let rejection = story.fleet.apply(story.index, &command).unwrap_err();
    assert_eq!(rejection.to_string(), "stale: app `app-1` was changed in the same log entry");
}

#[test]
fn ten_thousand_apps_are_the_limit() {
    let mut story = Story::new();
    let app = |number: usize| ApplyApp { spec: spec(&name(number), &[]), if_version: None, placed: vec![N1] };
    story.does(Change::ApplyApps { apps: (0..APPS_MAX).map(app).collect() });
    let one_more = Change::ApplyApps { apps: vec![app(APPS_MAX)] };
    story.refuses(one_more, "the region has 10000 apps, which is the limit");
    story.does(apply(0, &[80], &[N1]));
}

#[test]
fn events_say_what_a_user_would_ask_about() {
    let mut story = Story::new();
    let old = story.serves(&[80], &[N1]);
    let new = story.applies(APP, &[81], &[N1]);
    let reason = "node n1: port 81 is in use".to_owned();
    story.steps(new, &[N1], &Step::Failed { reason: reason.clone() });
    story.coordinates(Transition::RollBack { app: name(APP), generation: new, reason });
    story.coordinates(Transition::RolledBack { app: name(APP), generation: new, missing: String::new() });
    let about_app = |event: &&std::sync::Arc<Event>| event.app == Some(AppName::parse("app-1").unwrap());
    let told: Vec<_> =
        story.fleet.events.iter().filter(about_app).map(|event| event.message.as_str()).collect();
    assert_eq!(old, GenerationId(5));
    let expected = [
        "version 1 accepted; generation 5 prepares on n1",
        "generation 5 serves",
        "version 2 accepted; generation 8 prepares on n1",
        "node n1: generation 8: node n1: port 81 is in use",
        "generation 8 goes back to 5: node n1: port 81 is in use",
        "generation 5 serves again",
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_wave_is_an_event_with_what_let_it_go_on() {
    let mut story = Story::new();
    story.serves(&[80], &[N1, N2, N3]);
    let new = story.applies(APP, &[81], &[N1, N2, N3]);
    let share = |percent| Step::Shifting { since: Timestamp(0), percent };
    let move_on = |story: &mut Story, steps: Vec<(NodeId, Step)>, why: &str| {
        let (app, why) = (name(APP), why.to_owned());
        story.coordinates(Transition::Advance { app, generation: new, steps, why });
    };
    story.steps(new, &[N1, N2, N3], &Step::Ready);
    move_on(&mut story, vec![(N1, share(10))], "");
    story.steps(new, &[N1], &Step::Monitoring { since: Timestamp(0), percent: 10 });
    move_on(&mut story, vec![(N1, share(100))], "n1 at 10 %: 0.0 % of 120 requests failed");
    move_on(
        &mut story,
        vec![(N1, Step::Done), (N2, share(100)), (N3, share(100))],
        &"é".repeat(EVENT_BYTES_MAX),
    );
    let next = story.applies(APP, &[82], &[N1]);
    story.does(Change::DeleteApp { app: name(APP), if_version: None });
    let told: Vec<_> = story.fleet.events.iter().rev().map(|event| event.message.as_str()).collect();
    assert_eq!(told[0], "app app-1 deleted");
    assert_eq!(told[1], format!("the rollout of generation {next} is superseded"));
    assert!(told[2].starts_with("version 3 accepted"), "{}", told[2]);
    assert_eq!(told[3], format!("the rollout of generation {new} is superseded"));
    let long = format!("generation {new} takes 100 % on n2, n3; is done on n1 (éé");
    assert!(told[4].starts_with(&long) && told[4].ends_with("é…"), "{}", told[4]);
    assert!((EVENT_BYTES_MAX - 1..=EVENT_BYTES_MAX).contains(&told[4].len()), "{}", told[4].len());
    let passed = format!("generation {new} takes 100 % on n1 (n1 at 10 %: 0.0 % of 120 requests failed)");
    assert_eq!(told[5..7], [passed, format!("generation {new} takes 10 % on n1")]);
}

#[test]
fn a_node_that_gives_an_app_back_is_an_event_unless_it_drains() {
    let mut story = Story::new();
    let serving = story.serves(&[80], &[N1, N2, N3]);
    let give_back = |node| {
        let (app, generation) = (name(APP), serving);
        Transition::Assign { node, app, generation, desired: Desired::Drain }
    };
    story.coordinates(give_back(N2));
    assert_eq!(
        story.fleet.events.back().unwrap().message,
        format!("node n2 gives generation {serving} back")
    );
    story.does(drain(N3, 100, false, true));
    let drains = story.fleet.events.back().unwrap().message.clone();
    story.coordinates(give_back(N3));
    assert_eq!(story.fleet.events.back().unwrap().message, drains);
}

fn advance(generation: GenerationId, steps: Vec<(NodeId, Step)>) -> Transition {
    Transition::Advance { app: name(APP), generation, steps, why: String::new() }
}

fn drain(node: NodeId, deadline: u64, leaves: bool, cut: bool) -> Change {
    let (deadline, quiet) = (Duration::from_millis(deadline), Duration::from_millis(10));
    Change::DrainNode { node, deadline, quiet, leaves, cut }
}

#[test]
fn a_drain_moves_up_phase_by_phase_until_it_is_called_off() {
    let mut story = Story::new();
    let advance = |phase| Transition::AdvanceDrain { node: N2, phase, why: "because".to_owned() };
    let drain_of = |story: &Story| story.fleet.members[&N2].drain.map(|drain| (drain.phase, drain.leaves));
    story.does(drain(N2, 100, false, false));
    let started = story.fleet.members[&N2].drain.unwrap();
    assert_eq!(started.deadline, Timestamp(started.started.0 + 100));
    assert!(!story.fleet.members[&N2].wants_traffic() && !story.fleet.members[&N2].gives_back());

    story.coordinates(advance(DrainPhase::Quiet));
    let back = Change::Coordinate { term: 1, transition: advance(DrainPhase::Quiet) };
    story.refuses(back, "stale: the drain is that far already");
    // Asked again: other terms, the same phase.
    story.does(drain(N2, 900, true, false));
    assert_eq!(drain_of(&story), Some((DrainPhase::Quiet, true)));
    story.does(Change::UpdateMember { node: N2, member: member("n2") });
    assert_eq!(drain_of(&story), Some((DrainPhase::Quiet, true)));

    story.coordinates(advance(DrainPhase::Draining));
    story.coordinates(advance(DrainPhase::Empty));
    assert!(story.fleet.members[&N2].gives_back());
    let cut = Change::Coordinate { term: 1, transition: advance(DrainPhase::Cut) };
    story.refuses(cut, "stale: the drain is that far already");

    story.does(available(N2, Availability::Active));
    assert_eq!(drain_of(&story), None);
    let late = Change::Coordinate { term: 1, transition: advance(DrainPhase::Cut) };
    story.refuses(late, "stale: the node does not drain");
    let told: Vec<_> = story.fleet.events.iter().rev().take(6).map(|event| event.message.as_str()).collect();
    let expected = [
        "node n2 takes apps again",
        "node n2: empty: because",
        "node n2: draining: because",
        "node n2 gives its traffic up to leave the cluster: quiet",
        "node n2: quiet: because",
        "node n2 gives its traffic up for now: lame duck",
    ];
    assert_eq!(told, expected);
}

#[test]
fn an_absence_is_told_once_and_a_planned_one_not_at_all() {
    use Presence::{Down, Stopped, Up};
    let mut story = Story::new();
    let tell = |presence| {
        let why = "it has not reported for 3 s".to_owned();
        Change::Coordinate { term: 1, transition: Transition::TellPresence { node: N2, presence, why } }
    };
    story.refuses(tell(Up), "stale: the node is not away");
    story.does(tell(Down));
    story.refuses(tell(Down), "stale: the node is away already");
    story.refuses(tell(Stopped), "stale: the node is away already");
    story.does(tell(Up));
    let before = story.fleet.events.len();
    let told: Vec<_> = story.fleet.events.iter().rev().take(2).map(|event| event.message.as_str()).collect();
    assert_eq!(told, ["node n2 is up again after 0 s", "node n2 is down: it has not reported for 3 s"]);
    story.does(tell(Stopped));
    story.refuses(tell(Down), "stale: the node is away already");
    story.does(tell(Up));
    assert_eq!(story.fleet.events.len(), before);

    story.does(tell(Down));
    story.does(available(N2, Availability::Left));
    assert!(story.fleet.absences.is_empty());
    story.refuses(tell(Up), "there is no node 2");
}

#[test]
fn a_node_that_is_gone_is_cut_at_once_and_the_last_one_cannot_leave() {
    let mut story = Story::new();
    story.does(drain(N3, 0, true, true));
    assert_eq!(story.fleet.members[&N3].drain.unwrap().phase, DrainPhase::Cut);
    for node in [N3, N2] {
        story.does(available(node, Availability::Left));
    }
    story.refuses(drain(N1, 100, true, false), "node n1 is the last one of the cluster");
    story.does(drain(N1, 100, false, false));
}

#[test]
fn a_chosen_port_that_others_have_is_exchanged_and_a_fixed_one_is_not() {
    let mut story = Story::new();
    let generation = story.applies(APP, &[80, 0, 0], &[N1, N2]);
    assert_eq!(story.asked(N1), "5 prepare [80, 20000, 20002]");
    let other = |taken: &[u16]| Transition::ChoosePorts {
        node: N1,
        app: name(APP),
        generation,
        taken: taken.to_vec(),
    };
    story.coordinates(other(&[20_000, 80]));
    assert_eq!(story.asked(N1), "5 prepare [80, 20003, 20002]");
    assert_eq!(story.asked(N2), "5 prepare [80, 20000, 20002]");
    assert_eq!(story.fleet.assignment(N1, &name(APP), generation).unwrap().index, story.index);
    let fixed = Change::Coordinate { term: 1, transition: other(&[80]) };
    story.refuses(fixed, "stale: none of the ports was chosen by the cluster");
    let full = Change::Coordinate { term: 1, transition: other(&[20_000, 20_002]) };
    story.refuses(full, "node n1 has no free port left in its pool 20000-20003");
}

#[test]
fn a_user_overrules_the_autoscaler_until_the_override_is_taken_back() {
    let mut story = Story::new();
    let mut scaling = spec(&name(APP), &[80]);
    scaling.placement.autoscale = Some(Autoscale {
        min: 2,
        max: 4,
        target_connections: Some(10),
        target_requests_per_second: None,
        target_cpu_percent: None,
        cooldown: Duration::ZERO,
    });
    let placed = vec![N1, N2];
    story
        .does(Change::ApplyApps { apps: vec![ApplyApp { spec: scaling.clone(), if_version: None, placed }] });
    let replicas = |story: &Story| match story.fleet.replicas(&scaling) {
        Replicas::All => 0,
        Replicas::Count(count) => count,
    };
    let scale = |replicas| Transition::Scale { app: name(APP), replicas, short: 0, reason: "busy".into() };
    let by_hand = |replicas| Change::ScaleApp { app: name(APP), replicas, if_version: None };
    assert_eq!(replicas(&story), 2);
    story.coordinates(scale(3));
    assert_eq!(replicas(&story), 3);
    let again = Change::Coordinate { term: 1, transition: scale(3) };
    story.refuses(again, "stale: the app has that many replicas already");
    story.coordinates(scale(9));
    assert_eq!(replicas(&story), 4, "the rules bound what was decided under others");

    story.does(by_hand(Some(Replicas::Count(1))));
    assert_eq!(replicas(&story), 1);
    let overruled = Change::Coordinate { term: 1, transition: scale(3) };
    story.refuses(overruled, "stale: the app was scaled by hand");
    story.does(by_hand(Some(Replicas::All)));
    assert_eq!(replicas(&story), 0);
    story.does(by_hand(Some(Replicas::Count(3))));
    story.does(by_hand(None));
    assert_eq!(replicas(&story), 3, "it goes on from where the app is");

    // Another spec that says a number: what the autoscaler left behind means nothing.
    let plain = spec(&name(APP), &[80]);
    assert_eq!(story.fleet.replicas(&plain), Replicas::All);
}

#[test]
fn a_note_is_an_event_and_nothing_else() {
    let mut story = Story::new();
    story.serves(&[80], &[N1]);
    let note = |app: usize| {
        let (app, message) = (name(app), "probe `alive`: HTTP 500, expected 200".to_owned());
        Change::Coordinate { term: 1, transition: Transition::Note { app, node: N1, message } }
    };
    let before = story.fleet.clone();
    story.does(note(APP));
    let told = story.fleet.events.back().unwrap();
    assert_eq!(told.message, "node n1: probe `alive`: HTTP 500, expected 200");
    let rest = |fleet: &Fleet| Fleet { index: 0, events: Default::default(), ..fleet.clone() };
    assert!(rest(&story.fleet) == rest(&before), "nothing else changed");
    let refused = story.tries(note(APP + 1)).unwrap_err();
    assert!(matches!(refused, Rejection::NoSuchApp { .. }), "{refused}");
}
