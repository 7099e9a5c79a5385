//! gRPC as its own library speaks it, through the proxy: tonic on both sides.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use flotilla_proxy::{
    Proxy,
    config::{Protocol, TlsConfig, UpstreamProtocol},
};
use futures_util::{Stream, stream};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tonic::{
    Code, Request, Response, Status, Streaming,
    body::Body,
    client::Grpc,
    server::NamedService,
    transport::{Channel, Endpoint, Server},
};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use crate::{secure::*, support::*};

#[derive(Clone, PartialEq, prost::Message)]
struct Note {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(string, tag = "2")]
    text: String,
}

fn note(number: u64, text: impl Into<String>) -> Note {
    Note { number, text: text.into() }
}

type Notes = Pin<Box<dyn Stream<Item = Result<Note, Status>> + Send>>;

/// What is called: `Say` answers once, `List` counts up to a number, `Chat` answers each note as it comes, `Wait`
/// answers when it is let, `Fail` has a status and no answer.
#[derive(Clone, Default)]
struct Talk {
    /// Calls of which the client has gone.
    gone: Arc<AtomicUsize>,
    waiting: Arc<AtomicUsize>,
    go: Arc<AtomicBool>,
}

impl NamedService for Talk {
    const NAME: &'static str = "test.Talk";
}

/// Counts when it is dropped before its end.
struct Gone(Arc<AtomicUsize>, bool);

impl Gone {
    fn ends(mut self) {
        self.1 = true;
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        if !self.1 {
            self.0.fetch_add(1, SeqCst);
        }
    }
}

impl Talk {
    fn say(request: &Request<Note>) -> Response<Note> {
        let about = |name: &str| {
            let value = request.metadata().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let text = format!("{} {} {}", request.get_ref().text, about("x-who"), about("grpc-timeout"));
        let mut response = Response::new(note(request.get_ref().number + 1, text));
        response.metadata_mut().insert("x-served", "yes".parse().unwrap());
        response
    }

    fn list(&self, request: &Request<Note>) -> Notes {
        let until = request.get_ref().number;
        let gone = Gone(Arc::clone(&self.gone), false);
        Box::pin(stream::unfold((0, gone), move |(number, gone)| async move {
            if number == until {
                gone.ends();
                return None;
            }
            // So that it cannot run ahead for ever of somebody who has gone.
            tokio::task::yield_now().await;
            Some((Ok(note(number, "x".repeat(1000))), (number + 1, gone)))
        }))
    }

    fn chat(request: Request<Streaming<Note>>) -> Notes {
        let notes = request.into_inner();
        Box::pin(stream::unfold(Some(notes), |notes| async {
            let mut notes = notes?;
            match notes.message().await {
                Ok(Some(Note { number: 13, .. })) => Some((Err(Status::out_of_range("not 13")), None)),
                Ok(Some(Note { number, text })) => Some((Ok(note(number * 2, text)), Some(notes))),
                Ok(None) | Err(_) => None,
            }
        }))
    }

    async fn wait(self, request: Request<Note>) -> Result<Response<Note>, Status> {
        let gone = Gone(Arc::clone(&self.gone), false);
        self.waiting.fetch_add(1, SeqCst);
        while !self.go.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        gone.ends();
        Ok(Response::new(request.into_inner()))
    }
}

impl Service<http::Request<Body>> for Talk {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let talk = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Note, Note>::default());
            Ok(match request.uri().path() {
                "/test.Talk/Say" => {
                    let say = |request: Request<Note>| async move { Ok::<_, Status>(Talk::say(&request)) };
                    grpc.unary(service_fn(say), request).await
                }
                "/test.Talk/Wait" => {
                    grpc.unary(service_fn(move |request| talk.clone().wait(request)), request).await
                }
                "/test.Talk/Fail" => {
                    let fail = |_: Request<Note>| async {
                        Err::<Response<Note>, _>(Status::with_details(
                            Code::DataLoss,
                            "lost: ä %",
                            b"\0\x01".as_slice().into(),
                        ))
                    };
                    grpc.unary(service_fn(fail), request).await
                }
                "/test.Talk/List" => {
                    let list = move |request: Request<Note>| {
                        let notes = talk.list(&request);
                        async move { Ok::<_, Status>(Response::new(notes)) }
                    };
                    grpc.server_streaming(service_fn(list), request).await
                }
                "/test.Talk/Chat" => {
                    let chat = |request| async { Ok::<_, Status>(Response::new(Talk::chat(request))) };
                    grpc.streaming(service_fn(chat), request).await
                }
                _ => Status::unimplemented("no such call").into_http(),
            })
        })
    }
}

