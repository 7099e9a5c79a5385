//! What holds of every fleet, whatever commands it is fed.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test ends where it goes wrong")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_raft_store::*;
use flotilla_spec::AppName;
use imbl::OrdMap;
use proptest::{collection::vec, prelude::*, strategy::ValueTree as _};

mod fleet_arbitrary;
use fleet_arbitrary::{arbitrary_command, arbitrary_intent, grow};

type Key = (NodeId, AppName, GenerationId);

fn all_desired(fleet: &Fleet) -> BTreeMap<Key, Desired> {
    let all = fleet.assignments.iter().flat_map(|(node, of_node)| {
        of_node.iter().map(|((app, generation), asked)| ((*node, app.clone(), *generation), asked.desired))
    });
    all.collect()
}

fn without_requests(fleet: &Fleet) -> Fleet {
    Fleet { index: 0, requests: Default::default(), ..fleet.clone() }
}

/// `Fleet::apps_changed_since`, by looking at everything.
fn differing(before: &Fleet, after: &Fleet) -> BTreeSet<AppName> {
    let mut names = BTreeSet::new();
    for (one, other) in [(before, after), (after, before)] {
        names.extend(missing(&one.apps, Some(&other.apps)));
        names.extend(missing(&one.generations, Some(&other.generations)).map(|(app, _)| app));
        names.extend(missing(&one.rollouts, Some(&other.rollouts)).map(|(app, _)| app));
        for (node, of_node) in &one.assignments {
            names.extend(missing(of_node, other.assignments.get(node)).map(|(app, _)| app));
        }
    }
    names.into_iter().cloned().collect()
}

/// Keys whose value is not in `other`.
fn missing<'a, K: Ord, V: PartialEq>(
    one: &'a OrdMap<K, V>,
    other: Option<&'a OrdMap<K, V>>,
) -> impl Iterator<Item = &'a K> {
    let has = move |key: &K, value: &V| other.is_some_and(|other| other.get(key) == Some(value));
    one.iter().filter(move |(key, value)| !has(key, value)).map(|(key, _)| key)
}

/// Applies to both replicas and asks what must hold of every step.
fn step(
    first: &mut Fleet,
    second: &mut Fleet,
    index: u64,
    command: &Command,
) -> Result<Answer, TestCaseError> {
    let before = first.clone();
    let answer = first.apply(index, command);
    prop_assert_eq!(&answer, &second.apply(index, command));
    prop_assert_eq!(first.digest(), second.digest());
    prop_assert_eq!(first.check(), Ok(()), "after {:?}", command);
    prop_assert_eq!(first.apps_changed_since(&before), differing(&before, first), "after {:?}", command);
    if answer.is_err() {
        prop_assert_eq!(without_requests(first), without_requests(&before), "a refusal changed something");
    }
    let placed_again = match &command.change {
        Change::Coordinate { transition: Transition::Place { node, app, generation }, .. } => {
            Some((*node, app.clone(), *generation))
        }
        _ => None,
    };
    let asked_before = all_desired(&before);
    for (key, desired) in all_desired(first) {
        let is_up = asked_before.get(&key).is_none_or(|was| *was <= desired);
        prop_assert!(is_up || placed_again.as_ref() == Some(&key), "{:?} went down", key);
    }
    Ok(answer)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_replicas_agree_on_commands_that_fit(intents in vec(arbitrary_intent(), 1..80)) {
        let (mut first, mut second) = (Fleet::default(), Fleet::default());
        for (index, intent) in (1..).zip(&intents) {
            let change = intent.fit(&first);
            let command = Command { request: None, time: Timestamp(index * 10), change };
            let _answer = step(&mut first, &mut second, index, &command)?;
        }
    }

    #[test]
    fn two_replicas_agree_on_garbage(commands in vec(arbitrary_command(), 1..60)) {
        let (mut first, mut second) = (Fleet::default(), Fleet::default());
        for (index, command) in (1..).zip(&commands) {
            // Two commands in one entry share their index.
            let _answer = step(&mut first, &mut second, index / 2 + 1, command)?;
        }
    }

    #[test]
    fn a_request_seen_before_changes_nothing(intents in vec(arbitrary_intent(), 1..40)) {
        let (mut fleet, mut twin) = (Fleet::default(), Fleet::default());
        for (index, intent) in (1..).zip(&intents) {
            let request = Some(RequestId { client: "cli".to_owned(), sequence: index });
            let command = Command { request, time: Timestamp(index), change: intent.fit(&fleet) };
            let answer = step(&mut fleet, &mut twin, index, &command)?;
            let before = without_requests(&fleet);
            prop_assert_eq!(fleet.apply(index + 1_000, &command), answer);
            prop_assert_eq!(without_requests(&fleet), before);
            let _answer = twin.apply(index + 1_000, &command);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Fleets large enough that two versions share most of their trees.
    #[test]
    fn what_changed_is_found_among_thousands(changes in vec((0..3_000_u64, 0..3_u64, any::<bool>()), 1..200)) {
        let name = |app: u64| AppName::parse(&format!("app-{app}")).unwrap();
        let asked = |index| {
            let desired = Desired::Serve;
            Arc::new(Assignment { desired, percent: 100, ports: vec![80], index, since: Timestamp(0) })
        };
        let mut fleet = Fleet::default();
        for (app, node) in (0..2_500).flat_map(|app| (0..3).map(move |node| (app, node))) {
            fleet.assignments.entry(NodeId(node)).or_default().insert((name(app), GenerationId(1)), asked(1));
        }
        let mut versions = vec![fleet.clone()];
        for (index, (app, node, removes)) in (2..).zip(changes) {
            let of_node = fleet.assignments.entry(NodeId(node)).or_default();
            let key = (name(app), GenerationId(1));
            let _before = if removes { of_node.remove(&key) } else { of_node.insert(key, asked(index)) };
            versions.push(fleet.clone());
        }
        for before in versions.iter().step_by(17) {
            prop_assert_eq!(fleet.apps_changed_since(before), differing(before, &fleet));
        }
    }
}

/// Guards the walks themselves: they must come everywhere, or they prove nothing.
#[test]
fn random_walks_reach_every_state() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = vec(arbitrary_intent(), 200..300);
    let mut seen = BTreeSet::new();
    for _ in 0..400 {
        let fleet = grow(&strategy.new_tree(&mut runner).unwrap().current());
        seen.extend(fleet.rollouts.values().map(|rollout| format!("{:?}", rollout.state)));
        seen.extend(
            fleet.generations.values().map(|generation| format!("generation {:?}", generation.state)),
        );
        seen.extend(all_desired(&fleet).values().map(|desired| format!("{desired:?}")));
        seen.extend(
            fleet.events.iter().filter(|event| event.message.ends_with("is gone")).map(|_| "gone".to_owned()),
        );
    }
    let expected = [
        "Progressing",
        "Paused",
        "RollingBack",
        "RolledBack",
        "Completed",
        "Failed",
        "Superseded",
        "generation Staged",
        "generation Serving",
        "generation Draining",
        "generation Retired",
        "generation Failed",
        "Prepare",
        "Serve",
        "Drain",
        "Remove",
        "gone",
    ];
    for state in expected {
        assert!(seen.contains(state), "no walk led to {state}: {seen:?}");
    }
}
