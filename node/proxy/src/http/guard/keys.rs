//! The keys that tokens are checked with: fetched on the control side, kept, and fetched again in time.
//!
//! A worker reads the latest set without a lock. A token whose key is not in it asks for a newer one, but not more
//! often than every few seconds: who makes up names of keys must not make us ask for each of them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Notify, watch},
    time::Instant,
};
use tokio_rustls::TlsConnector;

use super::jwt::KeySet;
use crate::{
    config::JwtConfig,
    file::{Known, Print},
    tls::upstream::client_for,
};

/// For all of one fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// A set of a hundred keys has about 100 KiB.
const SET_BYTES_MAX: usize = 1024 * 1024;
/// After a fetch that failed; doubled up to the refresh.
const RETRY: Duration = Duration::from_secs(1);
/// However long the server says that its answer is good.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);

pub(super) struct Keys {
    origin: Origin,
    set: ArcSwapOption<KeySet>,
    wanted: Notify,
    /// Of sets, and of fetches that failed.
    fetches: watch::Sender<u64>,
}

/// Where a set comes from.
pub(super) enum Origin {
    File(PathBuf),
    Web { uri: Uri, tls: Option<Arc<Authorities>> },
}

/// Whose certificates are believed: a file that is read again when it changes, by the control side.
pub(super) struct Authorities {
    file: PathBuf,
    tls: ArcSwap<ClientConfig>,
    known: Known,
}

impl Authorities {
    fn read(file: PathBuf) -> Result<Authorities, String> {
        let known = Known::new(vec![Print::of(file.clone())]);
        let tls = ArcSwap::new(client_for(&file)?);
        Ok(Authorities { file, tls, known })
    }

    /// True: others are believed from now on. What is wrong with the file changes nothing.
    fn refresh(&self, app: &str) -> bool {
        if !self.known.differ(vec![Print::of(self.file.clone())]) {
            return false;
        }
        let read = self.read_again();
        match &read {
            Ok(()) => tracing::info!(app, "authorities of the keys of tokens read again"),
            Err(error) => {
                tracing::error!(
                    app,
                    error,
                    "authorities of the keys of tokens not read again: those before stay"
                );
            }
        }
        read.is_ok()
    }

    /// Reads the file again, whatever it looks like.
    fn read_again(&self) -> Result<(), String> {
        self.tls.store(client_for(&self.file)?);
        Ok(())
    }
}

impl Origin {
    pub(super) fn compile(config: &JwtConfig) -> Result<Origin, String> {
        let JwtConfig { jwks, ca, .. } = config;
        if !jwks.contains("://") {
            return Ok(Origin::File(jwks.into()));
        }
        let uri: Uri = jwks.parse().map_err(|error| format!("jwks `{jwks}`: {error}"))?;
        let tls = match (uri.scheme_str(), ca) {
            (Some("http"), _) => None,
            (Some("https"), Some(ca)) => Some(Arc::new(Authorities::read(ca.clone())?)),
            (Some("https"), None) => {
                return Err(format!("jwks `{jwks}`: `ca` says whose certificates are believed"));
            }
            _ => return Err(format!("jwks `{jwks}`: neither http nor https")),
        };
        if uri.host().is_none() {
            return Err(format!("jwks `{jwks}`: no host"));
        }
        Ok(Origin::Web { uri, tls })
    }

    fn authorities(&self) -> Option<&Authorities> {
        match self {
            Origin::File(_) => None,
            Origin::Web { uri: _, tls } => tls.as_deref(),
        }
    }

    /// The set, and how long it is good, if that was said.
    async fn fetch(&self) -> Result<(KeySet, Option<Duration>), String> {
        let (bytes, age) = match self {
            Origin::File(path) => {
                let read =
                    tokio::fs::read(path).await.map_err(|error| format!("{}: {error}", path.display()));
                (Bytes::from(read?), None)
            }
            Origin::Web { uri, tls } => {
                let tls = tls.as_ref().map(|tls| tls.tls.load_full());
                let fetched = tokio::time::timeout(FETCH_TIMEOUT, get(uri, tls.as_ref()));
                fetched.await.map_err(|_| format!("no answer within {FETCH_TIMEOUT:?}"))??
            }
        };
        Ok((KeySet::parse(&bytes)?, age))
    }
}

