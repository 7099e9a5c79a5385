//! An HTTP/1.1 server whose every answer names it (`x-target`) and the request it belongs to (`x-token`).
//!
//! | request | answer |
//! |---|---|
//! | `GET /bytes/N` | N bytes of [`Pattern`] |
//! | `GET /slow?ms=N` | after N ms: the name |
//! | `POST /upload` | `BYTES CRC32`, or 400 when the body is not [`Pattern`] |
//! | anything with `Upgrade` | 101, then an echo |
//! | anything else | the name |
//!
//! While it is told to fail, it answers with that status to all of them but upgrades.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{
    Method, Request, Response, StatusCode,
    header::{CONNECTION, HeaderValue, UPGRADE},
};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{copy, split},
    net::TcpStream,
};

use super::{Server, pattern::Pattern};

/// As much as a body hands over at once.
const PIECE: u64 = 64 * 1024;

#[derive(Debug)]
pub struct Http {
    state: Arc<State>,
    server: Server,
}

#[derive(Debug)]
struct State {
    name: HeaderValue,
    /// 0: answers as it should.
    failing: AtomicU16,
    requests: AtomicU64,
    connections: AtomicU64,
}

impl Http {
    pub fn start(name: &str) -> Self {
        let state = Arc::new(State {
            name: HeaderValue::from_str(name).unwrap(),
            failing: AtomicU16::new(0),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        });
        let server = Server::start(name, sessions(state.clone()));
        Self { state, server }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Answers everything with this status from now on, `/healthz` too.
    pub fn fail_with(&self, status: StatusCode) {
        self.state.failing.store(status.as_u16(), Ordering::Relaxed);
    }

    pub fn recover(&self) {
        self.state.failing.store(0, Ordering::Relaxed);
    }

    /// Received so far, health checks included.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }

    /// Accepted so far.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }
}

fn sessions(state: Arc<State>) -> impl Fn(TcpStream) -> BoxFuture<'static, ()> + Send {
    move |stream| {
        state.connections.fetch_add(1, Ordering::Relaxed);
        let state = state.clone();
        Box::pin(async move {
            let (upgraded, mut upgrades) = tokio::sync::mpsc::channel(1);
            let service = service_fn(|request| answer(request, &state, &upgraded));
            let connection = http1::Builder::new()
                .half_close(true)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            // A client that cuts the connection counts that itself.
            drop(connection.await);
            if let Ok(upgrade) = upgrades.try_recv() {
                echo(upgrade).await;
            }
        })
    }
}

type Reply = Response<BoxBody<Bytes, Infallible>>;

async fn answer(
    mut request: Request<Incoming>,
    state: &State,
    upgraded: &tokio::sync::mpsc::Sender<hyper::upgrade::OnUpgrade>,
) -> Result<Reply, hyper::Error> {
    state.requests.fetch_add(1, Ordering::Relaxed);
    let token = request.headers().get("x-token").cloned();
    let mut reply = match request.headers().get(UPGRADE).cloned() {
        Some(protocol) => {
            drop(upgraded.try_send(hyper::upgrade::on(&mut request)));
            switch(protocol)
        }
        None => respond(request, state).await?,
    };
    reply.headers_mut().insert("x-target", state.name.clone());
    if let Some(token) = token {
        reply.headers_mut().insert("x-token", token);
    }
    Ok(reply)
}

async fn respond(request: Request<Incoming>, state: &State) -> Result<Reply, hyper::Error> {
    let path = request.uri().path().to_owned();
    let failing = state.failing.load(Ordering::Relaxed);
    if failing != 0 {
        let mut reply = text("failing as told\n".to_owned());
        *reply.status_mut() = StatusCode::from_u16(failing).expect("a status was stored");
        return Ok(reply);
    }
    if let Some(count) = path.strip_prefix("/bytes/").and_then(|count| count.parse().ok()) {
        return Ok(Response::new(PatternBody { left: count, pattern: Pattern::default() }.boxed()));
    }
    if path == "/slow" {
        let ms = request.uri().query().and_then(|query| query.strip_prefix("ms=")?.parse().ok());
        tokio::time::sleep(Duration::from_millis(ms.unwrap_or(1_000))).await;
    }
    if path == "/upload" && request.method() == Method::POST {
        return sink(request.into_body()).await;
    }
    Ok(text(format!("{}\n", state.name.to_str().expect("it was a str"))))
}

fn text(text: String) -> Reply {
    Response::new(Full::from(text).boxed())
}

fn switch(protocol: HeaderValue) -> Reply {
    let mut reply = text(String::new());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    reply.headers_mut().insert(UPGRADE, protocol);
    reply
}

async fn echo(upgrade: hyper::upgrade::OnUpgrade) {
    let Ok(stream) = upgrade.await else { return };
    let (mut read, mut write) = split(TokioIo::new(stream));
    if copy(&mut read, &mut write).await.is_ok() {
        drop(tokio::io::AsyncWriteExt::shutdown(&mut write).await);
    }
}

async fn sink(mut body: Incoming) -> Result<Reply, hyper::Error> {
    let mut pattern = Pattern::default();
    let mut crc = crc32fast::Hasher::new();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame?.into_data() else { continue };
        crc.update(&piece);
        if let Err(position) = pattern.check(&piece) {
            let mut reply = text(format!("byte {position} is wrong\n"));
            *reply.status_mut() = StatusCode::BAD_REQUEST;
            return Ok(reply);
        }
    }
    Ok(text(format!("{} {:08x}\n", pattern.position(), crc.finalize())))
}

/// `left` bytes of the pattern, with their number announced.
struct PatternBody {
    left: u64,
    pattern: Pattern,
}

impl Body for PatternBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let max = self.left.min(PIECE);
        let piece = Bytes::copy_from_slice(self.pattern.next(max));
        self.left -= piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