/// A server, and the proxy in front of it.
struct Stage {
    talk: Talk,
    proxy: Proxy,
    app: flotilla_proxy::AppConfig,
    listen: SocketAddr,
    authority: Authority,
    is_secure: bool,
    _server: JoinSet<()>,
}

async fn server(talk: &Talk) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let serve = Server::builder().add_service(talk.clone()).serve_with_incoming(incoming);
    let mut tasks = JoinSet::new();
    tasks.spawn(async { serve.await.unwrap() });
    (address, tasks)
}

impl Stage {
    async fn new(is_secure: bool) -> Stage {
        let talk = Talk::default();
        let (address, server) = server(&talk).await;
        let authority = Authority::new();
        authority.issue("web", &["web.test"]);
        let proxy = proxy();
        let (mut app, listen) = app(Protocol::Http, &[address]);
        app.pools.get_mut("default").unwrap().protocol = UpstreamProtocol::Http2;
        if is_secure {
            app.ports[0].tls = Some(TlsConfig { alpn: vec!["h2".to_owned()], ..authority.tls(&["web"]) });
        }
        serve(&proxy, &app).await;
        Stage { talk, proxy, app, listen, authority, is_secure, _server: server }
    }

    /// A client with one connection of its own.
    async fn client(&self) -> Grpc<Channel> {
        let listen = self.listen;
        let endpoint = Endpoint::from_static("http://web.test");
        let channel = if self.is_secure {
            let connector = self.authority.client().alpn(&["h2"]).connector();
            endpoint
                .connect_with_connector(service_fn(move |_| {
                    let connector = connector.clone();
                    async move { tls(&connector, listen, "web.test").await.map(TokioIo::new) }
                }))
                .await
        } else {
            endpoint
                .connect_with_connector(service_fn(move |_| async move {
                    tokio::net::TcpStream::connect(listen).await.map(TokioIo::new)
                }))
                .await
        };
        Grpc::new(channel.unwrap())
    }
}

fn path(call: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(call)
}

type Codec = ProstCodec<Note, Note>;

async fn unary(
    client: &mut Grpc<Channel>,
    call: &'static str,
    request: Request<Note>,
) -> Result<Response<Note>, Status> {
    client.ready().await.map_err(|error| Status::unavailable(format!("no connection: {error}")))?;
    timeout(PATIENCE, client.unary(request, path(call), Codec::default())).await.expect("an answer in time")
}

#[tokio::test]
async fn calls_of_every_kind_go_through_with_their_status() {
    for is_secure in [false, true] {
        let stage = Stage::new(is_secure).await;
        let mut client = stage.client().await;
        // Unary, with fields both ways.
        let mut request = Request::new(note(1, "hello"));
        request.metadata_mut().insert("x-who", "me".parse().unwrap());
        let response = unary(&mut client, "/test.Talk/Say", request).await.unwrap();
        assert_eq!(response.metadata().get("x-served").unwrap(), "yes");
        assert_eq!(response.into_inner(), note(2, "hello me "));
        // A status without an answer, with all it has.
        let status = unary(&mut client, "/test.Talk/Fail", Request::new(note(0, ""))).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message(), status.details()),
            (Code::DataLoss, "lost: ä %", &b"\0\x01"[..])
        );
        let status = unary(&mut client, "/test.Talk/Nothing", Request::new(note(0, ""))).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unimplemented, "no such call"));
        // A stream of the server, far larger than any window.
        client.ready().await.unwrap();
        let list =
            client.server_streaming(Request::new(note(500, "")), path("/test.Talk/List"), Codec::default());
        let mut list = timeout(PATIENCE, list).await.expect("an answer in time").unwrap().into_inner();
        for number in 0..500 {
            let next = timeout(PATIENCE, list.message()).await.expect("a note in time").unwrap().unwrap();
            assert_eq!((next.number, next.text.len()), (number, 1000));
        }
        assert_eq!(list.message().await.unwrap(), None);
        assert!(list.trailers().await.unwrap().is_some());
        // Both ways: each note is answered before the next one is sent.
        let (send, notes) = futures_channel(4);
        client.ready().await.unwrap();
        let chat = client.streaming(Request::new(notes), path("/test.Talk/Chat"), Codec::default());
        let mut chat = timeout(PATIENCE, chat).await.expect("an answer in time").unwrap().into_inner();
        for number in [1, 2, 3] {
            send.send(note(number, "n")).await.unwrap();
            let next = timeout(PATIENCE, chat.message()).await.expect("a note in time").unwrap().unwrap();
            assert_eq!(next, note(number * 2, "n"));
        }
        // The status of a stream comes behind what it has said.
        send.send(note(13, "")).await.unwrap();
        let status = timeout(PATIENCE, chat.message()).await.expect("an end in time").unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::OutOfRange, "not 13"));
    }
}

