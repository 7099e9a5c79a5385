//! Whatever a spec holds, what is written of it reads back as the same value.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use flotilla_spec::*;
use ipnet::IpNet;
use proptest::{collection, option, prelude::*};

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9./:_-]{0,12}", any::<String>()]
}

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::ZERO),
        (0_u64..10_000).prop_map(Duration::from_secs),
        (0_u64..100_000_000_000).prop_map(Duration::from_millis),
    ]
}

fn map() -> impl Strategy<Value = BTreeMap<String, String>> {
    collection::btree_map(text(), text(), 0..3)
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    collection::vec(text(), 0..3)
}

fn networks() -> impl Strategy<Value = Vec<IpNet>> {
    let one = (any::<IpAddr>(), any::<u8>()).prop_map(|(ip, length)| {
        let max = if ip.is_ipv4() { 32 } else { 128 };
        IpNet::new(ip, length % (max + 1)).unwrap().trunc()
    });
    collection::vec(one, 0..3)
}

fn tls() -> impl Strategy<Value = Tls> {
    let certificate = prop_oneof![
        text().prop_map(Certificate::Named),
        (text(), text()).prop_map(|(cert, key)| Certificate::Files(CertificateFiles { cert, key })),
    ];
    let alpn = prop_oneof![Just(Tls::default().alpn), texts()];
    (collection::vec(certificate, 0..3), any::<bool>(), alpn, option::of(text())).prop_map(
        |(certificate, v13, alpn, client_ca)| Tls {
            certificate,
            min_version: if v13 { TlsVersion::V13 } else { TlsVersion::V12 },
            alpn,
            client_ca,
        },
    )
}

fn socket() -> impl Strategy<Value = SocketOptions> {
    let keepalive = (duration(), duration(), any::<u32>()).prop_map(|(idle, interval, count)| TcpKeepalive {
        idle,
        interval,
        count,
    });
    let some = (any::<u32>(), any::<bool>(), option::of(keepalive), duration(), any::<u32>(), any::<u32>())
        .prop_map(|(backlog, nodelay, keepalive, user_timeout, receive, send)| SocketOptions {
            backlog,
            nodelay,
            keepalive,
            user_timeout,
            receive_buffer: receive.into(),
            send_buffer: send.into(),
        });
    prop_oneof![Just(SocketOptions::default()), some]
}

fn listen() -> impl Strategy<Value = Vec<Listen>> {
    let address = prop_oneof![Just(Listen::default().address), any::<IpAddr>()];
    let mode = prop_oneof![Just(ProxyMode::Off), Just(ProxyMode::Accept), Just(ProxyMode::Require)];
    let redirect = prop_oneof![
        Just(RedirectHttps::Off),
        Just(RedirectHttps::On),
        (1_u16..).prop_map(RedirectHttps::Port)
    ];
    let edge = (
        option::of(prop_oneof![Just(Tls::default()), tls()]),
        mode,
        networks(),
        texts(),
        (socket(), redirect),
    );
    let one = (any::<u16>(), address, any::<bool>(), prop_oneof![Just(0), any::<u32>()], edge).prop_map(
        |(
            port,
            address,
            http,
            max_connections,
            (tls, proxy_protocol, trusted_proxies, hosts, (socket, redirect_https)),
        )| {
            Listen {
                port,
                address,
                protocol: if http { Protocol::Http } else { Protocol::Tcp },
                tls,
                proxy_protocol,
                trusted_proxies,
                hosts,
                max_connections,
                socket,
                redirect_https,
            }
        },
    );
    collection::vec(one, 0..4)
}

fn targets() -> impl Strategy<Value = Vec<Target>> {
    let one = (text(), prop_oneof![Just(100), any::<u32>()], option::of(text()), any::<bool>());
    let one = one.prop_map(|(address, weight, zone, backup)| Target { address, weight, zone, backup });
    collection::vec(one, 0..4)
}

fn hash_on() -> impl Strategy<Value = HashOn> {
    prop_oneof![
        Just(HashOn::ClientIp),
        Just(HashOn::Path),
        text().prop_map(HashOn::Header),
        text().prop_map(HashOn::Cookie)
    ]
}

