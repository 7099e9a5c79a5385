//! What becomes of requests when endpoints fail: outliers, circuits, and retries.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use flotilla_proxy::{
    AppConfig, Proxy,
    config::{
        BreakerConfig, CheckConfig, CheckKind, HedgeConfig, OutlierConfig, Protocol::Http, RetryConfig,
        RetryMethods, RetryOn, UpstreamProtocol,
    },
};
use tokio::net::TcpStream;

use crate::support::*;

/// An origin that answers requests with `status` as long as it says so, and counts them.
async fn origin(status: &Arc<AtomicUsize>, name: &'static str) -> (Origin, Arc<AtomicUsize>) {
    let (status, asked) = (Arc::clone(status), Arc::<AtomicUsize>::default());
    let count = Arc::clone(&asked);
    let origin = Origin::new(move |mut stream| {
        let (status, count) = (Arc::clone(&status), Arc::clone(&count));
        Box::pin(async move {
            while let Ok(head) = head(&mut stream).await {
                let length = field(&head, "content-length").map_or(0, |value| value.parse().unwrap());
                receive(&mut stream, length).await;
                count.fetch_add(1, SeqCst);
                match status.load(SeqCst) {
                    // Breaks off.
                    0 => return reset(stream),
                    // Never answers.
                    1 => return hold(stream).await,
                    status => {
                        let length = name.len();
                        let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n\r\n{name}");
                        send(&mut stream, head).await;
                    }
                }
            }
        })
    })
    .await;
    (origin, asked)
}

async fn serving_all(origins: &[&Origin], change: impl FnOnce(&mut AppConfig)) -> (Proxy, TcpStream) {
    // One worker, so that the counts are of one.
    let proxy = proxy_with(|config| config.workers = 1);
    let addresses: Vec<_> = origins.iter().map(|origin| origin.address).collect();
    let (mut config, listen) = app(Http, &addresses);
    config.pools.get_mut("default").unwrap().balance.strategy = "round_robin".to_owned();
    change(&mut config);
    serve(&proxy, &config).await;
    (proxy, connect(listen).await)
}

fn retry(on: &[RetryOn], change: impl FnOnce(&mut RetryConfig)) -> RetryConfig {
    let brief = Duration::from_millis(1);
    let mut retry =
        RetryConfig { attempts: 3, on: on.to_vec(), backoff: (brief, brief), ..RetryConfig::default() };
    change(&mut retry);
    retry
}

async fn ask(client: &mut TcpStream, method: &str) -> u16 {
    send(client, format!("{method} / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")).await;
    status(&response(client).await.0)
}

