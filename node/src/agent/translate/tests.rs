use std::time::Duration;

use super::*;

/// `tables`: everything but the name.
fn translated(tables: &str, ports: &[u16], traffic_address: Option<&str>) -> proxy::AppConfig {
    let app = spec::AppSpec::from_json(format!(r#"{{"name":"web",{tables}}}"#).as_bytes()).unwrap();
    translate(&app, GenerationId(7), ports, traffic_address.map(|address| address.parse().unwrap()))
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn every_field_of_a_spec_arrives() {
    let app = translated(
        r#"
        "listen": [{"port":0,"protocol":"http","max_connections":11}, {"port":9000,"address":"10.0.0.9"}],
        "targets": ["a.example:80", {"address":"[::1]:81","weight":7}],
        "pool": {"api": {"targets":["b.example:82"]}},
        "resolve": {"mode":"first","family":"v6","min_ttl":"2s","max_ttl":"3s","stale":"4s"},
        "balance": "round_robin",
        "check": {"type":"http","path":"/up","host":"h.example","port":83,"interval":"5s","timeout":"6s",
                  "rise":8,"fall":9,"expect":["200-299",404]},
        "timeouts": {"connect":"10ms","request_header":"11ms","response_header":"12ms","request":"13ms",
                     "idle":"14ms","tcp_idle":"15ms","tunnel":"16ms"},
        "limits": {"max_connections":17,"max_header_size":"18 B","max_body_size":"19 B"},
        "upstream": {"max_idle":20,"idle_timeout":"21s","tcp_keepalive":{"idle":"22s","interval":"23s","count":24}},
        "route": [{"name":"api","match":{"host":["API.example"],"path_prefix":"/v1","methods":["GET"]},"pool":"api"},
                  {"name":"exact","match":{"path":"/x"},"pool":"default"}]
        "#,
        &[20_001, 9000],
        Some("192.0.2.1"),
    );
    let pool = |targets: &[(&str, u32)]| proxy::PoolConfig {
        targets: targets
            .iter()
            .map(|(address, weight)| proxy::TargetConfig { address: (*address).to_owned(), weight: *weight })
            .collect(),
        resolve: proxy::ResolveConfig {
            mode: proxy::ResolveMode::First,
            family: proxy::Family::V6,
            min_ttl: Duration::from_secs(2),
            max_ttl: Duration::from_secs(3),
            stale: Duration::from_secs(4),
        },
        balance: "round_robin".to_owned(),
        check: proxy::CheckConfig {
            kind: proxy::CheckKind::Http {
                path: "/up".to_owned(),
                host: Some("h.example".to_owned()),
                expect: vec![(200, 299), (404, 404)],
            },
            port: Some(83),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(6),
            rise: 8,
            fall: 9,
        },
        max_idle: 20,
        idle_timeout: Duration::from_secs(21),
        tcp_keepalive: proxy::TcpKeepalive {
            idle: Duration::from_secs(22),
            interval: Duration::from_secs(23),
            count: 24,
        },
    };
    let expected = proxy::AppConfig {
        app: "web".into(),
        generation: 7,
        ports: vec![
            proxy::PortConfig {
                address: "192.0.2.1".parse().unwrap(),
                port: 20_001,
                protocol: proxy::Protocol::Http,
                max_connections: 11,
            },
            proxy::PortConfig {
                address: "10.0.0.9".parse().unwrap(),
                port: 9000,
                protocol: proxy::Protocol::Tcp,
                max_connections: 0,
            },
        ],
        pools: [
            ("api".to_owned(), pool(&[("b.example:82", 100)])),
            ("default".to_owned(), pool(&[("a.example:80", 100), ("[::1]:81", 7)])),
        ]
        .into(),
        routes: vec![
            proxy::RouteConfig {
                name: "api".to_owned(),
                hosts: vec!["api.example".to_owned()],
                path: Some(proxy::PathMatch::Prefix("/v1".to_owned())),
                methods: vec!["GET".to_owned()],
                pool: "api".to_owned(),
            },
            proxy::RouteConfig {
                name: "exact".to_owned(),
                hosts: Vec::new(),
                path: Some(proxy::PathMatch::Exact("/x".to_owned())),
                methods: Vec::new(),
                pool: "default".to_owned(),
            },
        ],
        timeouts: proxy::Timeouts {
            connect: millis(10),
            request_header: millis(11),
            response_header: millis(12),
            request: millis(13),
            idle: millis(14),
            tcp_idle: millis(15),
            tunnel: millis(16),
        },
        limits: proxy::Limits { max_connections: 17, max_header_bytes: 18, max_body_bytes: 19 },
    };
    assert_eq!(app, expected);
}

#[test]
fn the_nodes_traffic_address_stands_for_every_address_and_for_no_other() {
    let check = |listen: &str, traffic_address: Option<&str>, expected: &str| {
        let app = translated(&format!(r#""listen":[{listen}],"targets":["a:1"]"#), &[80], traffic_address);
        assert_eq!(app.ports[0].address.to_string(), expected, "{listen} on {traffic_address:?}");
    };
    let (v6, v4) = (r#"{"port":80,"address":"::"}"#, r#"{"port":80,"address":"0.0.0.0"}"#);
    check("80", None, "::");
    check(v4, None, "0.0.0.0");
    check(v6, Some("127.0.0.2"), "127.0.0.2");
    check(v4, Some("127.0.0.2"), "127.0.0.2");
    check(r#"{"port":80,"address":"10.1.1.1"}"#, Some("127.0.0.2"), "10.1.1.1");
}

#[test]
fn every_choice_has_its_counterpart() {
    let with = |table: &str| translated(&format!(r#""listen":[80],"targets":["a:1"],{table}"#), &[80], None);
    let pool = |table: &str| with(table).pools["default"].clone();
    for (check, kind) in [(r#""tcp""#, proxy::CheckKind::Tcp), (r#""none""#, proxy::CheckKind::None)] {
        assert_eq!(pool(&format!(r#""check":{check}"#)).check.kind, kind);
    }
    for (family, expected) in
        [("any", proxy::Family::Any), ("v4", proxy::Family::V4), ("v6", proxy::Family::V6)]
    {
        assert_eq!(pool(&format!(r#""resolve":{{"family":"{family}"}}"#)).resolve.family, expected);
    }
    for (mode, expected) in [("all", proxy::ResolveMode::All), ("first", proxy::ResolveMode::First)] {
        assert_eq!(pool(&format!(r#""resolve":{{"mode":"{mode}"}}"#)).resolve.mode, expected);
    }
    for policy in ["p2c", "round_robin"] {
        assert_eq!(pool(&format!(r#""balance":"{policy}""#)).balance, policy);
    }
}

#[test]
fn an_app_of_routes_alone_has_no_default_pool() {
    let app = translated(
        r#""listen":["http:80"],"pool":{"api":{"targets":["a:1"]}},"route":[{"name":"all","pool":"api"}]"#,
        &[80],
        None,
    );
    assert_eq!(app.pools.keys().collect::<Vec<_>>(), ["api"]);
}
