//! Bytes of the log and of snapshots: what was written is what is read, by this version and the next.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test ends where it goes wrong")]

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use flotilla_raft_store::{codec::*, *};
use proptest::{collection::vec, prelude::*};

mod fleet_arbitrary;
use fleet_arbitrary::{arbitrary_command, arbitrary_intent, grow, member, name, spec};

/// Encodings that stores out there hold. `UPDATE=1` writes new ones; never overwrite one that was released.
fn check_golden(file: &str, bytes: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(file);
    let mut hex = String::new();
    for line in bytes.chunks(32) {
        for byte in line {
            write!(hex, "{byte:02x}").unwrap();
        }
        hex.push('\n');
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &hex).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(golden, hex, "the encoding differs from {}", path.display());
    let digits: Vec<u8> = golden.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// One command of each kind.
fn every_command() -> Batch {
    let app = name(1);
    let generation = GenerationId(7);
    let node = NodeId(2);
    let since = Timestamp(5);
    let steps = vec![
        (NodeId(1), Step::Preparing { since }),
        (NodeId(2), Step::Ready),
        (NodeId(3), Step::Shifting { since, percent: 10 }),
        (NodeId(4), Step::Monitoring { since, percent: 10 }),
        (NodeId(5), Step::Done),
        (NodeId(6), Step::Failed { reason: "no".to_owned() }),
    ];
    let reason = "node n2: bind port 80: address in use".to_owned();
    let transitions = [
        Transition::Advance { app: app.clone(), generation, steps, why: String::new() },
        Transition::Complete { app: app.clone(), generation },
        Transition::RollBack { app: app.clone(), generation, reason: reason.clone() },
        Transition::RolledBack { app: app.clone(), generation, missing: String::new() },
        Transition::Pause { app: app.clone(), generation, reason },
        Transition::Assign { node, app: app.clone(), generation, desired: Desired::Drain },
        Transition::Forget { node, app: app.clone(), generation },
        Transition::Place { app: app.clone(), generation, node },
        Transition::ChoosePorts { node, app: app.clone(), generation, taken: vec![20_000] },
        Transition::AdvanceDrain { node, phase: DrainPhase::Quiet, why: "confirmed".to_owned() },
        Transition::Scale { app: app.clone(), replicas: 3, short: 1, reason: "busy".to_owned() },
        Transition::Note { app: app.clone(), node, message: "probe `smoke` passes again".to_owned() },
        Transition::TellPresence { node, presence: Presence::Down, why: "no word for 5s".to_owned() },
    ];
    let apply = ApplyApp { spec: spec(&app, &[8080, 0]), if_version: Some(0), placed: vec![NodeId(1), node] };
    let mut changes = vec![
        Change::InitCluster {
            id: ClusterId("00ff".to_owned()),
            name: "fra".to_owned(),
            member: member("n1"),
        },
        Change::AddMember { member: member("n2") },
        Change::UpdateMember { node, member: member("n2") },
        Change::SetAvailability { node, availability: Availability::Cordoned },
        Change::ApplyApps { apps: vec![apply] },
        Change::DeleteApp { app: app.clone(), if_version: Some(3) },
        Change::Rollback { app: app.clone(), to: Some(2), if_version: None, placed: vec![node] },
        Change::DrainNode {
            node,
            deadline: Duration::from_secs(30),
            quiet: Duration::from_secs(5),
            leaves: true,
            cut: false,
        },
        Change::ScaleApp { app, replicas: Some(flotilla_spec::Replicas::Count(3)), if_version: None },
        Change::TakeControl { term: 4, node },
    ];
    let words = [
        Steer::Pause,
        Steer::Resume,
        Steer::Promote { full: false },
        Steer::Promote { full: true },
        Steer::Abort,
    ];
    changes.extend(words.map(|steer| Change::Steer { app: name(1), if_version: Some(4), steer }));
    let haproxy = Haproxy {
        address: "10.0.0.9:9999".to_owned(),
        node: Some(node),
        backend: "{app}".to_owned(),
        prefix: "flotilla".to_owned(),
        options: "check".to_owned(),
    };
    let kinds = [
        BalancerKind::Haproxy(haproxy),
        BalancerKind::AgentCheck { port: 7402 },
        BalancerKind::TcpCheck { port: 7403, closes_on_drain: true },
        BalancerKind::Envoy { port: 7404, admin: vec!["10.0.0.9:9901".to_owned()] },
        BalancerKind::Nginx { node: NodeId(1) },
    ];
    changes.extend(kinds.into_iter().zip(1..).map(|(kind, number)| Change::PutBalancer {
        name: format!("lb-{number}"),
        balancer: Balancer { apps: [name(1)].into(), min_interval: Duration::from_millis(number), kind },
        replace: number == 2,
    }));
    changes.push(Change::RemoveBalancer { name: "lb-4".to_owned() });
    changes.extend(transitions.map(|transition| Change::Coordinate { term: 4, transition }));
    let request = Some(RequestId { client: "cli-1".to_owned(), sequence: 9 });
    let command = |change| Command { request: request.clone(), time: Timestamp(1_700_000_000_000), change };
    Batch(changes.into_iter().map(command).collect())
}

/// One answer of each kind.
fn every_answer() -> Vec<Answer> {
    let app = name(1);
    let node = "n2".to_owned();
    let outcomes = [Outcome::Created, Outcome::Changed, Outcome::Unchanged, Outcome::Deleted];
    let changed = outcomes.map(|outcome| AppChanged {
        app: app.clone(),
        outcome,
        version: 3,
        generation: GenerationId(7),
    });
    vec![
        Ok(Reply::Done),
        Ok(Reply::Member { node: NodeId(2) }),
        Ok(Reply::Apps { apps: changed.into() }),
        Err(Rejection::NoSuchApp { app: app.clone() }),
        Err(Rejection::VersionConflict { app: app.clone(), expected: 2, actual: 3 }),
        Err(Rejection::PortTaken { port: 80, node: node.clone(), owner: app.clone() }),
        Err(Rejection::PortReserved { port: 22, node: node.clone() }),
        Err(Rejection::PortPoolExhausted { node, from: 20_000, to: 29_999 }),
        Err(Rejection::NoPlacement { app: app.clone(), why: "no node".to_owned() }),
        Err(Rejection::NoSuchVersion { app, version: 9 }),
        Err(Rejection::NoSuchNode { node: NodeId(9) }),
        Err(Rejection::LastMember { node: "n2".to_owned() }),
        Err(Rejection::NameTaken { name: "n2".to_owned(), node: NodeId(2) }),
        Err(Rejection::CannotSteer { app: name(1), why: "it is over".to_owned() }),
        Err(Rejection::TooManyApps { max: APPS_MAX }),
        Err(Rejection::AlreadyInitialised { id: ClusterId("00ff".to_owned()) }),
        Err(Rejection::NotInitialised),
        Err(Rejection::NoSuchBalancer { name: "lb-1".to_owned() }),
        Err(Rejection::BalancerExists { name: "lb-1".to_owned() }),
        Err(Rejection::InvalidBalancer { why: "port 0".to_owned() }),
        Err(Rejection::StaleTerm { proposed: 1, current: 2 }),
        Err(Rejection::Stale { why: "moved on".to_owned() }),
        Err(Rejection::StaleRequest { client: "cli-1".to_owned(), sequence: 1 }),
        Err(Rejection::CannotShare {
            port: 80,
            node: "n2".to_owned(),
            app: name(1),
            owner: name(9),
            why: "the host `a.test` is its already".to_owned(),
        }),
    ]
}

fn small_fleet() -> Fleet {
    let mut fleet = Fleet::default();
    for (index, command) in (1..).zip(every_command().0) {
        let _answer = fleet.apply(index, &Command { request: None, ..command });
    }
    for (client, answer) in (1..).zip(every_answer()) {
        let answered = AnsweredRequest { sequence: 2, answer, index: client };
        fleet.requests.insert(format!("client-{client}"), answered.into());
    }
    fleet
}

#[test]
fn commands_are_encoded_as_ever() {
    let batch = every_command();
    assert_eq!(decode_batch(&check_golden("batch.hex", &encode_batch(&batch))), Ok(batch));
}

#[test]
fn answers_are_encoded_as_ever() {
    let answers = every_answer();
    assert_eq!(decode_answers(&check_golden("answers.hex", &encode_answers(&answers))), Ok(answers));
}

#[test]
fn a_fleet_is_encoded_as_ever() {
    let fleet = small_fleet();
    assert!(!fleet.apps.is_empty() && !fleet.rollouts.is_empty() && !fleet.assignments.is_empty());
    assert_eq!(fleet.balancers.len(), 4, "one was removed");
    assert_eq!(decode_fleet(&check_golden("fleet.hex", &encode_fleet(&fleet))), Ok(fleet));
}

#[test]
fn what_a_newer_version_wrote_stops_the_node() {
    let check = |bytes: &[u8]| {
        let decoded = decode_batch(bytes);
        assert!(matches!(decoded, Err(DecodeError::Newer { .. })), "{bytes:02x?}: {decoded:?}");
    };
    check(&[2]);
    // A command under field 99, which this version skips: the change is missing.
    check(&[1, 0x0a, 0x03, 0x9a, 0x06, 0x00]);
    // Availability 9.
    check(&[1, 0x0a, 0x06, 0x32, 0x04, 0x08, 0x01, 0x10, 0x09]);
    // An app spec with a field of the future.
    let batch = Batch(vec![every_command().0.remove(4)]);
    let bytes = encode_batch(&batch);
    let at = bytes.windows(6).position(|window| window == b"\"name\"").unwrap();
    let mut future = bytes;
    future[at + 1..at + 5].copy_from_slice(b"nome");
    check(&future);
}

#[test]
fn nothing_is_not_a_batch() {
    assert!(matches!(decode_batch(&[]), Err(DecodeError::Corrupt { .. })));
    assert_eq!(decode_batch(&[1]), Ok(Batch(Vec::new())));
}

#[test]
fn a_spec_of_the_past_is_written_once() {
    let mut fleet = small_fleet();
    fleet.requests.clear();
    let text = encode_fleet(&fleet);
    let specs = text.windows(8).filter(|window| window == b"\"listen\"").count();
    assert_eq!(specs, fleet.generations.len());
    assert!(fleet.apps.values().map(|app| app.history.len()).sum::<usize>() >= specs);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_batch_reads_back(commands in vec(arbitrary_command(), 0..6)) {
        let batch = Batch(commands);
        prop_assert_eq!(decode_batch(&encode_batch(&batch)), Ok(batch));
    }

    #[test]
    fn a_fleet_reads_back(intents in vec(arbitrary_intent(), 0..80)) {
        let fleet = grow(&intents);
        let bytes = encode_fleet(&fleet);
        let read = decode_fleet(&bytes).unwrap();
        prop_assert_eq!(&read, &fleet);
        prop_assert_eq!(encode_fleet(&read), bytes);
    }

    #[test]
    fn random_bytes_never_panic(mut bytes in vec(any::<u8>(), 0..200), format in any::<bool>()) {
        if format && let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        let _batch = decode_batch(&bytes);
        let _answers = decode_answers(&bytes);
        let _fleet = decode_fleet(&bytes);
    }

    #[test]
    fn flipped_bits_never_panic_and_what_reads_can_be_applied(
        commands in vec(arbitrary_command(), 1..6),
        intents in vec(arbitrary_intent(), 1..40),
        flips in vec(any::<(usize, u8)>(), 1..4),
    ) {
        let flip = |mut bytes: Vec<u8>| {
            for (at, bit) in &flips {
                let at = at % bytes.len();
                bytes[at] ^= 1 << (bit % 8);
            }
            bytes
        };
        let fleet = grow(&intents);
        let fleets = [decode_fleet(&flip(encode_fleet(&fleet))).ok(), Some(fleet)];
        let flipped = decode_batch(&flip(encode_batch(&Batch(commands.clone())))).unwrap_or(Batch(Vec::new()));
        for mut fleet in fleets.into_iter().flatten() {
            for command in commands.iter().chain(&flipped.0) {
                let _answer = fleet.apply(fleet.index.wrapping_add(1), command);
            }
        }
    }
}
