//! Serves a directory: each file, and for each directory an index with links, so that `wget -r` finds all of it.

use std::{
    convert::Infallible,
    fmt::Write as _,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{
    Request, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue},
};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Server;

#[derive(Debug)]
pub struct Files {
    server: Server,
}

impl Files {
    /// Names must be made of letters, digits, `.`, `-` and `_`: links are not escaped.
    pub fn start(root: impl Into<PathBuf>) -> Self {
        Self { server: Server::start("files", sessions(root.into().into())) }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }
}

fn sessions(root: Arc<Path>) -> impl Fn(TcpStream) -> BoxFuture<'static, ()> + Send {
    move |stream| {
        let root = root.clone();
        Box::pin(async move {
            let service = service_fn(async |request: Request<Incoming>| {
                Ok::<_, Infallible>(respond(&root, request.uri().path()))
            });
            // A client that cuts the connection counts that itself.
            let mut http = http1::Builder::new();
            drop(http.half_close(true).serve_connection(TokioIo::new(stream), service).await);
        })
    }
}

fn respond(root: &Path, path: &str) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::default());
    match read(root, path) {
        Ok((body, content_type)) => {
            *reply.body_mut() = body.into();
            reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        Err(_) => *reply.status_mut() = StatusCode::NOT_FOUND,
    }
    reply
}

fn read(root: &Path, path: &str) -> io::Result<(Vec<u8>, &'static str)> {
    if path.split('/').any(|part| part == "..") {
        return Err(io::ErrorKind::NotFound.into());
    }
    let file = root.join(path.trim_start_matches('/'));
    if !path.ends_with('/') {
        return Ok((fs::read(file)?, "application/octet-stream"));
    }
    let mut index = "<!doctype html>\n".to_owned();
    for entry in fs::read_dir(file)? {
        let entry = entry?;
        let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
        let name = entry.file_name();
        let name = name.to_string_lossy();
        writeln!(index, "<a href=\"{name}{slash}\">{name}</a>").expect("a String takes everything");
    }
    Ok((index.into_bytes(), "text/html"))
}
