//! What we take for a message, another reader must take for the same one.
//!
//! Random messages, valid and nearly so, go to our reader and to hyper's. Where ours refuses, nothing is said: it is
//! the stricter one. The exceptions, where hyper refuses what we take, are in [`only_ours`].

use std::{cell::RefCell, convert::Infallible, rc::Rc};

use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming as HyperBody;
use hyper_util::rt::TokioIo;
use proptest::{collection::vec, prelude::*, sample::select, test_runner::TestRng};
use tokio::io::AsyncWriteExt;

use super::{head::Head, headers};
use crate::fuzz::body::read_body;

/// The first message of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    method: String,
    /// Path and query.
    path: String,
    /// Names in lower case.
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

/// As our engine reads it, its body in pieces of so many bytes.
fn ours(bytes: &[u8], piece: usize) -> Option<Message> {
    let mut head = Head::default();
    let used = head.parse_request(bytes, 64 * 1024).ok()??;
    let method = Method::from_bytes(head.method()).ok()?;
    let framing = headers::check_request(&head, &method).ok()?;
    let fields = head
        .iter()
        .map(|field| (String::from_utf8_lossy(field.name).to_lowercase(), field.value.to_vec()))
        .collect();
    let (body, _) = read_body(&bytes[used..], framing, piece)?;
    let path = head.path_and_query().to_owned();
    Some(Message { method: method.as_str().to_owned(), path, fields, body })
}

/// As hyper reads it.
async fn theirs(bytes: &[u8]) -> Option<Message> {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    client.write_all(bytes).await.expect("all of it fits");
    let read = Rc::new(RefCell::new(None));
    let first = Rc::clone(&read);
    let service = hyper::service::service_fn(move |request: Request<HyperBody>| {
        let first = Rc::clone(&first);
        async move {
            let (parts, body) = request.into_parts();
            let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
            // RFC 9112 §3.2.1: an empty path is sent as `/`.
            let path = if path.starts_with('?') { format!("/{path}") } else { path.to_owned() };
            let fields = parts.headers.iter();
            let fields = fields.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
            if let Ok(body) = body.collect().await {
                let message = Message {
                    method: parts.method.to_string(),
                    path,
                    fields,
                    body: body.to_bytes().to_vec(),
                };
                first.borrow_mut().get_or_insert(message);
            }
            Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
        }
    });
    client.shutdown().await.expect("it is there");
    let mut http = hyper::server::conn::http1::Builder::new();
    http.half_close(true).keep_alive(false);
    // How the connection ends says nothing about its first message.
    let _ended = http.serve_connection(TokioIo::new(server), service).await;
    drop(client);
    read.take()
}

/// What we take on purpose and hyper does not.
fn only_ours(bytes: &[u8], message: &Message) -> bool {
    let target = bytes.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    // Bytes in targets that no address has, but clients send and origins read.
    target.iter().any(|byte| b"\\^[]|{}\"".contains(byte) || !byte.is_ascii())
        // A host that is a name to us and none to the http crate is compared by nobody in between.
        || message.fields.iter().any(|(name, _)| name == "host") && bytes.starts_with(b"OPTIONS *")
}

