//! Between accept and the protocol: who may come in, who the client really is, and whether it speaks TLS.
//!
//! A listener with none of this asked for pays one comparison per connection. What waits here, waits under a
//! deadline and holds its place like every other connection.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use rustls::ProtocolVersion;
use tokio::{io::Interest, net::TcpStream};
use tokio_rustls::LazyConfigAcceptor;

use crate::{
    access::{Access, Networks},
    admission::{Full, Place, Sources},
    client_hello::{self, Peeked},
    clock::{Expired, Timer},
    config::{AppConfig, PortConfig, Protocol, ProxyProtocol},
    generation::LocalServing,
    http::{self, headers::Seen},
    metrics::TlsCells,
    port::{At, LocalPort, LocalTenant},
    proxy_protocol::{self, Header, Parsed},
    session::{Admitted, End, reset_on_close},
    stream::Stream,
    tcp::{self, Before},
    tls::Tls,
    worker::Worker,
};

/// What a port does before the protocol begins. None of it: there is no such thing for the port.
pub(crate) struct Edge {
    pub(crate) tls: Option<Arc<Tls>>,
    proxy: Option<ProxyIn>,
    /// Routes choose by the name in the client's hello, which is looked at where it is passed on.
    routes_by_name: bool,
}

struct ProxyIn {
    trusted: Networks,
    is_required: bool,
}

impl Edge {
    /// `before`: of the same port in other generations of the app.
    pub(crate) fn compile(
        port: &PortConfig,
        routes_by_name: bool,
        before: Option<&Arc<Edge>>,
    ) -> Result<Option<Arc<Edge>>, String> {
        let before_tls = before.and_then(|edge| edge.tls.as_ref());
        let tls = match (&port.tls, before_tls) {
            (None, _) => None,
            (Some(config), Some(known)) if known.config == *config => Some(Arc::clone(known)),
            (Some(config), known) => {
                let tls = Tls::load(config, known.map(|known| &**known));
                Some(Arc::new(tls.map_err(|error| format!("port {}: {error}", port.port))?))
            }
        };
        let proxy = match port.proxy_protocol {
            ProxyProtocol::Off => None,
            accepted @ (ProxyProtocol::Accept | ProxyProtocol::Require) => Some(ProxyIn {
                trusted: Networks::new(&port.trusted_proxies),
                is_required: accepted == ProxyProtocol::Require,
            }),
        };
        let has_work = tls.is_some() || proxy.is_some() || routes_by_name;
        Ok(has_work.then(|| Arc::new(Edge { tls, proxy, routes_by_name })))
    }
}

/// Who may connect to an app, where it says so.
pub(crate) struct Visitors {
    access: Option<Access>,
    /// Connections by client, over all generations of the app, and how many each may have.
    sources: Option<(Arc<Sources>, usize)>,
}

impl Visitors {
    /// `None`: everybody, as often as they like. `sources` is made by the first generation that counts.
    pub(crate) fn compile(app: &AppConfig, sources: &mut Option<Arc<Sources>>) -> Option<Arc<Visitors>> {
        let access = Access::new(&app.access.allow, &app.access.deny);
        let max = app.limits.max_connections_per_source;
        let sources = (max > 0).then(|| (Arc::clone(sources.get_or_insert_default()), max));
        (access.is_some() || sources.is_some()).then(|| Arc::new(Visitors { access, sources }))
    }
}

/// What is known of a client before it says anything itself.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Its address, by a trusted proxy's word where there is one.
    pub(crate) peer: SocketAddr,
    /// What it connected to, by the same word.
    pub(crate) local: Option<SocketAddr>,
    /// What the proxy said besides.
    pub(crate) tlvs: Bytes,
    pub(crate) tls: Option<TlsSession>,
}

/// What was agreed on in a handshake.
#[derive(Clone, Debug)]
pub(crate) struct TlsSession {
    pub(crate) alpn: Option<Vec<u8>>,
    /// The name the client asked for.
    pub(crate) name: Option<String>,
}

impl Client {
    pub(crate) fn new(peer: SocketAddr) -> Client {
        Client { peer, local: None, tlvs: Bytes::new(), tls: None }
    }
}

/// Why a connection does not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Memory runs short.
    Overload,
    Node,
    Source,
    App,
    Access,
    ProxyHeader,
}

