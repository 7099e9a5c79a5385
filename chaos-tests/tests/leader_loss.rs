//! The leader dies at each phase of a rollout. Every rollout ends, one wave at a time, and no client of
//! the other nodes notices. A leader that dies while it takes the new generation itself, and stays away,
//! has failed: that rollout goes back.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what goes wrong fails the test, and what it measured is said"
)]

use std::{net::SocketAddr, time::Duration};

use flotilla_api::v1::{DescribeAppRequest, ListRolloutsRequest, Rollout};
use flotilla_chaos_tests::{
    client::whoami,
    load::Load,
    origin::Echo,
    poll::eventually,
    process::{SOON, TestFleet},
    spec,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");
/// `progress_deadline` of the spec, twice an election, and what a slow machine adds.
const DEADLINE: Duration = Duration::from_secs(40);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Proposed,
    Preparing,
    Ready,
    MidShift,
    Monitoring,
    Draining,
}

const PHASES: [Phase; 6] =
    [Phase::Proposed, Phase::Preparing, Phase::Ready, Phase::MidShift, Phase::Monitoring, Phase::Draining];

impl Phase {
    fn is_now(self, rollout: &Rollout) -> bool {
        let any = |step: &str| rollout.steps.iter().any(|known| known.step == step);
        match self {
            Self::Proposed => true,
            Self::Preparing => any("preparing"),
            Self::Ready => any("ready"),
            // Some nodes have shifted, others have not.
            Self::MidShift => any("shifting") || (any("ready") && (any("monitoring") || any("done"))),
            Self::Monitoring => any("monitoring"),
            Self::Draining => rollout.finished,
        }
    }
}

#[derive(Debug, Default)]
struct Told {
    completed: u32,
    rolled_back: u32,
    operations: u64,
}