/// A bounded queue as a stream.
fn futures_channel(
    notes_max: usize,
) -> (tokio::sync::mpsc::Sender<Note>, impl Stream<Item = Note> + Send + 'static) {
    let (send, receive) = tokio::sync::mpsc::channel(notes_max);
    let notes =
        stream::unfold(receive, |mut receive| async { receive.recv().await.map(|note| (note, receive)) });
    (send, notes)
}

#[tokio::test]
async fn a_deadline_is_told_and_kept() {
    let stage = Stage::new(false).await;
    let mut client = stage.client().await;
    let mut request = Request::new(note(1, "by"));
    request.set_timeout(Duration::from_secs(30));
    let text = unary(&mut client, "/test.Talk/Say", request).await.unwrap().into_inner().text;
    assert!(text.starts_with("by  ") && text.len() > 4, "the server is told of the deadline: {text:?}");
    let mut request = Request::new(note(1, ""));
    request.set_timeout(Duration::from_millis(200));
    let status = unary(&mut client, "/test.Talk/Wait", request).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    eventually("the server has given up as well", || stage.talk.gone.load(SeqCst) == 1).await;
    // The connection is as good as before.
    unary(&mut client, "/test.Talk/Say", Request::new(note(1, ""))).await.unwrap();
}

#[tokio::test]
async fn a_call_that_is_given_up_ends_at_the_server() {
    for is_secure in [false, true] {
        let stage = Stage::new(is_secure).await;
        let mut client = stage.client().await;
        // Before the answer.
        let mut given_up = client.clone();
        let mut call = JoinSet::new();
        call.spawn(async move { unary(&mut given_up, "/test.Talk/Wait", Request::new(note(1, ""))).await });
        eventually("the call is there", || stage.talk.waiting.load(SeqCst) == 1).await;
        call.abort_all();
        eventually("the server has given up", || stage.talk.gone.load(SeqCst) == 1).await;
        // In the middle of it.
        client.ready().await.unwrap();
        let list = client.server_streaming(
            Request::new(note(u64::MAX, "")),
            path("/test.Talk/List"),
            Codec::default(),
        );
        let mut list = timeout(PATIENCE, list).await.expect("an answer in time").unwrap().into_inner();
        assert_eq!(list.message().await.unwrap().unwrap().number, 0);
        drop(list);
        eventually("the server has given up the stream", || stage.talk.gone.load(SeqCst) == 2).await;
        unary(&mut client, "/test.Talk/Say", Request::new(note(1, ""))).await.unwrap();
    }
}

#[tokio::test]
async fn no_call_is_lost_while_generations_shift_and_the_port_drains() {
    let stage = Stage::new(false).await;
    let others = Talk::default();
    let (other, _server) = server(&others).await;
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for caller in 0..8 {
        let mut client = stage.client().await;
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        callers.spawn(async move {
            let mut number = caller * 1_000_000;
            while !stop.load(SeqCst) {
                let answer = unary(&mut client, "/test.Talk/Say", Request::new(note(number, "n"))).await;
                assert_eq!(answer.unwrap().into_inner(), note(number + 1, "n  "));
                number += 1;
                done.fetch_add(1, SeqCst);
            }
        });
    }
    let own = stage.app.pools["default"].clone();
    let mut app = stage.app.clone();
    for generation in 2..12 {
        app.generation = generation;
        let targets = if generation % 2 == 0 { pool(&[other]) } else { own.clone() };
        app.pools.insert("default".to_owned(), targets);
        app.pools.get_mut("default").unwrap().protocol = UpstreamProtocol::Http2;
        serve(&stage.proxy, &app).await;
        let before = done.load(SeqCst);
        eventually("calls go on", || done.load(SeqCst) > before + 16).await;
    }
    stop.store(true, SeqCst);
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    // And those that the end of the node finds unanswered.
    let mut waiting = JoinSet::new();
    for number in 0..8 {
        let mut client = stage.client().await;
        waiting.spawn(
            async move { unary(&mut client, "/test.Talk/Wait", Request::new(note(number, ""))).await },
        );
    }
    let count = || stage.talk.waiting.load(SeqCst) + others.waiting.load(SeqCst);
    eventually("all calls are there", || count() == 8).await;
    let ((), answers) = tokio::join!(stage.proxy.shutdown(PATIENCE), async {
        for talk in [&stage.talk, &others] {
            talk.go.store(true, SeqCst);
        }
        waiting.join_all().await
    });
    let mut numbers: Vec<u64> =
        answers.into_iter().map(|answer| answer.unwrap().into_inner().number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..8).collect::<Vec<u64>>());
    assert_eq!(stage.talk.gone.load(SeqCst) + others.gone.load(SeqCst), 0);
}