/// Lets a connection in of which nothing has to be learned first.
pub(crate) fn admit(
    worker: &Worker,
    tenant: &LocalTenant,
    serving: &LocalServing,
    stream: &TcpStream,
    peer: SocketAddr,
) -> Option<Admitted> {
    let place = match worker.shared.overload.is_on() {
        true => Err(Refused::Overload),
        false => worker.shared.admission.admit(peer.ip()).map_err(Refused::from),
    };
    match place.and_then(|place| enter(tenant, serving, place, peer)) {
        Ok(admitted) => Some(admitted),
        Err(refused) => {
            turn_away(worker, serving, stream, refused);
            None
        }
    }
}

/// Takes a connection's places in an app.
pub(crate) fn enter(
    tenant: &LocalTenant,
    serving: &LocalServing,
    place: Place,
    client: SocketAddr,
) -> Result<Admitted, Refused> {
    let generation = &serving.serving.generation;
    let mut source = None;
    if let Some(visitors) = &serving.serving.visitors {
        if !visitors.admits(client.ip()) {
            return Err(Refused::Access);
        }
        if let Some((sources, max)) = &visitors.sources {
            source = Some(sources.take(client.ip(), *max).ok_or(Refused::Source)?);
        }
    }
    let app = generation.gate.pass(generation.config.limits.max_connections).ok_or(Refused::App)?;
    let on_port = tenant.tenant.gate.pass(serving.serving.max_connections).ok_or(Refused::App)?;
    Ok(Admitted::new(serving, (place, app, on_port, source)))
}

/// Counts it.
pub(crate) fn refuse(worker: &Worker, serving: &LocalServing, refused: Refused) {
    let cells = &serving.local.cells;
    match refused {
        Refused::Overload => {
            worker.limits.memory.one();
            cells.rejected_overload.one();
        }
        Refused::Node | Refused::App => {
            worker.limits.connections.one();
            cells.rejected_limit.one();
        }
        Refused::Source => {
            worker.limits.per_source.one();
            cells.rejected_limit.one();
        }
        Refused::Access => cells.rejected_access.one(),
        Refused::ProxyHeader => cells.rejected_proxy_header.one(),
    }
}

fn turn_away(worker: &Worker, serving: &LocalServing, stream: &TcpStream, refused: Refused) {
    refuse(worker, serving, refused);
    let is_plain = serving.serving.edge.as_ref().is_none_or(|edge| edge.tls.is_none());
    match (serving.serving.protocol, refused) {
        (Protocol::Http, Refused::App | Refused::Overload) if is_plain => http::refuse(stream),
        (Protocol::Http, Refused::Overload | Refused::Node | Refused::Source | Refused::App) => {}
        // A client must not take this for a service that had nothing to say.
        (Protocol::Tcp, _) | (Protocol::Http, Refused::Access | Refused::ProxyHeader) => {
            reset_on_close(stream)
        }
    }
}

impl Refused {
    /// Whether coming again will not help.
    pub(crate) fn is_for_good(self) -> bool {
        match self {
            Refused::Overload | Refused::Node | Refused::Source | Refused::App => false,
            Refused::Access | Refused::ProxyHeader => true,
        }
    }
}

impl Visitors {
    pub(crate) fn admits(&self, client: IpAddr) -> bool {
        self.access.as_ref().is_none_or(|access| access.admits(client))
    }
}

impl From<Full> for Refused {
    fn from(full: Full) -> Refused {
        match full {
            Full::Node => Refused::Node,
            Full::Source => Refused::Source,
        }
    }
}

/// What a connection is from its first byte on.
type Session = Pin<Box<dyn Future<Output = ()>>>;

/// Serves a connection of a port that has an [`Edge`], or that several apps share.
///
/// What comes before the session has a box of its own, which is gone by then: a handshake takes several times as
/// much memory as a connection that is idle.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    port: Rc<LocalPort>,
    tenant: Rc<LocalTenant>,
    serving: Rc<LocalServing>,
    stream: TcpStream,
    peer: SocketAddr,
) {
    let begun = Box::pin(begin(worker, port, tenant, serving, stream, peer));
    if let Some(session) = begun.await {
        session.await;
    }
}