impl Keys {
    pub(super) fn new(origin: Origin) -> Keys {
        let (set, wanted, fetches) = (ArcSwapOption::empty(), Notify::new(), watch::Sender::new(0));
        Keys { origin, set, wanted, fetches }
    }

    /// Whether [`Keys::refresh`] has anything to look at.
    pub(super) fn has_file(&self) -> bool {
        self.origin.authorities().is_some()
    }

    /// Reads again who is believed, if that has changed, and asks for the set anew.
    pub(super) fn refresh(&self, app: &str) {
        if self.origin.authorities().is_some_and(|authorities| authorities.refresh(app)) {
            self.wanted.notify_one();
        }
    }

    /// The same, whatever the file looks like.
    pub(super) fn read_again(&self) -> Result<(), String> {
        self.origin.authorities().map_or(Ok(()), Authorities::read_again)
    }

    /// The latest; `None` before the first.
    pub(super) fn set(&self) -> Option<Arc<KeySet>> {
        self.set.load_full()
    }

    /// To be asked for before the set is looked at, and waited for with [`Keys::fresher`].
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.fetches.subscribe()
    }

    /// Wants a newer set than that of `watch`, and waits for the next attempt to get it.
    pub(super) async fn fresher(&self, mut watch: watch::Receiver<u64>) {
        self.wanted.notify_one();
        // The sender lives as long as we do.
        let _gone = watch.changed().await;
    }

    /// Fetches for as long as it is polled.
    pub(super) async fn run(&self, app: Arc<str>, refresh: Duration, floor: Duration) {
        let mut pause = RETRY;
        loop {
            let begun = Instant::now();
            let wait = match self.origin.fetch().await {
                Ok((set, age)) => {
                    self.set.store(Some(Arc::new(set)));
                    pause = RETRY;
                    // Before it is too old.
                    age.map_or(refresh, |age| age.min(AGE_MAX).mul_f64(0.8)).clamp(floor, AGE_MAX)
                }
                Err(error) => {
                    tracing::warn!(%app, %error, "fetch the keys of tokens");
                    crate::metrics::keys_failed(&app);
                    let wait = pause;
                    pause = (pause * 2).min(refresh.max(RETRY));
                    wait
                }
            };
            self.fetches.send_modify(|fetches| *fetches += 1);
            // Both are cancel-safe: a wish that comes before the floor is kept.
            tokio::select! {
                () = tokio::time::sleep_until(begun + wait) => {}
                () = self.wish(begun, floor) => {}
            }
        }
    }

    async fn wish(&self, begun: Instant, floor: Duration) {
        let floor = if self.set.load().is_some() { floor } else { floor.min(RETRY) };
        tokio::time::sleep_until(begun + floor).await;
        self.wanted.notified().await;
    }
}

async fn get(uri: &Uri, tls: Option<&Arc<ClientConfig>>) -> Result<(Bytes, Option<Duration>), String> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await.map_err(|error| format!("{uri}: {error}"))?;
    match tls {
        None => ask(stream, uri).await,
        Some(config) => {
            let name = rustls::pki_types::ServerName::try_from(host.to_owned())
                .map_err(|_| format!("`{host}` is not the name of a server"))?;
            let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
            ask(stream.map_err(|error| format!("{uri}: {error}"))?, uri).await
        }
    }
}

async fn ask<S>(stream: S, uri: &Uri) -> Result<(Bytes, Option<Duration>), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| format!("{uri}: {error}");
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
        .header(header::ACCEPT, "application/json")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("{uri}: {error}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let read = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        if response.status() != 200 {
            return Err(format!("{uri}: status {}", response.status().as_u16()));
        }
        let age =
            response.headers().get(header::CACHE_CONTROL).and_then(|value| max_age(value.to_str().ok()?));
        let body = Limited::new(response.into_body(), SET_BYTES_MAX).collect().await;
        Ok((body.map_err(|error| format!("{uri}: {error}"))?.to_bytes(), age))
    };
    // The connection moves only while it is polled, and may end before its last bytes are read.
    let mut read = std::pin::pin!(read);
    tokio::select! {
        read = &mut read => read,
        _ended = connection => read.await,
    }
}

/// RFC 9111 §5.2.2.1.
fn max_age(cache_control: &str) -> Option<Duration> {
    let seconds = cache_control.split(',').find_map(|part| part.trim().strip_prefix("max-age="))?;
    seconds.trim_matches('"').parse().ok().map(Duration::from_secs)
}
