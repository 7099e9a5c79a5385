//! Whatever a spec holds, what is written of it reads back as the same value.

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

#[test]
fn a_spec_with_nothing_special_is_written_short() {
    let json = br#"{"name":"web","listen":["http:8080",9000],"targets":["a:1"],"check":"/healthz"}"#;
    assert_eq!(AppSpec::from_json(json).unwrap().to_json(), json);
}
