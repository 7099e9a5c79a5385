//! Names whose addresses change while sessions and requests are under way.

use std::{net::SocketAddr, time::Duration};

use flotilla_proxy::{
    Proxy,
    config::{
        Protocol::{self, Http, Tcp},
        ResolveConfig, TargetConfig,
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{name_server::NameServer, support::*};

const SESSIONS: usize = 50;
const FIRST: &str = "127.0.0.1";
const SECOND: &str = "127.0.0.2";

/// The same port of two addresses.
async fn two() -> [TcpListener; 2] {
    loop {
        let one = TcpListener::bind((FIRST, 0)).await.unwrap();
        // Somebody else may have it.
        if let Ok(other) = TcpListener::bind((SECOND, one.local_addr().unwrap().port())).await {
            return [one, other];
        }
    }
}

/// An app in front of `web.test`, which is looked up about ten times a second.
struct Named {
    proxy: Proxy,
    listen: SocketAddr,
    names: NameServer,
}

impl Named {
    async fn start(protocol: Protocol, port: u16) -> Named {
        let names = NameServer::start().await;
        names.set("web.test", FIRST);
        let proxy = proxy_with(|config| config.name_server = Some(names.address));
        let (mut config, listen) = app(protocol, &[]);
        let pool = config.pools.get_mut("default").unwrap();
        pool.targets = vec![TargetConfig::new(format!("web.test:{port}"), 100)];
        pool.balance.strategy = "round_robin".to_owned();
        pool.resolve =
            ResolveConfig { min_ttl: Duration::ZERO, max_ttl: Duration::ZERO, ..ResolveConfig::default() };
        serve(&proxy, &config).await;
        let named = Named { proxy, listen, names };
        named.moves_to(FIRST).await;
        named
    }

    /// Waits until these are the endpoints.
    async fn moves_to(&self, addresses: &str) {
        self.names.set("web.test", addresses);
        let wanted: Vec<&str> = addresses.split(' ').collect();
        let ips = || -> Vec<String> {
            let endpoints = self.proxy.status()[0].targets[0].endpoints.clone();
            endpoints.iter().map(|endpoint| endpoint.address.inet().unwrap().ip().to_string()).collect()
        };
        eventually(addresses, || ips() == wanted).await;
    }
}

/// How many of them do not give back what they are sent.
async fn broken(sessions: &mut [TcpStream], round: u8) -> usize {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut broken = 0;
    for session in sessions {
        let mut echo = [0; 8];
        let sent = session.write_all(&[round; 8]).await;
        let got = tokio::time::timeout(PATIENCE, session.read_exact(&mut echo)).await;
        broken += usize::from(sent.is_err() || !matches!(got, Ok(Ok(_))) || echo != [round; 8]);
    }
    broken
}

async fn sessions(listen: SocketAddr) -> Vec<TcpStream> {
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(connect(listen).await);
    }
    assert_eq!(broken(&mut sessions, b'0').await, 0, "at the beginning");
    sessions
}

#[tokio::test]
async fn no_session_breaks_when_addresses_come_and_go() {
    let [first, second] = two().await;
    let port = first.local_addr().unwrap().port();
    let echo = |mut stream: TcpStream| -> Task {
        Box::pin(async move {
            let (mut read, mut write) = stream.split();
            let _ended = tokio::io::copy(&mut read, &mut write).await;
        })
    };
    let (first, second) = (Origin::on(first, echo), Origin::on(second, echo));
    let named = Named::start(Tcp, port).await;
    let mut held = sessions(named.listen).await;
    assert_eq!((first.accepted(), second.accepted()), (SESSIONS, 0));
    let mut breaks = 0;
    // The address goes, comes back beside another one, goes again, and changes places.
    let (mut of_first, mut of_second) = (SESSIONS, 0);
    for (round, addresses) in (b'1'..).zip([SECOND, "127.0.0.1 127.0.0.2", SECOND, FIRST]) {
        named.moves_to(addresses).await;
        breaks += broken(&mut held, round).await;
        let mut fresh = sessions(named.listen).await;
        match addresses {
            FIRST => of_first += SESSIONS,
            SECOND => of_second += SESSIONS,
            _ => {
                // Each of two workers takes its own turns.
                let new = (first.accepted() - of_first, second.accepted() - of_second);
                assert!(new.0 + new.1 == SESSIONS && new.0.abs_diff(new.1) <= 2, "{new:?}");
                (of_first, of_second) = (first.accepted(), second.accepted());
            }
        }
        assert_eq!((first.accepted(), second.accepted()), (of_first, of_second), "new ones, {addresses}");
        held.append(&mut fresh);
    }
    // And no answer at all: the last one stays.
    let asked = named.names.questions();
    named.names.fail("web.test");
    eventually("it was asked and failed", || named.names.questions() > asked + 4).await;
    breaks += broken(&mut held, b'9').await;
    assert_eq!(held.len(), 5 * SESSIONS);
    assert_eq!(breaks, 0);
    assert_eq!(named.proxy.status()[0].tally.resets, 0);
}

#[tokio::test]
async fn a_response_under_way_ends_whole_and_the_next_request_goes_to_the_new_address() {
    let [first, second] = two().await;
    let port = first.local_addr().unwrap().port();
    let (go, gone) = watch::channel(false);
    let origin = |listener, name: &'static str| {
        let gone = gone.clone();
        Origin::on(listener, move |mut stream| {
            let mut go = gone.clone();
            Box::pin(async move {
                while let Ok(head) = head(&mut stream).await {
                    send(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n").await;
                    if head.starts_with("GET /wait ") {
                        send(&mut stream, "half").await;
                        go.wait_for(|go| *go).await.unwrap();
                        send(&mut stream, "half").await;
                    } else {
                        send(&mut stream, name).await;
                    }
                }
            })
        })
    };
    let (first, second) = (origin(first, "theFirst"), origin(second, "theOther"));
    let named = Named::start(Http, port).await;
    let mut waiting = Vec::new();
    for _ in 0..10 {
        let mut client = connect(named.listen).await;
        send(&mut client, "GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(status(&head(&mut client).await.unwrap()), 200);
        assert_eq!(receive(&mut client, 4).await, b"half");
        waiting.push(client);
    }
    let mut idle = connect(named.listen).await;
    assert_eq!(get(&mut idle, "/").await, (200, "theFirst".to_owned()));
    named.moves_to(SECOND).await;
    assert_eq!(get(&mut idle, "/").await, (200, "theOther".to_owned()));
    go.send_replace(true);
    for client in &mut waiting {
        assert_eq!(receive(client, 4).await, b"half");
        assert_eq!(get(client, "/").await, (200, "theOther".to_owned()));
    }
    assert_eq!(first.accepted(), 11);
    assert!(second.accepted() >= 1);
    let tally = named.proxy.status()[0].tally.clone();
    assert_eq!((tally.resets, tally.errors), (0, 0));
}