/// One rollout whose leader dies at `phase`. `round` makes it another spec than the one before.
async fn lose_the_leader_at(fleet: &mut TestFleet, phase: Phase, round: usize, told: &mut Told) {
    let (old, new) = (Echo::start("old"), Echo::start(&format!("new-{round}")));
    fleet.settled().await;
    fleet.apply(&app(&old, "100ms", round)).await.exits(0);
    let leader = fleet.leader().await;
    let others: Vec<_> = (0..3).filter(|&node| node != leader).collect();
    let addresses: Vec<SocketAddr> = others.iter().map(|&node| fleet.node(node).port(9000)).collect();
    // A session that the old generation has to drain.
    let mut session = TcpStream::connect(addresses[0]).await.unwrap();
    session.write_all(b"hello").await.unwrap();
    session.read_exact(&mut [0; 5]).await.unwrap();

    let before = newest(fleet, leader).await.unwrap().to;
    let load = Load::tcp(addresses.iter().copied()).per_second(200).start();
    let file = fleet.file("next.toml", &app(&new, "800ms", round));
    fleet.cli_at(others[0], ["app", "apply", "-f", &file, "--wait=committed"]).await.exits(0);
    // What is committed is proposed: that one needs no look.
    if phase != Phase::Proposed {
        see(fleet, leader, phase).await;
    }
    fleet.node_mut(leader).kill();
    let died = Instant::now();

    let rollout = loop {
        let rollout = newest(fleet, others[0]).await;
        if let Ok(rollout) = &rollout {
            let taking = |step: &&str| matches!(*step, "shifting" | "monitoring");
            let waves = rollout.steps.iter().map(|step| step.step.as_str()).filter(taking).count();
            assert!(waves <= 1, "two waves at once after {phase:?}: {rollout:?}");
            // The leader may die before it tells this node that the newest one is committed.
            let is_ours = rollout.to > before;
            if is_ours
                && rollout.finished
                && fleet.node(others[0]).status().await.is_ok_and(|status| status.leader != 0)
            {
                break rollout.clone();
            }
        }
        assert!(died.elapsed() < DEADLINE, "it does not end after {phase:?}: {rollout:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let serves = match rollout.state.as_str() {
        "completed" => {
            told.completed += 1;
            format!("new-{round}")
        }
        "rolled back" => {
            told.rolled_back += 1;
            "old".to_owned()
        }
        other => panic!("{other} after {phase:?}: {rollout:?}"),
    };
    for &address in &addresses {
        answers(address, &serves).await;
    }
    let report = load.stop().await;
    let (state, why) = (&rollout.state, &rollout.reason);
    eprintln!("{phase:?}: {state} {} ms after the death: {why}; {report}", died.elapsed().as_millis());
    told.operations += report.total();
    report.assert_clean();

    fleet.node_mut(leader).start().await;
    answers(fleet.node(leader).port(9000), &serves).await;
    // The other generation is let go of everywhere, at its deadline at the latest.
    let kept = eventually("one generation is left", DEADLINE, async || {
        let mut client = fleet.node(others[0]).client().await.map_err(|err| err.to_string())?;
        let request = DescribeAppRequest { app: "web".to_owned() };
        let app = client.describe_app(request).await.map_err(|err| err.to_string())?.into_inner();
        let mut generations: Vec<_> = app.nodes.iter().map(|node| node.generation).collect();
        generations.dedup();
        if generations.len() == 1 && app.nodes.len() == 3 {
            Ok(generations[0])
        } else {
            Err(format!("{:?}", app.nodes))
        }
    })
    .await;
    let expected = if rollout.state == "completed" { rollout.to } else { rollout.from };
    assert_eq!(kept, expected, "{rollout:?}");
}

/// Looks at the leader until the rollout is in `phase`.
async fn see(fleet: &TestFleet, leader: usize, phase: Phase) {
    let began = Instant::now();
    loop {
        let rollout = newest(fleet, leader).await;
        if let Ok(rollout) = &rollout {
            if phase.is_now(rollout) {
                return;
            }
            assert!(!rollout.finished, "{phase:?} was not seen: {rollout:?}");
        }
        assert!(began.elapsed() < DEADLINE, "never {phase:?}: {rollout:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A readiness probe makes preparing long enough to be hit.
fn app(origin: &Echo, bake: &str, round: usize) -> String {
    let probe = r#"
[[app.probe]]
name = "greets"
type = "tcp"
send = "whoami\n"
rise = 4
interval = "250ms"
"#;
    // The targets differ from round to round, so no two specs are alike.
    spec::app("web", "9000", &[origin.address()], &format!("description = \"{round} {bake}\"\n{probe}"))
        .replace("min_healthy = \"100ms\"", &format!("min_healthy = \"{bake}\""))
}

async fn newest(fleet: &TestFleet, node: usize) -> Result<Rollout, String> {
    let mut client = fleet.node(node).client().await.map_err(|err| err.to_string())?;
    let request = ListRolloutsRequest { app: "web".to_owned() };
    let rollouts = client.list_rollouts(request).await.map_err(|err| err.to_string())?.into_inner().rollouts;
    rollouts.into_iter().max_by_key(|rollout| rollout.to).ok_or_else(|| "there is no rollout".to_owned())
}

async fn answers(address: SocketAddr, name: &str) {
    eventually(&format!("{name} answers at {address}"), SOON, async || match whoami(address).await {
        Ok(answer) if answer == name => Ok(()),
        Ok(answer) => Err(answer),
        Err(err) => Err(err.to_string()),
    })
    .await;
}

async fn lose_leaders(times: usize) {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let mut told = Told::default();
    for round in 0..times {
        for (number, phase) in PHASES.into_iter().enumerate() {
            lose_the_leader_at(&mut fleet, phase, round * PHASES.len() + number, &mut told).await;
        }
    }
    eprintln!("{} leaders lost: {told:?}", times * PHASES.len());
    assert_eq!((told.completed + told.rolled_back) as usize, times * PHASES.len());
}

#[tokio::test]
async fn a_rollout_ends_whatever_phase_its_leader_dies_in() {
    lose_leaders(1).await;
}

/// `cargo test -p flotilla-chaos-tests --test leader_loss -- --ignored --nocapture`
#[tokio::test]
#[ignore = "minutes"]
async fn ten_leaders_lost_at_each_phase() {
    lose_leaders(10).await;
}
