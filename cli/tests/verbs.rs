//! Verbs against nodes that say what a test wants: exit codes, retries, broken watches.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test that cannot go on panics; clocks are real"
)]

mod fake_fleet;

use std::{
    fs,
    time::{Duration, Instant},
};

use fake_fleet::{FakeFleet, Says, flotilla, queue, refusal, run};
use flotilla_api::v1::{app_changed::Outcome, *};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tonic::{Code, Status};

/// `web.toml` in a folder of its own.
fn spec() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.toml");
    fs::write(&file, "[[app]]\nname = \"web\"\nlisten = [\"http:8080\"]\ntargets = [\"127.0.0.1:3000\"]\n")
        .unwrap();
    (dir, file.display().to_string())
}

fn changed(outcome: Outcome) -> ApplyAppsReply {
    let app = AppChanged { app: "web".to_owned(), outcome: outcome.into(), version: 13, generation: 42 };
    ApplyAppsReply { apps: vec![app] }
}

fn rollout(state: &str, step: &str) -> Rollout {
    Rollout {
        app: "web".to_owned(),
        from: 41,
        to: 42,
        from_version: 12,
        to_version: 13,
        state: state.to_owned(),
        finished: !matches!(state, "progressing" | "rolling back"),
        steps: vec![RolloutStep {
            node: "n1".to_owned(),
            step: step.to_owned(),
            live: true,
            ..RolloutStep::default()
        }],
        ..Rollout::default()
    }
}

fn app(name: &str) -> App {
    App { name: name.to_owned(), version: 1, state: "serving".to_owned(), ..App::default() }
}

#[tokio::test]
async fn each_refusal_of_a_node_has_its_exit_code_and_is_shown_with_its_advice() {
    for (status, code) in [
        (refusal(Code::InvalidArgument, "E0100", "bad spec"), 2),
        (refusal(Code::NotFound, "E0301", "there is no app `web`"), 6),
        (refusal(Code::Aborted, "E0302", "app `web` is at version 14, not 12"), 5),
        (refusal(Code::FailedPrecondition, "E0201", "port 8080 is taken"), 1),
        (refusal(Code::AlreadyExists, "E0503", "the name is taken"), 1),
    ] {
        let message =
            format!("error[{}]: {}\n  help: what to do?\n", flotilla_code(&status), status.message());
        let fleet = FakeFleet::start(Says { apply: queue([Err(status)]), ..Says::default() }).await;
        let (_dir, file) = spec();
        let ran = run(&[&fleet], &["app", "apply", "-f", &file]).await;
        assert_eq!((ran.code, ran.stderr), (Some(code), message));
        assert_eq!(ran.stdout, "");
    }
}

