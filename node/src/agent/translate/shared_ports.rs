//! What the fleet lets two apps share, the proxy must let them share, and the other way round: the words of
//! `flotilla_spec::{claims, differ}` against a proxy that is asked to prepare both.

use flotilla_proxy::{PrepareError, Proxy, ProxyConfig};
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Value, json};

use super::*;

/// Apps of which the first is prepared already.
struct Stage {
    proxy: Proxy,
    runtime: tokio::runtime::Runtime,
    port: u16,
    generation: std::cell::Cell<u64>,
}

impl Stage {
    fn new() -> Stage {
        let proxy = Proxy::start(ProxyConfig { workers: 1, ..ProxyConfig::default() }).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Free a moment ago; SO_REUSEADDR lets the proxy have it.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        Stage { proxy, runtime, port, generation: std::cell::Cell::new(0) }
    }

    /// With a port that is there, and an address that is the same for all.
    fn app(&self, name: &str, tables: &Value) -> spec::AppSpec {
        let mut app = tables.clone();
        app["name"] = name.into();
        app["check"] = "none".into();
        app["listen"][0]["port"] = self.port.into();
        app["listen"][0]["address"] = "127.0.0.1".into();
        let app = spec::AppSpec::from_json(app.to_string().as_bytes()).unwrap();
        assert_eq!(spec::validate(&app), [], "{tables}");
        app
    }

    /// `None`: they can share the port.
    fn proxy_refuses(&self, one: &spec::AppSpec, other: &spec::AppSpec) -> Option<String> {
        let generation = self.generation.get() + 1;
        self.generation.set(generation);
        let here = Here { traffic_address: None, certificates: "/certificates".into() };
        let prepare = |app| {
            let config = translate(app, GenerationId(generation), &[self.port], &here);
            self.runtime.block_on(self.proxy.prepare(config))
        };
        prepare(one).unwrap();
        let refused = match prepare(other) {
            Ok(()) => None,
            Err(PrepareError::Taken(why)) if why.contains(" belongs to app `one`") => Some(why),
            Err(error) => panic!("{error}: {other:?}"),
        };
        for app in [one, other] {
            // The second one is not there where it was refused.
            let _gone = self.proxy.remove(app.name.as_str(), generation, None);
        }
        refused
    }

    fn check(&self, one: &Value, other: &Value) -> bool {
        let (first, second) = (self.app("one", one), self.app("two", other));
        let differ = spec::differ(&first.listen[0], &second.listen[0]);
        let [ours, theirs] = [&first, &second].map(|app| spec::claims(app, &app.listen[0]));
        let both: Vec<_> = ours.intersection(&theirs).collect();
        let refuses = differ.is_some() || !both.is_empty();
        let refused = self.proxy_refuses(&first, &second);
        assert_eq!(refused.is_some(), refuses, "{one} {other}: {differ:?} {both:?}, the proxy: {refused:?}");
        refuses
    }
}

fn http(hosts: &[&str]) -> Value {
    json!({ "listen": [{ "protocol": "http", "hosts": hosts }], "targets": ["a:1"] })
}

/// Requests find their pools by routes for these hosts, each a list; and there is no other pool.
fn routed(protocol: &str, hosts: &[&[&str]]) -> Value {
    let route = |(number, hosts): (usize, &&[&str])| json!({ "name": format!("r{number}"), "match": { "host": hosts }, "pool": "p" });
    let routes: Vec<Value> = hosts.iter().enumerate().map(route).collect();
    json!({ "listen": [{ "protocol": protocol }], "pool": { "p": { "targets": ["a:1"] } }, "route": routes })
}

