//! Whatever a spec holds, what is written of it reads back as the same value.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use flotilla_spec::*;
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

fn listen() -> impl Strategy<Value = Vec<Listen>> {
    let address = prop_oneof![Just(Listen::default().address), any::<IpAddr>()];
    let one = (any::<u16>(), address, any::<bool>(), prop_oneof![Just(0), any::<u32>()]).prop_map(
        |(port, address, http, max_connections)| Listen {
            port,
            address,
            protocol: if http { Protocol::Http } else { Protocol::Tcp },
            max_connections,
        },
    );
    collection::vec(one, 0..4)
}

fn targets() -> impl Strategy<Value = Vec<Target>> {
    let one = (text(), prop_oneof![Just(100), any::<u32>()]);
    collection::vec(one.prop_map(|(address, weight)| Target { address, weight }), 0..4)
}

fn check() -> impl Strategy<Value = Check> {
    let kind = prop_oneof![Just(CheckKind::Tcp), Just(CheckKind::Http), Just(CheckKind::None)];
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

fn timeouts() -> impl Strategy<Value = Timeouts> {
    collection::vec(duration(), 7).prop_map(|t| Timeouts {
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
    (any::<u32>(), duration(), duration(), duration(), any::<u32>()).prop_map(
        |(max_idle, idle_timeout, idle, interval, count)| UpstreamOptions {
            max_idle,
            idle_timeout,
            tcp_keepalive: TcpKeepalive { idle, interval, count },
        },
    )
}

fn routes() -> impl Strategy<Value = Vec<Route>> {
    let matches = (texts(), option::of(text()), option::of(text()), texts())
        .prop_map(|(host, path, path_prefix, methods)| Match { host, path, path_prefix, methods });
    let one = (text(), matches, text()).prop_map(|(name, matches, pool)| Route { name, matches, pool });
    collection::vec(one, 0..3)
}

fn placement() -> impl Strategy<Value = Placement> {
    let replicas = prop_oneof![Just(Replicas::All), any::<u32>().prop_map(Replicas::Count)];
    (replicas, texts(), any::<bool>(), map()).prop_map(|(replicas, regions, node, require)| Placement {
        replicas,
        regions,
        spread: if node { Spread::Node } else { Spread::Zone },
        require,
    })
}

fn rollout() -> impl Strategy<Value = Rollout> {
    let durations = (duration(), duration(), duration(), duration());
    (any::<u32>(), any::<u32>(), durations, any::<bool>()).prop_map(
        |(max_parallel, min_healthy_targets, (min_healthy, healthy, progress, drain), auto_rollback)| {
            Rollout {
                max_parallel,
                min_healthy,
                min_healthy_targets,
                healthy_deadline: healthy,
                progress_deadline: progress,
                drain,
                auto_rollback,
            }
        },
    )
}

fn spec() -> impl Strategy<Value = AppSpec> {
    let words = ("[a-z][a-z0-9-]{0,20}[a-z0-9]", text(), map());
    let pools = collection::btree_map(text(), targets().prop_map(|targets| Pool { targets }), 0..3);
    let traffic = (listen(), targets(), pools, routes(), any::<bool>());
    let limits = (any::<u32>(), any::<u64>(), any::<u64>());
    let rest = (resolve(), check(), timeouts(), limits, upstream(), placement(), rollout());
    (words, traffic, option::of(rest)).prop_map(|((name, description, labels), traffic, rest)| {
        let (listen, targets, pool, route, round_robin) = traffic;
        let plain = AppSpec {
            name: AppName::parse(&name).unwrap(),
            description,
            labels,
            listen,
            targets,
            pool,
            route,
            balance: Balance { policy: if round_robin { Policy::RoundRobin } else { Policy::P2c } },
            resolve: Resolve::default(),
            check: Check::default(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            upstream: UpstreamOptions::default(),
            placement: Placement::default(),
            rollout: Rollout::default(),
        };
        let Some((resolve, check, timeouts, limits, upstream, placement, rollout)) = rest else {
            return plain;
        };
        let (max_connections, max_header_size, max_body_size) = limits;
        let limits = Limits { max_connections, max_header_size, max_body_size };
        AppSpec { resolve, check, timeouts, limits, upstream, placement, rollout, ..plain }
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
                .map(|(host, port, weight)| Target { address: format!("{host}:{port}"), weight })
                .collect(),
            pool: BTreeMap::new(),
            route: Vec::new(),
            resolve: Resolve { max_ttl: ms(0) + Duration::from_secs(1), ..Resolve::default() },
            check: Check { timeout: ms(1), rise: 7, ..Check::default() },
            timeouts: Timeouts {
                response_header: ms(2),
                request: ms(2) + ms(3),
                tcp_idle: ms(4),
                ..Timeouts::default()
            },
            limits: Limits { max_header_size: 8192 + times[5] % 1_000_000, ..any.limits },
            upstream: UpstreamOptions { idle_timeout: ms(6), ..UpstreamOptions::default() },
            placement: Placement { replicas: Replicas::All, regions: Vec::new(), ..any.placement },
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
