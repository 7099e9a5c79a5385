//! The Health service that gRPC servers agree on (grpc.health.v1), asked once.
//!
//! For checks of endpoints here, and for whoever else has a connection to ask over.

use std::{future::poll_fn, pin::pin};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, client};
use http::{HeaderMap, Request, Response};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};

/// Of an answer; an honest one has seven bytes.
const ANSWER_BYTES_MAX: usize = 4 << 10;
/// Before each message: not compressed, and its length in four bytes.
const PREFIX_BYTES: usize = 5;
/// The status `NOT_FOUND`: the server knows no service of the name.
const NOT_FOUND: &str = "5";
const UNIMPLEMENTED: &str = "12";

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks over a fresh connection whether `service` serves; an empty one stands for the server as a whole. `Err` says in
/// a few words of plain English why not. The caller bounds the time.
pub async fn grpc_health<S>(stream: S, authority: &str, service: &str) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (sender, connection) = client::handshake(stream).await.map_err(|err| reason(&err))?;
    let mut connection = pin!(connection);
    let mut answer = pin!(ask(sender, authority, service));
    // The connection moves only while it is polled; when it ends first, the answer knows at its next poll.
    tokio::select! {
        answer = &mut answer => answer,
        _ended = &mut connection => answer.await,
    }
}

async fn ask(sender: client::SendRequest<Bytes>, authority: &str, service: &str) -> Result<(), String> {
    let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "flotilla-check")
        .body(())
        .map_err(|err| format!("cannot ask for the health of `{authority}`: {err}"))?;
    let mut sender = sender.ready().await.map_err(|err| reason(&err))?;
    let (response, mut send) = sender.send_request(request, false).map_err(|err| reason(&err))?;
    send.send_data(message(service), true).map_err(|err| reason(&err))?;
    let response = response.await.map_err(|err| reason(&err))?;
    verdict(response).await
}

fn message(service: &str) -> Bytes {
    let request = HealthCheckRequest { service: service.to_owned() };
    let length = request.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    request.encode(&mut bytes).expect("a BytesMut grows");
    bytes.freeze()
}

async fn verdict(response: Response<RecvStream>) -> Result<(), String> {
    let (head, mut body) = response.into_parts();
    if head.status != 200 {
        return Err(format!("HTTP {}, and not a gRPC server", head.status.as_u16()));
    }
    // An answer without a message says so at once.
    status(&head.headers)?;
    let mut message = BytesMut::new();
    while let Some(data) = poll_fn(|cx| body.poll_data(cx)).await {
        let data = data.map_err(|err| reason(&err))?;
        if message.len() + data.len() > ANSWER_BYTES_MAX {
            return Err("the answer is too long for one about health".to_owned());
        }
        // It fails only where the stream has ended.
        let _ended = body.flow_control().release_capacity(data.len());
        message.extend_from_slice(&data);
    }
    if let Some(trailers) = poll_fn(|cx| body.poll_trailers(cx)).await.map_err(|err| reason(&err))? {
        status(&trailers)?;
    }
    let message = message.get(PREFIX_BYTES..).ok_or("the answer has no message")?;
    match HealthCheckResponse::decode(message).map_err(|_| "the answer is not about health")?.status {
        0 => Err("gRPC health is UNKNOWN, expected SERVING".to_owned()),
        1 => Ok(()),
        2 => Err("gRPC health is NOT_SERVING, expected SERVING".to_owned()),
        3 => Err("gRPC health is SERVICE_UNKNOWN, expected SERVING".to_owned()),
        other => Err(format!("gRPC health is {other}, expected SERVING")),
    }
}

/// What `grpc-status` says, where it is there.
fn status(headers: &HeaderMap) -> Result<(), String> {
    let field = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let told = field("grpc-message").map(|text| format!(": {text}")).unwrap_or_default();
    match field("grpc-status") {
        None | Some("0") => Ok(()),
        Some(NOT_FOUND) => Err(format!("the gRPC server does not know the service{told}")),
        Some(UNIMPLEMENTED) => Err(format!("the gRPC server does not tell its health (Unimplemented){told}")),
        Some(code) => Err(format!("gRPC status {code}{told}")),
    }
}

fn reason(err: &h2::Error) -> String {
    match err.get_io() {
        Some(_) if err.is_io() => "closed without an answer".to_owned(),
        _ => format!("the answer is not gRPC: {err}"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    /// What a server answers: a status of HTTP, a message about health, and what gRPC says of the call.
    enum Says {
        Health(i32),
        /// Without a message.
        Grpc(&'static str),
        Http(u16),
    }

    async fn serve(io: tokio::io::DuplexStream, says: Says) -> (String, Vec<u8>) {
        let mut connection = h2::server::handshake(io).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let path = request.uri().to_string();
        let mut body = request.into_body();
        let asked = async {
            let mut asked = Vec::new();
            while let Some(data) = body.data().await {
                asked.extend_from_slice(&data.unwrap());
            }
            match says {
                Says::Health(status) => {
                    let mut send = respond.send_response(Response::new(()), false).unwrap();
                    let message = HealthCheckResponse { status }.encode_to_vec();
                    let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
                    frame.extend(message);
                    send.send_data(frame.into(), false).unwrap();
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    send.send_trailers(trailers).unwrap();
                }
                Says::Grpc(status) => {
                    let response = Response::builder().header("grpc-status", status).body(()).unwrap();
                    respond.send_response(response, true).unwrap();
                }
                Says::Http(status) => {
                    let response = Response::builder().status(status).body(()).unwrap();
                    respond.send_response(response, true).unwrap();
                }
            }
            asked
        };
        tokio::pin!(asked);
        let asked = loop {
            tokio::select! {
                asked = &mut asked => break asked,
                _ = connection.accept() => {}
            }
        };
        connection.graceful_shutdown();
        // An error is the end as well, and comes again and again.
        while matches!(connection.accept().await, Some(Ok(_))) {}
        (path, asked)
    }

    async fn check(service: &str, says: Says, expected: Result<(), &str>) {
        let (client, server) = duplex(64 << 10);
        let (verdict, (path, asked)) =
            tokio::join!(grpc_health(client, "web.test:80", service), serve(server, says));
        assert_eq!(verdict, expected.map_err(str::to_owned));
        assert_eq!(path, "http://web.test:80/grpc.health.v1.Health/Check");
        assert_eq!(HealthCheckRequest::decode(&asked[PREFIX_BYTES..]).unwrap().service, service);
    }

    #[tokio::test]
    async fn a_server_that_serves_passes_and_every_other_is_named() {
        check("", Says::Health(1), Ok(())).await;
        check("shop.Cart", Says::Health(1), Ok(())).await;
        check("", Says::Health(0), Err("gRPC health is UNKNOWN, expected SERVING")).await;
        check("", Says::Health(2), Err("gRPC health is NOT_SERVING, expected SERVING")).await;
        check("x", Says::Health(3), Err("gRPC health is SERVICE_UNKNOWN, expected SERVING")).await;
        check("x", Says::Grpc("5"), Err("the gRPC server does not know the service")).await;
        check("", Says::Grpc("12"), Err("the gRPC server does not tell its health (Unimplemented)")).await;
        check("", Says::Grpc("14"), Err("gRPC status 14")).await;
        check("", Says::Http(404), Err("HTTP 404, and not a gRPC server")).await;
    }
}
