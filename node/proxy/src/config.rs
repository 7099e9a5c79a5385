//! What a caller asks of the proxy: plain data with every default filled in.
//!
//! No file formats, no cluster words. The only thing left to look up later are host names.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

mod route;

pub use crate::proxy_protocol::ProxyVersion;
pub use route::{
    EditConfig, MirrorConfig, PathMatch, RedirectConfig, RespondConfig, RewriteConfig, RouteConfig, RouteTo,
    SplitConfig, ValueMatch, Wanted,
};

/// Settings of the process-wide proxy; fixed for its lifetime.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Traffic threads. Each runs one single-threaded runtime and owns one socket of every port.
    pub workers: usize,
    /// How long a port that nobody wants any more keeps accepting before it closes.
    /// `None`: the kernel's own horizon for a half-open connection, read from
    /// `net.ipv4.tcp_synack_retries` (63 s + 1 s with the default of 5).
    pub close_horizon: Option<Duration>,
    /// Connections the node accepts at once over all ports; one more is closed at once and counted.
    pub max_connections: usize,
    /// Connections one client address may hold at once over all ports.
    pub max_connections_per_source: usize,
    /// Bytes of memory that connections may fill: from 95 % of it on, new ones are turned away until it is less than
    /// 90 %. `None`: what the machine and the control groups of this process allow; 0 = no limit.
    pub memory_budget: Option<u64>,
    /// From accept to the last byte of a PROXY header, on ports that take one.
    pub proxy_header_timeout: Duration,
    /// From there to the last byte of a TLS hello that is only looked at, for the name in it.
    pub hello_timeout: Duration,
    pub http2: Http2Limits,
    /// Where this proxy stands, for pools that prefer targets close by.
    pub zone: Option<String>,
    /// Who is asked for the names of targets, over UDP and TCP. `None`: whom the system asks.
    pub name_server: Option<SocketAddr>,
    /// Called by each worker twice a second, for an allocator that keeps what is freed until its thread does something.
    pub give_back: fn(),
    /// What becomes of a name of a port that the generations of two apps claim.
    pub names: NamesPolicy,
}

/// See [`ProxyConfig::names`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NamesPolicy {
    /// Who has it keeps it until it gives it up, and the other one is not prepared.
    #[default]
    FirstHolder,
    /// Both are prepared, because generations are numbered across all apps, and somebody else has seen to it that no name
    /// is claimed twice for good: it goes to the newest generation that serves.
    NewestGeneration,
}

/// What one HTTP/2 connection of a client may ask of us (RFC 9113 §6.5.2, §10.5). Of the process and not of an app,
/// because it is agreed on before the first request says whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Limits {
    /// Requests at once.
    pub streams: u32,
    /// Bytes of one request's body that may be on their way to us.
    pub stream_window_bytes: u32,
    /// Of all of them together.
    pub connection_window_bytes: u32,
    /// Of a request's fields, as RFC 9113 §6.5.2 counts them, CONTINUATION included.
    pub header_list_bytes: u32,
    /// Of the table by which fields are compressed (HPACK).
    pub header_table_bytes: u32,
    /// Streams that the client gives up, in ten seconds. One more ends the connection, as do those below.
    pub resets: u32,
    pub pings: u32,
    pub settings: u32,
}

/// One generation of one app.
#[derive(Clone, Debug, PartialEq)]
pub struct AppConfig {
    pub app: Arc<str>,
    /// Chosen by the caller, never reused for the same app.
    pub generation: u64,
    pub ports: Vec<PortConfig>,
    /// Named groups of targets. Requests that no route claims, and all TCP sessions, go to `default`.
    pub pools: BTreeMap<String, PoolConfig>,
    /// First match wins, in order.
    pub routes: Vec<RouteConfig>,
    pub timeouts: Timeouts,
    pub limits: Limits,
    pub retry: RetryConfig,
    pub access: AccessConfig,
    /// `None` = off.
    pub compression: Option<CompressionConfig>,
    /// Of [`crate::Layers`]; the first is the outermost.
    pub layers: Vec<String>,
}