#[test]
fn the_fleet_and_the_proxy_agree_which_apps_can_share_a_port() {
    let stage = Stage::new();
    let open = |mut app: Value| {
        app["targets"] = json!(["a:1"]);
        app
    };
    let with = |mut app: Value, field: &str, value: Value| {
        app["listen"][0][field] = value;
        app
    };
    let by_default = |mut app: Value| {
        app["pool"] = json!({ "p": { "targets": ["a:1"] }, "default": { "targets": ["a:1"] } });
        app
    };
    for (what, one, other, refuses) in [
        ("all and all", http(&[]), http(&[]), true),
        ("all and a host", http(&[]), http(&["a.test"]), false),
        ("two hosts", http(&["a.test"]), http(&["b.test", "c.test"]), false),
        ("a host of both", http(&["a.test", "b.test"]), http(&["b.test"]), true),
        ("in another case, with a dot", http(&["A.test."]), http(&["a.TEST"]), true),
        ("a host and those below", http(&["a.test"]), http(&["*.test"]), false),
        ("those below, twice", http(&["*.test"]), http(&["*.TEST."]), true),
        ("by routes", routed("http", &[&["a.test"]]), routed("http", &[&["b.test"], &["c.test"]]), false),
        ("by routes, one of both", routed("http", &[&["a.test"]]), routed("http", &[&["A.test."]]), true),
        ("by routes and by the port", routed("http", &[&["a.test"]]), http(&["a.test"]), true),
        ("below, by routes", routed("http", &[&["*.a.test"], &["b.test"]]), http(&["*.a.test"]), true),
        ("a route for all", routed("http", &[&["a.test"], &[]]), http(&[]), true),
        ("routes beside a pool for the rest", open(routed("http", &[&["a.test"]])), http(&[]), true),
        ("and its host is not claimed", open(routed("http", &[&["a.test"]])), http(&["a.test"]), false),
        ("a pool by the name of the rest", by_default(routed("http", &[&["a.test"]])), http(&[]), true),
        ("TCP by names", routed("tcp", &[&["a.test"]]), routed("tcp", &[&["b.test"]]), false),
        ("TCP by one name", routed("tcp", &[&["a.test"]]), routed("tcp", &[&["a.test"]]), true),
        ("HTTP and TCP", http(&["a.test"]), routed("tcp", &[&["b.test"]]), true),
        (
            "other socket options",
            with(http(&["a.test"]), "socket", json!({ "backlog": 7 })),
            http(&["b.test"]),
            true,
        ),
        (
            "another bound of connections",
            with(http(&["a.test"]), "max_connections", json!(7)),
            http(&["b.test"]),
            false,
        ),
        (
            "PROXY headers for one",
            with(
                with(http(&["a.test"]), "proxy_protocol", json!("accept")),
                "trusted_proxies",
                json!(["10.0.0.0/8"]),
            ),
            http(&["b.test"]),
            true,
        ),
    ] {
        assert_eq!(stage.check(&one, &other), refuses, "{what}");
        assert_eq!(stage.check(&other, &one), refuses, "{what}, the other way round");
    }
}

/// Apps of a small world, so that they meet.
fn app() -> impl Strategy<Value = Value> {
    let host = || select(vec!["a.test", "A.Test.", "b.test", "*.test", "*.a.test"]);
    let listen = (any::<bool>(), vec(host(), 0..3), option::weighted(0.1, Just(7_u32)));
    let route = vec(select(vec!["a.test", "b.test.", "*.test", "*.A.test"]), 0..3);
    (listen, vec(route, 0..3), any::<bool>()).prop_map(|((is_http, hosts, backlog), routes, has_targets)| {
        let names: Vec<&[&str]> = routes.iter().map(Vec::as_slice).collect();
        let mut app = routed(if is_http { "http" } else { "tcp" }, &names);
        app["listen"][0]["hosts"] = json!(hosts);
        if let Some(backlog) = backlog {
            app["listen"][0]["socket"] = json!({ "backlog": backlog });
        }
        if has_targets || routes.is_empty() {
            app["targets"] = json!(["a:1"]);
        }
        app
    })
}

#[test]
fn and_so_they_do_about_any_two() {
    let stage = Stage::new();
    let is_valid = |app: &Value| {
        let mut app = app.clone();
        app["name"] = "any".into();
        app["listen"][0]["port"] = 1.into();
        spec::validate(&spec::AppSpec::from_json(app.to_string().as_bytes()).unwrap()).is_empty()
    };
    let app = || app().prop_filter("it would not be applied", is_valid);
    let verdicts = std::cell::Cell::new([0, 0]);
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&(app(), app()), |(one, other)| {
        let mut counts = verdicts.get();
        counts[usize::from(stage.check(&one, &other))] += 1;
        verdicts.set(counts);
        Ok(())
    });
    assert!(result.is_ok(), "{}", result.unwrap_err());
    assert!(verdicts.get().iter().all(|count| *count > 20), "one verdict all the time: {verdicts:?}");
}
