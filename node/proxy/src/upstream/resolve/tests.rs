use super::*;

#[path = "../../../tests/it/name_server.rs"]
mod name_server;

pub(in crate::upstream) use name_server::NameServer;

const SECOND: Duration = Duration::from_secs(1);

fn question() -> Question {
    let config = ResolveConfig {
        mode: ResolveMode::All,
        family: Family::Any,
        min_ttl: SECOND,
        max_ttl: 60 * SECOND,
        stale: 600 * SECOND,
    };
    Question::new("web.test", Kind::Host, &config)
}

fn ips(text: &str) -> Vec<IpAddr> {
    text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
}

fn found(text: &str) -> Vec<Found> {
    ips(text).into_iter().map(Found::from).collect()
}

mod memory {
    use super::*;

    struct Life {
        memory: Memory,
        now: Instant,
    }

    impl Life {
        fn new() -> Self {
            Self { memory: Memory::default(), now: Instant::now() }
        }

        /// Takes in an answer with this TTL, or a failure; checks what is published and the wait in milliseconds.
        #[track_caller]
        fn check(&mut self, answer: Result<(&str, u64), &str>, addresses: &str, wait_ms: u64) {
            let resolution = match answer {
                Ok(_) => Resolution::Resolved,
                Err(reason) => Resolution::Failed(reason.to_owned()),
            };
            let answer = answer
                .map(|(text, ttl)| Answer { addresses: found(text), ttl: Duration::from_secs(ttl) })
                .map_err(str::to_owned);
            let (known, wait) = self.memory.learn(answer, self.now, &question());
            assert_eq!(known, Known { resolution, addresses: found(addresses).into() });
            assert_eq!(wait, Duration::from_millis(wait_ms));
            self.now += wait;
        }
    }

    #[test]
    fn an_answer_is_asked_for_again_before_it_expires() {
        let mut life = Life::new();
        life.check(Ok(("1.1.1.1 2.2.2.2", 10)), "1.1.1.1 2.2.2.2", 9_000);
        life.check(Ok(("::1", 20)), "::1", 18_000);
    }

    #[test]
    fn times_to_live_are_clamped() {
        let mut life = Life::new();
        life.check(Ok(("1.1.1.1", 0)), "1.1.1.1", 900);
        life.check(Ok(("1.1.1.1", 86_400)), "1.1.1.1", 54_000);
    }

    #[test]
    fn no_configuration_makes_a_busy_loop() {
        let zero = Question { min_ttl: Duration::ZERO, max_ttl: Duration::ZERO, ..question() };
        let answer = Answer { addresses: found("1.1.1.1"), ttl: 5 * SECOND };
        let (_, wait) = Memory::default().learn(Ok(answer), Instant::now(), &zero);
        assert_eq!(wait, Duration::from_millis(90));
    }

    #[test]
    fn failures_are_retried_ever_more_slowly() {
        let mut life = Life::new();
        for wait in [1, 2, 4, 8, 16, 30, 30, 30] {
            life.check(Err("no such name"), "", wait * 1000);
        }
        life.check(Ok(("1.1.1.1", 10)), "1.1.1.1", 9_000);
        life.check(Err("no such name"), "1.1.1.1", 1_000);
    }

    #[test]
    fn the_last_good_answer_stays_until_it_is_too_old() {
        let mut life = Life::new();
        life.check(Ok(("1.1.1.1", 10)), "1.1.1.1", 9_000);
        // It expires at 10 s and is kept for 600 s more; 9 + 31 + 18 * 30 = 580 s pass.
        for wait in [1, 2, 4, 8, 16].into_iter().chain([30; 18]) {
            life.check(Err("timed out"), "1.1.1.1", wait * 1000);
        }
        life.check(Err("timed out"), "1.1.1.1", 30_000);
        // At 610 s exactly it is over.
        life.check(Err("timed out"), "", 30_000);
        life.check(Ok(("2.2.2.2", 10)), "2.2.2.2", 9_000);
    }

    #[test]
    fn the_last_retry_comes_when_the_stale_answer_ends() {
        let question = Question { stale: SECOND / 2, ..question() };
        let mut memory = Memory::default();
        let now = Instant::now();
        let answer = Answer { addresses: found("1.1.1.1"), ttl: 10 * SECOND };
        let (_, wait) = memory.learn(Ok(answer), now, &question);
        let (known, rest) = memory.learn(Err("x".to_owned()), now + wait, &question);
        assert_eq!((known.addresses.len(), rest), (1, SECOND), "9 s + 1 s backoff");
        let (known, rest) = memory.learn(Err("x".to_owned()), now + wait + rest, &question);
        assert_eq!((known.addresses.len(), rest), (1, SECOND / 2), "cut short from 2 s");
        let (known, _) = memory.learn(Err("x".to_owned()), now + wait + SECOND + rest, &question);
        assert_eq!(known.addresses.len(), 0);
    }
}

