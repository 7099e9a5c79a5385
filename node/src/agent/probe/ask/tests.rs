use std::os::unix::fs::PermissionsExt as _;

use flotilla_raft_store::GenerationId;
use flotilla_spec::AppName;
use tokio::{io::AsyncReadExt, net::TcpListener, task::JoinSet, time::Instant};

use super::*;

/// Asks a server that reads something, says `answer` and closes.
async fn check(probe: &Probe, answer: &'static str) -> Result<(), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = listener.local_addr().unwrap();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 1024];
        drop(stream.read(&mut head).await);
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    ask(probe, door, &key(), &ProbeSettings::default()).await
}

fn key() -> Key {
    (AppName::parse("web").unwrap(), GenerationId(7))
}

fn http_probe(expect: &[(u16, u16)], body: &str) -> Probe {
    Probe { name: "smoke".to_owned(), expect: expect.to_vec(), body: body.to_owned(), ..Probe::default() }
}

#[tokio::test]
async fn an_http_probe_looks_at_the_status_and_the_body() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nall ok\n";
    let sick = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
    for (expect, body, answer, expected) in [
        (&[(200, 200)][..], "", ok, Ok(())),
        (&[(200, 200)], "all ok", ok, Ok(())),
        (&[(200, 200)], "fine", ok, Err("the answer does not contain `fine`")),
        (&[(200, 200)], "", sick, Err("HTTP 503, expected 200")),
        (&[(200, 299), (304, 304)], "", sick, Err("HTTP 503, expected 200-299, 304")),
        (&[(500, 599)], "", sick, Ok(())),
        (&[(200, 200)], "", "", Err("closed without an answer")),
        (&[(200, 200)], "", "SSH-2.0\r\n", Err("the answer is not HTTP/1.1")),
    ] {
        let verdict = check(&http_probe(expect, body), answer).await;
        assert_eq!(verdict, expected.map_err(str::to_owned), "{answer}");
    }
}

#[tokio::test]
async fn a_tcp_probe_wants_to_hear_something_or_not_to_be_hung_up_on() {
    let probe = |body: &str| Probe {
        ask: ProbeType::Tcp,
        send: "PING\r\n".to_owned(),
        body: body.to_owned(),
        ..Probe::default()
    };
    assert_eq!(check(&probe("+PONG"), "+PONG\r\n").await, Ok(()));
    assert_eq!(check(&probe(""), "hello").await, Ok(()));
    assert_eq!(check(&probe(""), "").await, Err("closed at once".to_owned()));
    let refused = "the answer does not contain `+PONG`".to_owned();
    assert_eq!(check(&probe("+PONG"), "-ERR\r\n").await, Err(refused));

    let quiet = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = quiet.local_addr().unwrap();
    let silent = Probe { ask: ProbeType::Tcp, ..Probe::default() };
    assert_eq!(ask(&silent, door, &key(), &ProbeSettings::default()).await, Ok(()));
    let impatient = Probe { timeout: Duration::from_millis(50), ..probe("+PONG") };
    let late = ask(&impatient, door, &key(), &ProbeSettings::default()).await;
    assert_eq!(late, Err("no answer within 50ms".to_owned()));
    drop(quiet);
    let gone = ask(&silent, door, &key(), &ProbeSettings::default()).await;
    assert_eq!(gone, Err("connection refused".to_owned()));
}

#[tokio::test]
async fn a_grpc_probe_asks_the_health_service() {
    // Two servers that tonic makes: one without any service, and one that says what it is told to.
    let probe =
        |service: &str| Probe { ask: ProbeType::Grpc, service: service.to_owned(), ..Probe::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = listener.local_addr().unwrap();
    let health = axum::Router::new().route(
        "/grpc.health.v1.Health/Check",
        axum::routing::post(async |body: Bytes| {
            // Frame: no compression, length, then `service` as field 1.
            let status = match &body[5..] {
                b"" => 1,
                [10, _, name @ ..] if name == b"shop.Cart" => 2,
                _ => 3,
            };
            let mut trailers = axum::http::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let frame = Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]);
            let body = http_body_util::Full::new(frame).with_trailers(async move { Some(Ok(trailers)) });
            axum::http::Response::builder()
                .header("content-type", "application/grpc")
                .body(axum::body::Body::new(body))
                .unwrap()
        }),
    );
    let mut server = JoinSet::new();
    server.spawn(async move {
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let routes = tonic::service::Routes::from(health);
        tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(incoming).await.unwrap();
    });
    let settings = ProbeSettings::default();
    assert_eq!(ask(&probe(""), door, &key(), &settings).await, Ok(()));
    let not_serving = "gRPC health is NOT_SERVING, expected SERVING".to_owned();
    assert_eq!(ask(&probe("shop.Cart"), door, &key(), &settings).await, Err(not_serving));
    let unknown = "gRPC health is SERVICE_UNKNOWN, expected SERVING".to_owned();
    assert_eq!(ask(&probe("other"), door, &key(), &settings).await, Err(unknown));
}

#[tokio::test]
async fn a_command_probe_runs_a_program_of_the_folder_within_its_limits() {
    let folder = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    script("good", "echo \"$FLOTILLA_APP $FLOTILLA_GENERATION $FLOTILLA_NODE $FLOTILLA_PROBE_ADDRESS $1\"");
    script("bad", "echo first; echo 'the queue is full' >&2; exit 3");
    script("loud", "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy || exit; done");
    let pids = folder.path().join("pids");
    script("slow", &format!("sleep 60 & echo $! > {p}.part; mv {p}.part {p}; wait", p = pids.display()));
    let settings = ProbeSettings { commands: Some(folder.path().to_owned()), node: "n1".to_owned() };
    let door = "127.0.0.1:4711".parse().unwrap();
    let probe = |words: &[&str], body: &str| Probe {
        ask: ProbeType::Command,
        command: words.iter().map(|&word| word.to_owned()).collect(),
        body: body.to_owned(),
        timeout: Duration::from_secs(10),
        ..Probe::default()
    };
    assert_eq!(
        ask(&probe(&["good", "x"], "web 7 n1 127.0.0.1:4711 x"), door, &key(), &settings).await,
        Ok(())
    );
    let bad = ask(&probe(&["bad"], ""), door, &key(), &settings).await.unwrap_err();
    assert_eq!(bad, "`bad` ended with exit status: 3: the queue is full");
    let missing = ask(&probe(&["missing"], ""), door, &key(), &settings).await.unwrap_err();
    assert_eq!(missing, "run `missing`: entity not found");
    let none = ask(&probe(&["good"], ""), door, &key(), &ProbeSettings::default()).await.unwrap_err();
    assert!(none.contains("runs no commands"), "{none}");

    let short = |words| Probe { timeout: Duration::from_millis(500), ..probe(words, "") };
    let began = Instant::now();
    for words in [&["loud"], &["slow"]] {
        let late = ask(&short(words), door, &key(), &settings).await.unwrap_err();
        assert_eq!(late, "no answer within 500ms");
    }
    assert!(began.elapsed() < Duration::from_secs(30), "it is given up, not waited for");
    let child: i32 = std::fs::read_to_string(&pids).unwrap().trim().parse().unwrap();
    for _ in 0..500 {
        // A zombie until its new parent looks is as dead as can be.
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("what the program had started lives on");
}