/// Responses are compressed with gzip for clients that take it. Only whole ones, in no other coding, of these types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressionConfig {
    /// 1 (fast) to 9 (small).
    pub level: u32,
    /// Shorter ones are left alone, where the length is known.
    pub bytes_min: u64,
    /// `text/html`, or all of a family: `text/*`.
    pub types: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Http,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortConfig {
    /// `::` listens on IPv4 and IPv6 alike (dual stack; on IPv4 alone where the kernel has no IPv6).
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    /// 0 = no limit of its own.
    pub max_connections: usize,
    /// `None`: what comes is not decrypted.
    pub tls: Option<TlsConfig>,
    pub proxy_protocol: ProxyProtocol,
    /// Who may send a PROXY header; from others none is read.
    pub trusted_proxies: Vec<IpNet>,
    /// Names that clients ask for, as in [`RouteConfig::hosts`]: of HTTP the host, of TLS the server name. Other apps
    /// may have the same port for other names. Empty: the hosts of the routes, if each has one and there is no pool
    /// `default`, and otherwise whatever nobody else claims.
    pub hosts: Vec<String>,
    /// Every request is sent to the same address in `https` at this port, with a 308.
    pub redirect_https: Option<u16>,
    pub socket: SocketOptions,
}

/// Of the listening sockets of a port, and so of the connections accepted from then on. They change in place when
/// another generation serves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketOptions {
    /// Connections waiting to be accepted per socket; the kernel caps it at `net.core.somaxconn`.
    pub backlog: u32,
    pub nodelay: bool,
    /// `None` = off.
    pub keepalive: Option<TcpKeepalive>,
    /// How long what was sent may stay unacknowledged; zero = as the kernel has it.
    pub user_timeout: Duration,
    /// Bytes; 0 = as the kernel has it.
    pub receive_buffer: usize,
    pub send_buffer: usize,
}

/// Whether connections begin with a PROXY header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyProtocol {
    #[default]
    Off,
    /// Those of trusted proxies do; others speak for themselves.
    Accept,
    /// All do, and only trusted proxies may connect.
    Require,
}

/// TLS that ends here.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TlsConfig {
    /// The first one is for clients that name nobody of them.
    pub certificates: Vec<CertificateSource>,
    pub min_version: TlsVersion,
    /// Offered to clients, the most wanted first; empty: nothing is negotiated.
    pub alpn: Vec<String>,
    /// PEM. Clients must show a certificate of one of these authorities.
    pub client_ca: Option<PathBuf>,
}

/// Where certificates and their keys are. They are read again when the files change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CertificateSource {
    /// PEM: the certificate with its chain, and its key.
    Files { chain: PathBuf, key: PathBuf },
    /// `NAME.pem` or `NAME.crt` in a directory, and `NAME.key` unless the key is in there, too.
    Named { directory: PathBuf, name: String },
    /// All of a directory, by file name.
    Directory(PathBuf),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    #[default]
    V12,
    V13,
}

/// Who may come: client addresses, of which deny wins and an empty allow list lets everybody in, and what requests
/// must show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessConfig {
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
    /// All that follow are about HTTP requests, and all that are there must agree.
    pub basic: Option<BasicConfig>,
    pub jwt: Option<JwtConfig>,
    pub forward: Option<ForwardAuthConfig>,
    pub grpc: Option<GrpcAuthConfig>,
    /// One of [`crate::Signers`], which puts fields on requests before they go on.
    pub signer: Option<String>,
}

/// Names and passwords (RFC 7617).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasicConfig {
    /// What the client shows when it asks for them.
    pub realm: String,
    /// bcrypt hashes by name.
    pub users: BTreeMap<String, String>,
    /// More of them, a line `name:hash` each, as `htpasswd -B` writes it. Read when the generation is prepared, and again
    /// when it changes; one that is broken then changes nothing, and is reported.
    pub file: Option<PathBuf>,
    /// Who is not looked at within this is answered with 503.
    pub timeout: Duration,
}

/// Signed tokens (RFC 7519).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtConfig {
    /// The set of keys (RFC 7517 §5): an address in http or https, or a file.
    pub jwks: String,
    /// PEM. Whose certificates are believed in https.
    pub ca: Option<PathBuf>,
    pub issuer: Option<String>,
    /// One of them must be in the token; empty: any.
    pub audience: Vec<String>,
    pub algorithms: Vec<JwtAlgorithm>,
    /// The field, in lower case, that has the token: behind `Bearer`, or all of it.
    pub header: String,
    /// Between the clocks of those who make tokens and ours.
    pub leeway: Duration,
    /// How often the keys are fetched, where their server does not say.
    pub refresh: Duration,
    /// Between two fetches at least, however many tokens name keys that are not known.
    pub refresh_floor: Duration,
    /// How long a request waits for keys.
    pub timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JwtAlgorithm {
    Rs256,
    Es256,
    EdDsa,
    Hs256,
}

