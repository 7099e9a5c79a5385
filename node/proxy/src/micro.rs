//! The steps of a request one by one, for `benches/micro.rs`. No part of the interface.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    task::{Context, Waker},
};

use http::{Method, Request, request};

use crate::{
    config::{PoolConfig, RouteConfig},
    http::{
        guard::Guard,
        headers::{self, Seen},
        link::Link,
        route::Router,
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
    ("host", "shop.example.com"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("accept-language", "en-US,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("connection", "keep-alive"),
    ("cookie", "session=4b1d3a6b5f2c48e0b7a1d6c2e9f03857"),
    ("referer", "https://shop.example.com/"),
    ("dnt", "1"),
];

fn head() -> request::Parts {
    let builder = Request::builder().uri("/articles/4711?from=list");
    let builder = FIELDS.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
    builder.body(()).expect("a valid request").into_parts().0
}

/// Watches the bytes of a head.
pub fn guard() -> Step {
    let fields: String = FIELDS.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let text = format!("GET /articles/4711?from=list HTTP/1.1\r\n{fields}\r\n");
    let mut guard = Guard::new(64 * 1024);
    Box::new(move || assert_eq!(guard.feed(text.as_bytes()).pass, text.len()))
}

/// Finds the pool of a host among `hosts` routes.
pub fn route(hosts: usize) -> Step {
    let name = |number| format!("shop-{number}.example.com");
    let routes: Vec<RouteConfig> =
        (0..hosts).map(|number| RouteConfig::hosts(&name(number), [name(number)], "shops")).collect();
    let router = Router::compile(&routes, &["shops".to_owned()]).expect("valid routes");
    let host = name(hosts / 2);
    Box::new(move || assert!(router.route(&host, "/articles/4711", &Method::GET).is_some()))
}

/// Copies a head: what must be taken off the next one.
pub fn copy_head() -> Step {
    let head = head();
    Box::new(move || {
        std::hint::black_box(head.clone());
    })
}

/// Copies a head, checks it, and makes it ready to forward.
pub fn rewrite() -> Step {
    let head = head();
    let seen = Seen::new(SocketAddr::from((Ipv4Addr::new(192, 0, 2, 7), 4711)), 8080);
    Box::new(move || {
        let mut head = head.clone();
        assert_eq!(headers::check_request(&head), Ok(()));
        headers::sanitize_request(&mut head, &seen, false);
        std::hint::black_box(head);
    })
}

/// Chooses one of `endpoints`.
pub fn pick(strategy: &str, endpoints: u16) -> Step {
    let endpoint = |port| Endpoint { address: address(port), target: "a".into(), weight: 100 };
    let set = EndpointSet::new((1..=endpoints).map(endpoint).collect(), (0..endpoints.into()).collect());
    let balance = Strategies::default().get(strategy).expect("a known strategy");
    let mut random = 1_u64;
    Box::new(move || {
        random = random.wrapping_mul(0x2545_F491_4F6C_DD1D).rotate_left(17);
        let candidates = Candidates { set: &set, pending: &|_| 0, tried: &[], random };
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
    let cells = registry.add(AppCells::new(&app));
    let load = registry.add(TargetCells::new(&app, &Arc::from("a")));
    let endpoint = LocalEndpoint::new(address(1), Settings::of(&PoolConfig::default()), cells.clone(), load);
    let (link, peer) = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address(0)).await.expect("a port");
        let stream = tokio::net::TcpStream::connect(listener.local_addr().expect("it is bound")).await;
        let (peer, _) = listener.accept().await.expect("a connection");
        (Link::open(stream.expect("a connection"), &cells).await.expect("nothing is sent yet"), peer)
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