/// `None`: it comes to nothing, and that is counted.
async fn begin(
    worker: Rc<Worker>,
    port: Rc<LocalPort>,
    tenant: Rc<LocalTenant>,
    serving: Rc<LocalServing>,
    stream: TcpStream,
    peer: SocketAddr,
) -> Option<Session> {
    let timer = worker.clock.timer();
    let mut client = Client::new(peer);
    let identified = identify(&worker, &timer, &serving, &stream, &mut client).await;
    if port.alone().is_none() {
        return match identified {
            Ok(place) => begin_shared(worker, port, tenant, serving, timer, stream, client, place).await,
            Err(refused) => {
                turn_away(&worker, &serving, &stream, refused);
                None
            }
        };
    }
    let serving =
        if client.peer.ip() == peer.ip() { serving } else { known(&worker, &tenant, serving, &client) };
    let admitted = match identified {
        Ok(place) => enter(&tenant, &serving, place, client.peer),
        Err(refused) => Err(refused),
    };
    let mut admitted = match admitted {
        Ok(admitted) => admitted,
        Err(refused) => {
            turn_away(&worker, &serving, &stream, refused);
            return None;
        }
    };
    // None any more: the port was shared when this one was accepted.
    let edge = serving.serving.edge.as_ref();
    if edge.is_some_and(|edge| edge.tls.is_some()) {
        return begin_tls(worker, port, serving, timer, stream, client, Entry::Admitted(admitted)).await;
    }
    if edge.is_some_and(|edge| edge.routes_by_name) {
        return match look_for_name(&worker, &timer, &stream).await {
            Ok(Hello { name, read }) => {
                let before = Before { timer, client, name, read };
                Some(Box::pin(tcp::serve_known(worker, serving, stream.into(), before, admitted)))
            }
            Err(no_hello) => {
                reset_on_close(&stream);
                admitted.end(no_hello.end);
                None
            }
        };
    }
    Some(session(worker, At { port, home: tenant }, serving, timer, stream.into(), client, admitted))
}

/// The same where the name that a client asks for says which app is meant. `serving`: of one of them.
#[allow(clippy::too_many_arguments, reason = "what serve has, and the place")]
async fn begin_shared(
    worker: Rc<Worker>,
    port: Rc<LocalPort>,
    tenant: Rc<LocalTenant>,
    serving: Rc<LocalServing>,
    timer: Timer,
    stream: TcpStream,
    client: Client,
    place: Place,
) -> Option<Session> {
    if serving.serving.edge.as_ref().is_some_and(|edge| edge.tls.is_some()) {
        return begin_tls(worker, port, serving, timer, stream, client, Entry::Place(place)).await;
    }
    match serving.serving.protocol {
        Protocol::Http => {
            let local_port = client.local.map_or(port.slot.port, |local| local.port());
            let seen = Seen::new(client.peer, local_port, false);
            let at = At { port, home: tenant };
            Some(Box::pin(http::serve_shared(worker, at, serving, stream, seen, client.peer, place)))
        }
        Protocol::Tcp => {
            let (name, read) = match look_for_name(&worker, &timer, &stream).await {
                Ok(Hello { name, read }) => (name, read),
                // Whoever speaks something else, or waits to be spoken to, may be for the one that takes the rest.
                Err(NoHello { end: End::Reset | End::Idle, read, is_open: true }) => (None, read),
                Err(_) => {
                    reset_on_close(&stream);
                    return None;
                }
            };
            let Some(tenant) = port.tenant(name.as_deref()) else {
                worker.limits.unclaimed.one();
                if !read.is_empty() {
                    deny_name(&stream);
                }
                return None;
            };
            let serving = tenant.choose(&worker, client.peer.ip());
            match enter(&tenant, &serving, place, client.peer) {
                Ok(admitted) => {
                    let routes = serving.serving.edge.as_ref().is_some_and(|edge| edge.routes_by_name);
                    let before = Before { timer, client, name: name.filter(|_| routes), read };
                    Some(Box::pin(tcp::serve_known(worker, serving, stream.into(), before, admitted)))
                }
                Err(refused) => {
                    turn_away(&worker, &serving, &stream, refused);
                    None
                }
            }
        }
    }
}

async fn begin_tls(
    worker: Rc<Worker>,
    port: Rc<LocalPort>,
    first: Rc<LocalServing>,
    timer: Timer,
    stream: TcpStream,
    mut client: Client,
    entry: Entry,
) -> Option<Session> {
    // The hello chooses: it may be a later generation than the one that was there at accept.
    let agreed = shake_hands(&worker, &timer, &port, &first, client.peer, stream, entry).await;
    let Agreed { tenant, serving, stream, tls, admitted } = agreed?;
    client.tls = Some(tls);
    Some(session(worker, At { port, home: tenant }, serving, timer, stream, client, admitted))
}

/// Where two generations share the clients, the client that the header names decides and not the balancer
/// that sent it. A generation without an edge would take what is read already for a part of the session.
fn known(
    worker: &Worker,
    tenant: &LocalTenant,
    before: Rc<LocalServing>,
    client: &Client,
) -> Rc<LocalServing> {
    let known = tenant.choose(worker, client.peer.ip());
    if known.serving.edge.is_some() { known } else { before }
}