fn balance() -> impl Strategy<Value = Balance> {
    use Policy::{Custom, LeastConn, Maglev, P2c, PeakEwma, Random, Rendezvous, RingHash, RoundRobin};
    let policies = [P2c, PeakEwma, LeastConn, Random, RoundRobin, Maglev, RingHash, Rendezvous];
    let policy = prop_oneof![proptest::sample::select(policies.to_vec()), text().prop_map(Custom)];
    let rest = (hash_on(), duration(), any::<bool>(), any::<u32>());
    (policy, option::of(rest)).prop_map(|(policy, rest)| match rest {
        None => Balance { policy, ..Balance::default() },
        Some((hash_on, slow_start, zone_aware, panic_threshold)) => {
            Balance { policy, hash_on, slow_start, zone_aware, panic_threshold }
        }
    })
}

fn check() -> impl Strategy<Value = Check> {
    let kind = prop_oneof![
        Just(CheckKind::Tcp),
        Just(CheckKind::Http),
        Just(CheckKind::Grpc),
        Just(CheckKind::None)
    ];
    let path = prop_oneof![Just("/".to_owned()), Just("tcp".to_owned()), "/[a-z]{0,5}", text()];
    let plain = (kind, path).prop_map(|(kind, path)| Check { kind, path, ..Check::default() });
    let rest = (option::of(text()), option::of(any::<u16>()), duration(), duration());
    let counts = (any::<u32>(), any::<u32>(), collection::vec(any::<(u16, u16)>(), 0..3));
    (plain, option::of((rest, counts))).prop_map(|(plain, rest)| match rest {
        None => plain,
        Some(((host, port, interval, timeout), (rise, fall, expect))) => {
            Check { host, port, interval, timeout, rise, fall, expect, ..plain }
        }
    })
}

fn probes() -> impl Strategy<Value = Vec<Probe>> {
    let ask = prop_oneof![
        Just(ProbeType::Http),
        Just(ProbeType::Tcp),
        Just(ProbeType::Grpc),
        Just(ProbeType::Command)
    ];
    let words = (collection::vec(text(), 5), texts(), option::of(text()), option::of(any::<u16>()));
    let numbers = (duration(), duration(), any::<u32>(), any::<u32>());
    let one = (any::<bool>(), ask, words, numbers, collection::vec(any::<(u16, u16)>(), 0..3)).prop_map(
        |(live, ask, (texts, command, host, port), (interval, timeout, rise, fall), expect)| Probe {
            name: texts[0].clone(),
            kind: if live { ProbeKind::Liveness } else { ProbeKind::Readiness },
            ask,
            port,
            path: texts[1].clone(),
            host,
            expect,
            send: texts[2].clone(),
            body: texts[3].clone(),
            service: texts[4].clone(),
            command,
            interval,
            timeout,
            rise,
            fall,
        },
    );
    collection::vec(one, 0..3)
}

fn timeouts() -> impl Strategy<Value = Timeouts> {
    collection::vec(duration(), 9).prop_map(|t| Timeouts {
        request_body: t[8],
        tls_handshake: t[7],
        connect: t[0],
        request_header: t[1],
        response_header: t[2],
        request: t[3],
        idle: t[4],
        tcp_idle: t[5],
        tunnel: t[6],
    })
}

fn resolve() -> impl Strategy<Value = Resolve> {
    let family = prop_oneof![Just(Family::Any), Just(Family::V4), Just(Family::V6)];
    (any::<bool>(), family, duration(), duration(), duration()).prop_map(
        |(first, family, min_ttl, max_ttl, stale)| Resolve {
            mode: if first { ResolveMode::First } else { ResolveMode::All },
            family,
            min_ttl,
            max_ttl,
            stale,
        },
    )
}

fn upstream() -> impl Strategy<Value = UpstreamOptions> {
    use UpstreamProtocol::{Auto, Http1, Http2};
    let protocol = prop_oneof![Just(Auto), Just(Http1), Just(Http2)];
    let certificate = prop_oneof![
        text().prop_map(Certificate::Named),
        (text(), text()).prop_map(|(cert, key)| Certificate::Files(CertificateFiles { cert, key })),
    ];
    let tls = (any::<bool>(), option::of(text()), option::of(text()), option::of(certificate));
    let tls = tls.prop_map(|(enabled, server_name, ca, certificate)| UpstreamTls {
        enabled,
        server_name,
        ca,
        certificate,
    });
    (plain_upstream(), protocol, option::of(tls)).prop_map(|(plain, protocol, tls)| UpstreamOptions {
        protocol,
        tls,
        ..plain
    })
}