/// A service over HTTP that is asked about each request. 2xx lets it go on; everything else is its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardAuthConfig {
    /// A key of [`AppConfig::pools`].
    pub pool: String,
    pub path: String,
    /// Fields of its answer that go on with the request, in place of those of the client.
    pub copy: Vec<String>,
    pub timeout: Duration,
}

/// The same over gRPC: Envoy's `ext_authz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcAuthConfig {
    /// A key of [`AppConfig::pools`], spoken with in HTTP/2.
    pub pool: String,
    pub timeout: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PoolConfig {
    pub targets: Vec<TargetConfig>,
    pub resolve: ResolveConfig,
    pub balance: BalanceConfig,
    pub outlier: OutlierConfig,
    /// `None` = off.
    pub breaker: Option<BreakerConfig>,
    pub check: CheckConfig,
    /// Idle connections kept per worker and endpoint.
    pub max_idle: usize,
    /// Of these, so many are opened before anybody asks for them, TLS handshake included, and opened again as they are
    /// used or closed; one where all share it (HTTP/2). For HTTP ports. 0 = none.
    pub warm: usize,
    /// How long an upstream connection may sit idle before it is closed.
    pub idle_timeout: Duration,
    pub tcp_keepalive: TcpKeepalive,
    /// Begin each connection with a PROXY header that names the client.
    pub send_proxy: Option<ProxyVersion>,
    pub protocol: UpstreamProtocol,
    /// `None`: in the clear.
    pub tls: Option<UpstreamTls>,
}

/// What HTTP is spoken with endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// What is agreed on inside TLS, and HTTP/1.1 in the clear.
    #[default]
    Auto,
    Http1,
    Http2,
}

/// TLS with endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Asked for, and expected in their certificates. `None`: the host of the target as written.
    pub server_name: Option<String>,
    /// PEM. Only certificates of these authorities are believed.
    pub ca: PathBuf,
    /// What is shown to endpoints that ask who we are.
    pub identity: Option<CertificateSource>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetConfig {
    /// `host:port`, `1.2.3.4:port`, `[::1]:port`, `srv:_service._proto.name`, `unix:/path`.
    pub address: String,
    pub weight: u32,
    /// Where it stands; compared with [`ProxyConfig::zone`].
    pub zone: Option<String>,
    /// Takes traffic only while too few of the others are fit.
    pub backup: bool,
}

/// Who gets the next session or request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalanceConfig {
    /// One of [`crate::Strategies`], or one that the embedding program registered.
    pub strategy: String,
    /// For strategies that hash.
    pub hash_on: HashOn,
    /// How long an endpoint that comes back, or that is new, takes to get its full share; zero = at once.
    pub slow_start: Duration,
    /// Prefer targets in the zone of this proxy for as long as they can carry it.
    pub zone_aware: bool,
    /// Percent by weight. With fewer than these fit, and no backups, everybody is used, fit or not: checks that
    /// fail everywhere say more about the checks. 0 = never.
    pub panic_threshold: u32,
}

/// Endpoints are taken out for a while because of what sessions and requests meet there: not reached, not
/// answered, broken off, or 502, 503 or 504. Not in pools whose check is [`CheckKind::None`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierConfig {
    /// In a row, over all workers; 0 = off.
    pub consecutive_failures: u32,
    /// The first time; longer each further time in a row, up to five minutes.
    pub ejection: Duration,
    /// Percent of the endpoints that may be out at the same time. Never all.
    pub max_ejected: u32,
}

/// When an endpoint is left alone because too much of what it answers is an error: any of the failures above, or
/// another 5xx.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    pub error_percent: u32,
    /// What is looked at, in ten buckets.
    pub window: Duration,
    /// With fewer in the window nothing is concluded.
    pub min_requests: u32,
    /// How long until a few may try again.
    pub open_for: Duration,
}

