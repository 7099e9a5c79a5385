//! Single questions, for tests that look at the answer and not at a thousand of them.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header::HOST};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(10);

/// `GET path`. The error says what the connection did.
pub async fn get(address: SocketAddr, path: &str) -> Result<(StatusCode, String), String> {
    get_of(address, &address.to_string(), path).await
}

/// The same of a host.
pub async fn get_of(address: SocketAddr, host: &str, path: &str) -> Result<(StatusCode, String), String> {
    let exchange = async {
        let stream = TcpStream::connect(address).await.map_err(|err| err.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|err| err.to_string())?;
        let request = Request::get(path).header(HOST, host).body(Empty::<Bytes>::new()).unwrap();
        let answer = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok((head.status, String::from_utf8_lossy(&body).into_owned()))
        };
        tokio::pin!(connection);
        // The connection only ends first when it breaks, and then the answer says so at its next poll.
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            _ = &mut connection => answer.await,
        }
        .map_err(|err: hyper::Error| err.to_string())
    };
    timeout(LIMIT, exchange).await.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")))
}

/// Asks a [`crate::origin::Echo`], or whoever stands before it, for its name.
pub async fn whoami(address: SocketAddr) -> io::Result<String> {
    let exchange = async {
        let mut stream = BufReader::new(TcpStream::connect(address).await?);
        stream.write_all(b"whoami\n").await?;
        let mut name = String::new();
        if stream.read_line(&mut name).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(name.trim_end().to_owned())
    };
    timeout(LIMIT, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