fn plain_upstream() -> impl Strategy<Value = UpstreamOptions> {
    let send_proxy = prop_oneof![Just(SendProxy::Off), Just(SendProxy::V1), Just(SendProxy::V2)];
    ((any::<u32>(), any::<u32>()), duration(), duration(), duration(), any::<u32>(), send_proxy).prop_map(
        |((max_idle, warm), idle_timeout, idle, interval, count, send_proxy)| UpstreamOptions {
            max_idle,
            warm,
            idle_timeout,
            tcp_keepalive: TcpKeepalive { idle, interval, count },
            send_proxy,
            protocol: UpstreamProtocol::Auto,
            tls: None,
        },
    )
}

fn routes() -> impl Strategy<Value = Vec<Route>> {
    let values = || {
        let one = prop_oneof![
            text().prop_map(ValueMatch::Exact),
            any::<bool>().prop_map(ValueMatch::Present),
            text().prop_map(ValueMatch::Regex)
        ];
        collection::btree_map(text(), one, 0..3)
    };
    let paths = (option::of(text()), option::of(text()), option::of(text()));
    let asked = (values(), values(), option::of(text()));
    let matches =
        (texts(), paths, texts(), asked).prop_map(|(host, paths, methods, (headers, query, expr))| {
            let (path, path_prefix, path_regex) = paths;
            Match { host, path, path_prefix, path_regex, methods, headers, query, expr }
        });
    let respond = (any::<u16>(), map(), text());
    let respond = respond.prop_map(|(status, headers, body)| Respond { status, headers, body });
    let scheme = option::of(prop_oneof![Just(Scheme::Http), Just(Scheme::Https)]);
    let redirect = (any::<u16>(), scheme, option::of(text()), option::of(any::<u16>()), option::of(text()));
    let redirect =
        redirect.prop_map(|(status, scheme, host, port, path)| Redirect { status, scheme, host, port, path });
    let rewrite = (option::of(text()), option::of(text()))
        .prop_map(|(strip_prefix, add_prefix)| Rewrite { strip_prefix, add_prefix });
    let edits = || (map(), map(), texts()).prop_map(|(set, add, remove)| HeaderEdits { set, add, remove });
    let goal = (
        option::of(text()),
        option::of(respond),
        option::of(redirect),
        option::of(duration()),
        any::<bool>(),
    );
    let mirror = prop_oneof![
        text().prop_map(Mirror::new),
        (text(), any::<u32>(), any::<u64>()).prop_map(|(pool, percent, max_body_size)| Mirror {
            pool,
            percent,
            max_body_size
        }),
    ];
    let shares =
        (collection::btree_map(text(), any::<u32>(), 0..3), option::of(hash_on()), option::of(mirror));
    let edits = (rewrite, edits(), edits());
    let one = (text(), matches, goal, shares, edits).prop_map(
        |(
            name,
            matches,
            (pool, respond, redirect, timeout, connect),
            (split, sticky, mirror),
            (rewrite, request_headers, response_headers),
        )| Route {
            name,
            matches,
            pool,
            split,
            sticky,
            mirror,
            connect,
            respond,
            redirect,
            timeout,
            rewrite,
            request_headers,
            response_headers,
        },
    );
    collection::vec(one.boxed(), 0..3)
}

fn placement() -> impl Strategy<Value = Placement> {
    let replicas = prop_oneof![Just(Replicas::All), any::<u32>().prop_map(Replicas::Count)];
    let target = || option::of(any::<u32>());
    let autoscale = (any::<(u32, u32)>(), target(), target(), target(), duration());
    let autoscale = autoscale.prop_map(|((min, max), connections, requests, cpu, cooldown)| Autoscale {
        min,
        max,
        target_connections: connections,
        target_requests_per_second: requests,
        target_cpu_percent: cpu,
        cooldown,
    });
    (replicas, texts(), any::<bool>(), map(), option::of(autoscale)).prop_map(
        |(replicas, regions, node, require, autoscale)| Placement {
            replicas,
            regions,
            spread: if node { Spread::Node } else { Spread::Zone },
            require,
            autoscale,
        },
    )
}

