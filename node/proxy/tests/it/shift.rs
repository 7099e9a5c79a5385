//! Ports and generations: what a shift changes, and what it leaves alone.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use flotilla_proxy::{
    AppConfig, Phase, PortState, PrepareError, Proxy,
    config::{
        PortConfig,
        Protocol::{self, Http, Tcp},
    },
};
use tokio::{net::TcpStream, task::JoinSet, time::Instant};

use crate::support::*;

/// The same app with other targets.
fn next(app: &AppConfig, targets: &[SocketAddr]) -> AppConfig {
    let mut next = app.clone();
    next.generation += 1;
    next.pools.insert("default".into(), pool(targets));
    next
}

fn phases(proxy: &Proxy) -> Vec<(u64, Phase)> {
    proxy.status().iter().map(|status| (status.generation, status.phase)).collect()
}

async fn is_refused(address: SocketAddr) -> bool {
    matches!(TcpStream::connect(address).await, Err(error) if error.kind() == ErrorKind::ConnectionRefused)
}

#[tokio::test]
async fn a_connection_asks_the_new_generation_for_its_next_request_and_the_old_one_after_a_rollback() {
    let (one, two) = (Origin::http("one").await, Origin::http("two").await);
    let proxy = proxy();
    let (first, listen) = app(Http, &[one.address]);
    let second = next(&first, &[two.address]);
    serve(&proxy, &first).await;
    let mut client = connect(listen).await;
    assert_eq!(get(&mut client, "/").await.1, "one");
    proxy.prepare(second.clone()).await.unwrap();
    assert_eq!(get(&mut client, "/").await.1, "one");
    proxy.serve("web", 2).unwrap();
    assert_eq!(get(&mut client, "/").await.1, "two");
    assert_eq!(phases(&proxy), [(1, Phase::Prepared), (2, Phase::Serving)]);
    proxy.serve("web", 1).unwrap();
    assert_eq!(get(&mut client, "/").await.1, "one");
    proxy.remove("web", 2, None).unwrap();
    assert_eq!(phases(&proxy), [(1, Phase::Serving)]);
}

/// A client of its own: every address of 127.0.0.0/8 is this machine.
async fn connect_as(client: u8, listen: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 1, client], 0))).unwrap();
    socket.connect(listen).await.unwrap()
}

#[tokio::test]
async fn two_generations_share_the_clients_and_a_client_only_moves_to_the_newer_one() {
    let (one, two) = (Origin::http("one").await, Origin::http("two").await);
    let proxy = proxy();
    let (first, listen) = app(Http, &[one.address]);
    let second = next(&first, &[two.address]);
    serve(&proxy, &first).await;
    let mut clients = Vec::new();
    for client in 0..=255 {
        clients.push(connect_as(client, listen).await);
    }
    proxy.prepare(second.clone()).await.unwrap();
    let shares = |proxy: &Proxy| -> Vec<u8> { proxy.status().iter().map(|status| status.percent).collect() };
    let mut before = vec![false; clients.len()];
    for percent in [10, 50, 90] {
        proxy.share("web", 2, percent, 1).unwrap();
        assert_eq!(shares(&proxy), [100 - percent, percent]);
        assert_eq!(phases(&proxy), [(1, Phase::Serving), (2, Phase::Serving)]);
        // Connections that were there before the shift take part in it.
        let mut moved = Vec::new();
        for (client, stream) in clients.iter_mut().enumerate() {
            let is_new = get(stream, "/").await.1 == "two";
            assert!(is_new || !before[client], "client {client} moved back at {percent} %");
            moved.push(is_new);
            let mut again = connect_as(u8::try_from(client).unwrap(), listen).await;
            assert_eq!(get(&mut again, "/").await.1 == "two", is_new, "client {client} is on both sides");
        }
        let share = moved.iter().filter(|is_new| **is_new).count() * 100 / clients.len();
        assert!(share.abs_diff(percent.into()) < 10, "{share} % instead of {percent} %");
        before = moved;
    }
    // The newer one goes, and the other has everybody at once.
    proxy.drain("web", 2).unwrap();
    assert_eq!(shares(&proxy), [100, 0]);
    for stream in &mut clients {
        assert_eq!(get(stream, "/").await.1, "one");
    }
    proxy.share("web", 2, 1, 1).unwrap();
    proxy.serve("web", 2).unwrap();
    assert_eq!(
        (shares(&proxy), phases(&proxy)),
        (vec![0, 100], vec![(1, Phase::Prepared), (2, Phase::Serving)])
    );
    for stream in &mut clients {
        assert_eq!(get(stream, "/").await.1, "two");
    }
    assert!(proxy.share("web", 3, 1, 2).is_err(), "there is no such generation");
}

