//! A TCP server that says its name to connections that begin with the line `whoami`, as often as they
//! ask, and echoes everything else.

use std::{io, net::SocketAddr, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::TcpStream,
};

use super::Server;

const QUESTION: &[u8; 7] = b"whoami\n";

#[derive(Debug)]
pub struct Echo {
    name: String,
    server: Server,
}

impl Echo {
    pub fn start(name: &str) -> Self {
        Self { name: name.to_owned(), server: Server::start(name, sessions(name)) }
    }

    /// As [`Echo::start`], at an address that must be free.
    pub fn start_at(name: &str, address: SocketAddr) -> io::Result<Self> {
        Ok(Self { name: name.to_owned(), server: Server::start_at(name, address, sessions(name))? })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }
}

fn sessions(name: &str) -> impl Fn(TcpStream) -> BoxFuture<'static, ()> + Send + use<> {
    let answer: Arc<[u8]> = format!("{name}\n").into_bytes().into();
    move |stream| {
        let answer = answer.clone();
        // A client that cuts the connection counts that itself.
        Box::pin(async move { drop(session(stream, &answer).await) })
    }
}

async fn session(mut stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    let mut head = [0; QUESTION.len()];
    loop {
        let mut filled = 0;
        while filled < head.len() && QUESTION.starts_with(&head[..filled]) {
            match stream.read(&mut head[filled..]).await? {
                0 => break,
                read => filled += read,
            }
        }
        if head[..filled] != *QUESTION {
            stream.write_all(&head[..filled]).await?;
            break;
        }
        stream.write_all(answer).await?;
    }
    let (mut read, mut write) = stream.split();
    copy(&mut read, &mut write).await?;
    write.shutdown().await
}
