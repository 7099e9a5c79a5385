//! SIGKILL at any moment: what was acknowledged is there, and the store opens again.
//!
//! The page cache outlives the process, so this is about the order of writes and not about power.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a test may speak")]
#![allow(clippy::disallowed_methods, reason = "real processes need real time")]

use std::{
    io::{BufRead, Write},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use openraft::{StorageHelper, storage::RaftLogStorage};

use self::store_support::*;

mod store_support;

const KILLS_WRITING: u64 = 50;
const KILLS_OPENING: usize = 30;

#[derive(Debug, Default)]
struct Acked {
    entry: Option<u64>,
    term: Option<u64>,
}

#[test]
fn what_was_acknowledged_survives_fifty_kills_in_mid_write() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let mut acked = Acked::default();
    for kill in 0..KILLS_WRITING {
        let (mut child, mut stdout) = spawn_child("child_writes_until_it_is_killed", dir.path());
        wait_for_line(&mut stdout, "writing");
        // A prime, so that the moments are spread over the cycle of operations.
        let life = Duration::from_millis(5 + kill * 37 % 60);
        let killer = std::thread::spawn(move || {
            std::thread::park_timeout(life);
            child.kill().unwrap();
            child.wait().unwrap();
        });
        for line in stdout.lines() {
            note(&mut acked, &line.unwrap());
        }
        killer.join().unwrap();
        runtime.block_on(check(dir.path(), &acked, kill));
    }
    assert!(
        acked.entry > Some(KILLS_WRITING) && acked.term.is_some(),
        "{acked:?}: hardly anything was written"
    );
}

#[test]
fn a_store_opens_after_thirty_kills_while_it_was_opening() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let acked = runtime.block_on(async {
        let mut opened = create(dir.path()).await;
        for start in (0..400).step_by(20) {
            write(&mut opened, start..start + 20).await;
        }
        build_snapshot(&mut opened).await;
        opened.log.save_vote(&vote(5)).await.unwrap();
        close(opened).await;
        Acked { entry: Some(399), term: Some(5) }
    });
    let usual = time_to_open(dir.path());
    let mut killed = 0;
    for attempt in 0_u32.. {
        assert!(attempt < 400, "only {killed} kills hit a store that was opening");
        if killed == KILLS_OPENING {
            break;
        }
        let (mut child, mut stdout) = spawn_child("child_opens", dir.path());
        wait_for_line(&mut stdout, "opening");
        std::thread::park_timeout(usual.mul_f64(f64::from(attempt * 7 % 20) / 20.0));
        child.kill().unwrap();
        child.wait().unwrap();
        killed += usize::from(!stdout.lines().any(|line| line.unwrap() == "opened"));
        if attempt % 5 == 0 {
            runtime.block_on(check(dir.path(), &acked, attempt.into()));
        }
    }
    runtime.block_on(check(dir.path(), &acked, 999));
}

#[test]
fn a_creation_that_was_killed_is_begun_again() {
    for kill in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let (mut child, mut stdout) = spawn_child("child_writes_until_it_is_killed", dir.path());
        wait_for_line(&mut stdout, "opening");
        std::thread::park_timeout(Duration::from_millis(kill));
        child.kill().unwrap();
        child.wait().unwrap();
        runtime().block_on(async {
            let opened = match flotilla_raft_store::Store::read_identity(dir.path()).unwrap() {
                Some(_) => open(dir.path()).await.unwrap(),
                None => create(dir.path()).await,
            };
            close(opened).await;
        });
    }
}