fn rollout() -> impl Strategy<Value = Rollout> {
    use RolloutStrategy::{AllAtOnce, BlueGreen, Canary, Rolling};
    let durations = (duration(), duration(), duration(), duration());
    let strategy = prop_oneof![Just(Rolling), Just(Canary), Just(BlueGreen), Just(AllAtOnce)];
    let abort_on = (any::<u32>(), duration(), any::<u32>());
    let abort_on =
        abort_on.prop_map(|(error_percent, p99, min_requests)| AbortOn { error_percent, p99, min_requests });
    let counts = (any::<u32>(), any::<u32>(), any::<u32>(), collection::vec(any::<u8>(), 0..4));
    let rest = (strategy, any::<bool>(), any::<bool>(), abort_on);
    (counts, durations, rest).prop_map(|(counts, durations, rest)| {
        let (max_parallel, min_healthy_targets, canary, steps) = counts;
        let (min_healthy, healthy_deadline, progress_deadline, drain) = durations;
        let (strategy, auto_promote, auto_rollback, abort_on) = rest;
        Rollout {
            strategy,
            max_parallel,
            canary,
            steps,
            min_healthy,
            min_healthy_targets,
            healthy_deadline,
            progress_deadline,
            drain,
            auto_promote,
            auto_rollback,
            abort_on,
        }
    })
}

fn outlier() -> impl Strategy<Value = Outlier> {
    (any::<u32>(), duration(), any::<u32>()).prop_map(|(consecutive_failures, ejection, max_ejected)| {
        Outlier { consecutive_failures, ejection, max_ejected }
    })
}

fn breaker() -> impl Strategy<Value = Option<Breaker>> {
    let one = (any::<u32>(), duration(), any::<u32>(), duration());
    option::of(one.prop_map(|(error_percent, window, min_requests, open_for)| Breaker {
        error_percent,
        window,
        min_requests,
        open_for,
    }))
}

fn retry() -> impl Strategy<Value = Retry> {
    use RetryOn::{Connect, GatewayError, RefusedStream, Reset, ServerError, Status, Timeout};
    let word =
        proptest::sample::select(vec![Connect, RefusedStream, Reset, Timeout, GatewayError, ServerError]);
    let on = collection::vec(prop_oneof![word, any::<u16>().prop_map(Status)], 0..4);
    let hedge = (duration(), any::<u32>()).prop_map(|(after, max)| Hedge { after, max });
    let times = (duration(), duration(), duration(), option::of(hedge));
    (any::<u32>(), on, times, any::<u32>(), any::<bool>()).prop_map(
        |(attempts, on, (per_try_timeout, base, max, hedge), budget, all)| Retry {
            attempts,
            on,
            per_try_timeout,
            backoff: Backoff { base, max },
            budget,
            methods: if all { RetryMethods::All } else { RetryMethods::Idempotent },
            hedge,
        },
    )
}

fn access() -> impl Strategy<Value = Access> {
    let basic = (text(), map(), option::of(text()), duration());
    let basic = basic.prop_map(|(realm, users, file, timeout)| Basic { realm, users, file, timeout });
    let jwt = (collection::vec(text(), 4), texts(), collection::vec(duration(), 4), any::<bool>());
    let jwt = jwt.prop_map(|(texts, audience, times, is_shared)| Jwt {
        jwks: texts[0].clone(),
        ca: Some(texts[1].clone()),
        issuer: Some(texts[2].clone()),
        audience,
        algorithms: if is_shared { vec![JwtAlgorithm::Hs256] } else { Jwt::default().algorithms },
        header: texts[3].clone(),
        leeway: times[0],
        refresh: times[1],
        refresh_floor: times[2],
        timeout: times[3],
    });
    let tls = || option::of(Just(UpstreamTls { ca: Some("a".to_owned()), ..UpstreamTls::default() }));
    let forward = (targets(), text(), texts(), duration(), tls());
    let forward = forward.prop_map(|(targets, path, copy, timeout, tls)| ForwardAuth {
        targets,
        path,
        copy,
        timeout,
        tls,
    });
    let ext_authz = (targets(), duration(), tls());
    let ext_authz = ext_authz.prop_map(|(targets, timeout, tls)| ExtAuthz { targets, timeout, tls });
    let guards = (option::of(basic), option::of(jwt), option::of(forward), option::of(ext_authz));
    (networks(), networks(), guards, option::of(text())).prop_map(
        |(allow, deny, (basic, jwt, forward, ext_authz), signer)| Access {
            allow,
            deny,
            basic,
            jwt,
            forward,
            ext_authz,
            signer,
        },
    )
}

