//! User code on requests and responses: real tower layers around real requests.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use ::http::{HeaderValue, Request, Response, StatusCode};
use bytes::Bytes;
use flotilla_proxy::{
    AppConfig, Extensions, Layers, Proxy, ProxyConfig,
    config::Protocol,
    layers::{Content, Next},
};
use tower::{
    Layer, Service,
    util::{MapRequestLayer, MapResponseLayer},
};

use crate::{
    route::{Ask, BOTH, ask, mirror},
    support::*,
};

/// Lets in who knows the word, and counts the others.
#[derive(Clone)]
struct Doorkeeper {
    refused: Arc<AtomicUsize>,
}

struct Kept<S> {
    inner: S,
    refused: Arc<AtomicUsize>,
}

impl<S> Layer<S> for Doorkeeper {
    type Service = Kept<S>;

    fn layer(&self, inner: S) -> Kept<S> {
        Kept { inner, refused: Arc::clone(&self.refused) }
    }
}

impl Service<Request<()>> for Kept<Next> {
    type Response = Response<Content>;
    type Error = tower::BoxError;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        let word = request.headers().get("x-word").map(|word| word.as_bytes().to_vec());
        match word.as_deref() {
            Some(b"please") => self.inner.call(request),
            Some(b"twice") => {
                let (first, second) = (self.inner.call(request.clone()), self.inner.call(request));
                Box::pin(async {
                    second.await?;
                    first.await
                })
            }
            Some(b"bug") => Box::pin(async { Err("a bug".into()) }),
            Some(_) | None => {
                self.refused.fetch_add(1, SeqCst);
                let response = Response::builder()
                    .status(StatusCode::FORBIDDEN)
                    .header("x-why", "the word")
                    .header("content-length", "999")
                    .body(Content::Own(Bytes::from_static(b"say the word\n")));
                Box::pin(std::future::ready(response.map_err(Into::into)))
            }
        }
    }
}

async fn layered(origin: &Origin, layers: Layers, names: &[&str]) -> (Proxy, SocketAddr) {
    let config = ProxyConfig { workers: 2, ..ProxyConfig::default() };
    let proxy = Proxy::start_with(config, Extensions { layers, ..Extensions::default() }).unwrap();
    let (app, listen) = app(Protocol::Http, &[origin.address]);
    let app = AppConfig { layers: names.iter().map(|name| (*name).to_owned()).collect(), ..app };
    serve(&proxy, &app).await;
    (proxy, listen)
}

#[tokio::test]
async fn layers_change_requests_on_the_way_there_and_responses_on_the_way_back() {
    let origin = mirror().await;
    let mut layers = Layers::default();
    layers.register(
        "outer",
        MapRequestLayer::new(|mut request: Request<()>| {
            let client = *request.extensions().get::<IpAddr>().unwrap();
            request.headers_mut().insert("x-order", HeaderValue::from_static("outer"));
            request.headers_mut().insert("x-client", client.to_string().parse().unwrap());
            request.headers_mut().insert("content-length", HeaderValue::from_static("999"));
            request.headers_mut().insert("host", HeaderValue::from_static("forged"));
            *request.uri_mut() = "/changed?q=1".parse().unwrap();
            request
        }),
    );
    layers.register(
        "inner",
        MapRequestLayer::new(|mut request: Request<()>| {
            request.headers_mut().append("x-order", HeaderValue::from_static("inner"));
            request
        }),
    );
    layers.register(
        "back",
        MapResponseLayer::new(|mut response: Response<Content>| {
            assert_eq!(response.body(), &Content::Passing);
            assert!(!response.headers().contains_key("content-length"), "framing is not shown");
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            response.headers_mut().remove("server");
            response.headers_mut().insert("x-back", HeaderValue::from_static("1"));
            response.headers_mut().insert("transfer-encoding", HeaderValue::from_static("gzip"));
            response
        }),
    );
    let (_proxy, listen) = layered(&origin, layers, &["outer", "back", "inner"]).await;
    for version in BOTH {
        let answer = ask(version, listen, Ask::get("/").with(&[("x-mine", "1")])).await;
        let seen = answer.text().to_ascii_lowercase();
        assert!(seen.starts_with("get /changed?q=1 http/1.1\r\nhost: web.test\r\n"), "{seen}");
        assert!(seen.contains("\r\nx-order: outer\r\nx-order: inner\r\n"), "{seen}");
        assert!(seen.contains("\r\nx-client: 127.0.0.1\r\n") && seen.contains("\r\nx-mine: 1\r\n"), "{seen}");
        assert!(!seen.contains("999") && !seen.contains("forged"), "{seen}");
        assert_eq!((answer.status, answer.all("x-back"), answer.all("x-up")), (418, vec!["1"], vec!["1"]));
        assert!(answer.all("server").is_empty() && answer.all("transfer-encoding").is_empty());
    }
}

#[tokio::test]
async fn a_layer_answers_itself_and_one_that_fails_is_an_error_of_ours() {
    let origin = mirror().await;
    let refused = Arc::new(AtomicUsize::new(0));
    let mut layers = Layers::default();
    layers.register("door", Doorkeeper { refused: Arc::clone(&refused) });
    let (_proxy, listen) = layered(&origin, layers, &["door"]).await;
    for version in BOTH {
        let answer = ask(version, listen, Ask::get("/")).await;
        assert_eq!((answer.status, answer.text()), (403, "say the word\n"));
        assert_eq!((answer.all("x-why"), answer.all("content-length")), (vec!["the word"], vec!["13"]));
        for (word, status) in [("please", 200), ("bug", 500), ("twice", 500), ("please", 200)] {
            let answer = ask(version, listen, Ask::get("/").with(&[("x-word", word)])).await;
            assert_eq!(answer.status, status, "{version:?} {word}");
        }
    }
    assert_eq!(refused.load(SeqCst), 2);
    let mut client = connect(listen).await;
    for _ in 0..3 {
        assert_eq!(get(&mut client, "/").await, (403, "say the word\n".into()), "the connection goes on");
    }
}

#[tokio::test]
async fn a_layer_that_nobody_registered_is_refused_before_anything_serves() {
    let proxy = proxy();
    let (app, _) = app(Protocol::Http, &[free()]);
    let error = proxy.prepare(AppConfig { layers: vec!["geo".into()], ..app }).await.unwrap_err().to_string();
    assert!(error.contains("there is no layer `geo`"), "{error}");
}
