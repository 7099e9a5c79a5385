use std::{net::SocketAddr, time::Duration};

use tokio::{net::TcpListener, sync::watch};

use super::{resolve::tests::NameServer, *};
use crate::config::{
    BalanceConfig, CheckConfig, CheckKind, Family, OutlierConfig, ResolveConfig, ResolveMode, TargetConfig,
    TcpKeepalive, UpstreamProtocol,
};

const PLACE: Place<'_> = Place { app: "app", pool: "default", zone: Some("a"), workers: 1 };

/// A running upstream and the means to wait for what it does.
struct Running {
    upstream: Arc<Upstream>,
    changes: watch::Receiver<u32>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Running {
    fn start(pool: &PoolConfig, resolver: Option<Arc<Resolver>>) -> Self {
        let (sender, changes) = watch::channel(0);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let changed = Arc::new(move || sender.send_modify(|count| *count += 1));
        let upstream = Upstream::start_with(resolver, pool, PLACE, None, &tasks, stop.clone(), changed);
        Self { upstream, changes, tasks, stop }
    }

    /// Waits for a change that makes it so; looks only when told of one, so an unannounced change fails.
    async fn until(&mut self, what: &str, mut condition: impl FnMut(&Upstream) -> bool) {
        let wait = async {
            while !condition(&self.upstream) {
                self.changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(Duration::from_secs(10), wait).await.is_err() {
            panic!("not {what}: {:#?}", self.upstream.status());
        }
    }

    fn available(&self) -> Vec<SocketAddr> {
        available(&self.upstream)
    }
}

fn available(upstream: &Upstream) -> Vec<SocketAddr> {
    let set = upstream.set().load();
    let address = |&i: &u32| set.endpoints[i as usize].address.inet().unwrap();
    set.available.iter().map(address).collect()
}

fn pool(targets: &[String], kind: CheckKind) -> PoolConfig {
    let brief = Duration::from_millis(20);
    let target = |address: &String| TargetConfig::new(address, 100);
    PoolConfig {
        targets: targets.iter().map(target).collect(),
        resolve: ResolveConfig {
            mode: ResolveMode::All,
            family: Family::Any,
            min_ttl: Duration::ZERO,
            max_ttl: brief,
            stale: Duration::from_secs(600),
        },
        outlier: OutlierConfig::default(),
        breaker: None,
        balance: BalanceConfig { panic_threshold: 0, ..BalanceConfig::default() },
        check: CheckConfig { kind, port: None, interval: brief, timeout: 50 * brief, rise: 2, fall: 3 },
        max_idle: 1,
        warm: 0,
        idle_timeout: brief,
        send_proxy: None,
        protocol: UpstreamProtocol::Auto,
        tls: None,
        tcp_keepalive: TcpKeepalive { idle: brief, interval: brief, count: 1 },
    }
}

async fn origin() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn addresses_that_nobody_checks_are_there_at_once_and_cost_no_task() {
    let targets = ["10.0.0.2:80", "[fd00::1]:81", "10.0.0.1:80", "10.0.0.2:80"].map(str::to_owned);
    let running = Running::start(&pool(&targets, CheckKind::None), None);
    let set = running.upstream.set().load();
    let addresses: Vec<String> = set.endpoints.iter().map(|e| e.address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.2:80", "[fd00::1]:81", "10.0.0.1:80"], "in order, without duplicates");
    assert_eq!(set.available, [0, 1, 2]);
    let status = running.upstream.status();
    assert_eq!(status.len(), 4);
    assert!(status.iter().all(|target| target.pool == "default"
        && target.resolution == Resolution::Resolved
        && target.endpoints[0].available == Some(true)));
    assert!(running.tasks.is_empty());
}

#[tokio::test]
async fn an_endpoint_of_weight_zero_is_known_and_takes_nothing() {
    let mut pool = pool(&["10.0.0.1:80", "10.0.0.2:80"].map(str::to_owned), CheckKind::None);
    pool.targets[0].weight = 0;
    let running = Running::start(&pool, None);
    assert_eq!(running.upstream.set().load().endpoints.len(), 2);
    assert_eq!(running.available(), ["10.0.0.2:80".parse().unwrap()]);
    assert_eq!(running.upstream.status()[0].endpoints[0].available, Some(true));
}

#[tokio::test]
async fn a_target_that_is_none_is_reported() {
    let targets =
        ["web", "web:http", ":80", "::1:80", "[::1:80", "web:99999", "srv:web.test", "unix:web.sock"]
            .map(str::to_owned);
    let running = Running::start(&pool(&targets, CheckKind::Tcp), None);
    for status in running.upstream.status() {
        assert_eq!(
            status.resolution,
            Resolution::Failed("neither `host:port`, `unix:/path` nor `srv:_service._proto.name`".to_owned()),
            "{}",
            status.target
        );
    }
    assert!(running.tasks.is_empty());
}

#[tokio::test]
async fn what_passes_is_available_and_what_fails_is_not_until_it_recovers() {
    let (up, up_address) = origin().await;
    let (down, down_address) = origin().await;
    drop(down);
    let targets = [up_address, down_address].map(|address| address.to_string());
    let mut running = Running::start(&pool(&targets, CheckKind::Tcp), None);
    assert_eq!(running.available(), [], "nothing before the first check");
    running.until("one up", |upstream| available(upstream) == [up_address]).await;
    let refused = |upstream: &Upstream| upstream.status()[1].endpoints[0].last_error.clone();
    running.until("refused", |upstream| refused(upstream).as_deref() == Some("connection refused")).await;
    assert_eq!(running.upstream.status()[1].endpoints[0].available, Some(false));

    let back = TcpListener::bind(down_address).await.unwrap();
    let both = [up_address, down_address];
    running.until("both up", |upstream| available(upstream) == both).await;

    drop((up, back));
    running.until("all down", |upstream| available(upstream).is_empty()).await;
    assert_eq!(running.upstream.set().load().endpoints.len(), 2, "they are still known");

    running.stop.cancel();
    running.tasks.close();
    running.tasks.wait().await;
}

#[tokio::test]
async fn a_service_goes_by_priority_and_weight_and_its_hosts_come_and_go() {
    let server = NameServer::start().await;
    let ((one, a), (_two, b), (_three, c)) = (origin().await, origin().await, origin().await);
    server.set("host.test", "127.0.0.1");
    let record =
        |priority: u16, weight: u16, at: SocketAddr| format!("{priority} {weight} {} host.test", at.port());
    let set = |records: &[String]| {
        server.set_service("_http._tcp.test", &records.iter().map(String::as_str).collect::<Vec<_>>());
    };
    set(&[record(1, 30, a), record(1, 10, b), record(2, 0, c)]);
    let target = ["srv:_http._tcp.test".to_owned()];
    let mut running = Running::start(&pool(&target, CheckKind::Tcp), Some(Resolver::at(server.address)));
    let weights = |upstream: &Upstream| -> Vec<(SocketAddr, u32)> {
        let set = upstream.set().load();
        let mut of: Vec<_> = set
            .eligible()
            .map(|(at, weight)| (set.endpoints[at as usize].address.inet().unwrap(), weight))
            .collect();
        of.sort();
        of
    };
    let sorted = |mut all: Vec<(SocketAddr, u32)>| {
        all.sort();
        all
    };
    let first = sorted(vec![(a, 100), (b, 33)]);
    running.until("the first priority by weight", |upstream| weights(upstream) == first).await;
    // One of them goes down, and the other has it all; both gone, the second priority has.
    drop(one);
    running.until("the one that is left", |upstream| weights(upstream) == [(b, 33)]).await;
    drop(_two);
    running.until("the second priority", |upstream| weights(upstream) == [(c, 100)]).await;
    // A host is taken off the service, and another one is put on.
    let (_four, d) = origin().await;
    set(&[record(1, 0, d), record(2, 0, c)]);
    running.until("the new one", |upstream| weights(upstream) == [(d, 100)]).await;
    assert_eq!(running.upstream.set().load().endpoints.len(), 2, "the others are forgotten");
}

#[tokio::test]
async fn who_comes_back_starts_slowly_and_then_has_its_share() {
    let (_up, up_address) = origin().await;
    let (down, down_address) = origin().await;
    let targets = [up_address, down_address].map(|address| address.to_string());
    let mut pool = pool(&targets, CheckKind::Tcp);
    pool.balance.slow_start = Duration::from_millis(400);
    let mut running = Running::start(&pool, None);
    let weights = |upstream: &Upstream| {
        let set = upstream.set().load();
        (0..set.available.len()).map(|entry| set.wheel.stretch(entry).1).collect::<Vec<_>>()
    };
    running.until("both with all of it", |upstream| weights(upstream) == [100, 100]).await;
    drop(down);
    running.until("one down", |upstream| available(upstream) == [up_address]).await;
    let _back = TcpListener::bind(down_address).await.unwrap();
    let mut least = None;
    running
        .until("both with all of it again", |upstream| match weights(upstream)[..] {
            [of_up, of_back] => {
                least = least.or(Some((of_up, of_back)));
                of_up == of_back
            }
            _ => false,
        })
        .await;
    let (of_up, of_back) = least.unwrap();
    assert!(of_back * 2 <= of_up, "it began with {of_back} against {of_up}");
}

#[tokio::test]
async fn a_check_may_look_at_another_port() {
    let (_checked, checked_address) = origin().await;
    let mut pool = pool(&["127.0.0.1:1".to_owned()], CheckKind::Tcp);
    pool.check.port = Some(checked_address.port());
    let mut running = Running::start(&pool, None);
    running.until("up", |upstream| available(upstream) == ["127.0.0.1:1".parse().unwrap()]).await;
}

#[tokio::test]
async fn endpoints_follow_their_name_and_stay_when_it_fails() {
    let server = NameServer::start().await;
    server.set("web.test", "127.0.0.2 127.0.0.1");
    let resolver = Resolver::at(server.address);
    let pool = pool(&["web.test:80".to_owned()], CheckKind::None);
    let mut running = Running::start(&pool, Some(resolver));
    assert_eq!(running.upstream.status()[0].resolution, Resolution::Pending);
    let addresses = |of: &[&str]| of.iter().map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();

    let two = addresses(&["127.0.0.1:80", "127.0.0.2:80"]);
    running.until("resolved, sorted", |upstream| available(upstream) == two).await;
    assert_eq!(&*running.upstream.set().load().endpoints[0].target, "web.test:80");

    server.set("web.test", "127.0.0.3 127.0.0.1");
    let other = addresses(&["127.0.0.1:80", "127.0.0.3:80"]);
    running.until("moved", |upstream| available(upstream) == other).await;

    let set = running.upstream.set().load_full();
    server.fail("web.test");
    let failed = |upstream: &Upstream| matches!(upstream.status()[0].resolution, Resolution::Failed(_));
    running.until("failing", failed).await;
    assert!(Arc::ptr_eq(&set, &running.upstream.set().load_full()), "the set did not change");
}

#[tokio::test]
async fn of_a_name_with_both_families_ipv6_comes_first_unless_it_has_fewer_addresses() {
    let server = NameServer::start().await;
    let mut running = {
        server.set("web.test", "10.0.0.1 fd00::1");
        let pool = pool(&["web.test:80".to_owned()], CheckKind::None);
        Running::start(&pool, Some(Resolver::at(server.address)))
    };
    for (addresses, first, waiting) in [
        ("10.0.0.1 fd00::1", "fd00::1", "10.0.0.1"),
        ("10.0.0.1 10.0.0.2 fd00::1", "10.0.0.1 10.0.0.2 fd00::1", ""),
        ("10.0.0.1 10.0.0.2 fd00::1 fd00::2", "fd00::1 fd00::2", "10.0.0.1 10.0.0.2"),
        ("fd00::2", "fd00::2", ""),
        ("10.0.0.2", "10.0.0.2", ""),
    ] {
        server.set("web.test", addresses);
        running
            .until(addresses, |upstream| {
                let set = upstream.set().load();
                let ips = |of: &[u32]| -> Vec<String> {
                    let ip = |&at: &u32| set.endpoints[at as usize].address.inet().unwrap().ip().to_string();
                    of.iter().map(ip).collect()
                };
                let is_dual = addresses.contains('.') && addresses.contains(':');
                let marked = set.endpoints.iter().all(|endpoint| endpoint.dual_stack.is_some() == is_dual);
                marked
                    && set.has_dual_stack == is_dual
                    && ips(&set.available) == first.split_whitespace().collect::<Vec<_>>()
                    && ips(&set.reserve) == waiting.split_whitespace().collect::<Vec<_>>()
            })
            .await;
    }
}

#[tokio::test]
async fn each_host_of_a_service_prefers_one_family_of_its_own() {
    let server = NameServer::start().await;
    server.set("both.test", "10.0.0.1 fd00::1");
    server.set("old.test", "10.0.0.2");
    server.set("few.test", "10.0.0.3 10.0.0.4 fd00::3");
    let records = ["1 1 81 both.test", "1 1 82 old.test", "1 1 83 few.test", "2 1 84 both.test"];
    server.set_service("_http._tcp.test", &records);
    let pool = pool(&["srv:_http._tcp.test".to_owned()], CheckKind::None);
    let mut running = Running::start(&pool, Some(Resolver::at(server.address)));
    running.until("resolved", |upstream| !upstream.set().load().endpoints.is_empty()).await;
    let set = running.upstream.set().load();
    let of = |indexes: &[u32]| -> Vec<String> {
        indexes.iter().map(|&at| set.endpoints[at as usize].address.to_string()).collect()
    };
    let carry = ["10.0.0.2:82", "10.0.0.3:83", "10.0.0.4:83", "[fd00::1]:81", "[fd00::3]:83"];
    assert_eq!(of(&set.available), carry);
    assert_eq!(of(&set.reserve), ["10.0.0.1:81", "10.0.0.1:84", "[fd00::1]:84"]);
    let host = |address: &str| {
        set.endpoints.iter().find(|one| one.address.to_string() == address).unwrap().dual_stack
    };
    assert_eq!(host("10.0.0.2:82"), None);
    assert_eq!((host("10.0.0.1:81"), host("10.0.0.1:84")), (host("[fd00::1]:81"), host("[fd00::1]:84")));
    assert!(host("10.0.0.1:81").is_some() && host("10.0.0.1:81") != host("10.0.0.1:84"));
}

/// Both families with the same port.
async fn dual() -> [(TcpListener, SocketAddr); 2] {
    loop {
        let (v4, v4_address) = origin().await;
        // Somebody else may have it.
        if let Ok(v6) = TcpListener::bind(("::1", v4_address.port())).await {
            let v6_address = v6.local_addr().unwrap();
            return [(v4, v4_address), (v6, v6_address)];
        }
    }
}

#[tokio::test]
async fn a_host_of_a_service_is_reached_by_its_other_family_while_the_first_one_fails() {
    let server = NameServer::start().await;
    let [(_v4, v4), (first, v6)] = dual().await;
    let (_other, other) = origin().await;
    server.set("both.test", "127.0.0.1 ::1");
    server.set("old.test", "127.0.0.1");
    let records = [format!("1 1 {} both.test", v4.port()), format!("1 1 {} old.test", other.port())];
    server.set_service("_http._tcp.test", &records.each_ref().map(String::as_str));
    let pool = pool(&["srv:_http._tcp.test".to_owned()], CheckKind::Tcp);
    let mut running = Running::start(&pool, Some(Resolver::at(server.address)));
    let carry = |addresses: [SocketAddr; 2]| {
        let mut sorted = addresses;
        sorted.sort();
        move |upstream: &Upstream| available(upstream) == sorted
    };
    running.until("by IPv6", carry([other, v6])).await;
    drop(first);
    running.until("by IPv4", carry([other, v4])).await;
    let _back = TcpListener::bind(v6).await.unwrap();
    running.until("by IPv6 again", carry([other, v6])).await;
}

#[tokio::test]
async fn an_endpoint_that_stays_keeps_its_health_when_others_come_and_go() {
    let server = NameServer::start().await;
    let (_up, address) = origin().await;
    server.set("web.test", "127.0.0.1");
    let pool = pool(&[format!("web.test:{}", address.port())], CheckKind::Tcp);
    let mut running = Running::start(&pool, Some(Resolver::at(server.address)));
    running.until("up", |upstream| available(upstream) == [address]).await;
    server.set("web.test", "127.0.0.1 127.0.0.9");
    // Not for a moment without the one that was up.
    let (mut has_two, mut was_gone) = (false, false);
    running
        .until("joined by one that is down", |upstream| {
            was_gone |= available(upstream) != [address];
            has_two |= upstream.set().load().endpoints.len() == 2;
            has_two && upstream.status()[0].endpoints[1].available == Some(false)
        })
        .await;
    assert!(!was_gone);
}

#[tokio::test]
async fn in_mode_first_the_address_in_use_stays_although_another_comes_first_now() {
    let server = NameServer::start().await;
    server.set("web.test", "127.0.0.1 127.0.0.9");
    let mut pool = pool(&["web.test:80".to_owned()], CheckKind::None);
    pool.resolve.mode = ResolveMode::First;
    let mut running = Running::start(&pool, Some(Resolver::at(server.address)));
    let one: [SocketAddr; 1] = ["127.0.0.1:80".parse().unwrap()];
    running.until("resolved", |upstream| available(upstream) == one).await;

    server.set("web.test", "127.0.0.9 127.0.0.1");
    let asked = server.questions();
    let asked_again = async {
        // Two for each round; after three rounds the answer to the first is known.
        while server.questions() < asked + 6 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asked_again).await.unwrap();
    assert_eq!(running.available(), one);

    server.set("web.test", "127.0.0.9");
    running.until("moved", |upstream| available(upstream) == ["127.0.0.9:80".parse().unwrap()]).await;
}

#[tokio::test]
async fn a_thousand_endpoints_are_checked_by_one_task() {
    let (_up, address) = origin().await;
    let port = address.port();
    // Bound to one address only; the rest of 127/8 refuses.
    let targets: Vec<String> =
        (0..1000).map(|i| format!("127.0.{}.{}:{port}", i / 250, i % 250 + 1)).collect();
    let mut pool = pool(&targets, CheckKind::Tcp);
    pool.check.interval = Duration::from_secs(60);
    let mut running = Running::start(&pool, None);
    let checked =
        |upstream: &Upstream| upstream.status().iter().all(|target| target.endpoints[0].available.is_some());
    running.until("all checked", checked).await;
    assert_eq!(running.available(), [address]);
    assert_eq!(running.tasks.len(), 1);
    assert!(*running.changes.borrow() < 1000, "bursts are published together");
}