fn session(
    worker: Rc<Worker>,
    at: At,
    serving: Rc<LocalServing>,
    timer: Timer,
    stream: Stream,
    client: Client,
    mut admitted: Admitted,
) -> Session {
    match serving.serving.protocol {
        Protocol::Tcp => {
            let edge = serving.serving.edge.as_ref().filter(|edge| edge.routes_by_name);
            let name = edge.and(client.tls.as_ref()).and_then(|tls| tls.name.clone());
            let before = Before { timer, client, name, read: Bytes::new() };
            Box::pin(tcp::serve_known(worker, serving, stream, before, admitted))
        }
        Protocol::Http => {
            let local_port = client.local.map_or(at.port.slot.port, |local| local.port());
            let seen = Seen::new(client.peer, local_port, client.tls.is_some());
            match stream {
                Stream::Plain(stream) => Box::pin(http::serve(worker, at, serving, stream, seen, admitted)),
                stream @ Stream::Tls(_)
                    if client.tls.is_some_and(|tls| tls.alpn.as_deref() == Some(b"h2")) =>
                {
                    Box::pin(async move {
                        admitted.end(http::h2::serve(worker, at, timer, seen, Bytes::new(), stream).await);
                    })
                }
                stream @ Stream::Tls(_) => Box::pin(http::serve(worker, at, serving, stream, seen, admitted)),
            }
        }
    }
}

/// Takes a place for the connection, and reads the PROXY header where one is due.
async fn identify(
    worker: &Worker,
    timer: &Timer,
    serving: &LocalServing,
    stream: &TcpStream,
    client: &mut Client,
) -> Result<Place, Refused> {
    if worker.shared.overload.is_on() {
        return Err(Refused::Overload);
    }
    let admission = &worker.shared.admission;
    let proxy = serving.serving.edge.as_ref().and_then(|edge| edge.proxy.as_ref());
    let Some(proxy) = proxy else { return Ok(admission.admit(client.peer.ip())?) };
    if !proxy.trusted.contains(client.peer.ip()) {
        if proxy.is_required {
            return Err(Refused::ProxyHeader);
        }
        return Ok(admission.admit(client.peer.ip())?);
    }
    // Not counted for the proxy, which has many clients.
    let mut place = admission.enter()?;
    let until = worker.clock.after(worker.shared.early.proxy_header_timeout);
    let header = match worker.clock.within(timer, until, read_proxy_header(stream)).await {
        Ok(Ok(header)) => header,
        Ok(Err(error)) => {
            tracing::debug!(peer = %client.peer, %error, "PROXY header");
            return Err(Refused::ProxyHeader);
        }
        Err(Expired::Deadline) => {
            worker.limits.proxy_header_timeout.one();
            return Err(Refused::ProxyHeader);
        }
        Err(Expired::Cut) => return Err(Refused::ProxyHeader),
    };
    if let Some((from, to)) = header.addresses {
        client.peer = from;
        client.local = Some(to);
    }
    client.tlvs = header.tlvs;
    place.attribute(client.peer.ip())?;
    Ok(place)
}