#[test]
#[ignore = "the process that the tests above kill"]
fn child_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    runtime().block_on(async {
        say("\nopening");
        let mut opened = match flotilla_raft_store::Store::read_identity(&dir).unwrap() {
            Some(_) => open(&dir).await.unwrap(),
            None => create(&dir).await,
        };
        StorageHelper::new(&mut opened.log, &mut opened.state_machine).get_initial_state().await.unwrap();
        let state = opened.log.get_log_state().await.unwrap();
        let mut next = state.last_log_id.map_or(0, |last| last.index + 1);
        let committed = opened.log.read_committed().await.unwrap().map_or(0, |committed| committed.index + 1);
        // What was appended and not committed when the kill came is now cut off or committed, as a leader would.
        if next > committed && next % 2 == 0 {
            opened.log.truncate(log_id(committed)).await.unwrap();
            next = committed;
        } else if next > committed {
            openraft::storage::RaftStateMachine::apply(
                &mut opened.state_machine,
                (committed..next).map(entry),
            )
            .await
            .unwrap();
        }
        say("writing");
        say(&format!("cut {next}"));
        for round in 0_u64.. {
            let end = next + 1 + round % 5;
            append(&mut opened.log, next..end).await;
            say(&format!("entry {}", end - 1));
            opened.log.save_committed(Some(log_id(end - 1))).await.unwrap();
            openraft::storage::RaftStateMachine::apply(&mut opened.state_machine, (next..end).map(entry))
                .await
                .unwrap();
            next = end;
            if round % 4 == 1 {
                opened.log.save_vote(&vote(next)).await.unwrap();
                say(&format!("term {next}"));
            }
            if round % 6 == 2 {
                build_snapshot(&mut opened).await;
                opened.log.purge(log_id(next - 1)).await.unwrap();
            }
        }
    });
}

#[test]
#[ignore = "the process that the tests above kill"]
fn child_opens() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    runtime().block_on(async {
        say("\nopening");
        let opened = open(&dir).await.unwrap();
        say("opened");
        close(opened).await;
        say("closed");
    });
}

async fn check(dir: &std::path::Path, acked: &Acked, kill: u64) {
    let mut opened = open(dir).await.unwrap_or_else(|err| panic!("kill {kill}, {acked:?}: {err}"));
    check_log(&mut opened.log, acked.entry).await;
    let term = opened.log.read_vote().await.unwrap().map(|vote| vote.leader_id.term);
    assert!(term >= acked.term, "kill {kill}: the vote of term {:?} became {term:?}", acked.term);
    StorageHelper::new(&mut opened.log, &mut opened.state_machine).get_initial_state().await.unwrap();
    close(opened).await;
}

fn note(acked: &mut Acked, line: &str) {
    match line.split_once(' ') {
        Some(("entry", index)) => acked.entry = Some(index.parse().unwrap()),
        Some(("term", term)) => acked.term = Some(term.parse().unwrap()),
        // The child itself cut the log back, to before this entry.
        Some(("cut", next)) => {
            let kept = next.parse::<u64>().unwrap().checked_sub(1);
            acked.entry = acked.entry.min(kept);
        }
        _ => {}
    }
}

fn time_to_open(dir: &std::path::Path) -> Duration {
    let (mut child, mut stdout) = spawn_child("child_opens", dir);
    wait_for_line(&mut stdout, "opening");
    let started = Instant::now();
    wait_for_line(&mut stdout, "opened");
    let usual = started.elapsed();
    wait_for_line(&mut stdout, "closed");
    child.wait().unwrap();
    usual
}

fn say(line: &str) {
    println!("{line}");
    std::io::stdout().flush().unwrap();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_directory_in_use_by_another_process_is_refused_with_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, mut stdout) = spawn_child("child_writes_until_it_is_killed", dir.path());
    wait_for_line(&mut stdout, "writing");
    let err = runtime().block_on(open(dir.path())).unwrap_err();
    assert!(err.to_string().contains(&format!("in use by process {}", child.id())), "{err}");
    child.kill().unwrap();
    child.wait().unwrap();
    let opened = runtime().block_on(open(dir.path()));
    opened.expect("the lock died with its process");
}

#[test]
fn the_test_binary_is_its_own_child() {
    let output =
        Command::new(std::env::current_exe().unwrap()).arg("--list").stdin(Stdio::null()).output().unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    for child in ["child_opens: test", "child_writes_until_it_is_killed: test"] {
        assert!(list.contains(child), "{list}");
    }
}