#[test]
fn all_or_the_first_address_of_an_answer_is_used() {
    let answer = found("3.3.3.3 1.1.1.1 2.2.2.2");
    assert_eq!(choose(ResolveMode::All, &answer, &ips("1.1.1.1")), answer);
    assert_eq!(choose(ResolveMode::First, &answer, &[]), found("3.3.3.3"));
    assert_eq!(choose(ResolveMode::First, &answer, &ips("1.1.1.1")), found("1.1.1.1"), "it stays");
    assert_eq!(choose(ResolveMode::First, &answer, &ips("9.9.9.9")), found("3.3.3.3"), "it moves");
    assert_eq!(choose(ResolveMode::First, &[], &ips("9.9.9.9")), found(""));
}

#[test]
fn the_first_address_is_one_of_each_family_of_the_first_host() {
    let of_host = |host: u16, text: &str| -> Vec<Found> {
        found(text).into_iter().map(|found| Found { host, ..found }).collect()
    };
    let both = found("1.1.1.1 2.2.2.2 fd00::1 fd00::2");
    for (current, first) in [
        ("", "1.1.1.1 fd00::1"),
        ("1.1.1.1 fd00::1", "1.1.1.1 fd00::1"),
        ("2.2.2.2 fd00::2", "2.2.2.2 fd00::2"),
        ("2.2.2.2", "2.2.2.2 fd00::1"),
        ("9.9.9.9 fd00::2", "1.1.1.1 fd00::2"),
    ] {
        assert_eq!(choose(ResolveMode::First, &both, &ips(current)), found(first), "{current}");
    }
    let service = [of_host(0, "1.1.1.1"), of_host(1, "2.2.2.2 fd00::2"), of_host(2, "fd00::3")].concat();
    for (current, host, first) in [
        ("", 0, "1.1.1.1"),
        ("2.2.2.2 fd00::2", 1, "2.2.2.2 fd00::2"),
        ("fd00::2", 1, "2.2.2.2 fd00::2"),
        ("fd00::3", 2, "fd00::3"),
        ("fd00::9", 0, "1.1.1.1"),
    ] {
        assert_eq!(choose(ResolveMode::First, &service, &ips(current)), of_host(host, first), "{current}");
    }
}

/// Waits until the name is known as this. `Err` names the expected reason.
async fn settles(name: &mut watch::Receiver<Known>, resolution: Result<(), &str>, addresses: &str) {
    let resolution = match resolution {
        Ok(()) => Resolution::Resolved,
        Err(reason) => Resolution::Failed(reason.to_owned()),
    };
    let expected = Known { resolution, addresses: found(addresses).into() };
    let settled = tokio::time::timeout(10 * SECOND, name.wait_for(|known| *known == expected)).await;
    assert!(settled.is_ok(), "not {expected:?}");
}

/// Answers live a tenth of a second, so that changes are seen soon.
fn brief() -> Question {
    Question { min_ttl: Duration::ZERO, max_ttl: Duration::ZERO, stale: SECOND / 2, ..question() }
}

#[tokio::test]
async fn a_changed_answer_is_seen_when_the_old_one_expires() {
    let server = NameServer::start().await;
    server.set("web.test", "10.0.0.2 10.0.0.1 fd00::1");
    let resolver = Resolver::at(server.address);
    let mut name = resolver.watch(brief());
    settles(&mut name, Ok(()), "10.0.0.2 10.0.0.1 fd00::1").await;
    server.set("web.test", "10.0.0.3");
    settles(&mut name, Ok(()), "10.0.0.3").await;
}

#[tokio::test]
async fn a_family_narrows_the_question() {
    let server = NameServer::start().await;
    server.set("web.test", "10.0.0.1 fd00::1");
    let resolver = Resolver::at(server.address);
    for (family, expected) in
        [(Family::Any, "10.0.0.1 fd00::1"), (Family::V4, "10.0.0.1"), (Family::V6, "fd00::1")]
    {
        settles(&mut resolver.watch(Question { family, ..question() }), Ok(()), expected).await;
    }
}

#[tokio::test]
async fn addresses_survive_a_failing_server_for_a_while_and_come_back() {
    let server = NameServer::start().await;
    server.set("web.test", "10.0.0.1");
    let resolver = Resolver::at(server.address);
    let mut name = resolver.watch(brief());
    settles(&mut name, Ok(()), "10.0.0.1").await;
    server.fail("web.test");
    let failed = |known: &Known| matches!(known.resolution, Resolution::Failed(_));
    assert_eq!(&*name.wait_for(failed).await.unwrap().addresses, found("10.0.0.1"));
    name.wait_for(|known| known.addresses.is_empty()).await.unwrap();
    server.set("web.test", "10.0.0.2");
    settles(&mut name, Ok(()), "10.0.0.2").await;
}

