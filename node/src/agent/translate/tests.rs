use std::time::Duration;

use super::*;

/// `tables`: everything but the name.
fn translated(tables: &str, ports: &[u16], traffic_address: Option<&str>) -> proxy::AppConfig {
    let app = spec::AppSpec::from_json(format!(r#"{{"name":"web",{tables}}}"#).as_bytes()).unwrap();
    let traffic_address = traffic_address.map(|address| address.parse().unwrap());
    translate(&app, GenerationId(7), ports, &Here { traffic_address, certificates: "/certificates".into() })
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn every_field_of_a_spec_arrives() {
    let app = translated(
        r#"
        "listen": [
            {"port":0,"protocol":"http","max_connections":11,"proxy_protocol":"require",
             "trusted_proxies":["10.0.0.0/8"]},
            {"port":9000,"address":"10.0.0.9","proxy_protocol":"accept","trusted_proxies":["::1"],
             "tls":{"certificate":["a",{"cert":"/c","key":"/k"}],"min_version":"1.3","client_ca":"staff"}}
        ],
        "access": {"allow":["10.0.0.0/8"],"deny":["10.1.0.0/16"]},
        "targets": ["a.example:80", {"address":"[::1]:81","weight":7,"zone":"z","backup":true}],
        "pool": {"api": {"targets":["b.example:82"]}},
        "resolve": {"mode":"first","family":"v6","min_ttl":"2s","max_ttl":"3s","stale":"4s"},
        "balance": {"policy":"maglev","hash_on":"header:X-User","slow_start":"30s","zone_aware":true,
                    "panic_threshold":40},
        "check": {"type":"http","path":"/up","host":"h.example","port":83,"interval":"5s","timeout":"6s",
                  "rise":8,"fall":9,"expect":["200-299",404]},
        "outlier": {"consecutive_failures":3,"ejection":"7s","max_ejected":20},
        "breaker": {"error_percent":40,"window":"8s","min_requests":9,"open_for":"3s"},
        "retry": {"attempts":4,"on":["connect","refused_stream","reset","timeout","gateway_error","server_error",429],
                  "per_try_timeout":"5ms","backoff":{"base":"1ms","max":"2ms"},"budget":30,"methods":"all",
                  "hedge":{"after":"49ms","max":2}},
        "timeouts": {"connect":"10ms","tls_handshake":"9ms","request_header":"11ms","request_body":"53ms","response_header":"12ms","request":"13ms",
                     "idle":"14ms","tcp_idle":"15ms","tunnel":"16ms"},
        "limits": {"max_connections":17,"max_connections_per_ip":25,"max_header_size":"18 B","max_body_size":"19 B",
            "max_request_line":"50 B","max_header_fields":51,"max_requests_per_connection":52,
            "max_in_flight":41,"max_pending":42,"pending_timeout":"43ms","target_soft":44,"target_hard":45,
            "rate":{"key":"header:X-Key","per_second":46,"burst":47,"max_keys":48}},
        "upstream": {"max_idle":20,"warm":5,"idle_timeout":"21s","tcp_keepalive":{"idle":"22s","interval":"23s","count":24},
                     "send_proxy":"v2","protocol":"http1",
                     "tls":{"server_name":"s","ca":"/ca.pem","certificate":"me"}},
        "route": [{"name":"api","match":{"host":["API.example"],"path_prefix":"/v1","methods":["GET"]},"pool":"api"},
                  {"name":"exact","match":{"path":"/x"},"pool":"default"}]
        "#,
        &[20_001, 9000],
        Some("192.0.2.1"),
    );
    let pool = |targets: &[(&str, u32)]| proxy::PoolConfig {
        targets: targets
            .iter()
            .map(|(address, weight)| proxy::TargetConfig {
                zone: (*weight == 7).then(|| "z".to_owned()),
                backup: *weight == 7,
                ..proxy::TargetConfig::new(*address, *weight)
            })
            .collect(),
        resolve: proxy::ResolveConfig {
            mode: proxy::ResolveMode::First,
            family: proxy::Family::V6,
            min_ttl: Duration::from_secs(2),
            max_ttl: Duration::from_secs(3),
            stale: Duration::from_secs(4),
        },
        balance: proxy::BalanceConfig {
            strategy: "maglev".to_owned(),
            hash_on: proxy::HashOn::Header("x-user".to_owned()),
            slow_start: Duration::from_secs(30),
            zone_aware: true,
            panic_threshold: 40,
        },
        outlier: proxy::OutlierConfig {
            consecutive_failures: 3,
            ejection: Duration::from_secs(7),
            max_ejected: 20,
        },
        breaker: Some(proxy::BreakerConfig {
            error_percent: 40,
            window: Duration::from_secs(8),
            min_requests: 9,
            open_for: Duration::from_secs(3),
        }),
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
        warm: 5,
        idle_timeout: Duration::from_secs(21),
        tcp_keepalive: proxy::TcpKeepalive {
            idle: Duration::from_secs(22),
            interval: Duration::from_secs(23),
            count: 24,
        },
        send_proxy: Some(proxy::ProxyVersion::V2),
        protocol: proxy::UpstreamProtocol::Http1,
        tls: Some(proxy::UpstreamTls {
            server_name: Some("s".to_owned()),
            ca: "/ca.pem".into(),
            identity: Some(proxy::CertificateSource::Named {
                directory: "/certificates".into(),
                name: "me".to_owned(),
            }),
        }),
    };
    let expected = proxy::AppConfig {
        app: "web".into(),
        generation: 7,
        ports: vec![
            proxy::PortConfig {
                address: "192.0.2.1".parse().unwrap(),
                port: 20_001,
                max_connections: 11,
                proxy_protocol: proxy::ProxyProtocol::Require,
                trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
                ..proxy::PortConfig::new("[::]:0".parse().unwrap(), proxy::Protocol::Http)
            },
            proxy::PortConfig {
                address: "10.0.0.9".parse().unwrap(),
                port: 9000,
                proxy_protocol: proxy::ProxyProtocol::Accept,
                trusted_proxies: vec!["::1/128".parse().unwrap()],
                tls: Some(proxy::TlsConfig {
                    certificates: vec![
                        proxy::CertificateSource::Named {
                            directory: "/certificates".into(),
                            name: "a".to_owned(),
                        },
                        proxy::CertificateSource::Files { chain: "/c".into(), key: "/k".into() },
                    ],
                    min_version: proxy::TlsVersion::V13,
                    alpn: Vec::new(),
                    client_ca: Some("/certificates/staff.pem".into()),
                }),
                ..proxy::PortConfig::new("[::]:0".parse().unwrap(), proxy::Protocol::Tcp)
            },
        ],
        pools: [
            ("api".to_owned(), pool(&[("b.example:82", 100)])),
            ("default".to_owned(), pool(&[("a.example:80", 100), ("[::1]:81", 7)])),
        ]
        .into(),
        routes: vec![
            proxy::RouteConfig {
                path: Some(proxy::PathMatch::Prefix("/v1".to_owned())),
                methods: vec!["GET".to_owned()],
                ..proxy::RouteConfig::hosts("api", ["api.example"], "api")
            },
            proxy::RouteConfig {
                path: Some(proxy::PathMatch::Exact("/x".to_owned())),
                ..proxy::RouteConfig::hosts("exact", Vec::<String>::new(), "default")
            },
        ],
        retry: proxy::RetryConfig {
            attempts: 4,
            on: vec![
                proxy::RetryOn::Connect,
                proxy::RetryOn::RefusedStream,
                proxy::RetryOn::Reset,
                proxy::RetryOn::Timeout,
                proxy::RetryOn::GatewayError,
                proxy::RetryOn::ServerError,
                proxy::RetryOn::Status(429),
            ],
            per_try_timeout: millis(5),
            backoff: (millis(1), millis(2)),
            budget_percent: 30,
            methods: proxy::RetryMethods::All,
            hedge: Some(proxy::HedgeConfig { after: millis(49), max: 2 }),
        },
        timeouts: proxy::Timeouts {
            connect: millis(10),
            tls_handshake: millis(9),
            request_header: millis(11),
            request_body: millis(53),
            response_header: millis(12),
            request: millis(13),
            idle: millis(14),
            tcp_idle: millis(15),
            tunnel: millis(16),
        },
        limits: proxy::Limits {
            max_connections: 17,
            max_connections_per_source: 25,
            max_header_bytes: 18,
            max_request_line_bytes: 50,
            max_header_fields: 51,
            max_requests_per_connection: 52,
            max_body_bytes: 19,
            max_in_flight: 41,
            max_pending: 42,
            pending_timeout: millis(43),
            target_soft: 44,
            target_hard: 45,
            rate: Some(proxy::RateConfig {
                key: proxy::RateKey::Header("x-key".to_owned()),
                per_second: 46,
                burst: 47,
                max_keys: 48,
            }),
        },
        compression: None,
        layers: Vec::new(),
        access: proxy::AccessConfig {
            allow: vec!["10.0.0.0/8".parse().unwrap()],
            deny: vec!["10.1.0.0/16".parse().unwrap()],
            ..proxy::AccessConfig::default()
        },
    };
    assert_eq!(app, expected);
}

#[test]
fn every_word_of_access_arrives_and_services_become_pools() {
    let app = translated(
        r#"
        "listen": ["http:80"], "targets": ["a:1"], "check": "/up",
        "access": {
            "basic": {"realm":"r","users":{"ann":"h"},"file":"/users","timeout":"1ms"},
            "jwt": {"jwks":"https://id/keys","ca":"id","issuer":"i","audience":["x"],"algorithms":["HS256"],
                    "header":"X-Token","leeway":"2s","refresh":"3s","refresh_floor":"4s","timeout":"5s"},
            "forward": {"targets":["auth:2"],"path":"/v","copy":["X-User"],"timeout":"6s"},
            "ext_authz": {"targets":["authz:3"],"timeout":"7s","tls":{"ca":"id"}},
            "signer": "s"
        }
        "#,
        &[80],
        None,
    );
    let seconds = Duration::from_secs;
    let expected = proxy::AccessConfig {
        allow: Vec::new(),
        deny: Vec::new(),
        basic: Some(proxy::BasicConfig {
            realm: "r".to_owned(),
            users: [("ann".to_owned(), "h".to_owned())].into(),
            file: Some("/users".into()),
            timeout: Duration::from_millis(1),
        }),
        jwt: Some(proxy::JwtConfig {
            jwks: "https://id/keys".to_owned(),
            ca: Some("/certificates/id.pem".into()),
            issuer: Some("i".to_owned()),
            audience: vec!["x".to_owned()],
            algorithms: vec![proxy::JwtAlgorithm::Hs256],
            header: "x-token".to_owned(),
            leeway: seconds(2),
            refresh: seconds(3),
            refresh_floor: seconds(4),
            timeout: seconds(5),
        }),
        forward: Some(proxy::ForwardAuthConfig {
            pool: "access:forward".to_owned(),
            path: "/v".to_owned(),
            copy: vec!["x-user".to_owned()],
            timeout: seconds(6),
        }),
        grpc: Some(proxy::GrpcAuthConfig { pool: "access:ext_authz".to_owned(), timeout: seconds(7) }),
        signer: Some("s".to_owned()),
    };
    assert_eq!(app.access, expected);
    let forward = &app.pools["access:forward"];
    assert_eq!(forward.targets, [proxy::TargetConfig::new("auth:2", 100)]);
    assert_eq!((forward.protocol, &forward.check), (proxy::UpstreamProtocol::Auto, &Default::default()));
    let grpc = &app.pools["access:ext_authz"];
    assert_eq!(grpc.protocol, proxy::UpstreamProtocol::Http2);
    assert_eq!(grpc.tls.as_ref().unwrap().ca, std::path::Path::new("/certificates/id.pem"));
}

#[test]
fn https_with_nothing_more_serves_every_certificate_of_the_node_in_both_versions_of_http() {
    let app = translated(r#""listen":["https:443"],"targets":["a:1"]"#, &[443], None);
    let tls = app.ports[0].tls.as_ref().unwrap();
    assert_eq!(tls.certificates, [proxy::CertificateSource::Directory("/certificates".into())]);
    assert_eq!(tls.alpn, ["h2", "http/1.1"]);
    assert_eq!((tls.min_version, &tls.client_ca), (proxy::TlsVersion::V12, &None));
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
    let strategies = flotilla_proxy::Strategies::default();
    for policy in strategies.names() {
        assert_eq!(pool(&format!(r#""balance":"{policy}""#)).balance.strategy, policy);
    }
    assert_eq!(pool(r#""balance":"custom:mine""#).balance.strategy, "mine");
    for (hash_on, expected) in [
        ("client_ip", proxy::HashOn::ClientIp),
        ("path", proxy::HashOn::Path),
        ("cookie:Sid", proxy::HashOn::Cookie("Sid".to_owned())),
    ] {
        let table = format!(r#""balance":{{"policy":"maglev","hash_on":"{hash_on}"}}"#);
        assert_eq!(pool(&table).balance.hash_on, expected);
    }
}

#[test]
fn every_field_of_a_route_arrives() {
    let app = translated(
        r#"
        "listen": [{"port":0,"protocol":"http","redirect_https":true},
                   {"port":81,"protocol":"http","redirect_https":8443},
                   {"port":0,"protocol":"http","tls":{}}],
        "targets": ["a:1"],
        "compression": {"level":5,"min_size":"2KiB","types":["text/html"]},
        "route": [
            {"name":"all","match":{"path_regex":"^/v","headers":{"a":"b","c":{"present":false}},
                                   "query":{"d":{"regex":"e"}},"expr":"true"},
             "split":{"default":95,"canary":5},"sticky":"header:X-User","timeout":"1s",
             "rewrite":{"strip_prefix":"/v1","add_prefix":"/v2"},
             "request_headers":{"set":{"f":"g"},"add":{"h":"i"},"remove":["j"]},
             "response_headers":{"remove":["k"]},
             "mirror":{"pool":"canary","percent":10,"max_body_size":"3KiB"}},
            {"name":"tunnel","pool":"canary","connect":true},
            {"name":"tea","respond":{"status":418,"headers":{"l":"m"},"body":"n"}},
            {"name":"moved","redirect":{"status":308,"scheme":"https","host":"o","port":82,"path":"/p"}}]
        "#,
        &[20_001, 81, 20_003],
        None,
    );
    let redirects: Vec<_> = app.ports.iter().map(|port| port.redirect_https).collect();
    assert_eq!(redirects, [Some(20_003), Some(8443), None]);
    let types = vec!["text/html".to_owned()];
    assert_eq!(app.compression, Some(proxy::CompressionConfig { level: 5, bytes_min: 2048, types }));
    let value = |name: &str, value| proxy::ValueMatch { name: name.to_owned(), value };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let any = |name| proxy::RouteConfig::hosts(name, Vec::<String>::new(), "");
    let split = proxy::SplitConfig {
        pools: vec![("canary".to_owned(), 5), ("default".to_owned(), 95)],
        sticky: Some(proxy::HashOn::Header("x-user".to_owned())),
    };
    let respond = proxy::RespondConfig { status: 418, headers: vec![pair("l", "m")], body: "n".to_owned() };
    let redirect = proxy::RedirectConfig {
        status: 308,
        scheme: Some("https".to_owned()),
        host: Some("o".to_owned()),
        port: Some(82),
        path: Some("/p".to_owned()),
    };
    let expected = [
        proxy::RouteConfig {
            path: Some(proxy::PathMatch::Regex("^/v".to_owned())),
            headers: vec![
                value("a", proxy::Wanted::Exact("b".to_owned())),
                value("c", proxy::Wanted::Present(false)),
            ],
            query: vec![value("d", proxy::Wanted::Regex("e".to_owned()))],
            expr: Some("true".to_owned()),
            to: proxy::RouteTo::Split(split),
            timeout: Some(millis(1000)),
            rewrite: proxy::RewriteConfig {
                strip_prefix: Some("/v1".to_owned()),
                add_prefix: Some("/v2".to_owned()),
            },
            request_headers: proxy::EditConfig {
                set: vec![pair("f", "g")],
                add: vec![pair("h", "i")],
                remove: vec!["j".to_owned()],
            },
            response_headers: proxy::EditConfig { remove: vec!["k".to_owned()], ..Default::default() },
            mirror: Some(proxy::MirrorConfig {
                pool: "canary".to_owned(),
                percent: 10,
                body_bytes_max: 3072,
            }),
            ..any("all")
        },
        proxy::RouteConfig { to: proxy::RouteTo::Pool("canary".to_owned()), connect: true, ..any("tunnel") },
        proxy::RouteConfig { to: proxy::RouteTo::Respond(respond), ..any("tea") },
        proxy::RouteConfig { to: proxy::RouteTo::Redirect(redirect), ..any("moved") },
    ];
    assert_eq!(app.routes, expected);
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
