//! What is wrong is refused with the reason and an exit code for scripts, and nothing has changed.

#![allow(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::{net::TcpListener, time::Duration};

use flotilla_chaos_tests::{
    client::whoami,
    origin,
    process::{Output, TestFleet},
    spec,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

/// A fleet with the app `web`, which answers `good` at port 9000 of each node.
struct Serving {
    fleet: TestFleet,
    good: origin::Echo,
}

impl Serving {
    async fn start(nodes: usize) -> Self {
        let fleet = TestFleet::start(PROGRAM, nodes).await;
        let good = origin::Echo::start("good");
        fleet.apply(&spec::app("web", "9000", &[good.address()], "")).await.exits(0);
        Self { fleet, good }
    }

    fn good_spec(&self) -> String {
        spec::app("web", "9000", &[self.good.address()], "")
    }

    /// Everything that a refused change must leave as it is.
    async fn state(&self) -> String {
        let apps = self.fleet.cli(["app", "list", "-o", "json"]).await.exits(0).json();
        let ports = self.fleet.cli(["app", "ports", "-o", "json"]).await.exits(0).json();
        for address in self.fleet.port(9000) {
            assert_eq!(whoami(address).await.unwrap(), "good");
        }
        format!("{}\n{}", apps["items"], ports["items"])
    }
}

#[tokio::test]
async fn an_invalid_spec_is_refused_with_the_place_and_the_reason() {
    let serving = Serving::start(1).await;
    let good = serving.good_spec();
    let before = serving.state().await;
    let broken = |from: &str, to: &str| {
        let broken = good.replacen(from, to, 1);
        assert_ne!(broken, good, "`{from}` is not in the spec");
        broken
    };
    for (spec, reason) in [
        (broken("listen", "lisen"), "lisen"),
        (broken("drain = \"2s\"", "drain = \"2 parsecs\""), "2 parsecs"),
        (broken("drain = \"2s\"", "drain = 2"), "needs its unit"),
        (broken("listen = [9000]", "listen = [99000]"), "99000"),
        (broken("listen = [9000]", "listen = [9000, 9000]"), "9000"),
        (broken("listen = [9000]", "listen = []"), "listen"),
        (broken("name = \"web\"", "name = \"Web_1\""), "Web_1"),
        (broken("targets = [", "targets = [\"nowhere\", "), "nowhere"),
        (good.clone() + &good, "web"),
        ("[[app".to_owned(), "apply.toml"),
    ] {
        serving.fleet.apply(&spec).await.exits(2).says(reason).says("apply.toml");
        assert_eq!(serving.state().await, before);
    }
    serving.fleet.cli(["app", "apply", "-f", "no-such-file.toml"]).await.exits(2).says("no-such-file.toml");
    assert_eq!(serving.state().await, before);
}

#[tokio::test]
async fn a_change_that_does_not_fit_the_fleet_is_refused() {
    let serving = Serving::start(1).await;
    let before = serving.state().await;
    let fleet = &serving.fleet;
    let check = async |output: Output, code: i32, reason: &str| {
        output.exits(code).says(reason);
        assert_eq!(serving.state().await, before);
    };
    let file = |name: &str, spec: &str| fleet.file(name, spec);
    let target = [serving.good.address()];

    let taken = file("taken.toml", &spec::app("blog", "9000", &target, ""));
    check(fleet.cli(["app", "apply", "-f", &taken]).await, 1, "E0201").await;
    // One app of a file is as bad as all of them.
    let half = spec::app("fine", "9100", &target, "") + &spec::app("blog", "9000", &target, "");
    check(fleet.apply(&half).await, 1, "E0201").await;
    let reserved = file("reserved.toml", &spec::app("ssh", "22", &target, ""));
    check(fleet.cli(["app", "apply", "-f", &reserved]).await, 1, "E0202").await;
    let nowhere = "[app.placement]\nrequire = { disk = \"floppy\" }";
    let nowhere = file("nowhere.toml", &spec::app("blog", "9100", &target, nowhere));
    check(fleet.cli(["app", "apply", "-f", &nowhere]).await, 1, "E0204").await;

    let next = file("next.toml", &spec::app("web", "9000, 9001", &target, ""));
    check(fleet.cli(["app", "apply", "-f", &next, "--if-version", "7"]).await, 5, "E0302").await;
    check(fleet.cli(["app", "apply", "-f", &next, "--if-version", "0"]).await, 5, "E0302").await;
    check(fleet.cli(["app", "delete", "web", "--yes", "--if-version", "7"]).await, 5, "E0302").await;
    check(fleet.cli(["app", "rollback", "web", "--to", "7"]).await, 6, "E0303").await;
    check(fleet.cli(["app", "delete", "wbe", "--yes"]).await, 6, "web").await;
    check(fleet.cli(["app", "describe", "wbe"]).await, 6, "web").await;
    check(fleet.cli(["app", "aply", "-f", &next]).await, 2, "apply").await;
    check(fleet.cli(["--addr", "127.0.0.1:1", "app", "list"]).await, 3, "127.0.0.1:1").await;
}

#[tokio::test]
async fn a_port_that_another_program_holds_stops_the_rollout_before_traffic_moved() {
    let serving = Serving::start(3).await;
    let other = origin::Echo::start("other");
    let held = TcpListener::bind(serving.fleet.node(1).port(9001)).unwrap();
    let wants = spec::app("web", "9000, 9001", &[other.address()], "");
    serving.fleet.apply(&wants).await.exits(1).says("n2").says("in use");
    for address in serving.fleet.port(9000) {
        assert_eq!(whoami(address).await.unwrap(), "good", "at {address}");
    }
    assert!(whoami(serving.fleet.node(0).port(9001)).await.is_err(), "no node serves half of it");
    drop(held);
    serving.fleet.apply(&wants).await.exits(0);
    for address in serving.fleet.port(9001) {
        assert_eq!(whoami(address).await.unwrap(), "other", "at {address}");
    }
}

#[tokio::test]
async fn a_target_that_never_answers_fails_the_rollout_by_its_deadline() {
    let serving = Serving::start(3).await;
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let spec = spec::app("web", "9000", &[dead], "")
        .replace("healthy_deadline = \"10s\"", "healthy_deadline = \"2s\"");
    let begun = tokio::time::Instant::now();
    serving.fleet.apply(&spec).await.exits(1).says(&dead.to_string());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    for address in serving.fleet.port(9000) {
        assert_eq!(whoami(address).await.unwrap(), "good", "at {address}");
    }
    // A new app with such a target takes no port from anybody.
    let spec = spec.replace("name = \"web\"", "name = \"new\"").replace("9000", "9002");
    serving.fleet.apply(&spec).await.exits(1).says(&dead.to_string());
    assert_eq!(whoami(serving.fleet.node(0).port(9000)).await.unwrap(), "good");
}