#[tokio::test]
async fn a_port_that_only_one_of_two_generations_names_is_that_ones_alone() {
    let (one, two) = (Origin::http("one").await, Origin::http("two").await);
    let proxy = proxy();
    let (first, old_listen) = app(Http, &[one.address]);
    let (other, new_listen) = app(Http, &[two.address]);
    let second = AppConfig { generation: 2, ..other };
    serve(&proxy, &first).await;
    proxy.prepare(second).await.unwrap();
    proxy.share("web", 2, 50, 1).unwrap();
    for client in 0..20 {
        assert_eq!(get(&mut connect_as(client, old_listen).await, "/").await.1, "one");
        assert_eq!(get(&mut connect_as(client, new_listen).await, "/").await.1, "two");
    }
}

#[tokio::test]
async fn each_generation_is_told_apart_by_what_it_has_done() {
    let bad = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let (one, two) = (Origin::http("one").await, Origin::once(bad, After::Close).await);
    let proxy = proxy();
    let (first, listen) = app(Http, &[one.address]);
    serve(&proxy, &first).await;
    proxy.prepare(next(&first, &[two.address])).await.unwrap();
    proxy.share("web", 2, 50, 1).unwrap();
    let mut failed = 0;
    for client in 0..100 {
        failed += u64::from(get(&mut connect_as(client, listen).await, "/").await.0 == 500);
    }
    assert!((20..80).contains(&failed), "{failed} of 100");
    eventually("all requests are counted", || {
        let status = proxy.status();
        status[0].tally.requests + status[1].tally.requests == 100
    })
    .await;
    let status = proxy.status();
    assert_eq!((status[0].tally.requests, status[0].tally.errors), (100 - failed, 0));
    assert_eq!((status[1].tally.requests, status[1].tally.errors), (failed, failed));
    assert_eq!(status[1].tally.latency.iter().sum::<u64>(), failed);
}

