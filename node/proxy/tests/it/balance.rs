//! Who gets what: strategies, hashing, backups, zones, and what a failing endpoint does to them.

use std::{collections::BTreeMap, time::Duration};

use flotilla_proxy::{
    AppConfig, Proxy,
    config::{
        BalanceConfig, CheckConfig, CheckKind, HashOn,
        Protocol::{Http, Tcp},
        TargetConfig,
    },
};
use tokio::net::TcpStream;

use crate::support::*;

/// Serves HTTP from origins that say `a`, `b`, … as `change` has it.
async fn serving_letters(
    count: usize,
    change: impl FnOnce(&mut AppConfig),
) -> (Proxy, TcpStream, Vec<Origin>, AppConfig) {
    let mut origins = Vec::new();
    for letter in ["a", "b", "c", "d", "e"].into_iter().take(count) {
        origins.push(Origin::http(letter).await);
    }
    let addresses: Vec<_> = origins.iter().map(|origin| origin.address).collect();
    let proxy = proxy_with(|config| config.zone = Some("here".into()));
    let (mut config, listen) = app(Http, &addresses);
    change(&mut config);
    serve(&proxy, &config).await;
    (proxy, connect(listen).await, origins, config)
}

fn strategy(name: &str) -> impl FnOnce(&mut AppConfig) {
    move |app| app.pools.get_mut("default").unwrap().balance.strategy = name.to_owned()
}

fn targets(app: &mut AppConfig) -> &mut Vec<TargetConfig> {
    &mut app.pools.get_mut("default").unwrap().targets
}

async fn ask(client: &mut TcpStream, path: &str, fields: &str) -> String {
    send(client, format!("GET {path} HTTP/1.1\r\nhost: test\r\n{fields}\r\n")).await;
    let (head, body) = response(client).await;
    if status(&head) == 200 { body } else { status(&head).to_string() }
}

async fn shares(client: &mut TcpStream, requests: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..requests {
        *shares.entry(ask(client, "/", "").await).or_default() += 1;
    }
    shares
}

#[tokio::test]
async fn every_strategy_carries_requests_and_sessions() {
    for name in flotilla_proxy::Strategies::default().names() {
        let (_proxy, mut client, _origins, _) = serving_letters(3, strategy(name)).await;
        let shares = shares(&mut client, 30).await;
        assert_eq!(shares.values().sum::<usize>(), 30, "{name}");
        assert!(shares.keys().all(|key| ["a", "b", "c"].contains(&key.as_str())), "{name}: {shares:?}");

        let origin = Origin::echo().await;
        let proxy = proxy();
        let (mut config, listen) = app(Tcp, &[origin.address]);
        strategy(name)(&mut config);
        serve(&proxy, &config).await;
        let mut session = connect(listen).await;
        send(&mut session, "ping").await;
        assert_eq!(receive(&mut session, 4).await, b"ping", "{name}");
    }
}

#[tokio::test]
async fn requests_that_hash_alike_meet_and_others_are_spread() {
    for (on, field, is_path) in [
        (HashOn::Header("x-user".into()), "x-user: ", false),
        (HashOn::Cookie("sid".into()), "cookie: a=b; sid=", false),
        (HashOn::Path, "", true),
    ] {
        for name in ["maglev", "ring_hash", "rendezvous"] {
            let (_proxy, mut client, _origins, _) = serving_letters(5, |app| {
                let balance = BalanceConfig { hash_on: on.clone(), ..BalanceConfig::default() };
                app.pools.get_mut("default").unwrap().balance = balance;
                strategy(name)(app);
            })
            .await;
            let mut seen = BTreeMap::<String, usize>::new();
            for user in 0..30 {
                let (path, fields) = match is_path {
                    true => (format!("/{user}?{user}"), String::new()),
                    false => ("/".to_owned(), format!("{field}{user}\r\n")),
                };
                let first = ask(&mut client, &path, &fields).await;
                for _ in 0..3 {
                    assert_eq!(ask(&mut client, &path, &fields).await, first, "{name} {on:?}");
                }
                *seen.entry(first).or_default() += 1;
            }
            assert!(seen.len() >= 4, "{name} {on:?}: {seen:?}");
        }
    }
}

