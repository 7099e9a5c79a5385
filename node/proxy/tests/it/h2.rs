//! HTTP over TLS, and HTTP/2, as real clients speak them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_proxy::config::{Protocol, TlsConfig, UpstreamProtocol, UpstreamTls};
use h2::{Reason, RecvStream, client::SendRequest};
use http::{HeaderMap, Request, Response};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Notify,
    task::JoinSet,
    time::timeout,
};

use crate::{secure::*, support::*};

fn https(authority: &Authority) -> TlsConfig {
    TlsConfig { alpn: vec!["h2".to_owned(), "http/1.1".to_owned()], ..authority.tls(&["web"]) }
}

/// A client's connection, driven until the handle is gone.
struct Client {
    send: SendRequest<Bytes>,
    connection: JoinSet<Result<(), h2::Error>>,
}

impl Client {
    async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: S) -> Client {
        let (send, connection) = h2::client::handshake(io).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Client { send, connection: tasks }
    }

    async fn plain(address: SocketAddr) -> Client {
        Client::over(connect(address).await).await
    }

    /// Begins a request whose body is still to come.
    async fn begin(
        &self,
        request: Request<()>,
        is_end: bool,
    ) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
        let mut send = timeout(PATIENCE, self.send.clone().ready()).await.expect("room in time").unwrap();
        send.send_request(request, is_end).unwrap()
    }

    async fn get(&self, path: &str) -> Result<(u16, String), h2::Error> {
        let (response, _) = self.begin(request("GET", path), true).await;
        let (response, body, _) = whole(response).await?;
        Ok((response.status().as_u16(), body))
    }

    /// How the connection ended.
    async fn end(mut self) -> Result<(), h2::Error> {
        drop(self.send);
        timeout(PATIENCE, self.connection.join_next()).await.expect("an end in time").unwrap().unwrap()
    }
}

fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://web.test{path}")).body(()).unwrap()
}

async fn whole(
    response: h2::client::ResponseFuture,
) -> Result<(Response<()>, String, Option<HeaderMap>), h2::Error> {
    let response = timeout(PATIENCE, response).await.expect("a response in time")?;
    let (parts, body) = response.into_parts();
    let (body, trailers) = read(body).await?;
    Ok((Response::from_parts(parts, ()), String::from_utf8(body).unwrap(), trailers))
}

async fn read(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = timeout(PATIENCE, body.data()).await.expect("data in time") {
        let data = data?;
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, body.trailers().await?))
}

async fn write(send: &mut h2::SendStream<Bytes>, mut bytes: Bytes) {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let room = std::future::poll_fn(|cx| send.poll_capacity(cx));
        let room = timeout(PATIENCE, room).await.expect("room in time").unwrap().unwrap();
        send.send_data(bytes.split_to(room.min(bytes.len())), false).unwrap();
    }
    send.send_data(Bytes::new(), true).unwrap();
}