#[tokio::test]
async fn two_hundred_shifts_lose_no_connection() {
    for protocol in [Tcp, Http] {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
        let (one, two) = (Origin::once(answer, After::Close).await, Origin::once(answer, After::Close).await);
        let proxy = proxy();
        let (mut current, listen) = app(protocol, &[one.address]);
        serve(&proxy, &current).await;
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut clients = JoinSet::new();
        for _ in 0..8 {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            clients.spawn(async move {
                while !stop.load(SeqCst) {
                    let mut client = connect(listen).await;
                    send(&mut client, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
                    let answer = rest(&mut client).await.expect("no reset");
                    assert!(answer.ends_with(b"\r\n\r\nok"), "{}", String::from_utf8_lossy(&answer));
                    done.fetch_add(1, SeqCst);
                }
            });
        }
        for shift in 0..200 {
            let before = done.load(SeqCst);
            current = next(&current, &[if shift % 2 == 0 { two.address } else { one.address }]);
            serve(&proxy, &current).await;
            proxy.remove("web", current.generation - 1, None).unwrap();
            eventually("connections go on", || done.load(SeqCst) > before + 2).await;
        }
        stop.store(true, SeqCst);
        while let Some(client) = clients.join_next().await {
            client.expect("no client saw a failure");
        }
        assert!(one.accepted() > 100 && two.accepted() > 100, "both generations were used");
        assert_eq!(phases(&proxy), [(201, Phase::Serving)]);
    }
}

#[tokio::test]
async fn a_port_nobody_wants_accepts_until_its_horizon_and_then_refuses() {
    let origin = Origin::greeter("hi").await;
    let proxy = proxy_with(|config| config.close_horizon = Some(Duration::from_millis(800)));
    let (app, listen) = app(Tcp, &[origin.address]);
    serve(&proxy, &app).await;
    let start = Instant::now();
    proxy.drain("web", 1).unwrap();
    while start.elapsed() < Duration::from_millis(600) {
        assert_eq!(rest(&mut connect(listen).await).await.unwrap(), b"hi");
        assert!(matches!(proxy.status()[0].ports[0].state, PortState::Closing { .. }));
    }
    eventually("the port is closed", || proxy.status()[0].ports.is_empty()).await;
    assert!(start.elapsed() >= Duration::from_millis(800));
    assert!(is_refused(listen).await);
    assert_eq!(phases(&proxy), [(1, Phase::Draining)]);
}

#[tokio::test]
async fn a_port_that_is_wanted_again_within_its_horizon_was_never_closed() {
    let origin = Origin::greeter("hi").await;
    let proxy = proxy();
    let (first, listen) = app(Tcp, &[origin.address]);
    serve(&proxy, &first).await;
    proxy.remove("web", 1, None).unwrap();
    let second = next(&first, &[origin.address]);
    serve(&proxy, &second).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(600) {
        assert_eq!(rest(&mut connect(listen).await).await.unwrap(), b"hi");
    }
    assert_eq!(proxy.status()[0].ports[0].state, PortState::Listening);
    assert_eq!(phases(&proxy), [(2, Phase::Serving)]);
}

#[tokio::test]
async fn a_generation_that_comes_back_before_its_ports_have_closed_goes_on_as_if_it_had_not_left() {
    let origin = Origin::echo().await;
    let proxy = proxy_with(|config| config.close_horizon = Some(Duration::from_secs(3600)));
    let (first, listen) = app(Tcp, &[origin.address]);
    serve(&proxy, &first).await;
    let mut session = open(Tcp, listen).await;
    for cut_after in [None, Some(Duration::from_secs(3600))] {
        proxy.drain("web", 1).unwrap();
        cut_after.into_iter().for_each(|after| proxy.remove("web", 1, Some(after)).unwrap());
        assert!(matches!(proxy.status()[0].ports[0].state, PortState::Closing { .. }));
        serve(&proxy, &first).await;
        let status = proxy.status();
        assert_eq!((status[0].ports[0].state, status[0].pins), (PortState::Listening, 1));
        assert_eq!(phases(&proxy), [(1, Phase::Serving)]);
        drop(open(Tcp, listen).await);
        eventually("the other session has ended", || proxy.status()[0].pins == 1).await;
    }
    send(&mut session, "x").await;
    assert_eq!(receive(&mut session, 1).await, b"x");
}

#[tokio::test]
async fn a_shift_closes_only_the_ports_its_generation_does_not_have() {
    let origin = Origin::greeter("hi").await;
    let proxy = proxy();
    let (mut first, kept) = app(Tcp, &[origin.address]);
    let (dropped, added) = (free(), free());
    first.ports.push(PortConfig::new(dropped, Tcp));
    serve(&proxy, &first).await;
    let mut second = next(&first, &[origin.address]);
    second.ports[1] = PortConfig::new(added, Tcp);
    proxy.prepare(second).await.unwrap();
    assert!(is_refused(added).await, "bound, and not yet listening");
    proxy.serve("web", 2).unwrap();
    for address in [kept, dropped, added] {
        assert_eq!(rest(&mut connect(address).await).await.unwrap(), b"hi", "{address}");
    }
    let deadline = Instant::now() + PATIENCE;
    while !is_refused(dropped).await {
        assert!(Instant::now() < deadline, "the dropped port never closed");
    }
    assert_eq!(rest(&mut connect(kept).await).await.unwrap(), b"hi");
    // Taking the first one back brings its port back.
    proxy.serve("web", 1).unwrap();
    assert_eq!(rest(&mut connect(dropped).await).await.unwrap(), b"hi");
}

#[tokio::test]
async fn a_port_of_another_process_is_refused_and_what_was_bound_is_let_go() {
    let proxy = proxy();
    let (mut config, listen) = app(Tcp, &[free()]);
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    config.ports.push(PortConfig::new(other.local_addr().unwrap(), Tcp));
    match proxy.prepare(config).await {
        Err(error @ PrepareError::Bind { .. }) => {
            assert!(error.to_string().contains("is in use by"), "{error}")
        }
        other => panic!("{other:?}"),
    }
    assert!(proxy.status().is_empty());
    std::net::TcpListener::bind(listen).expect("the other port is free again");
}

#[tokio::test]
async fn what_cannot_work_is_refused_before_a_port_is_touched() {
    type Change = fn(&mut AppConfig);
    for (change, want) in [
        ((|app| app.ports.push(app.ports[0].clone())) as Change, "named twice"),
        (|app| app.ports[0].port = 0, "not a port"),
        (|app| app.pools.get_mut("default").unwrap().balance.strategy = "dice".into(), "`dice`"),
        (|app| app.pools.clear(), "needs the pool"),
    ] {
        let proxy = proxy();
        let (mut config, _) = app(Tcp, &[free()]);
        change(&mut config);
        let error = proxy.prepare(config).await.unwrap_err();
        assert!(matches!(error, PrepareError::Invalid(_)), "{error:?}");
        assert!(error.to_string().contains(want), "{error}");
    }
}

#[tokio::test]
async fn preparing_twice_is_preparing_once_and_another_content_is_refused() {
    let proxy = proxy();
    let (config, _) = app(Tcp, &[free()]);
    proxy.prepare(config.clone()).await.unwrap();
    proxy.prepare(config.clone()).await.unwrap();
    assert_eq!(proxy.status().len(), 1);
    let mut other = config;
    other.limits.max_connections = 7;
    assert!(matches!(proxy.prepare(other).await, Err(PrepareError::Invalid(_))));
    assert!(proxy.serve("web", 9).is_err() && proxy.drain("other", 1).is_err());
}

#[tokio::test]
async fn a_dead_listener_is_started_again_alone() {
    let origin = Origin::echo().await;
    let proxy = proxy_with(|config| config.workers = 1);
    let (config, listen) = app(Tcp, &[origin.address]);
    serve(&proxy, &config).await;
    let mut session = connect(listen).await;
    send(&mut session, "a").await;
    receive(&mut session, 1).await;
    proxy.fail_listener(LOCALHOST, listen.port(), 0);
    eventually("it was noticed", || proxy.listener_restarts() == 1).await;
    send(&mut session, "b").await;
    assert_eq!(receive(&mut session, 1).await, b"b");
    let mut fresh = connect(listen).await;
    send(&mut fresh, "c").await;
    assert_eq!(receive(&mut fresh, 1).await, b"c");
}

#[tokio::test]
async fn two_colons_listen_on_both_families() {
    let origin = Origin::greeter("hi").await;
    let proxy = proxy();
    let (mut config, listen) = app(Tcp, &[origin.address]);
    config.ports[0].address = "::".parse().unwrap();
    serve(&proxy, &config).await;
    let mut addresses = vec![listen];
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        addresses.push(SocketAddr::new("::1".parse().unwrap(), listen.port()));
    }
    for address in addresses {
        assert_eq!(rest(&mut connect(address).await).await.unwrap(), b"hi", "{address}");
    }
}