/// One of these most of the time, and now and then one of those.
fn mostly(usual: &'static [&'static str], odd: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![8 => select(usual), 1 => select(odd)].prop_map(str::to_owned)
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let line_end = || mostly(&["\r\n"], &["\n", "\r", "\r\r\n", "\r\n\r\n", " \r\n"]);
    let line = (
        mostly(
            &["GET", "POST", "PUT", "OPTIONS"],
            &["get", "M-SEARCH", "", "G T", "TRACE", "G(T", "\r\nGET"],
        ),
        mostly(&[" "], &["  ", "\t", ""]),
        mostly(
            &["/", "/a?b=c", "/a%20b", "/a/../b"],
            &[
                "*",
                "http://a/x",
                "http://a",
                "HTTP://a?b",
                "https://b:1/",
                "/#x",
                "/\"",
                "/é",
                "?x",
                "a",
                "//b/c",
                "http://u@a/",
            ],
        ),
        mostly(
            &[" HTTP/1.1"],
            &[" HTTP/1.0", " HTTP/1.2", " HTTP/2.0", "", " http/1.1", " HTTP/1.1 ", "  HTTP/1.1"],
        ),
    );
    let field = (
        mostly(
            &["X", "Content-Length", "Transfer-Encoding", "Connection", "Cookie"],
            &["Host", "", "X Y", " X", "content-length", "Content_Length", "X\0", "TE", "Expect"],
        ),
        mostly(&[": ", ":"], &[" : ", ":\t ", " ", "::", ": \r\n "]),
        mostly(
            &["5", "chunked", "0", "x", "close"],
            &[
                "",
                "05",
                "+5",
                "5, 5",
                "5 ",
                "Chunked",
                "gzip, chunked",
                "chunked,",
                "\u{b}chunked",
                "x\ty",
                "é",
                "a\x7f",
                "99999999999999999999",
            ],
        ),
        line_end(),
    );
    let body = mostly(
        &[
            "",
            "hello",
            "5\r\nhello\r\n0\r\n\r\n",
            "5\r\nhello\r\n0\r\nT: u\r\n\r\n",
            "5;x=y\r\nhello\r\n00\r\n\r\n",
        ],
        &[
            "5\nhello\n0\n\n",
            "5\r\nhello0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n",
            "5\t;x\r\nhello\r\n0\r\n\r\n",
            "5\r\nhello\r\n0\r\nT u\r\n\r\n",
            "5\r\nhello\r\n0\r\n",
            "5;\n\r\nhello\r\n0\r\n\r\n",
            "05\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "fffffffffffffffff\r\nhello",
            "5\r\nhello\r\n\r\n0\r\n\r\n",
        ],
    );
    let fields = vec(field, 0..4);
    (
        mostly(&[""], &["\r\n", "\n", "\r\n\r\n\r\n", " "]),
        line,
        line_end(),
        mostly(&["Host: a\r\n"], &["", "Host: a\n", "Host: a, b\r\n", "Host:\r\n"]),
        fields,
        mostly(&["\r\n"], &["\n", "", "\r"]),
        body,
    )
        .prop_map(|(before, (method, space, target, version), end, host, fields, empty, body)| {
            let fields: String = fields.into_iter().map(|(a, b, c, d)| a + &b + &c + &d).collect();
            format!("{before}{method}{space}{target}{version}{end}{host}{fields}{empty}{body}").into_bytes()
        })
}

fn check(runtime: &tokio::runtime::Runtime, bytes: &[u8]) -> bool {
    let shown = bytes.escape_ascii();
    let Some(mine) = ours(bytes, 4096) else { return false };
    for piece in [1, 3] {
        assert_eq!(ours(bytes, piece).as_ref(), Some(&mine), "in pieces of {piece}: {shown}");
    }
    match runtime.block_on(theirs(bytes)) {
        Some(other) => assert_eq!(sorted(mine), sorted(other), "{shown}"),
        None => assert!(only_ours(bytes, &mine), "hyper refuses {shown}"),
    }
    true
}

/// Fields of one name keep their order; those of different names need not (RFC 9110 §5.3).
fn sorted(mut message: Message) -> Message {
    message.fields.sort_by(|a, b| a.0.cmp(&b.0));
    message
}

#[test]
fn whatever_we_take_hyper_takes_for_the_same_message() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let seed = std::env::var("SEED").map_or(7, |seed| seed.parse().unwrap());
    let count = std::env::var("MESSAGES").map_or(20_000, |count| count.parse().unwrap());
    let config = ProptestConfig { cases: count, failure_persistence: None, ..ProptestConfig::default() };
    let rng = TestRng::from_seed(proptest::test_runner::RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(config, rng);
    let taken = RefCell::new(0_u32);
    let result = runner.run(&message(), |bytes| {
        *taken.borrow_mut() += u32::from(check(&runtime, &bytes));
        Ok(())
    });
    assert!(result.is_ok(), "SEED={seed}: {}", result.unwrap_err());
    // Otherwise it would say nothing.
    assert!(taken.take() > count / 20, "most messages are refused");
}

#[test]
fn the_differences_are_these() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let of = |text: &str| {
        let bytes = text.as_bytes();
        (ours(bytes, 4096).is_some(), runtime.block_on(theirs(bytes)).is_some())
    };
    let post = |fields: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}");
    for (what, message, want) in [
        ("nothing", post("Content-Length: 1\r\n", "x"), (true, true)),
        ("no Host", "GET / HTTP/1.1\r\n\r\n".to_owned(), (false, true)),
        ("two Hosts", post("Host: a\r\n", ""), (false, true)),
        ("LF alone", "GET / HTTP/1.1\nHost: a\n\n".to_owned(), (false, true)),
        ("the same length twice", post("Content-Length: 1\r\nContent-Length: 1\r\n", "x"), (false, true)),
        (
            "an encoding and a length",
            post("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            (false, true),
        ),
        (
            "an encoding in front of chunked",
            post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
            (false, true),
        ),
    ] {
        assert_eq!(of(&message), want, "{what}: ours, theirs");
    }
}
