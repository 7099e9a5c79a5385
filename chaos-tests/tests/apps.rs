//! Apps from the first apply to the delete, as a user sees them.

#![allow(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::{collections::BTreeSet, process::Command};

use flotilla_chaos_tests::{
    client::{get, get_of, whoami},
    origin, peers,
    poll::eventually,
    process::{NodeSettings, SOON, TestFleet},
    spec,
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

#[tokio::test]
async fn an_apply_through_any_node_serves_on_all_nodes_when_it_returns() {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let origins = ["one", "two", "three"].map(origin::Http::start);
    for (node, origin) in origins.iter().enumerate() {
        let port = 8081 + u16::try_from(node).unwrap();
        let name = format!("web{node}");
        let file =
            fleet.file("web.toml", &spec::app(&name, &format!("\"http:{port}\""), &[origin.address()], ""));
        fleet.cli_at(node, ["app", "apply", "-f", &file]).await.exits(0).says(&name);
        for address in fleet.port(port) {
            let (status, body) = get(address, "/").await.unwrap();
            assert_eq!((status.as_u16(), body.trim()), (200, ["one", "two", "three"][node]), "at {address}");
        }
    }
    for node in 0..3 {
        let list = fleet.cli_at(node, ["app", "list", "-o", "json"]).await.exits(0).json();
        let apps: Vec<_> =
            list["items"].as_array().unwrap().iter().map(|app| app["name"].as_str().unwrap()).collect();
        assert_eq!(apps, ["web0", "web1", "web2"]);
    }
}

#[tokio::test]
async fn an_app_has_versions_a_history_and_a_way_back() {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let (blue, green) = (origin::Echo::start("blue"), origin::Echo::start("green"));
    let blue_spec = spec::app("web", "8080", &[blue.address()], "");
    let green_spec = spec::app("web", "8080", &[green.address()], "");
    let serves = async |name: &str| {
        for address in fleet.port(8080) {
            assert_eq!(whoami(address).await.unwrap(), name, "at {address}");
        }
    };

    fleet.apply(&blue_spec).await.exits(0);
    serves("blue").await;
    fleet.apply(&blue_spec).await.exits(0).says("unchanged");
    fleet
        .cli(["app", "plan", "-f", &fleet.file("green.toml", &green_spec), "--exit-code"])
        .await
        .exits(10)
        .says("C0");
    serves("blue").await;
    fleet.apply(&green_spec).await.exits(0);
    serves("green").await;

    let described = fleet.cli(["app", "describe", "web", "-o", "json"]).await.exits(0).json();
    assert_eq!(described["app"]["version"], 2);
    assert_eq!(described["app"]["state"], "serving");
    assert_eq!((&described["app"]["nodesServing"], &described["app"]["nodesPlaced"]), (&3.into(), &3.into()));
    let history = fleet.cli(["app", "history", "web", "-o", "json"]).await.exits(0).json();
    assert_eq!(history["items"].as_array().unwrap().len(), 2, "{history}");

    let ports = fleet.cli(["app", "ports", "web", "-o", "json"]).await.exits(0).json();
    let nodes: BTreeSet<_> =
        ports["items"].as_array().unwrap().iter().map(|port| port["node"].to_string()).collect();
    assert_eq!(nodes.len(), 3, "{ports}");
    assert!(ports["items"].as_array().unwrap().iter().all(|port| port["port"] == 8080), "{ports}");

    fleet.cli(["app", "rollback", "web"]).await.exits(0);
    serves("blue").await;
    // What `get` prints is what `apply` takes.
    let text = fleet.cli(["app", "get", "web", "--version", "2"]).await.exits(0).stdout;
    fleet.apply(&text).await.exits(0);
    serves("green").await;
    fleet.cli(["rollout", "status", "web"]).await.exits(0).says("completed");
    fleet.cli(["rollout", "list"]).await.exits(0).says("web");

    fleet.cli(["app", "delete", "web"]).await.exits(2).says("--yes");
    serves("green").await;
    fleet.cli(["app", "delete", "web", "--yes"]).await.exits(0).says("its ports close within about a minute");
    fleet.cli(["app", "delete", "web", "--yes", "--wait=closed"]).await.exits(0);
    fleet.cli(["app", "describe", "web"]).await.exits(6);
    let list = fleet.cli(["app", "list", "-o", "json"]).await.exits(0).json();
    assert_eq!(list["items"].as_array().unwrap().len(), 0, "{list}");
}

#[tokio::test]
async fn ports_are_added_and_taken_away_and_chosen_by_the_cluster() {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let echo = origin::Echo::start("echo");
    let listening = async |port: u16| {
        let mut answers = Vec::new();
        for address in fleet.port(port) {
            answers.push(whoami(address).await.is_ok());
        }
        answers
    };
    fleet.apply(&spec::app("web", "8081", &[echo.address()], "")).await.exits(0);
    assert_eq!(listening(8081).await, [true; 3]);
    assert_eq!(listening(8082).await, [false; 3]);
    fleet.apply(&spec::app("web", "8081, 8082", &[echo.address()], "")).await.exits(0);
    assert_eq!((listening(8081).await, listening(8082).await), (vec![true; 3], vec![true; 3]));

    fleet.apply(&spec::app("any", "0", &[echo.address()], "")).await.exits(0);
    let ports = fleet.cli(["app", "ports", "any", "-o", "json"]).await.exits(0).json();
    for port in ports["items"].as_array().unwrap() {
        let number = u16::try_from(port["port"].as_u64().unwrap()).unwrap();
        assert!((20_000..30_000).contains(&number), "{port}");
        let node = fleet.nodes().iter().find(|node| port["node"] == node.name()).unwrap();
        assert_eq!(whoami(node.port(number)).await.unwrap(), "echo");
    }
}

#[tokio::test]
async fn a_port_that_another_process_has_is_refused_where_it_was_asked_for_and_else_passed_over() {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let echo = origin::Echo::start("echo");
    let taken = fleet.node(1).port(9100);
    let stranger = std::net::TcpListener::bind(taken).unwrap();
    let fixed = spec::app("fixed", "9100", &[echo.address()], "");
    let refused = fleet.apply(&fixed).await.exits(1);
    assert!(refused.stderr.contains("port 9100 is in use by"), "{refused}");
    for node in [0, 2] {
        assert!(
            whoami(fleet.node(node).port(9100)).await.is_err(),
            "traffic was moved before all were ready"
        );
    }
    drop(stranger);
    fleet.apply(&fixed).await.exits(0);
    assert_eq!(whoami(taken).await.unwrap(), "echo");

    // The cluster would begin with the lowest port of the pool.
    let _stranger = std::net::TcpListener::bind(fleet.node(1).port(20_000)).unwrap();
    fleet.apply(&spec::app("any", "0", &[echo.address()], "")).await.exits(0);
    let ports = fleet.cli(["app", "ports", "any", "-o", "json"]).await.exits(0).json();
    let port_of = |name: &str| {
        let ports = ports["items"].as_array().unwrap();
        let port = ports.iter().find(|port| port["node"] == name).and_then(|port| port["port"].as_u64());
        u16::try_from(port.unwrap()).unwrap()
    };
    for node in fleet.nodes() {
        assert_eq!(whoami(node.port(port_of(node.name()))).await.unwrap(), "echo");
    }
    assert_eq!(port_of("n1"), 20_000);
    assert_ne!(port_of("n2"), 20_000, "another process has it");
}

#[tokio::test]
async fn apps_share_a_port_and_one_shifts_goes_back_and_goes_away_without_the_other_noticing() {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let [one, two, other] = ["one", "two", "other"].map(origin::Http::start);
    let app = |name: &str, host: &str, origin: &origin::Http| {
        let listen = format!("{{ port = 8080, protocol = \"http\", hosts = [\"{host}\"] }}");
        spec::app(name, &listen, &[origin.address()], "")
    };
    let answers = async |host: &str| {
        let mut answers = Vec::new();
        for address in fleet.port(8080) {
            let (status, body) = get_of(address, host, "/").await.unwrap();
            answers.push((status.as_u16(), body.trim().to_owned()));
        }
        answers
    };
    let all = |status: u16, body: &str| vec![(status, body.to_owned()); 3];

    fleet.apply(&app("a", "a.test", &one)).await.exits(0);
    fleet.apply(&app("b", "b.test", &other)).await.exits(0);
    assert_eq!((answers("a.test").await, answers("b.test").await), (all(200, "one"), all(200, "other")));
    fleet
        .apply(&app("c", "B.test", &one))
        .await
        .exits(1)
        .says("cannot share it with app `b`")
        .says("`b.test`");
    fleet.apply(&spec::app("c", "8080", &[one.address()], "")).await.exits(1).says("one speaks HTTP there");

    let stop = CancellationToken::new();
    let mut busy = JoinSet::new();
    for address in fleet.port(8080) {
        let stop = stop.clone();
        busy.spawn(async move {
            let mut asked = 0;
            while !stop.is_cancelled() {
                let (status, body) = get_of(address, "b.test", "/").await.unwrap();
                assert_eq!((status.as_u16(), body.trim()), (200, "other"), "at {address} after {asked}");
                asked += 1;
            }
            asked
        });
    }
    fleet.apply(&app("a", "a.test", &two)).await.exits(0);
    assert_eq!(answers("a.test").await, all(200, "two"));
    fleet.cli(["app", "rollback", "a"]).await.exits(0);
    assert_eq!(answers("a.test").await, all(200, "one"));
    fleet.cli(["app", "delete", "a", "--yes", "--wait=closed"]).await.exits(0);
    stop.cancel();
    let asked: u32 = busy.join_all().await.into_iter().sum();
    assert!(asked > 50, "{asked} requests");
    assert_eq!(answers("b.test").await, all(200, "other"));
    // Until nobody can be half-way through connecting the app takes its own; then nobody does.
    fleet.apply(&app("c", "a.test", &two)).await.exits(0);
    assert_eq!(answers("a.test").await, all(200, "two"));
    assert_eq!(answers("d.test").await, all(404, "no such host"));
}

#[tokio::test]
async fn a_host_moves_between_two_apps_of_one_apply_and_every_request_is_answered() {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let [a, b] = ["a", "b"].map(origin::Http::start);
    let app = |name: &str, hosts: &str, origin: &origin::Http| {
        let listen = format!("{{ port = 8080, protocol = \"http\", hosts = [{hosts}] }}");
        spec::app(name, &listen, &[origin.address()], "")
    };
    let before = app("a", "'a.test', 'x.test'", &a) + &app("b", "'b.test'", &b);
    let after = app("a", "'a.test'", &a) + &app("b", "'b.test', 'x.test'", &b);
    fleet.apply(&before).await.exits(0);

    let stop = CancellationToken::new();
    let mut busy = JoinSet::new();
    for address in fleet.port(8080) {
        for (host, whose) in [("a.test", &["a"][..]), ("b.test", &["b"]), ("x.test", &["a", "b"])] {
            let stop = stop.clone();
            busy.spawn(async move {
                let mut asked = 0;
                while !stop.is_cancelled() {
                    let (status, body) = get_of(address, host, "/").await.unwrap();
                    let is_right = status.as_u16() == 200 && whose.contains(&body.trim());
                    assert!(is_right, "{host} at {address} after {asked}: {status} {body}");
                    asked += 1;
                }
                asked
            });
        }
    }
    let whose = async |host: &str| {
        let mut answers = BTreeSet::new();
        for address in fleet.port(8080) {
            answers.insert(get_of(address, host, "/").await.unwrap().1.trim().to_owned());
        }
        answers.into_iter().collect::<Vec<_>>().join("+")
    };
    for (spec, owner) in [(&after, "b"), (&before, "a"), (&after, "b")] {
        fleet.apply(spec).await.exits(0);
        assert_eq!(whose("x.test").await, owner);
    }
    let exchange = app("a", "'b.test'", &a) + &app("b", "'a.test', 'x.test'", &b);
    fleet.apply(&exchange).await.exits(1).says("in the same apply: move those in another one");
    assert_eq!(whose("x.test").await, "b");
    stop.cancel();
    let asked: u32 = busy.join_all().await.into_iter().sum();
    assert!(asked > 100, "{asked} requests");
}

/// The config of the program that this one replaces: three apps with four ports each, and a target
/// that does not resolve. One port is 7400, so traffic has addresses of its own.
#[tokio::test]
async fn a_config_of_fproxy_is_converted_and_carries_traffic_to_all_its_targets() {
    let mut fleet = TestFleet::empty(PROGRAM);
    for node in 0..3 {
        let traffic = Some(fleet.spare_address(node));
        fleet.add(NodeSettings { traffic, zone: format!("z{node}"), ..NodeSettings::default() }).await;
    }
    fleet.init(0).await;
    fleet.join(1, 0).await;
    fleet.join(2, 0).await;
    fleet.settled().await;

    let apps = [
        ("five-thousand", [5001, 5200, 5300, 5400]),
        ("six-thousand", [6001, 6200, 6300, 6400]),
        ("seven-thousand", [7001, 7200, 7300, 7400]),
    ];
    let echoes = apps.map(|(name, _)| [1, 2].map(|number| origin::Echo::start(&format!("{name}-{number}"))));
    let entries: Vec<_> = apps
        .iter()
        .zip(&echoes)
        .map(|((name, ports), echoes)| {
            let mut targets: Vec<_> = echoes.iter().map(|echo| echo.address().to_string()).collect();
            if *name == "six-thousand" {
                targets.push("bad.target.invalid:6003".to_owned());
            }
            serde_json::json!({ "Name": name, "Ports": ports, "Targets": targets })
        })
        .collect();
    let config = fleet.file("config.json", &serde_json::json!({ "Apps": entries }).to_string());
    let converted = fleet.cli(["app", "convert", "--from", "fproxy", &config]).await.exits(0).stdout;
    fleet.cli(["app", "apply", "-f", &fleet.file("apps.toml", &converted)]).await.exits(0);

    for ((_, ports), echoes) in apps.iter().zip(&echoes) {
        let expected: BTreeSet<_> = echoes.iter().map(|echo| echo.name().to_owned()).collect();
        for address in ports.iter().flat_map(|&port| fleet.port(port)) {
            let mut answered = BTreeSet::new();
            eventually(&format!("both targets answer at {address}"), SOON, async || {
                answered.insert(whoami(address).await.map_err(|err| err.to_string())?);
                (answered == expected).then_some(()).ok_or(format!("{answered:?}"))
            })
            .await;
        }
    }
    let address = fleet.port(6400)[0].to_string();
    let balance = fleet.cli(["balance", &address, "-n", "100"]).await.exits(0);
    for echo in &echoes[1] {
        assert!(balance.stdout.contains(echo.name()), "{balance}");
    }
}

#[tokio::test]
async fn a_file_tree_that_is_fetched_through_a_node_equals_its_source() {
    let Some(wget) = peers::program("wget") else { return };
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let source = tempfile::tempdir().unwrap();
    let mut pattern = origin::pattern::Pattern::default();
    for directory in ["", "a", "a/deeper", "b", "b/deeper/and-deeper"] {
        let directory = source.path().join(directory);
        std::fs::create_dir_all(&directory).unwrap();
        // Empty, small, larger than a buffer, larger than many.
        for (name, size) in [("empty", 0), ("small.txt", 9), ("one-buffer", 70_000), ("large.bin", 3_000_000)]
        {
            let mut content = Vec::new();
            while content.len() < size {
                content.extend_from_slice(pattern.next((size - content.len()) as u64));
            }
            std::fs::write(directory.join(name), content).unwrap();
        }
    }
    let files = origin::Files::start(source.path());
    fleet.apply(&spec::app("files", "\"http:8080\"", &[files.address()], "")).await.exits(0);
    for address in fleet.port(8080) {
        let fetched = tempfile::tempdir().unwrap();
        let output = Command::new(&wget)
            .args([
                "--recursive",
                "--no-verbose",
                "--level=inf",
                "--no-host-directories",
                "--reject=index.html*",
            ])
            .arg(format!("http://{address}/"))
            .current_dir(fetched.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let diff = Command::new("diff").arg("-r").args([source.path(), fetched.path()]).output().unwrap();
        assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
    }
}