#[tokio::test]
async fn sessions_survive_every_shift_and_are_pinned_until_they_end() {
    let origin = Origin::echo().await;
    let upgrade = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n";
    let websocket = Origin::new(move |mut stream| {
        Box::pin(async move {
            head(&mut stream).await.unwrap();
            send(&mut stream, upgrade).await;
            let (mut read, mut write) = stream.split();
            let _ended = tokio::io::copy(&mut read, &mut write).await;
        })
    })
    .await;
    for (protocol, origin) in [(Tcp, &origin), (Http, &websocket)] {
        let proxy = proxy();
        let (mut current, listen) = app(protocol, &[origin.address]);
        serve(&proxy, &current).await;
        let mut session = open(protocol, listen).await;
        for _ in 0..20 {
            current = next(&current, &[free()]);
            serve(&proxy, &current).await;
            send(&mut session, "still").await;
            assert_eq!(receive(&mut session, 5).await, b"still");
        }
        let pins = |generation| {
            proxy.status().iter().find(|status| status.generation == generation).map(|status| status.pins)
        };
        eventually("only the session is pinned", || pins(1) == Some(1) && pins(21) == Some(0)).await;
        proxy.remove("web", 1, None).unwrap();
        assert_eq!(pins(1), None);
        send(&mut session, "still").await;
        assert_eq!(receive(&mut session, 5).await, b"still");
    }
}

async fn open(protocol: Protocol, listen: SocketAddr) -> TcpStream {
    let mut session = connect(listen).await;
    if protocol == Http {
        send(&mut session, "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n").await;
        let head = head(&mut session).await.unwrap();
        assert_eq!((status(&head), field(&head, "upgrade")), (101, Some("chat")), "{head}");
    }
    send(&mut session, "hello").await;
    assert_eq!(receive(&mut session, 5).await, b"hello");
    session
}

#[tokio::test]
async fn a_session_of_a_removed_generation_is_cut_when_its_time_is_over() {
    let origin = Origin::echo().await;
    let proxy = proxy();
    let (first, listen) = app(Tcp, &[origin.address]);
    serve(&proxy, &first).await;
    let mut old = open(Tcp, listen).await;
    let second = next(&first, &[origin.address]);
    serve(&proxy, &second).await;
    let mut new = open(Tcp, listen).await;
    proxy.remove("web", 1, Some(Duration::from_millis(200))).unwrap();
    assert_reset(&mut old).await;
    send(&mut new, "x").await;
    assert_eq!(receive(&mut new, 1).await, b"x");
}