fn limits() -> impl Strategy<Value = Limits> {
    let key = prop_oneof![Just(RateKey::ClientIp), Just(RateKey::Route), text().prop_map(RateKey::Header)];
    let rate = (key, any::<u32>(), any::<u32>(), any::<u32>());
    let rate = rate.prop_map(|(key, per_second, burst, max_keys)| Rate { key, per_second, burst, max_keys });
    let counts = collection::vec(any::<u32>(), 8);
    (counts, any::<(u64, u64)>(), any::<u64>(), duration(), option::of(rate)).prop_map(
        |(counts, (max_header_size, max_request_line), max_body_size, pending_timeout, rate)| Limits {
            max_request_line,
            max_header_fields: counts[6],
            max_requests_per_connection: counts[7],
            max_connections: counts[0],
            max_connections_per_ip: counts[1],
            max_header_size,
            max_body_size,
            max_in_flight: counts[2],
            max_pending: counts[3],
            pending_timeout,
            target_soft: counts[4],
            target_hard: counts[5],
            rate,
        },
    )
}

fn spec() -> impl Strategy<Value = AppSpec> {
    let words = ("[a-z][a-z0-9-]{0,20}[a-z0-9]", text(), map());
    let pools = collection::btree_map(text(), targets().prop_map(|targets| Pool { targets }), 0..3);
    let compression = option::of(prop_oneof![
        Just(Compression::default()),
        (any::<u32>(), any::<u64>(), texts()).prop_map(|(level, min_size, types)| Compression {
            level,
            min_size,
            types
        }),
    ]);
    let traffic = (listen(), targets(), pools, (routes(), compression, texts()), balance()).boxed();
    let limits = (limits().boxed(), access().boxed()).boxed();
    let rest = (
        resolve(),
        (check(), probes(), outlier(), breaker(), retry()).boxed(),
        timeouts(),
        limits,
        upstream().boxed(),
        placement(),
        rollout().boxed(),
    )
        .boxed();
    (words, traffic, option::of(rest)).prop_map(|((name, description, labels), traffic, rest)| {
        let (listen, targets, pool, (route, compression, layers), balance) = traffic;
        let plain = AppSpec {
            name: AppName::parse(&name).unwrap(),
            description,
            labels,
            listen,
            targets,
            pool,
            route,
            access: Access::default(),
            compression,
            layers,
            balance,
            resolve: Resolve::default(),
            check: Check::default(),
            probe: Vec::new(),
            outlier: Outlier::default(),
            breaker: None,
            retry: Retry::default(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            upstream: UpstreamOptions::default(),
            placement: Placement::default(),
            rollout: Rollout::default(),
        };
        let Some((
            resolve,
            (check, probe, outlier, breaker, retry),
            timeouts,
            limits,
            upstream,
            placement,
            rollout,
        )) = rest
        else {
            return plain;
        };
        let (limits, access) = limits;
        AppSpec {
            resolve,
            check,
            probe,
            outlier,
            breaker,
            retry,
            timeouts,
            limits,
            upstream,
            access,
            placement,
            rollout,
            ..plain
        }
    })
}

/// The parts of any spec that are valid whatever their value, and plain words for the others.
fn valid() -> impl Strategy<Value = AppSpec> {
    let listen = collection::btree_set(1_u16.., 1..4);
    let targets = collection::vec(("[a-z][a-z0-9]{0,9}", 1_u16.., 1_u32..=65_535), 1..4);
    let times = collection::vec(1_u64..1_000_000, 7);
    (spec(), listen, targets, times).prop_map(|(any, ports, targets, times)| {
        let ms = |index: usize| Duration::from_millis(times[index]);
        let default = Rollout::default();
        AppSpec {
            listen: ports.into_iter().map(|port| Listen { port, ..Listen::default() }).collect(),
            targets: targets
                .into_iter()
                .map(|(host, port, weight)| Target::new(format!("{host}:{port}"), weight))
                .collect(),
            pool: BTreeMap::new(),
            route: Vec::new(),
            compression: any.compression.map(|_| Compression::default()),
            layers: Vec::new(),
            balance: Balance { panic_threshold: 77, zone_aware: true, ..Balance::default() },
            resolve: Resolve { max_ttl: ms(0) + Duration::from_secs(1), ..Resolve::default() },
            check: Check { timeout: ms(1), rise: 7, ..Check::default() },
            probe: vec![Probe {
                name: "smoke".to_owned(),
                ask: ProbeType::Tcp,
                body: "ready".to_owned(),
                timeout: ms(1),
                ..Probe::default()
            }],
            outlier: Outlier { consecutive_failures: 7, ..Outlier::default() },
            breaker: any.breaker.map(|_| Breaker::default()),
            retry: Retry { attempts: 3, on: vec![RetryOn::Reset, RetryOn::Status(429)], ..Retry::default() },
            timeouts: Timeouts {
                response_header: ms(2),
                request: ms(2) + ms(3),
                tcp_idle: ms(4),
                ..Timeouts::default()
            },
            limits: Limits {
                max_header_size: 8192 + times[5] % 1_000_000,
                max_request_line: 8192,
                max_header_fields: 50,
                pending_timeout: Duration::from_secs(3),
                target_soft: any.limits.target_soft.min(any.limits.target_hard),
                rate: any.limits.rate.map(|_| Rate::default()),
                ..any.limits
            },
            access: Access { allow: any.access.allow, deny: any.access.deny, ..Access::default() },
            upstream: UpstreamOptions { idle_timeout: ms(6), ..UpstreamOptions::default() },
            placement: Placement {
                replicas: Replicas::All,
                regions: Vec::new(),
                autoscale: None,
                ..any.placement
            },
            rollout: Rollout { drain: ms(5), auto_rollback: any.rollout.auto_rollback, ..default },
            ..any
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_spec_survives_its_canonical_json(spec in spec()) {
        let bytes = spec.to_json();
        let back = AppSpec::from_json(&bytes).unwrap();
        prop_assert_eq!(&back, &spec);
        prop_assert_eq!(back.to_json(), bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_spec_survives_its_toml(spec in spec()) {
        let text = to_toml(&spec);
        // What the random values mean together is refused; their shape is not.
        let back: File = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        prop_assert_eq!(&back.app[0], &spec);
    }

    #[test]
    fn a_valid_spec_survives_a_file(spec in valid()) {
        prop_assert_eq!(validate(&spec), []);
        for format in [Format::Toml, Format::Json, Format::Yaml] {
            let text = match format {
                Format::Toml => to_toml(&spec),
                Format::Json | Format::Yaml => format!("{{\"app\":[{}]}}", String::from_utf8(spec.to_json()).unwrap()),
            };
            prop_assert_eq!(parse(&text, format), Ok(vec![spec.clone()]), "{}", text);
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>(), cut in any::<prop::sample::Index>()) {
        let full = include_str!("testdata/full.toml");
        let cut = full.char_indices().map(|(at, _)| at).nth(cut.index(full.len())).unwrap_or(0);
        let broken = format!("{}{text}{}", &full[..cut], &full[cut..]);
        for format in [Format::Toml, Format::Json, Format::Yaml] {
            for text in [&text, &broken] {
                if let Err(diagnostics) = parse(text, format) {
                    prop_assert!(!diagnostics.is_empty());
                }
            }
        }
    }
}

#[test]
fn a_file_that_nests_without_end_is_refused() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("a = [", "]"), ("- ", ""), ("a: {", "}")] {
        let text = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        for format in [Format::Toml, Format::Json, Format::Yaml] {
            assert!(parse(&text, format).is_err(), "{open} {format:?}");
        }
    }
}

#[derive(serde::Deserialize)]
struct File {
    app: Vec<AppSpec>,
}

#[test]
fn a_spec_with_nothing_special_is_written_short() {
    let json = br#"{"name":"web","listen":["http:8080",9000],"targets":["a:1"],"check":"/healthz"}"#;
    assert_eq!(AppSpec::from_json(json).unwrap().to_json(), json);
}