#[tokio::test]
async fn a_name_that_does_not_exist_says_so() {
    let server = NameServer::start().await;
    server.set("empty.test", "");
    let resolver = Resolver::at(server.address);
    settles(&mut resolver.watch(question()), Err("no such name"), "").await;
    let empty = Question { host: "empty.test".into(), ..question() };
    settles(&mut resolver.watch(empty), Err("the name has no addresses"), "").await;
}

#[tokio::test]
async fn a_service_is_the_addresses_of_its_hosts_with_their_ports() {
    let server = NameServer::start().await;
    server.set("one.test", "10.0.0.1 fd00::1");
    server.set("two.test", "10.0.0.2");
    server.set_service("_http._tcp.test", &["20 0 82 two.test", "10 5 81 one.test", "10 1 83 gone.test"]);
    let resolver = Resolver::at(server.address);
    let service = Question { host: "_http._tcp.test".into(), kind: Kind::Service, ..brief() };
    let mut name = resolver.watch(service.clone());
    let known = |known: &Known| -> Vec<String> {
        let text = |found: &Found| {
            let Service { priority, weight, port } = found.service.unwrap();
            format!("{priority} {weight} {} of {}", SocketAddr::new(found.ip, port), found.host)
        };
        known.addresses.iter().map(text).collect()
    };
    // One host that is not there keeps nobody from the others.
    let expected = ["10 5 10.0.0.1:81 of 1", "10 5 [fd00::1]:81 of 1", "20 0 10.0.0.2:82 of 2"];
    let wait = name.wait_for(|now| known(now) == expected && now.resolution == Resolution::Resolved);
    assert!(tokio::time::timeout(10 * SECOND, wait).await.is_ok(), "{:?}", resolver.watch(service).borrow());
    server.set_service("_http._tcp.test", &["0 0 84 two.test"]);
    let wait = name.wait_for(|now| known(now) == ["0 0 10.0.0.2:84 of 0"]);
    assert!(tokio::time::timeout(10 * SECOND, wait).await.is_ok());
    // The last good answer stays while there is none.
    server.fail("_http._tcp.test");
    let failed = |now: &Known| matches!(now.resolution, Resolution::Failed(_)) && now.addresses.len() == 1;
    let wait = name.wait_for(failed);
    assert!(tokio::time::timeout(10 * SECOND, wait).await.is_ok());
    // RFC 2782: decidedly not available.
    server.set_service("_no._tcp.test", &["0 0 0 ."]);
    let mut none =
        resolver.watch(Question { host: "_no._tcp.test".into(), kind: Kind::Service, ..question() });
    settles(&mut none, Err("the service is not offered"), "").await;
}

#[test]
fn names_are_asked_for_again_up_to_a_tenth_sooner_and_not_all_at_once() {
    let waits: Vec<Duration> = (0..=16_u64).map(|part| early(10 * SECOND, (u64::MAX / 16) * part)).collect();
    assert!(waits.iter().all(|wait| (9 * SECOND..=10 * SECOND).contains(wait)), "{waits:?}");
    assert_eq!(waits[0], 10 * SECOND);
    assert!(waits.is_sorted_by(|sooner, later| sooner > later));
}

#[tokio::test]
async fn localhost_needs_no_name_server() {
    let server = NameServer::start().await;
    let resolver = Resolver::at(server.address);
    let localhost = Question { host: "localhost".into(), family: Family::V4, ..question() };
    settles(&mut resolver.watch(localhost), Ok(()), "127.0.0.1").await;
    assert_eq!(server.questions(), 0);
}

#[tokio::test]
async fn many_listeners_cost_one_lookup_and_none_costs_none() {
    let server = NameServer::start().await;
    server.set("web.test", "10.0.0.1");
    let resolver = Resolver::at(server.address);
    let mut names: Vec<_> = (0..100).map(|_| resolver.watch(question())).collect();
    for name in &mut names {
        settles(name, Ok(()), "10.0.0.1").await;
    }
    assert_eq!(server.questions(), 2, "one for each family");
    drop(names);
    let forgotten = async {
        while !resolver.shared.names.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(10 * SECOND, forgotten).await.expect("the task of the name ends");
    settles(&mut resolver.watch(question()), Ok(()), "10.0.0.1").await;
    assert_eq!(server.questions(), 4, "a new listener asks again");
}

#[tokio::test]
async fn a_runtime_has_one_resolver_while_somebody_holds_it() {
    let first = Resolver::shared();
    assert!(Arc::ptr_eq(&first, &Resolver::shared()));
    let weak = Arc::downgrade(&first);
    drop(first);
    assert!(weak.upgrade().is_none());
}
