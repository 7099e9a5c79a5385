//! The steps of a request one by one, for `benches/micro.rs`. No part of the interface.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    task::{Context, Waker},
};

use http::Method;

use crate::{
    config::{PoolConfig, RouteConfig},
    http::{
        body::Framing,
        head::Head,
        headers::{self, Onward, Outward, Seen},
        link::Link,
        route::{Request, Router},
    },
    metrics::{AppCells, Registry, TargetCells},
    pool::{LocalEndpoint, Settings},
    upstream::{
        Endpoint, EndpointSet,
        balance::{Candidates, Strategies},
    },
};

/// Does one step each time it is called.
pub type Step = Box<dyn FnMut()>;

/// What a browser sends, about.
const FIELDS: [(&str, &str); 9] = [
    ("Host", "shop.example.com"),
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("Accept-Language", "en-US,en;q=0.5"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Connection", "keep-alive"),
    ("Cookie", "session=4b1d3a6b5f2c48e0b7a1d6c2e9f03857"),
    ("Referer", "https://shop.example.com/"),
    ("DNT", "1"),
];

fn request() -> String {
    let fields: String = FIELDS.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET /articles/4711?from=list HTTP/1.1\r\n{fields}\r\n")
}

const RESPONSE: &str = "HTTP/1.1 200 OK\r\nServer: origin\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
    Content-Type: text/html; charset=utf-8\r\nContent-Length: 4711\r\nConnection: keep-alive\r\n\
    ETag: \"4711-5a\"\r\nCache-Control: max-age=60\r\n\r\n";

/// Reads the head of a request.
pub fn parse() -> Step {
    let (text, mut head) = (request(), Head::default());
    Box::new(move || assert_eq!(head.parse_request(text.as_bytes(), HEAD_BYTES_MAX), Ok(Some(text.len()))))
}

const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Finds the pool of a host among `hosts` routes.
pub fn route(hosts: usize) -> Step {
    let name = |number| format!("shop-{number}.example.com");
    let routes: Vec<RouteConfig> =
        (0..hosts).map(|number| RouteConfig::hosts(&name(number), [name(number)], "shops")).collect();
    let router = Router::compile(&routes, &["shops".to_owned()]).expect("valid routes");
    let host = name(hosts / 2);
    Box::new(move || {
        let request = Request { path: "/articles/4711", method: &Method::GET, ..Request::by_name(&host) };
        assert!(router.route(&request).is_some());
    })
}

/// Reads the head of a request, checks it, makes it ready to forward, and writes it.
pub fn rewrite_request() -> Step {
    let (text, mut head, mut out) = (request(), Head::default(), Vec::new());
    let seen = Seen::new(SocketAddr::from((Ipv4Addr::new(192, 0, 2, 7), 4711)), 8080, false);
    Box::new(move || {
        assert_eq!(head.parse_request(text.as_bytes(), HEAD_BYTES_MAX), Ok(Some(text.len())));
        let body = headers::check_request(&head, &Method::GET).expect("nothing is wrong with it");
        headers::sanitize_request(&mut head, &seen, Onward { upgrade: false, body });
        out.clear();
        head.write_request_line(&mut out);
        head.write_fields(&mut out);
        std::hint::black_box(&out);
    })
}

/// The same for a response.
pub fn rewrite_response() -> Step {
    let (mut head, mut out) = (Head::default(), Vec::new());
    let outward = Outward { upgrade: false, chunked: false, connection: None, date: b"" };
    Box::new(move || {
        assert_eq!(head.parse_response(RESPONSE.as_bytes(), HEAD_BYTES_MAX), Ok(Some(RESPONSE.len())));
        assert_eq!(headers::check_response(&head, false), Ok(Framing::Length(4711)));
        headers::sanitize_response(&mut head, &outward);
        out.clear();
        head.write_status_line(false, &mut out);
        head.write_fields(&mut out);
        std::hint::black_box(&out);
    })
}

/// Chooses one of `endpoints`.
pub fn pick(strategy: &str, endpoints: u16) -> Step {
    let endpoint = |port| Endpoint::new(address(port), "a", 100);
    let mut set = EndpointSet::new((1..=endpoints).map(endpoint).collect(), (0..endpoints.into()).collect());
    let strategies = Strategies::default();
    if let Some(layout) = strategies.layout(strategy) {
        set = set.laid_out(&layout);
    }
    let balance = strategies.get(strategy).expect("a known strategy");
    let mut random = 1_u64;
    Box::new(move || {
        random = random.wrapping_mul(0x2545_F491_4F6C_DD1D).rotate_left(17);
        let (pending, latency) = (&|_| 1, &|_| Some(100.0));
        let key = Some(random);
        let candidates = Candidates { set: &set, pending, latency, key, tried: &[], random };
        assert!(balance.pick(&candidates).is_some());
    })
}

/// Takes a connection out of the pool, which looks whether it is still open, and puts it back.
///
/// # Panics
/// Without a loopback interface.
pub fn pool() -> Step {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    let app = Arc::from("app");
    let registry = Registry::default();
    let cells = registry.add(AppCells::new(&app, metrics::Counter::noop()));
    let load = registry.add(TargetCells::new(&app, &Arc::from("a")));
    let endpoint = LocalEndpoint::new(
        address(1).into(),
        Settings::of(&PoolConfig::default(), None),
        cells.clone(),
        load,
        "a:1".into(),
    );
    let (link, peer) = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address(0)).await.expect("a port");
        let stream = tokio::net::TcpStream::connect(listener.local_addr().expect("it is bound")).await;
        let (peer, _) = listener.accept().await.expect("a connection");
        (Link::new(stream.expect("a connection").into(), &cells), peer)
    });
    endpoint.put(link, 0);
    Box::new(move || {
        let _open = (&runtime, &peer);
        let link = endpoint.take(&mut Context::from_waker(Waker::noop())).expect("it is still open");
        endpoint.put(link, 0);
    })
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