#[tokio::test]
async fn a_client_keeps_its_target_over_connections_and_generations() {
    for protocol in [Tcp, Http] {
        let mut origins = Vec::new();
        for _ in 0..5 {
            origins.push(Origin::once("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", After::Close).await);
        }
        let addresses: Vec<_> = origins.iter().map(|origin| origin.address).collect();
        let proxy = proxy();
        let (mut config, listen) = app(protocol, &addresses);
        strategy("maglev")(&mut config);
        for generation in 1..=3 {
            config.generation = generation;
            serve(&proxy, &config).await;
            for _ in 0..4 {
                let mut client = connect(listen).await;
                send(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
                assert_eq!(status(&head(&mut client).await.unwrap()), 200);
            }
        }
        let mut accepted: Vec<usize> = origins.iter().map(Origin::accepted).collect();
        accepted.sort_unstable();
        assert_eq!(accepted, [0, 0, 0, 0, 12], "{protocol:?}");
    }
}

#[tokio::test]
async fn a_strategy_of_the_embedding_program_chooses_by_its_own_rule() {
    use flotilla_proxy::upstream::balance::{Balance, Candidates};
    /// The last in the list, as the key has nothing to say.
    struct Last;
    impl Balance for Last {
        fn pick(&self, candidates: &Candidates<'_>) -> Option<u32> {
            assert!(candidates.key.is_some(), "it asked for the key");
            candidates.set.available.iter().rev().copied().find(|it| !candidates.tried.contains(it))
        }
        fn wants_key(&self) -> bool {
            true
        }
    }
    let mut strategies = flotilla_proxy::Strategies::default();
    strategies.register("last", || Box::new(Last));
    let (one, other) = (Origin::http("one").await, Origin::http("other").await);
    let config = flotilla_proxy::ProxyConfig { workers: 1, ..flotilla_proxy::ProxyConfig::default() };
    let proxy =
        Proxy::start_with(config, flotilla_proxy::Extensions { strategies, ..Default::default() }).unwrap();
    let (mut config, listen) = app(Http, &[one.address, other.address]);
    strategy("last")(&mut config);
    serve(&proxy, &config).await;
    assert_eq!(shares(&mut connect(listen).await, 10).await, [("other".to_owned(), 10)].into());
}

#[tokio::test]
async fn backups_take_over_at_once_when_nobody_else_is_left_to_try() {
    let (_proxy, mut client, mut origins, _) = serving_letters(2, |app| targets(app)[1].backup = true).await;
    assert_eq!(shares(&mut client, 20).await, [("a".to_owned(), 20)].into());
    // Nobody has noticed yet; the request that meets the refusal is tried again.
    origins.remove(0);
    assert_eq!(shares(&mut client, 5).await.get("b"), Some(&5));
}

#[tokio::test]
async fn targets_in_the_zone_of_the_proxy_come_first() {
    let (_proxy, mut client, mut origins, _) = serving_letters(3, |app| {
        for (target, zone) in targets(app).iter_mut().zip(["there", "here", "there"]) {
            target.zone = Some(zone.into());
        }
        app.pools.get_mut("default").unwrap().balance.zone_aware = true;
    })
    .await;
    assert_eq!(shares(&mut client, 20).await, [("b".to_owned(), 20)].into());
    origins.remove(1);
    let shares = shares(&mut client, 20).await;
    assert_eq!(shares.get("a").copied().unwrap_or(0) + shares.get("c").copied().unwrap_or(0), 20);
}

#[tokio::test]
async fn a_pool_that_fails_its_checks_everywhere_is_used_all_the_same() {
    // The path that is checked does not exist; requests are answered well.
    let origin = Origin::new(|mut stream| {
        Box::pin(async move {
            while let Ok(head) = head(&mut stream).await {
                let status = if head.starts_with("GET /check ") { "404 Not Found" } else { "200 OK" };
                send(&mut stream, format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok")).await;
            }
        })
    })
    .await;
    for (panic_threshold, expected) in [(30, "ok"), (0, "503")] {
        let proxy = proxy();
        let (mut config, listen) = app(Http, &[origin.address]);
        let pool = config.pools.get_mut("default").unwrap();
        pool.balance.panic_threshold = panic_threshold;
        pool.check = CheckConfig {
            kind: CheckKind::Http { path: "/check".into(), host: None, expect: vec![(200, 299)] },
            interval: Duration::from_millis(20),
            ..CheckConfig::default()
        };
        serve(&proxy, &config).await;
        eventually("it was checked", || {
            proxy.status()[0].targets[0].endpoints.iter().any(|endpoint| endpoint.available == Some(false))
        })
        .await;
        assert_eq!(ask(&mut connect(listen).await, "/", "").await, expected);
    }
}

#[tokio::test]
async fn targets_that_are_new_together_share_evenly_while_they_start_slowly() {
    let (proxy, mut client, origins, mut config) = serving_letters(2, |app| {
        strategy("round_robin")(app);
        let pool = app.pools.get_mut("default").unwrap();
        pool.balance.slow_start = Duration::from_secs(3600);
        pool.check = CheckConfig { interval: Duration::from_millis(20), ..CheckConfig::default() };
    })
    .await;
    let both_up = |proxy: &Proxy| {
        let endpoints: Vec<_> =
            proxy.status()[0].targets.iter().flat_map(|target| target.endpoints.clone()).collect();
        endpoints.len() == 2 && endpoints.iter().all(|endpoint| endpoint.available == Some(true))
    };
    eventually("both are up", || both_up(&proxy)).await;
    // Both are new, so neither is slower than the other.
    let before = shares(&mut client, 100).await;
    assert!((45..=55).contains(&before["a"]), "{before:?}");
    // The second generation has the first one's pool, and with it what is known of its endpoints.
    config.generation = 2;
    serve(&proxy, &config).await;
    let after = shares(&mut client, 100).await;
    assert!((45..=55).contains(&after["a"]), "{after:?}");
    drop(origins);
}
