//! What routes do with requests, for clients that speak HTTP/1.1 and those that speak HTTP/2.

use std::{
    io::Read,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use flotilla_proxy::{
    AppConfig, Proxy,
    config::{
        CompressionConfig, EditConfig, HashOn, MirrorConfig, PathMatch, Protocol, RedirectConfig,
        RespondConfig, RewriteConfig, RouteConfig, RouteTo, SplitConfig, ValueMatch, Wanted,
    },
};
use tokio::{io::AsyncWriteExt, task::JoinSet, time::timeout};

use crate::support::*;

/// A request as both versions can say it.
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) fields: &'a [(&'a str, &'a str)],
    pub(crate) body: &'a [u8],
}

impl<'a> Ask<'a> {
    pub(crate) fn get(path: &'a str) -> Ask<'a> {
        Ask { method: "GET", path, fields: &[], body: b"" }
    }

    pub(crate) fn with(self, fields: &'a [(&'a str, &'a str)]) -> Ask<'a> {
        Ask { fields, ..self }
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

pub(crate) const BOTH: [Version; 2] = [Version::Http1, Version::Http2];

/// Asks on a connection of its own.
pub(crate) async fn ask(version: Version, listen: SocketAddr, ask: Ask<'_>) -> Answer {
    match version {
        Version::Http1 => ask1(listen, ask).await,
        Version::Http2 => ask2(listen, ask).await,
    }
}

async fn ask1(listen: SocketAddr, Ask { method, path, fields, body }: Ask<'_>) -> Answer {
    let mut stream = connect(listen).await;
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    send(&mut stream, format!("{method} {path} HTTP/1.1\r\nhost: web.test\r\n{fields}{length}\r\n")).await;
    // The answer may come before all of it is read.
    let _early = stream.write_all(body).await;
    let head = head(&mut stream).await.unwrap();
    let field_is = |name, value: &str| field(&head, name).is_some_and(|found| found == value);
    let status = status(&head);
    let body = if method == "HEAD" || matches!(status, 204 | 304) {
        Vec::new()
    } else if field_is("transfer-encoding", "chunked") {
        let mut body = Vec::new();
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.extend_from_slice(&receive(&mut stream, 1).await);
            }
            let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
            let chunk = receive(&mut stream, size + 2).await;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break body;
            }
        }
    } else {
        receive(&mut stream, field(&head, "content-length").unwrap().parse().unwrap()).await
    };
    let fields = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    let fields = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    Answer { status, fields, body }
}

async fn ask2(listen: SocketAddr, Ask { method, path, fields, body }: Ask<'_>) -> Answer {
    let (mut client, connection) = ::h2::client::handshake(connect(listen).await).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let mut request = ::http::Request::builder().method(method).uri(format!("http://web.test{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(()).unwrap();
    let (response, mut sending) = client.send_request(request, body.is_empty()).unwrap();
    if !body.is_empty() {
        sending.send_data(Bytes::copy_from_slice(body), true).unwrap();
    }
    let response = timeout(PATIENCE, response).await.expect("a response in time").unwrap();
    let fields = response.headers().iter();
    let fields = fields.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let status = response.status().as_u16();
    let mut incoming = response.into_body();
    let mut body = Vec::new();
    while let Some(data) = timeout(PATIENCE, incoming.data()).await.expect("data in time") {
        let data = data.unwrap();
        incoming.flow_control().release_capacity(data.len()).unwrap();
        body.extend_from_slice(&data);
    }
    Answer { status, fields, body }
}

/// Answers with the head it got, and fields of its own.
pub(crate) async fn mirror() -> Origin {
    Origin::new(|mut stream| {
        Box::pin(async move {
            while let Ok(head) = head(&mut stream).await {
                let length = head.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nX-Up: 1\r\nServer: origin\r\n\r\n{head}"
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
    })
    .await
}

pub(crate) async fn routed(origin: &Origin, change: impl FnOnce(&mut AppConfig)) -> (Proxy, SocketAddr) {
    let proxy = proxy();
    let (mut config, listen) = app(Protocol::Http, &[origin.address]);
    change(&mut config);
    serve(&proxy, &config).await;
    (proxy, listen)
}

pub(crate) fn route(name: &str, prefix: &str) -> RouteConfig {
    RouteConfig {
        path: Some(PathMatch::Prefix(prefix.to_owned())),
        ..RouteConfig::hosts(name, Vec::<String>::new(), "default")
    }
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn patterns_fields_and_parameters_choose_a_route() {
    let origin = mirror().await;
    let (_proxy, listen) = routed(&origin, |app| {
        let answers =
            |status| RouteTo::Respond(RespondConfig { status, headers: Vec::new(), body: String::new() });
        let ask = |name: &str, value| vec![ValueMatch { name: name.to_owned(), value }];
        let any = || RouteConfig::hosts("any", Vec::<String>::new(), "default");
        app.routes = vec![
            RouteConfig {
                name: "pattern".into(),
                path: Some(PathMatch::Regex("^/v[0-9]+$".into())),
                to: answers(501),
                ..any()
            },
            RouteConfig {
                name: "field".into(),
                headers: ask("X-Beta", Wanted::Exact("1".into())),
                to: answers(502),
                ..any()
            },
            RouteConfig {
                name: "query".into(),
                query: ask("v", Wanted::Regex("^2".into())),
                to: answers(503),
                ..any()
            },
        ];
    })
    .await;
    for version in BOTH {
        for (path, fields, status) in [
            ("/v12", &[][..], 501),
            ("/v12/x", &[], 200),
            ("/", &[("x-beta", "1")], 502),
            ("/", &[("x-beta", "2")], 200),
            ("/?a&v=21", &[], 503),
            ("/?v=12", &[], 200),
        ] {
            let answer = ask(version, listen, Ask::get(path).with(fields)).await;
            assert_eq!(answer.status, status, "{version:?} {path} {fields:?}");
        }
    }
}

#[tokio::test]
async fn a_route_changes_the_path_and_fields_either_way() {
    let origin = mirror().await;
    let (_proxy, listen) = routed(&origin, |app| {
        app.routes = vec![RouteConfig {
            rewrite: RewriteConfig { strip_prefix: Some("/v1".into()), add_prefix: Some("/app".into()) },
            request_headers: EditConfig {
                set: pairs(&[("x-forwarded-app", "web")]),
                add: pairs(&[("x-more", "2")]),
                remove: vec!["X-Internal".into()],
            },
            response_headers: EditConfig {
                set: pairs(&[("strict-transport-security", "max-age=1")]),
                add: pairs(&[("x-up", "2")]),
                remove: vec!["server".into()],
            },
            ..route("v1", "/v1")
        }];
    })
    .await;
    let fields = [("x-internal", "secret"), ("x-more", "1"), ("x-forwarded-app", "forged")];
    for version in BOTH {
        let answer = ask(version, listen, Ask::get("/v1/x?a=/v1").with(&fields)).await;
        let seen = answer.text().to_ascii_lowercase();
        assert!(seen.starts_with("get /app/x?a=/v1 http/1.1\r\n"), "{seen}");
        assert!(seen.contains("\r\nx-forwarded-app: web\r\n") && !seen.contains("forged"), "{seen}");
        assert!(seen.contains("\r\nx-more: 1\r\n") && seen.contains("\r\nx-more: 2\r\n"), "{seen}");
        assert!(!seen.contains("x-internal"), "{seen}");
        assert_eq!(answer.all("x-up"), ["1", "2"]);
        assert_eq!(answer.all("strict-transport-security"), ["max-age=1"]);
        assert!(answer.all("server").is_empty());

        let answer = ask(version, listen, Ask::get("/v10").with(&fields)).await;
        let seen = answer.text().to_ascii_lowercase();
        assert!(seen.starts_with("get /v10 http/1.1\r\n") && seen.contains("x-internal: secret"), "{seen}");
        assert_eq!(answer.all("server"), ["origin"]);
    }
}

#[tokio::test]
async fn a_route_answers_itself_and_the_connection_goes_on() {
    let origin = mirror().await;
    let (_proxy, listen) = routed(&origin, |app| {
        app.routes = vec![
            RouteConfig {
                to: RouteTo::Respond(RespondConfig {
                    status: 418,
                    headers: pairs(&[("x-pot", "tea")]),
                    body: "short and stout\n".into(),
                }),
                ..route("teapot", "/tea")
            },
            RouteConfig {
                to: RouteTo::Respond(RespondConfig { status: 204, headers: Vec::new(), body: String::new() }),
                ..route("nothing", "/nothing")
            },
            RouteConfig {
                to: RouteTo::Redirect(RedirectConfig {
                    status: 301,
                    path: Some("/new".into()),
                    ..RedirectConfig::default()
                }),
                ..route("moved", "/old")
            },
        ];
    })
    .await;
    for version in BOTH {
        let tea = ask(version, listen, Ask::get("/tea")).await;
        assert_eq!((tea.status, tea.text()), (418, "short and stout\n"));
        assert_eq!((tea.all("x-pot"), tea.all("content-type")), (vec!["tea"], vec!["text/plain"]));
        assert_eq!(tea.all("date").len(), 1);
        let head = ask(version, listen, Ask { method: "HEAD", ..Ask::get("/tea") }).await;
        assert_eq!((head.status, head.text(), head.all("content-length")), (418, "", vec!["16"]));
        let body: &[u8] = if version == Version::Http1 { b"milk" } else { b"" };
        let posted = ask(version, listen, Ask { method: "POST", body, ..Ask::get("/tea") }).await;
        assert_eq!((posted.status, posted.text()), (418, "short and stout\n"));
        let nothing = ask(version, listen, Ask::get("/nothing")).await;
        assert_eq!((nothing.status, nothing.all("content-length").len()), (204, 0));
        let moved = ask(version, listen, Ask::get("/old?q=1")).await;
        assert_eq!((moved.status, moved.all("location")), (301, vec!["http://web.test/new?q=1"]));
    }
    let mut client = connect(listen).await;
    for path in ["/tea", "/old", "/tea"] {
        send(&mut client, format!("GET {path} HTTP/1.1\r\nhost: web.test\r\n\r\n")).await;
        assert!(status(&response(&mut client).await.0) > 300);
    }
    send(&mut client, "GET / HTTP/1.1\r\nhost: web.test\r\n\r\n").await;
    assert_eq!(status(&response(&mut client).await.0), 200, "the same connection still reaches the origin");
    assert_eq!(origin.accepted(), 1);
}

#[tokio::test]
async fn a_route_has_a_time_of_its_own() {
    let silent = Origin::new(|stream| Box::pin(hold(stream))).await;
    let (_proxy, listen) = routed(&silent, |app| {
        let short = Some(std::time::Duration::from_millis(200));
        app.routes = vec![RouteConfig { timeout: short, ..route("short", "/short") }];
        app.timeouts.request = std::time::Duration::from_secs(3600);
        app.timeouts.response_header = std::time::Duration::ZERO;
    })
    .await;
    for version in BOTH {
        assert_eq!(ask(version, listen, Ask::get("/short")).await.status, 504);
    }
}

#[tokio::test]
async fn a_port_sends_everybody_to_https_with_the_method_they_came_with() {
    let origin = mirror().await;
    for (port, expected) in [(443, "https://web.test/a?b=c"), (8443, "https://web.test:8443/a?b=c")] {
        let (_proxy, listen) = routed(&origin, |app| app.ports[0].redirect_https = Some(port)).await;
        for version in BOTH {
            let body: &[u8] = if version == Version::Http1 { b"secret" } else { b"" };
            let posted = Ask { method: "POST", body, ..Ask::get("/a?b=c") };
            let answer = ask(version, listen, posted).await;
            assert_eq!((answer.status, answer.all("location")), (308, vec![expected]));
        }
        let mut old = connect(listen).await;
        send(&mut old, "GET / HTTP/1.0\r\n\r\n").await;
        assert_eq!(status(&head(&mut old).await.unwrap()), 400, "it names no host");
    }
    assert_eq!(origin.accepted(), 0);
}

#[tokio::test]
async fn what_could_split_a_message_is_refused_before_anything_serves() {
    let proxy = proxy();
    let (mut app, _) = app(Protocol::Http, &[free()]);
    app.routes = vec![RouteConfig {
        response_headers: EditConfig { set: pairs(&[("x", "a\r\nset-cookie: b")]), ..EditConfig::default() },
        ..route("split", "/")
    }];
    let error = proxy.prepare(app).await.unwrap_err().to_string();
    assert!(error.contains("route `split`: the value of `x` is not one line"), "{error}");
}

/// An origin that keeps what it is sent, head and body, and answers `ok`.
async fn keeper() -> (Origin, Arc<Mutex<Vec<String>>>) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&kept);
    let origin = Origin::new(move |mut stream| {
        let into = Arc::clone(&into);
        Box::pin(async move {
            while let Ok(head) = head(&mut stream).await {
                let length = field(&head, "content-length").map_or(0, |value| value.parse().unwrap());
                let body = String::from_utf8(receive(&mut stream, length).await).unwrap();
                into.lock().unwrap().push(head + &body);
                send(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        })
    })
    .await;
    (origin, kept)
}

#[tokio::test]
async fn a_split_shares_requests_out_and_keeps_alike_ones_together() {
    let (stable, canary) = (Origin::http("stable").await, Origin::http("canary").await);
    let (_proxy, listen) = routed(&stable, |app| {
        app.pools.insert("canary".into(), pool(&[canary.address]));
        let split = |weight, sticky| {
            let pools = vec![("default".to_owned(), 50), ("canary".to_owned(), weight)];
            RouteTo::Split(SplitConfig { pools, sticky })
        };
        app.routes = vec![
            RouteConfig {
                to: split(50, Some(HashOn::Header("x-user".into()))),
                ..route("sticky", "/sticky")
            },
            RouteConfig { to: split(50, None), ..route("any", "/any") },
            RouteConfig { to: split(0, None), ..route("none", "/none") },
        ];
    })
    .await;
    let answers = async |version, path: &str, user: &dyn Fn(usize) -> String| {
        let mut canary = 0;
        for n in 0..40 {
            let user = user(n);
            let answer = ask(version, listen, Ask::get(path).with(&[("x-user", &user)])).await;
            canary += usize::from(answer.text() == "canary");
        }
        canary
    };
    for version in BOTH {
        let same = answers(version, "/sticky", &|_| "one".into()).await;
        assert!(same == 0 || same == 40, "one user sees one of them: {same}");
        // Each misses all of 40 fair draws once in 2^39 runs.
        for path in ["/sticky", "/any"] {
            let some = answers(version, path, &|n| format!("user {n}")).await;
            assert!((1..40).contains(&some), "{path}: {some} of 40");
        }
        assert_eq!(answers(version, "/none", &|_| "one".into()).await, 0);
    }
}

#[tokio::test]
async fn a_mirror_gets_copies_and_the_client_nothing_of_it() {
    let (origin, seen) = keeper().await;
    let (shadow, copied) = keeper().await;
    let (_proxy, listen) = routed(&origin, |app| {
        app.pools.insert("shadow".into(), pool(&[shadow.address]));
        let mirror = |percent| Some(MirrorConfig { pool: "shadow".into(), percent, body_bytes_max: 100 });
        let rewrite = RewriteConfig { strip_prefix: Some("/all".into()), add_prefix: None };
        app.routes = vec![
            RouteConfig { mirror: mirror(100), rewrite, ..route("all", "/all") },
            RouteConfig { mirror: mirror(0), ..route("none", "/none") },
        ];
    })
    .await;
    let long = "x".repeat(101);
    for version in BOTH {
        for (path, body) in
            [("/all/get", ""), ("/none", ""), ("/all/long", long.as_str()), ("/all/post", "body")]
        {
            let method = if body.is_empty() { "GET" } else { "POST" };
            let length = body.len().to_string();
            let fields = [("content-length", length.as_str())];
            let fields = if version == Version::Http2 && !body.is_empty() { &fields[..] } else { &[] };
            let asked = Ask { method, body: body.as_bytes(), ..Ask::get(path) }.with(fields);
            assert_eq!(ask(version, listen, asked).await.text(), "ok");
        }
        eventually("both copies", || copied.lock().unwrap().len() == 2).await;
        let mut copies = std::mem::take(&mut *copied.lock().unwrap());
        let mut originals = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(originals.len(), 4, "{version:?}");
        originals.retain(|text| text.starts_with("GET /get ") || text.starts_with("POST /post "));
        copies.sort();
        originals.sort();
        assert_eq!(copies, originals, "they are the same, byte for byte");
    }
}

#[tokio::test]
async fn a_mirror_that_is_gone_or_silent_delays_nobody() {
    let origin = Origin::http("here").await;
    let silent = Origin::new(|stream| Box::pin(hold(stream))).await;
    for shadow in [silent.address, free()] {
        let (_proxy, listen) = routed(&origin, |app| {
            app.pools.insert("shadow".into(), pool(&[shadow]));
            let mirror = Some(MirrorConfig { pool: "shadow".into(), percent: 100, body_bytes_max: 100 });
            app.routes = vec![RouteConfig { mirror, ..route("all", "/") }];
        })
        .await;
        // More than may be copied at a time: the rest goes without.
        let mut client = connect(listen).await;
        for _ in 0..200 {
            assert_eq!(get(&mut client, "/").await, (200, "here".into()));
        }
    }
}

#[tokio::test]
async fn texts_are_compressed_for_those_who_take_it() {
    let page = "<p>the same again and again</p>\n".repeat(4000);
    let answers = page.clone();
    let origin = Origin::new(move |mut stream| {
        let page = answers.clone();
        Box::pin(async move {
            while let Ok(head) = head(&mut stream).await {
                let path = head.split(' ').nth(1).unwrap().to_owned();
                let (status, fields, body) = match path.as_str() {
                    "/chunked" => {
                        (200, "Content-Type: text/html\r\nTransfer-Encoding: chunked", page.as_str())
                    }
                    "/png" => (200, "Content-Type: image/png", page.as_str()),
                    "/part" => (206, "Content-Type: text/html\r\nContent-Range: bytes 0-3/9", "part"),
                    "/coded" => (200, "Content-Type: text/html\r\nContent-Encoding: br", page.as_str()),
                    "/small" => (200, "Content-Type: text/html", "small"),
                    _ => {
                        (200, "Content-Type: text/html\r\nETag: \"a\"\r\nAccept-Ranges: bytes", page.as_str())
                    }
                };
                let mut answer = format!("HTTP/1.1 {status} OK\r\n{fields}\r\n");
                if path == "/chunked" {
                    answer += &format!("\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
                } else {
                    answer += &format!("Content-Length: {}\r\n\r\n", body.len());
                    answer += if head.starts_with("HEAD") { "" } else { body };
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
    })
    .await;
    let (_proxy, listen) = routed(&origin, |app| app.compression = Some(CompressionConfig::default())).await;
    let takes = [("accept-encoding", "br, gzip")];
    for version in BOTH {
        for path in ["/", "/chunked"] {
            let answer = ask(version, listen, Ask::get(path).with(&takes)).await;
            assert_eq!(answer.all("content-encoding"), ["gzip"], "{version:?} {path}");
            assert!(answer.all("content-length").is_empty() && answer.all("accept-ranges").is_empty());
            assert_eq!(answer.all("vary"), ["Accept-Encoding"]);
            assert!(answer.body.len() < page.len() / 20, "{} bytes", answer.body.len());
            let mut text = String::new();
            flate2::read::GzDecoder::new(&answer.body[..]).read_to_string(&mut text).unwrap();
            assert_eq!(text, page);
        }
        let answer = ask(version, listen, Ask::get("/").with(&takes)).await;
        assert_eq!(answer.all("etag"), ["W/\"a\""]);
        let plain = ask(version, listen, Ask::get("/")).await;
        assert_eq!((plain.all("vary"), plain.all("etag")), (vec!["Accept-Encoding"], vec!["\"a\""]));
        assert_eq!(plain.text(), page);
        for path in ["/png", "/part", "/coded", "/small"] {
            let answer = ask(version, listen, Ask::get(path).with(&takes)).await;
            let coding = if path == "/coded" { vec!["br"] } else { Vec::new() };
            assert_eq!((answer.all("content-encoding"), answer.all("vary").len()), (coding, 0), "{path}");
            assert_eq!(answer.all("content-length").len(), 1);
        }
        let head = ask(version, listen, Ask { method: "HEAD", ..Ask::get("/").with(&takes) }).await;
        assert!(head.all("content-encoding").is_empty() && head.body.is_empty());
        assert_eq!(head.all("content-length"), [page.len().to_string()]);
    }
    let (_proxy, listen) = routed(&origin, |_| ()).await;
    let answer = ask(Version::Http1, listen, Ask::get("/").with(&takes)).await;
    assert!(
        answer.all("content-encoding").is_empty() && answer.all("vary").is_empty(),
        "it is off by default"
    );
}

#[tokio::test]
async fn a_compressed_stream_of_events_arrives_event_by_event() {
    let (more, wait) = tokio::sync::watch::channel(false);
    let origin = Origin::new(move |mut stream| {
        let mut wait = wait.clone();
        Box::pin(async move {
            let _head = head(&mut stream).await;
            let begin = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";
            stream.write_all(begin.as_bytes()).await.unwrap();
            wait.wait_for(|more| *more).await.unwrap();
            stream.write_all(b"data: 2\n\n").await.unwrap();
        })
    })
    .await;
    let (_proxy, listen) = routed(&origin, |app| app.compression = Some(CompressionConfig::default())).await;
    let mut client = connect(listen).await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: web.test\r\naccept-encoding: gzip\r\n\r\n").await;
    assert_eq!(field(&head(&mut client).await.unwrap(), "content-encoding"), Some("gzip"));
    let mut packed = Vec::new();
    let text_of = |packed: &[u8]| {
        let mut text = Vec::new();
        let _more_to_come = flate2::read::GzDecoder::new(packed).read_to_end(&mut text);
        String::from_utf8(text).unwrap()
    };
    let mut sees = async |wanted: &str| {
        while text_of(&packed) != wanted {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.extend_from_slice(&receive(&mut client, 1).await);
            }
            let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
            assert!(size > 0, "it ended with {:?}", text_of(&packed));
            packed.extend_from_slice(&receive(&mut client, size + 2).await[..size]);
        }
    };
    sees("data: 1\n\n").await;
    more.send(true).unwrap();
    sees("data: 1\n\ndata: 2\n\n").await;
}