#[tokio::test]
async fn an_endpoint_that_fails_in_a_row_is_taken_out_and_comes_back() {
    let (bad, good) = (Arc::new(AtomicUsize::new(503)), Arc::new(AtomicUsize::new(200)));
    let ((one, asked), (other, _)) = (origin(&bad, "one").await, origin(&good, "other").await);
    let (_proxy, mut client) = serving_all(&[&one, &other], |app| {
        let pool = app.pools.get_mut("default").unwrap();
        pool.check = CheckConfig { kind: CheckKind::Tcp, ..CheckConfig::default() };
        pool.outlier =
            OutlierConfig { consecutive_failures: 3, ejection: Duration::from_millis(500), max_ejected: 50 };
    })
    .await;
    // Both have passed their first check when both have been asked.
    let mut before = 0;
    while asked.load(SeqCst) < 3 {
        ask(&mut client, "GET").await;
        before += 1;
        assert!(before < 1000);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut in_a_row = 0;
    while in_a_row < 20 {
        in_a_row = if ask(&mut client, "GET").await == 200 { in_a_row + 1 } else { 0 };
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(asked.load(SeqCst) < 10, "{} were sent there", asked.load(SeqCst));
    bad.store(200, SeqCst);
    let before = asked.load(SeqCst);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while asked.load(SeqCst) == before {
        assert_eq!(ask(&mut client, "GET").await, 200);
        assert!(tokio::time::Instant::now() < deadline, "it never came back");
    }
}

#[tokio::test]
async fn a_circuit_opens_on_errors_and_closes_after_good_trials() {
    let status = Arc::new(AtomicUsize::new(500));
    let (one, asked) = origin(&status, "one").await;
    let (_proxy, mut client) = serving_all(&[&one], |app| {
        app.pools.get_mut("default").unwrap().breaker = Some(BreakerConfig {
            error_percent: 50,
            window: Duration::from_millis(500),
            min_requests: 5,
            open_for: Duration::from_millis(300),
        });
    })
    .await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let until = async |client: &mut TcpStream, wanted: u16| {
        while ask(client, "GET").await != wanted {
            assert!(tokio::time::Instant::now() < deadline, "never {wanted}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    until(&mut client, 503).await;
    let sent = asked.load(SeqCst);
    assert_eq!(ask(&mut client, "GET").await, 503, "and nothing is sent");
    assert_eq!(asked.load(SeqCst), sent);
    // The trials fail as well, and it opens again.
    until(&mut client, 500).await;
    until(&mut client, 503).await;
    status.store(200, SeqCst);
    until(&mut client, 200).await;
    for _ in 0..3 {
        until(&mut client, 200).await;
    }
}

#[tokio::test]
async fn a_status_that_is_listed_is_tried_again_elsewhere() {
    let (bad, good) = (Arc::new(AtomicUsize::new(503)), Arc::new(AtomicUsize::new(200)));
    let ((one, asked), (other, _)) = (origin(&bad, "one").await, origin(&good, "other").await);
    let (_proxy, mut client) = serving_all(&[&one, &other], |app| {
        app.retry = retry(&[RetryOn::GatewayError], |retry| retry.budget_percent = 100);
    })
    .await;
    for _ in 0..20 {
        assert_eq!(ask(&mut client, "GET").await, 200);
    }
    assert!(asked.load(SeqCst) >= 5, "it was asked first about every second time");
    // What is not safe to repeat is answered with what came.
    let statuses: Vec<u16> = vec![ask(&mut client, "POST").await, ask(&mut client, "POST").await];
    assert!(statuses.contains(&503), "{statuses:?}");
}

#[tokio::test]
async fn resets_and_silence_are_tried_again_where_that_is_asked_for() {
    for (trouble, on) in [(0, RetryOn::Reset), (1, RetryOn::Timeout)] {
        let (bad, good) = (Arc::new(AtomicUsize::new(trouble)), Arc::new(AtomicUsize::new(200)));
        let ((one, _), (other, _)) = (origin(&bad, "one").await, origin(&good, "other").await);
        for (on, expected) in [(on.clone(), true), (RetryOn::Connect, false)] {
            let what = format!("{trouble} {on:?}");
            let (_proxy, mut client) = serving_all(&[&one, &other], |app| {
                app.retry = retry(&[on], |retry| {
                    retry.per_try_timeout = Duration::from_millis(200);
                    retry.methods = RetryMethods::All;
                });
            })
            .await;
            let statuses = [ask(&mut client, "GET").await, ask(&mut client, "POST").await];
            assert_eq!(statuses == [200, 200], expected, "{what}: {statuses:?}");
        }
    }
}

#[tokio::test]
async fn a_budget_bounds_what_retries_add_to_an_overload() {
    let bad = Arc::new(AtomicUsize::new(503));
    let (one, asked) = origin(&bad, "one").await;
    let (_proxy, mut client) = serving_all(&[&one], |app| {
        app.retry = retry(&[RetryOn::GatewayError], |retry| retry.budget_percent = 10);
    })
    .await;
    for _ in 0..100 {
        assert_eq!(ask(&mut client, "GET").await, 503);
    }
    // A tenth, and the ten that are free.
    assert!((101..=120).contains(&asked.load(SeqCst)), "{}", asked.load(SeqCst));
}

#[tokio::test]
async fn a_request_whose_body_is_gone_is_not_sent_again() {
    let bad = Arc::new(AtomicUsize::new(503));
    let (one, asked) = origin(&bad, "one").await;
    let (_proxy, mut client) = serving_all(&[&one], |app| {
        app.retry = retry(&[RetryOn::GatewayError], |retry| retry.methods = RetryMethods::All);
    })
    .await;
    send(&mut client, "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc").await;
    assert_eq!(status(&response(&mut client).await.0), 503);
    assert_eq!(asked.load(SeqCst), 1);
}

/// An origin in HTTP/2 that leaves so many requests alone, on each connection.
async fn refusing(refused: usize) -> (Origin, Arc<AtomicUsize>) {
    let left = Arc::new(AtomicUsize::new(refused));
    let state = Arc::clone(&left);
    let origin = Origin::new(move |stream| {
        let left = Arc::clone(&state);
        Box::pin(async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                if left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                    continue;
                }
                let response = http::Response::builder().header("content-length", "0").body(()).unwrap();
                let _gone = respond.send_response(response, true);
            }
        })
    })
    .await;
    (origin, left)
}

#[tokio::test]
async fn a_request_that_an_endpoint_has_left_alone_is_tried_again_whatever_it_is() {
    for (on, refused, expected) in [
        (RetryOn::RefusedStream, 2, [200, 200]),
        (RetryOn::RefusedStream, 9, [503, 503]),
        // Nobody asked for it to be tried again; once on another connection is always fine.
        (RetryOn::Connect, 9, [503, 503]),
    ] {
        let (origin, left) = refusing(refused).await;
        let (_proxy, mut client) = serving_all(&[&origin], |app| {
            app.retry = retry(std::slice::from_ref(&on), |_| ());
            app.pools.get_mut("default").unwrap().protocol = UpstreamProtocol::Http2;
        })
        .await;
        let statuses = [ask(&mut client, "POST").await, ask(&mut client, "GET").await];
        assert_eq!(statuses, expected, "{on:?} {refused}: {} left", left.load(SeqCst));
    }
}

#[tokio::test]
async fn a_slow_answer_is_asked_for_elsewhere_and_the_first_one_counts() {
    let (silent, good) = (Arc::new(AtomicUsize::new(1)), Arc::new(AtomicUsize::new(200)));
    let ((one, asked), (other, _)) = (origin(&silent, "one").await, origin(&good, "other").await);
    let (_proxy, mut client) = serving_all(&[&one, &other], |app| {
        app.retry = retry(&[], |retry| {
            retry.hedge = Some(HedgeConfig { after: Duration::from_millis(30), max: 1 });
            retry.budget_percent = 100;
        });
        app.timeouts.response_header = Duration::from_millis(600);
    })
    .await;
    for _ in 0..10 {
        assert_eq!(ask(&mut client, "GET").await, 200);
    }
    assert!(asked.load(SeqCst) >= 4, "it was asked first about every second time");
    // What is not to be repeated waits for whom it was sent to.
    let statuses = [ask(&mut client, "POST").await, ask(&mut client, "POST").await];
    assert!(statuses.contains(&504), "{statuses:?}");
    // Where nobody answers, so many are asked and no more.
    good.store(1, SeqCst);
    let before = asked.load(SeqCst);
    assert_eq!(ask(&mut client, "GET").await, 504);
    assert_eq!(asked.load(SeqCst) - before, 1, "each of the two once");
}

#[tokio::test]
async fn a_budget_bounds_hedges_as_well() {
    let silent = Arc::new(AtomicUsize::new(1));
    let ((one, asked), (other, asked_too)) = (origin(&silent, "one").await, origin(&silent, "other").await);
    let (_proxy, mut client) = serving_all(&[&one, &other], |app| {
        app.retry = retry(&[], |retry| {
            retry.attempts = 1;
            retry.hedge = Some(HedgeConfig { after: Duration::from_millis(1), max: 1 });
            retry.budget_percent = 0;
        });
        app.timeouts.response_header = Duration::from_millis(100);
    })
    .await;
    let begun = tokio::time::Instant::now();
    for _ in 0..15 {
        assert_eq!(ask(&mut client, "GET").await, 504);
    }
    let hedges = asked.load(SeqCst) + asked_too.load(SeqCst) - 15;
    // Ten are free in ten seconds.
    let free = 10 * (1 + begun.elapsed().as_secs() / 10);
    assert!((1..=free).contains(&(hedges as u64)), "{hedges} of {free}");
}
