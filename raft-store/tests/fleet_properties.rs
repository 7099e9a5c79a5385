//! What holds of every fleet, whatever commands it is fed.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test ends where it goes wrong")]

use std::collections::BTreeMap;

use flotilla_raft_store::*;
use proptest::{collection::vec, prelude::*, strategy::ValueTree as _};

mod fleet_arbitrary;
use fleet_arbitrary::{arbitrary_command, arbitrary_intent, grow};

type Key = (NodeId, flotilla_spec::AppName, GenerationId);

fn all_desired(fleet: &Fleet) -> BTreeMap<Key, Desired> {
    let all = fleet.assignments.iter().flat_map(|(node, of_node)| {
        of_node.iter().map(|((app, generation), asked)| ((*node, app.clone(), *generation), asked.desired))
    });
    all.collect()
}

fn without_requests(fleet: &Fleet) -> Fleet {
    Fleet { index: 0, requests: BTreeMap::new(), ..fleet.clone() }
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
    if answer.is_err() {
        prop_assert_eq!(without_requests(first), without_requests(&before), "a refusal changed something");
    }
    let asked_before = all_desired(&before);
    for (key, desired) in all_desired(first) {
        prop_assert!(asked_before.get(&key).is_none_or(|was| *was <= desired), "{:?} went down", key);
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

/// Guards the walks themselves: they must come everywhere, or they prove nothing.
#[test]
fn random_walks_reach_every_state() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = vec(arbitrary_intent(), 200..300);
    let mut seen = std::collections::BTreeSet::new();
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