/// Takes the header off the stream and not a byte more: what follows is read by others, or by the kernel.
async fn read_proxy_header(stream: &TcpStream) -> io::Result<Header> {
    let mut header = BytesMut::zeroed(proxy_protocol::HEADER_BYTES_MAX);
    let mut taken = 0;
    loop {
        let seen = taken + stream.peek(&mut header[taken..]).await?;
        if seen == taken {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let parsed = proxy_protocol::parse(&header[..seen])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let (header_is, take) = match parsed {
            Parsed::Complete(header, length) => (Some(header), length),
            // All of it is header; taken off, so that the next look waits for more.
            Parsed::Incomplete => (None, seen),
        };
        while taken < take {
            match stream.try_read(&mut header[taken..take]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => taken += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stream.ready(Interest::READABLE).await?;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(header) = header_is {
            return Ok(header);
        }
    }
}

/// A client's hello.
struct Hello {
    name: Option<String>,
    /// Everything read so far.
    read: Bytes,
}

/// Why there is none.
struct NoHello {
    end: End,
    read: Bytes,
    /// The client is there, and has said something else or nothing.
    is_open: bool,
}

async fn look_for_name(worker: &Worker, timer: &Timer, stream: &TcpStream) -> Result<Hello, NoHello> {
    let mut read = BytesMut::zeroed(client_hello::HELLO_BYTES_MAX);
    let mut length = 0;
    let look = async {
        loop {
            stream.readable().await?;
            match stream.try_read(&mut read[length..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => length += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            }
            match client_hello::peek(&read[..length]) {
                Ok(Peeked::Incomplete) => {}
                Ok(Peeked::Name(name)) => return Ok(name),
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
    };
    let until = worker.clock.after(worker.shared.early.hello_timeout);
    let found = worker.clock.within(timer, until, Box::pin(look)).await;
    let read = Bytes::copy_from_slice(&read[..length]);
    match found {
        Ok(Ok(name)) => Ok(Hello { name, read }),
        Ok(Err(error)) => {
            tracing::debug!(%error, "client hello");
            Err(NoHello { end: End::Reset, read, is_open: error.kind() == io::ErrorKind::InvalidData })
        }
        Err(expired) => {
            if expired == Expired::Deadline {
                worker.limits.tls_handshake_timeout.one();
            }
            Err(NoHello { end: expired.into(), read, is_open: expired == Expired::Deadline })
        }
    }
}

/// What a handshake has come to.
struct Agreed {
    tenant: Rc<LocalTenant>,
    serving: Rc<LocalServing>,
    stream: Stream,
    tls: TlsSession,
    admitted: Admitted,
}

/// A connection before its handshake.
enum Entry {
    Admitted(Admitted),
    /// The name it asks for says whose it is.
    Place(Place),
}

/// `first`: what the port serves, or one of those that share it. `None`: it came to nothing, and that is counted.
async fn shake_hands(
    worker: &Worker,
    timer: &Timer,
    port: &Rc<LocalPort>,
    first: &LocalServing,
    client: SocketAddr,
    stream: TcpStream,
    entry: Entry,
) -> Option<Agreed> {
    let until = worker.clock.after(first.local.generation.config.timeouts.tls_handshake);
    let cells: &TlsCells = first.tls.as_ref().expect("made with the edge");
    let mut entry = Some(entry);
    // Boxed: nothing of a handshake is left in the task of a session that lives for days.
    let agree = Box::pin(agree(worker, port, client, stream, &mut entry));
    let end = match worker.clock.within(timer, until, agree).await {
        Ok(Ok((tenant, serving, stream, tls, version))) => {
            let cells = serving.tls.as_deref().unwrap_or(cells);
            match version {
                Some(ProtocolVersion::TLSv1_3) => cells.ok_v13.one(),
                Some(_) | None => cells.ok_v12.one(),
            }
            let Some(Entry::Admitted(admitted)) = entry else { return None };
            return Some(Agreed { tenant, serving, stream, tls, admitted });
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake");
            cells.failed.one();
            End::Reset
        }
        Err(expired) => {
            cells.timeout.one();
            worker.limits.tls_handshake_timeout.one();
            expired.into()
        }
    };
    if let Some(Entry::Admitted(mut admitted)) = entry {
        admitted.end(end);
    }
    None
}

type Shaken = (Rc<LocalTenant>, Rc<LocalServing>, Stream, TlsSession, Option<ProtocolVersion>);

async fn agree(
    worker: &Worker,
    port: &Rc<LocalPort>,
    client: SocketAddr,
    stream: TcpStream,
    entry: &mut Option<Entry>,
) -> io::Result<Shaken> {
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
    let Some(tenant) = port.tenant(hello.client_hello().server_name()) else {
        worker.limits.unclaimed.one();
        deny_name(&hello.io);
        return Err(io::Error::other("no app has the name"));
    };
    let serving = tenant.choose(worker, client.ip());
    let Some(tls) = serving.serving.edge.as_ref().and_then(|edge| edge.tls.as_ref()) else {
        return Err(io::Error::other("the port no longer ends TLS"));
    };
    *entry = match entry.take() {
        Some(Entry::Place(place)) => match enter(&tenant, &serving, place, client) {
            Ok(admitted) => Some(Entry::Admitted(admitted)),
            Err(refused) => {
                turn_away(worker, &serving, &hello.io, refused);
                return Err(io::Error::other("turned away"));
            }
        },
        admitted => admitted,
    };
    let stream = hello.into_stream(tls.current()).await?;
    let (_, session) = stream.get_ref();
    let version = session.protocol_version();
    let about = TlsSession {
        alpn: session.alpn_protocol().map(<[u8]>::to_vec),
        name: session.server_name().map(str::to_owned),
    };
    Ok((tenant, serving, Stream::Tls(Box::new(stream.into())), about, version))
}

/// Says that nobody here has the name that was asked for (RFC 6066 §3: the alert 112, fatal). Best effort: a few
/// bytes into an empty send buffer.
fn deny_name(stream: &TcpStream) {
    const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
    let _unheard = stream.try_write(&UNRECOGNIZED_NAME);
}