/// When an HTTP request is tried again. Never after anything of a response went on to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryConfig {
    /// In all; 1 = no retry.
    pub attempts: u32,
    pub on: Vec<RetryOn>,
    /// Until the head of a response, for each attempt; zero = as `response_header` has it.
    pub per_try_timeout: Duration,
    /// Before the first retry at most, and before any.
    pub backoff: (Duration, Duration),
    /// Percent of the requests of the last ten seconds that may be retries; a few are free.
    pub budget_percent: u32,
    pub methods: RetryMethods,
    /// `None` = off.
    pub hedge: Option<HedgeConfig>,
}

/// When a request that waits is asked somewhere else as well. Only idempotent ones without a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HedgeConfig {
    /// Without the head of a response; and again after each further so much.
    pub after: Duration,
    /// Beside the first.
    pub max: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetryOn {
    /// Nobody could be reached.
    Connect,
    /// An endpoint in HTTP/2 says that it has not begun with the request.
    RefusedStream,
    /// The endpoint broke off before there was a response.
    Reset,
    /// No response in time.
    Timeout,
    /// 502, 503 and 504.
    GatewayError,
    /// Any 5xx.
    ServerError,
    Status(u16),
}

/// Which requests may be repeated that an endpoint may have acted upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryMethods {
    Idempotent,
    All,
}

/// What a request is known by. Sessions of TCP are always known by their client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    ClientIp,
    /// The value of a field; the name in lower case. Requests without it are spread at random.
    Header(String),
    /// The same for a cookie.
    Cookie(String),
    /// The path, without the query.
    Path,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolveConfig {
    pub mode: ResolveMode,
    pub family: Family,
    pub min_ttl: Duration,
    pub max_ttl: Duration,
    /// How long the last good answer is used while the name cannot be resolved.
    pub stale: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveMode {
    All,
    /// One host, by one address of each family.
    First,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Any,
    V4,
    V6,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckConfig {
    pub kind: CheckKind,
    /// `None`: the target's own port.
    pub port: Option<u16>,
    /// Jittered by ±10 %.
    pub interval: Duration,
    pub timeout: Duration,
    /// Passes in a row that make an endpoint available again. The very first check counts alone.
    pub rise: u32,
    /// Failures in a row that take an endpoint out.
    pub fall: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// Never checked, always available.
    None,
    Tcp,
    Http {
        path: String,
        /// `None`: the target's host as written.
        host: Option<String>,
        /// Inclusive ranges of status codes that pass.
        expect: Vec<(u16, u16)>,
    },
    /// What the endpoint says of its health (grpc.health.v1), over HTTP/2.
    Grpc {
        /// Empty: the server as a whole.
        service: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TcpKeepalive {
    pub idle: Duration,
    pub interval: Duration,
    pub count: u32,
}

/// `Duration::ZERO` = off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// All attempts of one session or request to reach an endpoint, together.
    pub connect: Duration,
    /// From the first byte of a request head to its last.
    pub request_header: Duration,
    /// From the request sent to the response head received.
    pub response_header: Duration,
    /// With a client, from accept until both sides have agreed. With endpoints it is a part of `connect`.
    pub tls_handshake: Duration,
    /// A request body that stands still, if `idle` is not shorter.
    pub request_body: Duration,
    /// A whole request, from its head to the last byte of its response.
    pub request: Duration,
    /// A keep-alive connection between two requests, and a body that stands still.
    pub idle: Duration,
    /// A TCP session in which no byte moves in either direction.
    pub tcp_idle: Duration,
    /// The same for an upgraded (WebSocket) connection.
    pub tunnel: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of this app on this node; 0 = no limit.
    pub max_connections: usize,
    /// The same for one client address.
    pub max_connections_per_source: usize,
    /// Bytes of request line and fields together.
    pub max_header_bytes: usize,
    /// Of a request line, 16 KiB at most.
    pub max_request_line_bytes: u16,
    /// Of a request, 100 at most.
    pub max_header_fields: u8,
    /// HTTP/1.1 requests on one connection, which ends with the last of them; 0 = no limit.
    pub max_requests_per_connection: u32,
    /// Request body; 0 = no limit.
    pub max_body_bytes: u64,
    /// HTTP requests of this app on this node, over all workers; 0 = no limit. Further ones wait.
    pub max_in_flight: usize,
    /// Requests and sessions in flight at one address of a target, over all workers of this node. Those that have
    /// so many are passed over while others of the pool have fewer; 0 = nobody is.
    pub target_soft: usize,
    /// The same, and never more; 0 = no limit. Who finds nobody below it waits.
    pub target_hard: usize,
    /// How many of this app may wait on this node; 0 = no limit.
    pub max_pending: usize,
    /// How long each may wait; zero = not at all.
    pub pending_timeout: Duration,
    pub rate: Option<RateConfig>,
}

/// How often each client may ask, per node. What is beyond it is answered with 429.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateConfig {
    pub key: RateKey,
    pub per_second: u32,
    /// So many may come at once after a pause.
    pub burst: u32,
    /// Keys that are known at the same time. One more takes the place of the one that has waited longest.
    pub max_keys: usize,
}

/// Who is one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RateKey {
    /// An address, or a network of 64 bits in IPv6.
    ClientIp,
    /// The value of a field; the name in lower case. Without it the address counts.
    Header(String),
    /// All clients of a route together.
    Route,
}

/// The defaults of a node that carries real traffic.
impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            close_horizon: None,
            max_connections: 50_000,
            max_connections_per_source: 1_024,
            memory_budget: None,
            // A proxy sends it with its first packet; three seconds are one that got lost.
            proxy_header_timeout: Duration::from_secs(3),
            hello_timeout: Duration::from_secs(5),
            http2: Http2Limits::default(),
            zone: None,
            name_server: None,
            give_back: || (),
            names: NamesPolicy::default(),
        }
    }
}