fn flotilla_code(status: &Status) -> String {
    status.metadata().get("flotilla-code").unwrap().to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_write_is_repeated_under_its_request_id_until_there_is_a_leader() {
    let no_leader = || Err(refusal(Code::Unavailable, "E0401", "no leader is known"));
    let says =
        Says { apply: queue([no_leader(), no_leader(), Ok(changed(Outcome::Changed))]), ..Says::default() };
    let fleet = FakeFleet::start(says).await;
    let (_dir, file) = spec();
    let ran = run(&[&fleet], &["app", "apply", "-f", &file, "--no-wait"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "✓ web changed: version 13\n"), "{}", ran.stderr);
    let writes = fleet.says.writes.lock().unwrap();
    assert_eq!(writes.len(), 3);
    assert!(
        writes.iter().all(|id| *id == writes[0] && !id.client.is_empty() && id.sequence > 0),
        "{writes:?}"
    );
}

#[tokio::test]
async fn without_a_leader_within_the_timeout_the_exit_code_is_4() {
    let no_leader = || Err(refusal(Code::Unavailable, "E0401", "no leader is known"));
    let fleet =
        FakeFleet::start(Says { apply: queue((0..100).map(|_| no_leader())), ..Says::default() }).await;
    let (_dir, file) = spec();
    let ran = run(&[&fleet], &["app", "apply", "-f", &file, "--timeout", "300ms"]).await;
    assert_eq!(ran.code, Some(4), "{}", ran.stderr);
    assert!(ran.stderr.starts_with("error[E0401]: no leader is known\n"), "{}", ran.stderr);
}

#[tokio::test]
async fn the_next_address_is_asked_when_the_first_is_silent() {
    let silent =
        FakeFleet::start(Says { list: queue([Err(Status::unavailable("stopping"))]), ..Says::default() });
    let silent = silent.await;
    let apps = ListAppsReply { apps: vec![app("web")], index: 1 };
    let fleet = FakeFleet::start(Says { list: queue([Ok(apps)]), ..Says::default() }).await;
    let ran = run(&[&silent, &fleet], &["app", "list", "--no-headers"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.starts_with("web"), "{}", ran.stdout);
}

#[tokio::test]
async fn a_rollout_that_completes_is_followed_line_by_line_to_its_verdict() {
    let says = Says {
        apply: queue([Ok(changed(Outcome::Changed))]),
        watches: queue([vec![
            Ok(rollout("progressing", "preparing")),
            Ok(rollout("progressing", "shifting")),
            Ok(rollout("completed", "done")),
        ]]),
        ..Says::default()
    };
    let fleet = FakeFleet::start(says).await;
    let (_dir, file) = spec();
    let ran = run(&[&fleet], &["app", "apply", "-f", &file]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.stdout, "✓ web is at version 13 on 1 node (0:00). Undo: flotilla app rollback web\n");
    let phases: Vec<&str> =
        ran.stderr.lines().filter_map(|line| Some(line.split_once(" phase=")?.1)).collect();
    assert_eq!(
        phases,
        [
            "preparing readiness=\"\"",
            "progressing",
            "shifting readiness=\"\"",
            "done readiness=\"\"",
            "completed"
        ]
    );
}

#[tokio::test]
async fn a_broken_watch_goes_on_at_another_node_and_is_no_failure() {
    let first = FakeFleet::start(Says {
        apply: queue([Ok(changed(Outcome::Changed))]),
        watches: queue([vec![
            Ok(rollout("progressing", "preparing")),
            Err(Status::unknown("h2 protocol error: broken")),
        ]]),
        ..Says::default()
    })
    .await;
    let second = FakeFleet::start(Says {
        watches: queue([vec![Ok(rollout("completed", "done"))]]),
        ..Says::default()
    })
    .await;
    let (_dir, file) = spec();
    let ran = run(&[&first, &second], &["app", "apply", "-f", &file, "-o", "json"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["kind"], "AppsApplied");
    assert_eq!(document["apps"][0]["outcome"], "changed");
    assert_eq!(document["apps"][0]["rollout"]["state"], "completed");
}

#[tokio::test]
async fn a_rollback_is_exit_1_with_its_reasons() {
    let mut failed = rollout("rolled back", "failed");
    failed.reason = "n1: connection refused by 127.0.0.1:3000".to_owned();
    let says = Says {
        apply: queue([Ok(changed(Outcome::Changed))]),
        watches: queue([vec![Ok(failed)]]),
        ..Says::default()
    };
    let fleet = FakeFleet::start(says).await;
    let (_dir, file) = spec();
    let ran = run(&[&fleet], &["app", "apply", "-q", "-f", &file]).await;
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr.starts_with("✗ web 13 rolled back to 12 after 0:00\n  n1: connection refused"),
        "{}",
        ran.stderr
    );
    assert_eq!(ran.stdout, "");
}

#[tokio::test]
async fn a_rollout_that_takes_longer_than_the_timeout_is_not_called_a_failure_of_the_rollout() {
    let says = Says {
        apply: queue([Ok(changed(Outcome::Changed))]),
        watches: queue([vec![Ok(rollout("progressing", "preparing"))]]),
        ..Says::default()
    };
    let fleet = FakeFleet::start(says).await;
    let (_dir, file) = spec();
    let ran = run(&[&fleet], &["app", "apply", "-f", &file, "--timeout", "500ms"]).await;
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("help: the rollout goes on: `flotilla rollout status web --watch`"),
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn ctrl_c_detaches_and_says_how_to_come_back() {
    let says = Says {
        apply: queue([Ok(changed(Outcome::Changed))]),
        watches: queue([vec![Ok(rollout("progressing", "preparing"))]]),
        ..Says::default()
    };
    let fleet = FakeFleet::start(says).await;
    let (_dir, file) = spec();
    let mut child = flotilla(&[&fleet], &["app", "apply", "-f", &file]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(line.contains("phase=preparing"), "{line}");
    kill(Pid::from_raw(child.id().unwrap().try_into().unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(130));
    let mut said = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        said = line;
    }
    assert_eq!(
        said,
        "detached; the rollout goes on. Watch it again with: flotilla rollout status web --watch"
    );
}

#[tokio::test]
async fn an_unchanged_app_that_serves_is_not_waited_for() {
    let says = Says {
        apply: queue([Ok(changed(Outcome::Unchanged))]),
        watches: queue([vec![Ok(rollout("completed", "done"))]]),
        ..Says::default()
    };
    let fleet = FakeFleet::start(says).await;
    let (_dir, file) = spec();
    let ran = run(&[&fleet], &["app", "apply", "-f", &file]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""));
    assert_eq!(ran.stderr, "= web is unchanged and serves (version 13)\n");
}

fn events(index: u64, messages: &[&str], forgotten: bool) -> EventsReply {
    let event = |message: &&str| Event {
        index,
        time_ms: 1_748_779_200_123,
        app: "web".to_owned(),
        message: (*message).to_owned(),
        ..Event::default()
    };
    EventsReply { events: messages.iter().map(event).collect(), index, forgotten }
}

#[tokio::test]
async fn events_are_a_document_and_what_was_forgotten_is_said() {
    let says =
        Says { events: queue([vec![Ok(events(5, &["generation 5 serves"], true))]]), ..Says::default() };
    let fleet = FakeFleet::start(says).await;
    let ran = run(&[&fleet], &["rollout", "events", "web", "--since", "1h", "-o", "json"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    let event = serde_json::json!({
        "index": 5,
        "time": "2025-06-01T12:00:00.123Z",
        "app": "web",
        "node": null,
        "message": "generation 5 serves",
    });
    assert_eq!(document["kind"], "EventList");
    assert_eq!(document["items"], serde_json::json!([event]));
    assert!(ran.stderr.contains("have been forgotten"), "{}", ran.stderr);
    let asked = fleet.says.events_asked.lock().unwrap();
    let wanted =
        WatchEventsRequest { app: "web".to_owned(), after: 0, since_ms: Some(3_600_000), follow: false };
    assert_eq!(*asked, [wanted]);
}

#[tokio::test]
async fn events_that_are_followed_go_on_at_another_node_where_they_broke_off() {
    let first = FakeFleet::start(Says {
        events: queue([vec![
            Ok(events(5, &["version 1 accepted", "generation 5 serves"], false)),
            Err(Status::unknown("h2 protocol error: broken")),
        ]]),
        ..Says::default()
    })
    .await;
    let second = FakeFleet::start(Says {
        events: queue([vec![Ok(events(9, &["node n2 leads (term 2)"], false))]]),
        ..Says::default()
    })
    .await;
    let mut child =
        flotilla(&[&first, &second], &["events", "-f", "--since", "1h", "-o", "json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for expected in ["version 1 accepted", "generation 5 serves", "node n2 leads (term 2)"] {
        let event: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
        assert_eq!((event["kind"].as_str(), event["message"].as_str()), (Some("Event"), Some(expected)));
    }
    child.kill().await.unwrap();
    let asked = second.says.events_asked.lock().unwrap();
    let wanted = WatchEventsRequest { app: String::new(), after: 5, since_ms: None, follow: true };
    assert_eq!(asked[0], wanted);
}

#[tokio::test]
async fn a_name_that_is_not_there_is_exit_6_with_the_one_that_was_meant() {
    let not_found = refusal(Code::NotFound, "E0301", "there is no app `wbe`");
    let apps = ListAppsReply { apps: vec![app("mail"), app("web")], index: 1 };
    let says = Says { describe: queue([Err(not_found)]), list: queue([Ok(apps)]), ..Says::default() };
    let fleet = FakeFleet::start(says).await;
    let ran = run(&[&fleet], &["app", "describe", "wbe"]).await;
    assert_eq!(ran.code, Some(6));
    assert_eq!(
        ran.stderr,
        "error[E0301]: there is no app `wbe`\n  help: what to do?\n  help: did you mean `web`?\n"
    );
}

#[tokio::test]
async fn nothing_is_deleted_without_a_yes() {
    let description = || Ok(AppDescription { app: Some(app("web")), ..AppDescription::default() });
    let fleet = FakeFleet::start(Says { describe: queue([description()]), ..Says::default() }).await;
    let ran = run(&[&fleet], &["app", "delete", "web"]).await;
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("flotilla app delete web --yes"), "{}", ran.stderr);
    assert!(fleet.says.writes.lock().unwrap().is_empty());
}

/// `(0:02)` becomes `(T)`.
fn without_clock(text: &str) -> String {
    match (text.find('('), text.find(')')) {
        (Some(from), Some(to)) => format!("{}(T{}", &text[..from], &text[to..]),
        (_, _) => text.to_owned(),
    }
}

#[tokio::test]
async fn a_delete_waits_for_the_sessions_and_with_closed_for_the_ports() {
    let deleting = || {
        let app = App { state: "deleting".to_owned(), nodes_placed: 2, ..app("web") };
        Ok(ListAppsReply { apps: vec![app], index: 1 })
    };
    let asked = |desired: [&str; 2]| {
        let on = |(node, desired): (&str, &str)| NodeGeneration {
            node: node.to_owned(),
            desired: desired.to_owned(),
            ..NodeGeneration::default()
        };
        let nodes = ["n1", "n2"].into_iter().zip(desired).map(on).collect();
        Ok(AppDescription { app: Some(app("web")), nodes, ..AppDescription::default() })
    };
    let gone = || Ok(ListAppsReply { apps: vec![app("mail")], index: 2 });
    let late = || Ok(ListAppsReply { apps: vec![App { wanted: 41, ..app("web") }], index: 1 });
    let draining = "app=web phase=deleting draining on n1, n2\napp=web phase=deleting draining on n2\n";
    let closing =
        "app=web phase=deleting closing its ports, within a minute: a connection may be on its way\n";
    for (wait, out, err) in [
        (
            "--wait",
            "✓ web is deleted (T); its ports close within about a minute, for a connection may be on its way\n",
            draining.to_owned(),
        ),
        ("--wait=closed", "✓ web is deleted (T)\n", format!("{draining}{closing}")),
        ("--no-wait", "✓ web is being deleted; its sessions may finish\n", String::new()),
    ] {
        let deleted = AppChanged {
            app: "web".to_owned(),
            outcome: Outcome::Deleted.into(),
            version: 13,
            generation: 41,
        };
        let says = Says {
            delete: queue([Ok(deleted)]),
            list: queue([late(), deleting(), deleting(), deleting(), gone()]),
            describe: queue([
                asked(["drain", "drain"]),
                asked(["remove", "drain"]),
                asked(["remove", "remove"]),
            ]),
            ..Says::default()
        };
        let fleet = FakeFleet::start(says).await;
        let ran = run(&[&fleet], &["app", "delete", "web", "--yes", wait]).await;
        assert_eq!((ran.code, without_clock(&ran.stdout)), (Some(0), out.to_owned()), "{}", ran.stderr);
        assert_eq!(ran.stderr, err, "{wait}");
    }
}

#[tokio::test]
async fn a_plan_with_changes_is_exit_10_when_a_script_asks() {
    let plan = |outcome: Outcome| PlanAppsReply {
        apps: vec![AppPlan {
            app: "web".to_owned(),
            outcome: outcome.into(),
            version_before: 12,
            ..AppPlan::default()
        }],
        cluster: "fra".to_owned(),
        ..PlanAppsReply::default()
    };
    let (_dir, file) = spec();
    for (outcome, args, code) in [
        (Outcome::Changed, &["app", "plan", "--exit-code", "-f", &file][..], 10),
        (Outcome::Unchanged, &["app", "plan", "--exit-code", "-f", &file], 0),
        (Outcome::Changed, &["app", "plan", "-f", &file], 0),
        (Outcome::Changed, &["app", "apply", "--dry-run", "-f", &file], 0),
    ] {
        let fleet = FakeFleet::start(Says { plan: queue([Ok(plan(outcome))]), ..Says::default() }).await;
        let ran = run(&[&fleet], args).await;
        assert_eq!(ran.code, Some(code), "{outcome:?} {args:?}: {}", ran.stderr);
        assert!(fleet.says.writes.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_cluster_whose_leader_does_not_answer_is_shown_and_exit_4() {
    let status = |leader: u64, answered_by: &str| ClusterStatusReply {
        name: "fra".to_owned(),
        leader,
        leader_name: if leader == 0 { String::new() } else { format!("n{leader}") },
        term: 7,
        voters: 3,
        voters_live: 3,
        tolerates: 1,
        commit: 9,
        health: "healthy".to_owned(),
        answered_by: answered_by.to_owned(),
        ..ClusterStatusReply::default()
    };
    for (status, code, head) in [
        (
            status(1, "n1"),
            0,
            "fra   healthy   3/3 voters   leader n1 (term 7)   commit 9   tolerates 1 more failure",
        ),
        (status(2, "n1"), 4, "fra   leader n2 does not answer n1 (term 7)   3 voters   commit 9"),
        (status(0, "n1"), 4, "fra   n1 knows no leader (term 7)   3 voters   commit 9"),
    ] {
        let fleet = FakeFleet::start(Says { status: queue([Ok(status)]), ..Says::default() }).await;
        let ran = run(&[&fleet], &["cluster", "status"]).await;
        assert_eq!((ran.code, ran.stdout.lines().next()), (Some(code), Some(head)), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn the_schema_is_a_spec_and_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.toml");
    let path = file.to_str().unwrap();
    assert_eq!(run(&[], &["app", "schema", "--file", path]).await.code, Some(0));
    assert_eq!(run(&[], &["app", "schema"]).await.stdout, fs::read_to_string(&file).unwrap());
    let ran = run(&[], &["app", "validate", "-f", path]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    fs::write(&file, "mine").unwrap();
    assert_eq!(run(&[], &["app", "schema", "--file", path]).await.code, Some(1));
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[tokio::test]
async fn an_invalid_spec_never_reaches_the_fleet() {
    let fleet = FakeFleet::start(Says::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.toml");
    fs::write(&file, "[[app]]\nname = \"web\"\nbalanse = \"p2c\"\n").unwrap();
    let ran = run(&[&fleet], &["app", "apply", "-f", file.to_str().unwrap()]).await;
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("unknown field `balanse`"), "{}", ran.stderr);
    assert!(fleet.says.writes.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_node_that_accepts_and_never_answers_does_not_hold_a_question_up_for_long() {
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let apps = ListAppsReply { apps: vec![app("web")], index: 1 };
    let fleet = FakeFleet::start(Says { list: queue([Ok(apps)]), ..Says::default() }).await;
    let addresses = format!("{},{}", mute.local_addr().unwrap(), fleet.address);
    let started = Instant::now();
    let ran = run(&[], &["app", "list", "--addr", &addresses]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
}