#[tokio::test]
async fn warm_connections_survive_a_shift_that_keeps_their_endpoint() {
    let origin = Origin::http("hello").await;
    let proxy = proxy_with(|config| config.workers = 1);
    let (mut current, listen) = app(Http, &[origin.address]);
    serve(&proxy, &current).await;
    for _ in 0..10 {
        assert_eq!(get(&mut connect(listen).await, "/").await.0, 200);
        current = next(&current, &[origin.address]);
        current.timeouts.request += Duration::from_secs(60);
        serve(&proxy, &current).await;
    }
    assert_eq!(origin.accepted(), 1);
}

#[tokio::test]
async fn a_closing_port_asks_its_clients_to_connect_elsewhere() {
    let origin = Origin::http("hello").await;
    let proxy = proxy();
    let (config, listen) = app(Http, &[origin.address]);
    serve(&proxy, &config).await;
    let mut client = connect(listen).await;
    assert_eq!(get(&mut client, "/").await.0, 200);
    proxy.drain("web", 1).unwrap();
    eventually("the port is closed", || proxy.status()[0].ports.is_empty()).await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let (head, body) = response(&mut client).await;
    assert_eq!((field(&head, "connection"), body.as_str()), (Some("close"), "hello"));
    assert_eq!(rest(&mut client).await.unwrap(), b"");
}

#[tokio::test]
async fn a_shutdown_answers_what_is_in_flight_and_cuts_what_stays() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let origin = Origin::new(move |mut stream| {
        let mut gate = gate.clone();
        Box::pin(async move {
            head(&mut stream).await.unwrap();
            gate.wait_for(|open| *open).await.unwrap();
            send(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            hold(stream).await;
        })
    })
    .await;
    let echo = Origin::echo().await;
    let proxy = proxy();
    let (web, listen) = app(Http, &[origin.address]);
    let (mut raw, raw_listen) = app(Tcp, &[echo.address]);
    raw.app = "raw".into();
    serve(&proxy, &web).await;
    serve(&proxy, &raw).await;
    let mut client = connect(listen).await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut session = open(Tcp, raw_listen).await;
    eventually("the request is at the origin", || origin.accepted() == 1).await;
    let mut stopping = JoinSet::new();
    // Longer than a client waits that is turned away by a closing port before it tries again.
    stopping.spawn(proxy.clone().shutdown(Duration::from_secs(3)));
    let deadline = Instant::now() + PATIENCE;
    while !is_refused(listen).await {
        assert!(Instant::now() < deadline, "the port never closed");
    }
    go.send(true).unwrap();
    let (head, body) = response(&mut client).await;
    assert_eq!((field(&head, "connection"), body.as_str()), (Some("close"), "ok"));
    assert_reset(&mut session).await;
    stopping.join_next().await.unwrap().unwrap();
    assert_eq!(proxy.connections(), 0);
}

#[tokio::test]
async fn a_port_moves_to_another_address_that_its_old_one_includes_and_back() {
    let origin = Origin::http("one").await;
    let proxy = proxy();
    let (mut app, listen) = app(Http, &[origin.address]);
    let elsewhere = SocketAddr::from(([127, 0, 0, 2], listen.port()));
    let everywhere = "0.0.0.0".parse().unwrap();
    app.ports[0].address = everywhere;
    serve(&proxy, &app).await;
    let mut kept = connect(elsewhere).await;
    assert_eq!(get(&mut kept, "/").await.1, "one");
    for (generation, address) in [(2, listen.ip()), (3, everywhere)] {
        app.generation = generation;
        app.ports[0].address = address;
        proxy.prepare(app.clone()).await.unwrap();
        proxy.serve("web", generation).unwrap();
        proxy.remove("web", generation - 1, None).unwrap();
        // At no time is there nobody.
        let is_gone = || !proxy.status().iter().any(|status| status.generation == generation - 1);
        while !is_gone() {
            assert_eq!(get(&mut connect(listen).await, "/").await.1, "one");
        }
        assert_eq!(get(&mut connect(listen).await, "/").await.1, "one");
        assert_eq!(is_refused(elsewhere).await, generation == 2);
    }
}

#[tokio::test]
async fn a_change_of_socket_options_closes_nothing() {
    let origin = Origin::http("one").await;
    let proxy = proxy();
    let (mut app, listen) = app(Http, &[origin.address]);
    serve(&proxy, &app).await;
    let mut kept = connect(listen).await;
    assert_eq!(get(&mut kept, "/").await.1, "one");
    app.generation = 2;
    app.ports[0].socket.backlog = 1;
    app.ports[0].socket.user_timeout = Duration::from_secs(5);
    app.ports[0].socket.send_buffer = 16 * 1024;
    serve(&proxy, &app).await;
    assert_eq!(get(&mut kept, "/").await.1, "one");
    assert_eq!(get(&mut connect(listen).await, "/").await.1, "one");
}