impl Default for Http2Limits {
    fn default() -> Self {
        Self {
            streams: 100,
            stream_window_bytes: 64 << 10,
            connection_window_bytes: 1 << 20,
            header_list_bytes: 64 << 10,
            header_table_bytes: 4 << 10,
            resets: 100,
            pings: 100,
            settings: 100,
        }
    }
}

impl AppConfig {
    /// Generation 1 of an app that serves HTTP at one address and spreads it over `targets` (`host:port` each).
    /// Everything else is at its default; change it with `..AppConfig::http(…)`.
    pub fn http<T: Into<String>>(
        app: &str,
        listen: SocketAddr,
        targets: impl IntoIterator<Item = T>,
    ) -> Self {
        Self::new(app, PortConfig::new(listen, Protocol::Http), PoolConfig::new(targets))
    }

    /// The same for TCP sessions.
    pub fn tcp<T: Into<String>>(app: &str, listen: SocketAddr, targets: impl IntoIterator<Item = T>) -> Self {
        Self::new(app, PortConfig::new(listen, Protocol::Tcp), PoolConfig::new(targets))
    }

    fn new(app: &str, port: PortConfig, pool: PoolConfig) -> Self {
        Self {
            app: app.into(),
            generation: 1,
            ports: vec![port],
            pools: BTreeMap::from([("default".to_owned(), pool)]),
            routes: Vec::new(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            retry: RetryConfig::default(),
            access: AccessConfig::default(),
            compression: None,
            layers: Vec::new(),
        }
    }
}

impl Default for CompressionConfig {
    fn default() -> Self {
        let types =
            ["text/*", "application/json", "application/javascript", "application/xml", "image/svg+xml"];
        Self { level: 1, bytes_min: 1024, types: types.map(str::to_owned).to_vec() }
    }
}

impl PortConfig {
    pub fn new(listen: SocketAddr, protocol: Protocol) -> Self {
        Self {
            address: listen.ip(),
            port: listen.port(),
            protocol,
            max_connections: 0,
            tls: None,
            proxy_protocol: ProxyProtocol::Off,
            trusted_proxies: Vec::new(),
            hosts: Vec::new(),
            socket: SocketOptions::default(),
            redirect_https: None,
        }
    }
}

impl PoolConfig {
    /// All targets weigh the same.
    pub fn new<T: Into<String>>(targets: impl IntoIterator<Item = T>) -> Self {
        let targets = targets.into_iter().map(|address| TargetConfig::new(address, 100));
        Self { targets: targets.collect(), ..Self::default() }
    }
}

impl PoolConfig {
    /// Whether anybody looks at what becomes of sessions and requests.
    pub(crate) fn is_watched(&self) -> bool {
        self.check.kind != CheckKind::None && self.outlier.consecutive_failures > 0
    }
}

impl TargetConfig {
    pub fn new(address: impl Into<String>, weight: u32) -> Self {
        Self { address: address.into(), weight, zone: None, backup: false }
    }
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            targets: Vec::new(),
            resolve: ResolveConfig::default(),
            balance: BalanceConfig::default(),
            outlier: OutlierConfig::default(),
            breaker: None,
            check: CheckConfig::default(),
            max_idle: 64,
            warm: 0,
            idle_timeout: Duration::from_secs(30),
            tcp_keepalive: TcpKeepalive::default(),
            send_proxy: None,
            protocol: UpstreamProtocol::Auto,
            tls: None,
        }
    }
}

