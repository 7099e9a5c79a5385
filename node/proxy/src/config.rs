//! What a caller asks of the proxy: plain data with every default filled in.
//!
//! No file formats, no cluster words. The only thing left to look up later are host names.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
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
}

#[derive(Clone, Debug, PartialEq)]
pub struct PoolConfig {
    pub targets: Vec<TargetConfig>,
    pub resolve: ResolveConfig,
    /// Name of a strategy: `p2c`, `round_robin`, or one the embedding program registered.
    pub balance: String,
    pub check: CheckConfig,
    /// Idle connections kept per worker and endpoint.
    pub max_idle: usize,
    /// How long an upstream connection may sit idle before it is closed.
    pub idle_timeout: Duration,
    pub tcp_keepalive: TcpKeepalive,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetConfig {
    /// `host:port`, `1.2.3.4:port`, `[::1]:port`.
    pub address: String,
    pub weight: u32,
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
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpKeepalive {
    pub idle: Duration,
    pub interval: Duration,
    pub count: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// Becomes a metric label, so it comes from the user's file and never from a client.
    pub name: String,
    /// Host names without port, lower case; `*.example.com` matches one or more leading labels, `api.*` one or
    /// more trailing ones. Empty: any.
    pub hosts: Vec<String>,
    pub path: Option<PathMatch>,
    /// Empty: any.
    pub methods: Vec<String>,
    /// A key of [`AppConfig::pools`].
    pub pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    Exact(String),
    /// Matches whole segments: `/v1` matches `/v1` and `/v1/x`, not `/v10`.
    Prefix(String),
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
    /// Bytes of request line and fields together.
    pub max_header_bytes: usize,
    /// Request body; 0 = no limit.
    pub max_body_bytes: u64,
}

/// The defaults of a node that carries real traffic.
impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            close_horizon: None,
            max_connections: 50_000,
            max_connections_per_source: 1_024,
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
        }
    }
}

impl PortConfig {
    pub fn new(listen: SocketAddr, protocol: Protocol) -> Self {
        Self { address: listen.ip(), port: listen.port(), protocol, max_connections: 0 }
    }
}

impl PoolConfig {
    /// All targets weigh the same.
    pub fn new<T: Into<String>>(targets: impl IntoIterator<Item = T>) -> Self {
        let target = |address: T| TargetConfig { address: address.into(), weight: 100 };
        Self { targets: targets.into_iter().map(target).collect(), ..Self::default() }
    }
}

impl RouteConfig {
    /// Whatever is asked of these hosts goes to `pool`.
    pub fn hosts<H: Into<String>>(name: &str, hosts: impl IntoIterator<Item = H>, pool: &str) -> Self {
        Self {
            name: name.to_owned(),
            hosts: hosts.into_iter().map(Into::into).collect(),
            path: None,
            methods: Vec::new(),
            pool: pool.to_owned(),
        }
    }
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            targets: Vec::new(),
            resolve: ResolveConfig::default(),
            balance: "p2c".to_owned(),
            check: CheckConfig::default(),
            max_idle: 64,
            idle_timeout: Duration::from_secs(30),
            tcp_keepalive: TcpKeepalive::default(),
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

impl Default for TcpKeepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(10), interval: Duration::from_secs(75), count: 9 }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            request_header: Duration::from_secs(10),
            response_header: Duration::from_secs(30),
            request: Duration::ZERO,
            idle: Duration::from_secs(60),
            tcp_idle: Duration::from_secs(600),
            tunnel: Duration::from_secs(3600),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_connections: 0, max_header_bytes: 64 * 1024, max_body_bytes: 0 }
    }
}
