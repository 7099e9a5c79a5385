//! Doors into one generation, and the look at what is really served.

use std::time::Duration;

use flotilla_proxy::{
    DoorError, DriftKind,
    config::{AppConfig, PathMatch, Protocol, RouteConfig},
};
use tokio::net::TcpStream;

use crate::support::*;

fn next(app: &AppConfig, target: std::net::SocketAddr) -> AppConfig {
    let mut next = app.clone();
    next.generation += 1;
    next.pools.insert("default".into(), pool(&[target]));
    next
}

#[tokio::test]
async fn a_door_leads_along_the_routes_of_a_generation_that_nobody_else_gets_yet() {
    let (one, two, api) = (Origin::http("one").await, Origin::http("two").await, Origin::http("api").await);
    let proxy = proxy();
    let (first, listen) = app(Protocol::Http, &[one.address]);
    serve(&proxy, &first).await;
    let mut second = next(&first, two.address);
    second.pools.insert("api".into(), pool(&[api.address]));
    second.routes.push(RouteConfig {
        path: Some(PathMatch::Prefix("/api".to_owned())),
        ..RouteConfig::hosts("api", Vec::<String>::new(), "api")
    });
    proxy.prepare(second.clone()).await.unwrap();

    let door = proxy.open_door("web", 2, None, Some(Protocol::Http)).unwrap();
    let mut inside = connect(door.address()).await;
    assert_eq!(get(&mut inside, "/").await, (200, "two".to_owned()));
    assert_eq!(get(&mut inside, "/api/x").await, (200, "api".to_owned()));
    let mut outside = connect(listen).await;
    assert_eq!(get(&mut outside, "/api/x").await, (200, "one".to_owned()));

    // It goes on when its generation serves, and when it serves no more.
    let old = proxy.open_door("web", 1, Some(listen.port()), None).unwrap();
    proxy.serve("web", 2).unwrap();
    assert_eq!(get(&mut outside, "/").await.1, "two");
    assert_eq!(get(&mut connect(old.address()).await, "/").await.1, "one");
    assert_eq!(get(&mut connect(door.address()).await, "/").await.1, "two");

    let address = door.address();
    drop(door);
    for _ in 0..200 {
        if TcpStream::connect(address).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(TcpStream::connect(address).await.is_err(), "a door is closed with its handle");
}

#[tokio::test]
async fn what_comes_in_by_a_door_is_compared_with_nothing_and_begins_nothing() {
    let http = Origin::http("one").await;
    let echo = Origin::echo().await;
    for (protocol, target) in [(Protocol::Http, http.address), (Protocol::Tcp, echo.address)] {
        let (proxy, listen) = serving(protocol, &[target]).await;
        let ask = async |address| {
            let mut stream = connect(address).await;
            if protocol == Protocol::Http {
                assert_eq!(get(&mut stream, "/").await, (200, "one".to_owned()));
            } else {
                send(&mut stream, "ping").await;
                assert_eq!(receive(&mut stream, 4).await, b"ping");
            }
        };
        let door = proxy.open_door("web", 1, None, None).unwrap();
        for _ in 0..3 {
            ask(door.address()).await;
        }
        ask(listen).await;
        let counted = || {
            let begun =
                proxy.loads().into_iter().find(|load| &*load.app == "web").map_or(0, |load| load.begun);
            (proxy.tally("web", 1).unwrap().requests, begun)
        };
        eventually("the client is counted", || counted().0 >= 1 && counted().1 >= 1).await;
        eventually("all have gone", || proxy.status()[0].pins == 0 && proxy.connections() == 0).await;
        assert_eq!(counted(), (1, 1), "{protocol:?}");
    }
}

#[tokio::test]
async fn there_is_no_door_into_what_is_not_there() {
    let origin = Origin::greeter("one").await;
    let (proxy, listen) = serving(Protocol::Tcp, &[origin.address]).await;
    for (generation, port, protocol) in
        [(2, None, None), (1, Some(1), None), (1, Some(listen.port()), Some(Protocol::Http))]
    {
        let refused = proxy.open_door("web", generation, port, protocol).err().expect("no door");
        match generation {
            2 => assert!(matches!(refused, DoorError::UnknownGeneration(_)), "{refused}"),
            _ => assert!(matches!(refused, DoorError::NoSuchPort { .. }), "{refused}"),
        }
    }
    let door = proxy.open_door("web", 1, None, None).unwrap();
    assert_eq!(rest(&mut connect(door.address()).await).await.unwrap(), b"one");
}

#[tokio::test]
async fn a_port_that_leads_elsewhere_shows_in_the_digest_and_is_put_right() {
    let (one, two) = (Origin::http("one").await, Origin::http("two").await);
    let proxy = proxy();
    let (first, listen) = app(Protocol::Http, &[one.address]);
    let second = next(&first, two.address);
    serve(&proxy, &first).await;
    serve(&proxy, &second).await;
    let digest = |number: u64| {
        let status = proxy.status();
        status.iter().find(|status| status.generation == number).unwrap().digest
    };
    let expected = proxy.compile(second.clone()).unwrap().digest();
    assert_eq!(digest(2), expected);
    assert_eq!(proxy.audit().await, []);

    assert!(proxy.mislead(listen.ip(), listen.port(), "web", 1));
    assert_eq!(get(&mut connect(listen).await, "/").await.1, "one", "the tampering works");
    assert_ne!(digest(2), expected, "what serves is what is reported");
    let found = proxy.audit().await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].generation, &found[0].kind), (2, &DriftKind::LedElsewhere { to: Some(1) }));
    assert_eq!(get(&mut connect(listen).await, "/").await.1, "two");
    assert_eq!(digest(2), expected);
    assert_eq!(proxy.audit().await, []);
}

#[tokio::test]
async fn a_worker_that_does_not_accept_is_told_to_again() {
    let origin = Origin::greeter("one").await;
    let (proxy, listen) = serving(Protocol::Tcp, &[origin.address]).await;
    proxy.deafen(listen.ip(), listen.port(), 1);
    let mut found = Vec::new();
    for _ in 0..100 {
        found = proxy.audit().await;
        if !found.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].kind, DriftKind::NotAccepting { worker: 1 });
    assert_eq!(proxy.audit().await, []);
    // The kernel spreads them over both sockets.
    for _ in 0..32 {
        assert_eq!(rest(&mut connect(listen).await).await.unwrap(), b"one");
    }
}

#[tokio::test]
async fn equal_configurations_have_equal_digests_and_any_change_shows() {
    let (base, _) = app(Protocol::Http, &["127.0.0.1:1".parse().unwrap()]);
    let proxy = proxy();
    let digest = |config: &AppConfig| proxy.compile(config.clone()).unwrap().digest();
    assert_eq!(digest(&base), digest(&base.clone()));
    let mut changed = base.clone();
    changed.limits.max_body_bytes = 1;
    assert_ne!(digest(&base), digest(&changed));
    let mut huge = base;
    huge.routes = (0..100_000)
        .map(|number| {
            let host = format!("{number}.{}", "x".repeat(200));
            RouteConfig::hosts("all", [host], "default")
        })
        .collect();
    let refused = proxy.compile(huge).err().expect("too large").to_string();
    assert!(refused.contains("bytes long"), "{refused}");
}

#[tokio::test]
async fn a_worker_that_stands_still_is_noticed() {
    let proxy = proxy();
    proxy.stall_worker(0, Duration::from_secs(3));
    eventually("it has stood still for two seconds", || proxy.stalled_for() >= Duration::from_secs(2)).await;
    eventually("it goes on", || proxy.stalled_for() <= Duration::from_secs(1)).await;
}