/// Answers with the head it got.
async fn mirror() -> Origin {
    Origin::new(|mut stream| {
        Box::pin(async move {
            while let Ok(head) = head(&mut stream).await {
                let answer =
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Up: 1\r\n\r\n{head}", head.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
    })
    .await
}

#[tokio::test]
async fn https_speaks_what_the_client_can_and_says_so_to_the_origin() {
    let authority = Authority::new();
    authority.issue("web", &["web.test"]);
    let origin = mirror().await;
    let proxy = proxy();
    let (mut app, listen) = app(Protocol::Http, &[origin.address]);
    app.ports[0].tls = Some(https(&authority));
    serve(&proxy, &app).await;
    for offered in [&[][..], &["http/1.1"]] {
        let mut stream =
            tls(&authority.client().alpn(offered).connector(), listen, "web.test").await.unwrap();
        for _ in 0..2 {
            stream.write_all(b"GET /a HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
            let mut got = Vec::new();
            while !String::from_utf8_lossy(&got).ends_with("X-Forwarded-Port: 1\r\n\r\n")
                && !String::from_utf8_lossy(&got).contains("X-Forwarded-Proto: https")
            {
                got.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
            }
            // The rest of the mirrored head.
            let mut rest = vec![0; 256];
            let _n = timeout(PATIENCE, stream.read(&mut rest)).await.unwrap().unwrap();
        }
    }
    let stream =
        tls(&authority.client().alpn(&["h2", "http/1.1"]).connector(), listen, "web.test").await.unwrap();
    assert_eq!(alpn(&stream), "h2");
    let client = Client::over(stream).await;
    let (status, body) = client.get("/b?c=d").await.unwrap();
    assert_eq!(status, 200);
    assert!(body.starts_with("GET /b?c=d HTTP/1.1\r\nHost: web.test\r\n"), "{body}");
    assert!(body.contains("X-Forwarded-Proto: https\r\n"), "{body}");
    assert!(!body.to_lowercase().contains("chunked"), "{body}");
}

#[tokio::test]
async fn a_plain_port_takes_both_versions_of_http() {
    let origin = mirror().await;
    let (_proxy, listen) = serving(Protocol::Http, &[origin.address]).await;
    let client = Client::plain(listen).await;
    let (response, _) = client
        .begin(
            Request::get("http://web.test/x")
                .header("cookie", "a=1")
                .header("cookie", "b=2")
                .header("te", "trailers")
                .header("x-forwarded-for", "10.0.0.1")
                .body(())
                .unwrap(),
            true,
        )
        .await;
    let (response, body, _) = whole(response).await.unwrap();
    assert_eq!(response.headers()["x-up"], "1");
    assert!(response.headers().get("connection").is_none());
    assert!(body.contains("Cookie: a=1; b=2\r\n"), "{body}");
    assert!(body.contains("X-Forwarded-For: 127.0.0.1\r\n") && !body.contains("10.0.0.1"), "{body}");
    assert!(body.contains("TE: trailers\r\n"), "{body}");
    let mut old = connect(listen).await;
    assert_eq!(get(&mut old, "/").await.0, 200);
}

#[tokio::test]
async fn large_bodies_go_both_ways_whole_on_many_streams_at_once() {
    let authority = Authority::new();
    authority.issue("web", &["web.test"]);
    // Sends back what it gets, in chunks.
    let origin = Origin::new(|mut stream| {
        Box::pin(async move {
            while let Ok(head) = head(&mut stream).await {
                assert!(field(&head, "transfer-encoding").is_some(), "{head}");
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
                loop {
                    let mut line = Vec::new();
                    while !line.ends_with(b"\r\n") {
                        line.push(stream.read_u8().await.unwrap());
                    }
                    let size = std::str::from_utf8(&line).unwrap().trim();
                    let size = usize::from_str_radix(size, 16).unwrap();
                    let mut data = vec![0; size + 2];
                    stream.read_exact(&mut data).await.unwrap();
                    line.extend_from_slice(&data);
                    stream.write_all(&line).await.unwrap();
                    if size == 0 {
                        break;
                    }
                }
            }
        })
    })
    .await;
    let proxy = proxy();
    let (mut app, listen) = app(Protocol::Http, &[origin.address]);
    app.ports[0].tls = Some(https(&authority));
    serve(&proxy, &app).await;
    let stream = tls(&authority.client().alpn(&["h2"]).connector(), listen, "web.test").await.unwrap();
    let client = Client::over(stream).await;
    let mut tasks = JoinSet::new();
    for number in 0..8u32 {
        let (response, mut send) = client.begin(request("POST", "/"), false).await;
        tasks.spawn(async move {
            let sent: Vec<u8> = (0..200_000u32).flat_map(|n| (n ^ number << 24).to_le_bytes()).collect();
            let (answer, ()) = tokio::join!(
                async { read(timeout(PATIENCE, response).await.expect("a response")?.into_body()).await },
                write(&mut send, sent.clone().into()),
            );
            assert!(answer.unwrap().0 == sent, "stream {number}");
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn trailers_and_early_ends_arrive_as_what_they_are() {
    let answer =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nGrpc-Status: 7\r\n\r\n";
    let origin = Origin::once(answer, After::Hold).await;
    let (_proxy, listen) = serving(Protocol::Http, &[origin.address]).await;
    let client = Client::plain(listen).await;
    let (response, _) = client.begin(request("GET", "/"), true).await;
    let (_, body, trailers) = whole(response).await.unwrap();
    assert_eq!((body.as_str(), &trailers.unwrap()["grpc-status"]), ("hi", &"7".parse().unwrap()));
    // A response that breaks off must not look complete.
    for after in [After::Close, After::Reset] {
        let origin = Origin::once("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhi", after).await;
        let (_proxy, listen) = serving(Protocol::Http, &[origin.address]).await;
        let client = Client::plain(listen).await;
        let (response, _) = client.begin(request("GET", "/"), true).await;
        let error = whole(response).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{error}");
        // One stream's end is nobody else's.
        client.send.clone().ready().await.unwrap();
    }
}

/// An origin that speaks HTTP/2 and breaks off in the middle of its first answer, once it is told to: with a reset, or
/// else with the end of the connection.
async fn breaking(reset: Option<Reason>) -> (Origin, Arc<Notify>) {
    let told = Arc::new(Notify::new());
    let go = Arc::clone(&told);
    let origin = Origin::new(move |stream| {
        let go = Arc::clone(&go);
        Box::pin(async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let Some(Ok((_, mut respond))) = connection.accept().await else { return };
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data(Bytes::from_static(b"hi"), false).unwrap();
            tokio::select! {
                () = go.notified() => {}
                _ = connection.accept() => panic!("nobody asks for more"),
            }
            if let Some(reason) = reset {
                send.send_reset(reason);
                let _ended = connection.accept().await;
            }
        })
    })
    .await;
    (origin, told)
}

#[tokio::test]
async fn what_an_origin_in_http_2_breaks_off_breaks_off_for_the_client_as_well() {
    for reset in [Some(Reason::CANCEL), Some(Reason::INTERNAL_ERROR), Some(Reason::NO_ERROR), None] {
        for is_old in [false, true] {
            let (origin, go) = breaking(reset).await;
            let proxy = proxy();
            let (mut app, listen) = app(Protocol::Http, &[origin.address]);
            app.pools.get_mut("default").unwrap().protocol = UpstreamProtocol::Http2;
            serve(&proxy, &app).await;
            if is_old {
                let mut client = connect(listen).await;
                send_text(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
                assert_eq!(status(&head(&mut client).await.unwrap()), 200);
                assert_eq!(receive(&mut client, 7).await, b"2\r\nhi\r\n");
                go.notify_one();
                assert_reset(&mut client).await;
                continue;
            }
            let client = Client::plain(listen).await;
            let (response, _) = client.begin(request("GET", "/"), true).await;
            let mut body = timeout(PATIENCE, response).await.expect("a head in time").unwrap().into_body();
            let begun = timeout(PATIENCE, body.data()).await.expect("data in time").unwrap().unwrap();
            assert_eq!(begun, "hi");
            go.notify_one();
            let ended = timeout(PATIENCE, body.data()).await.expect("an end in time");
            let error = ended.unwrap_or_else(|| panic!("{reset:?} is a clean end")).unwrap_err();
            assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{reset:?}: {error}");
            // One stream's end is nobody else's.
            client.send.clone().ready().await.unwrap();
        }
    }
}

/// RFC 9113 §8.1: who has answered whole and wants no more of the request says so with a reset without an error.
#[tokio::test]
async fn an_origin_in_http_2_may_answer_before_it_has_the_request() {
    let body = vec![b'x'; 300_000];
    let answer = Bytes::from(body.clone());
    let origin = Origin::new(move |stream| {
        let answer = answer.clone();
        Box::pin(async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            // Its body is dropped with the request.
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                send.send_data(answer.clone(), true).unwrap();
            }
        })
    })
    .await;
    let proxy = proxy();
    let (mut app, listen) = app(Protocol::Http, &[origin.address]);
    app.pools.get_mut("default").unwrap().protocol = UpstreamProtocol::Http2;
    serve(&proxy, &app).await;
    let client = Client::plain(listen).await;
    for _ in 0..20 {
        let (response, mut send) = client.begin(request("POST", "/"), false).await;
        send.send_data(Bytes::from_static(b"begun"), false).unwrap();
        let response = timeout(PATIENCE, response).await.expect("a response in time").unwrap();
        assert_eq!(response.status(), 200);
        assert!(read(response.into_body()).await.unwrap().0 == body);
    }
}

#[tokio::test]
async fn each_stream_chooses_its_generation_and_the_connection_stays() {
    let (one, two) = (Origin::http("one").await, Origin::http("two").await);
    let proxy = proxy();
    let (mut app, listen) = app(Protocol::Http, &[one.address]);
    serve(&proxy, &app).await;
    let client = Client::plain(listen).await;
    assert_eq!(client.get("/").await.unwrap().1, "one");
    app.generation = 2;
    app.pools.insert("default".to_owned(), pool(&[two.address]));
    serve(&proxy, &app).await;
    assert_eq!(client.get("/").await.unwrap().1, "two");
}

#[tokio::test]
async fn a_node_that_stops_says_goodbye_and_finishes_what_was_begun() {
    let origin = Origin::new(|mut stream| {
        Box::pin(async move {
            let _head = head(&mut stream).await;
            // Until the node has begun to stop.
            tokio::time::sleep(Duration::from_millis(300)).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await.unwrap();
        })
    })
    .await;
    let (proxy, listen) = serving(Protocol::Http, &[origin.address]).await;
    let client = Client::plain(listen).await;
    let (response, _) = client.begin(request("GET", "/"), true).await;
    eventually("the request is there", || origin.accepted() == 1).await;
    let (answer, ()) = tokio::join!(whole(response), proxy.shutdown(PATIENCE));
    assert_eq!(answer.unwrap().1, "done");
    client.end().await.unwrap();
}

#[tokio::test]
async fn requests_that_are_begun_and_given_up_are_too_much_at_some_point() {
    let origin = Origin::new(|stream| Box::pin(hold(stream))).await;
    let (proxy, listen) = serving(Protocol::Http, &[origin.address]).await;
    let client = Client::plain(listen).await;
    for _ in 0..300 {
        let Ok(mut send) = timeout(PATIENCE, client.send.clone().ready()).await.expect("room in time") else {
            break;
        };
        let Ok((_response, mut stream)) = send.send_request(request("GET", "/"), true) else { break };
        stream.send_reset(Reason::CANCEL);
        tokio::task::yield_now().await;
    }
    let mut client = client;
    // Its own end is open: it was the proxy who has had enough.
    let ended =
        timeout(PATIENCE, client.connection.join_next()).await.expect("an end in time").unwrap().unwrap();
    let calm = |error: &h2::Error| error.is_io() || error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
    assert!(ended.as_ref().err().is_none_or(calm), "{ended:?}");
    eventually("the connection is gone", || proxy.connections() == 0).await;
}

#[tokio::test]
async fn refusals_are_answers_in_http_2_as_well() {
    let (proxy, listen) = serving(Protocol::Http, &[]).await;
    let client = Client::plain(listen).await;
    assert_eq!(client.get("/").await.unwrap(), (503, "no endpoint available\n".to_owned()));
    assert_eq!(client.get("/").await.unwrap().0, 503);
    // Nobody wants the rest of this one, and its answer arrives all the same.
    let (response, mut body) = client.begin(request("POST", "/"), false).await;
    body.send_data(Bytes::from_static(b"some"), false).unwrap();
    assert_eq!(timeout(PATIENCE, response).await.expect("an answer in time").unwrap().status(), 503);
    drop((client, body));
    eventually("the connection is gone", || proxy.connections() == 0).await;
}

#[tokio::test]
async fn malformed_requests_end_their_stream_alone() {
    let origin = mirror().await;
    let (_proxy, listen) = serving(Protocol::Http, &[origin.address]).await;
    let client = Client::plain(listen).await;
    for (what, request) in [
        ("two hosts", Request::get("http://web.test/").header("host", "other.test")),
        ("two hosts in fields", Request::get("/").header("host", "a").header("host", "b")),
        ("no host", Request::get("/")),
    ] {
        let (response, _) = client.begin(request.body(()).unwrap(), true).await;
        let answer = whole(response).await;
        let refused = match &answer {
            Ok((response, ..)) => response.status().as_u16() == 400,
            Err(error) => error.reason() == Some(Reason::PROTOCOL_ERROR),
        };
        assert!(refused, "{what}: {answer:?}");
    }
    let (response, _) = client.begin(request("CONNECT", "/"), true).await;
    assert!(whole(response).await.map_or(true, |(response, ..)| response.status() == 501));
    assert_eq!(client.get("/").await.unwrap().0, 200);
}

/// An origin that speaks HTTP/2 only: it says its path, sends back what it gets as it comes, and ends with a trailer.
async fn echo_h2() -> Origin {
    Origin::new(|stream| {
        Box::pin(async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            let mut streams = JoinSet::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                streams.spawn(async move {
                    let about = request.uri().to_string();
                    let te = request.headers().get("te").cloned();
                    let mut body = request.into_body();
                    let response = Response::builder().header("x-about", about).body(()).unwrap();
                    let mut send = respond.send_response(response, false).unwrap();
                    while let Some(Ok(data)) = body.data().await {
                        body.flow_control().release_capacity(data.len()).unwrap();
                        send.reserve_capacity(data.len());
                        send.send_data(data, false).unwrap();
                    }
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    trailers.extend(te.map(|te| ("x-te".parse::<http::HeaderName>().unwrap(), te)));
                    let _gone = send.send_trailers(trailers);
                });
            }
        })
    })
    .await
}

#[tokio::test]
async fn a_call_that_goes_both_ways_goes_through_both_ways_in_http_2() {
    let origin = echo_h2().await;
    let proxy = proxy();
    let (mut app, listen) = app(Protocol::Http, &[origin.address]);
    app.pools.get_mut("default").unwrap().protocol = UpstreamProtocol::Http2;
    serve(&proxy, &app).await;
    let client = Client::plain(listen).await;
    let call = Request::post("http://web.test/pkg.Service/Method").header("te", "trailers");
    let (response, mut send) = client.begin(call.body(()).unwrap(), false).await;
    // The head of the response is here before the first byte of the request's body has been sent.
    let response = timeout(PATIENCE, response).await.expect("a response in time").unwrap();
    assert_eq!(response.headers()["x-about"], "http://web.test/pkg.Service/Method");
    let mut body = response.into_body();
    for word in ["one", "two", "three"] {
        send.send_data(Bytes::from_static(word.as_bytes()), false).unwrap();
        let back = timeout(PATIENCE, body.data()).await.expect("an echo in time").unwrap().unwrap();
        body.flow_control().release_capacity(back.len()).unwrap();
        assert_eq!(back, word);
    }
    send.send_data(Bytes::new(), true).unwrap();
    let (rest, trailers) = read(body).await.unwrap();
    let trailers = trailers.unwrap();
    assert_eq!(
        (rest.len(), &trailers["grpc-status"], &trailers["x-te"]),
        (0, &"0".parse().unwrap(), &"trailers".parse().unwrap())
    );
    // Large ones at the same time, over one connection to the origin per worker, and from HTTP/1.1 as well.
    let mut tasks = JoinSet::new();
    for number in 0..8u8 {
        let (response, mut send) = client.begin(request("POST", "/"), false).await;
        tasks.spawn(async move {
            let sent = vec![number; 500_000];
            let (answer, ()) = tokio::join!(
                async { read(timeout(PATIENCE, response).await.expect("a response")?.into_body()).await },
                write(&mut send, sent.clone().into()),
            );
            assert!(answer.unwrap().0 == sent, "stream {number}");
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let mut old = connect(listen).await;
    send_text(&mut old, "POST /x HTTP/1.1\r\nHost: old\r\nContent-Length: 5\r\n\r\nhello").await;
    let answer = head(&mut old).await.unwrap();
    assert_eq!((status(&answer), field(&answer, "x-about")), (200, Some("http://old/x")));
    assert_eq!(receive(&mut old, 10).await, b"5\r\nhello\r\n");
    assert!(origin.accepted() <= 4, "{}", origin.accepted());
}

async fn send_text(stream: &mut tokio::net::TcpStream, text: &str) {
    send(stream, text).await;
}

#[tokio::test]
async fn endpoints_inside_tls_are_believed_by_their_authority_and_name_and_see_who_we_are() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    authority.issue("web", &["web.test"]);
    authority.issue("me", &["proxy.test"]);
    let (_root, ca) = authority.root_file();
    let (_other_root, other_ca) = strangers.root_file();
    let origin = mirror().await;
    // The endpoint is a proxy of ours that asks for certificates.
    let behind = proxy();
    let (mut inner, address) = app(Protocol::Http, &[origin.address]);
    inner.ports[0].tls = Some(TlsConfig { client_ca: Some(ca.clone()), ..https(&authority) });
    serve(&behind, &inner).await;
    let good = UpstreamTls {
        server_name: Some("web.test".to_owned()),
        ca: ca.clone(),
        identity: Some(authority.named("me")),
    };
    for (what, protocol, tls, want) in [
        ("what is agreed on", UpstreamProtocol::Auto, good.clone(), 200),
        ("HTTP/1.1", UpstreamProtocol::Http1, good.clone(), 200),
        ("HTTP/2", UpstreamProtocol::Http2, good.clone(), 200),
        (
            "another name",
            UpstreamProtocol::Auto,
            UpstreamTls { server_name: Some("b.test".to_owned()), ..good.clone() },
            502,
        ),
        ("another authority", UpstreamProtocol::Auto, UpstreamTls { ca: other_ca, ..good.clone() }, 502),
        ("nobody", UpstreamProtocol::Http1, UpstreamTls { identity: None, ..good.clone() }, 502),
    ] {
        let front = proxy();
        let (mut outer, listen) = app(Protocol::Http, &[address]);
        let pool = outer.pools.get_mut("default").unwrap();
        (pool.protocol, pool.tls) = (protocol, Some(tls));
        serve(&front, &outer).await;
        let mut stream = connect(listen).await;
        for _ in 0..3 {
            let (status, body) = get(&mut stream, "/deep").await;
            assert_eq!(status, want, "{what}: {body}");
            if want == 200 {
                assert!(body.starts_with("GET /deep HTTP/1.1\r\n"), "{what}: {body}");
            }
        }
    }
}

#[tokio::test]
async fn authorities_of_endpoints_are_read_again_when_their_file_changes() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    authority.issue("web", &["web.test"]);
    let ((_root, right), (_other, wrong)) = (authority.root_file(), strangers.root_file());
    let origin = mirror().await;
    let behind = proxy();
    let (mut inner, address) = app(Protocol::Http, &[origin.address]);
    inner.ports[0].tls = Some(https(&authority));
    serve(&behind, &inner).await;
    let directory = tempfile::TempDir::new().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::copy(&wrong, &ca).unwrap();
    let front = proxy();
    let (mut outer, listen) = app(Protocol::Http, &[address]);
    let pool = outer.pools.get_mut("default").unwrap();
    pool.tls = Some(UpstreamTls { server_name: Some("web.test".to_owned()), ca: ca.clone(), identity: None });
    serve(&front, &outer).await;
    let mut stream = connect(listen).await;
    assert_eq!(get(&mut stream, "/").await.0, 502, "nobody who is believed");
    let mut becomes = async |status: u16| {
        let deadline = tokio::time::Instant::now() + 3 * PATIENCE;
        while get(&mut stream, "/").await.0 != status {
            assert!(tokio::time::Instant::now() < deadline, "never {status}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    std::fs::copy(&right, &ca).unwrap();
    becomes(200).await;
    // A file that is none changes nothing.
    std::fs::write(&ca, "rubbish").unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    becomes(200).await;
}