impl Default for BalanceConfig {
    fn default() -> Self {
        Self {
            strategy: "p2c".to_owned(),
            hash_on: HashOn::ClientIp,
            slow_start: Duration::ZERO,
            zone_aware: false,
            panic_threshold: 30,
        }
    }
}

impl Default for OutlierConfig {
    fn default() -> Self {
        Self { consecutive_failures: 5, ejection: Duration::from_secs(30), max_ejected: 50 }
    }
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            error_percent: 50,
            window: Duration::from_secs(10),
            min_requests: 20,
            open_for: Duration::from_secs(5),
        }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            attempts: 1,
            on: vec![RetryOn::Connect, RetryOn::RefusedStream],
            per_try_timeout: Duration::ZERO,
            backoff: (Duration::from_millis(25), Duration::from_millis(250)),
            budget_percent: 20,
            methods: RetryMethods::Idempotent,
            hedge: None,
        }
    }
}

impl Default for ResolveConfig {
    fn default() -> Self {
        Self {
            mode: ResolveMode::All,
            family: Family::Any,
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(60),
            stale: Duration::from_secs(600),
        }
    }
}

/// Whether a connection can be made, every 5 s.
impl Default for CheckConfig {
    fn default() -> Self {
        Self {
            kind: CheckKind::Tcp,
            port: None,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            rise: 2,
            fall: 3,
        }
    }
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            backlog: 4096,
            nodelay: true,
            keepalive: None,
            user_timeout: Duration::ZERO,
            receive_buffer: 0,
            send_buffer: 0,
        }
    }
}

impl TcpKeepalive {
    /// For a socket; `None` = off. The kernel refuses zeroes, so those keep its defaults.
    pub(crate) fn of_socket(&self) -> Option<socket2::TcpKeepalive> {
        let TcpKeepalive { idle, interval, count } = *self;
        if idle.is_zero() {
            return None;
        }
        let mut keepalive = socket2::TcpKeepalive::new().with_time(idle);
        if !interval.is_zero() {
            keepalive = keepalive.with_interval(interval);
        }
        Some(if count == 0 { keepalive } else { keepalive.with_retries(count) })
    }
}

impl Default for TcpKeepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(10), interval: Duration::from_secs(75), count: 9 }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            tls_handshake: Duration::from_secs(5),
            request_header: Duration::from_secs(10),
            request_body: Duration::from_secs(30),
            response_header: Duration::from_secs(30),
            request: Duration::ZERO,
            idle: Duration::from_secs(60),
            tcp_idle: Duration::from_secs(600),
            tunnel: Duration::from_secs(3600),
        }
    }
}

impl Default for BasicConfig {
    fn default() -> Self {
        Self {
            realm: "restricted".to_owned(),
            users: BTreeMap::new(),
            file: None,
            timeout: Duration::from_secs(2),
        }
    }
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            jwks: String::new(),
            ca: None,
            issuer: None,
            audience: Vec::new(),
            algorithms: vec![JwtAlgorithm::Rs256, JwtAlgorithm::Es256, JwtAlgorithm::EdDsa],
            header: "authorization".to_owned(),
            leeway: Duration::from_secs(30),
            refresh: Duration::from_secs(300),
            refresh_floor: Duration::from_secs(10),
            timeout: Duration::from_secs(2),
        }
    }
}

impl Default for RateConfig {
    fn default() -> Self {
        Self { key: RateKey::ClientIp, per_second: 100, burst: 100, max_keys: 65_536 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 0,
            max_connections_per_source: 0,
            max_header_bytes: 64 * 1024,
            max_request_line_bytes: 16 * 1024,
            max_header_fields: 100,
            max_requests_per_connection: 10_000,
            max_body_bytes: 0,
            max_in_flight: 0,
            target_soft: 0,
            target_hard: 0,
            max_pending: 1000,
            pending_timeout: Duration::from_secs(2),
            rate: None,
        }
    }
}
