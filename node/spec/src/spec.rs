//! The types. Every field that is here does what it says; a field that nothing acts on yet is not
//! here, so a spec that asks for it is refused instead of silently ignored.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{AppName, form, units};

mod route;

pub use route::*;

/// The capitalised aliases are the keys of fproxy's own JSON.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppSpec {
    #[serde(alias = "Name")]
    pub name: AppName,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// At least one.
    #[serde(default, alias = "Ports")]
    pub listen: Vec<Listen>,
    /// The default pool; at least one unless every route names a pool.
    #[serde(default, alias = "Targets")]
    pub targets: Vec<Target>,
    /// Further named pools, for routes.
    #[serde(default)]
    pub pool: BTreeMap<String, Pool>,
    #[serde(default)]
    pub resolve: Resolve,
    #[serde(default)]
    pub balance: Balance,
    #[serde(default)]
    pub check: Check,
    /// The user's own questions, asked through the generation itself.
    #[serde(default)]
    pub probe: Vec<Probe>,
    #[serde(default)]
    pub outlier: Outlier,
    /// Off unless the table is there.
    #[serde(default)]
    pub breaker: Option<Breaker>,
    #[serde(default)]
    pub retry: Retry,
    #[serde(default)]
    pub timeouts: Timeouts,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub upstream: UpstreamOptions,
    #[serde(default)]
    pub route: Vec<Route>,
    #[serde(default)]
    pub access: Access,
    /// Off unless the table is there.
    #[serde(default)]
    pub compression: Option<Compression>,
    /// What the program that embeds the proxy registered under these names: its code on requests and responses, the
    /// first outermost.
    #[serde(default)]
    pub layers: Vec<String>,
    #[serde(default)]
    pub placement: Placement,
    #[serde(default)]
    pub rollout: Rollout,
}

/// Written as `9000` (tcp), `"http:8080"` or a table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Listen {
    /// `0`: the cluster picks one from the node's pool.
    pub port: u16,
    #[serde(default = "any_address")]
    pub address: IpAddr,
    #[serde(default)]
    pub protocol: Protocol,
    /// TLS that ends here; written as `"https:443"` or a table.
    #[serde(default)]
    pub tls: Option<Tls>,
    #[serde(default)]
    pub proxy_protocol: ProxyMode,
    /// Who may send a PROXY header.
    #[serde(default, deserialize_with = "units::networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// The names that clients ask for here; other apps may have the same port for others. None: see [`crate::claims`].
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Per listener and node; 0 = no limit.
    #[serde(default)]
    pub max_connections: u32,
    /// Requests are sent to the same address in https instead of being served.
    #[serde(default)]
    pub redirect_https: RedirectHttps,
    #[serde(default)]
    pub socket: SocketOptions,
}

/// Of the listening sockets of a port, and so of the connections accepted from then on. Changed in place.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SocketOptions {
    /// Connections that wait to be accepted, per worker; the kernel caps it at `net.core.somaxconn`.
    pub backlog: u32,
    /// Whether small writes go out at once.
    pub nodelay: bool,
    /// Off unless it is there.
    pub keepalive: Option<TcpKeepalive>,
    /// How long what was sent may stay unacknowledged; 0 = as the kernel has it.
    #[serde(deserialize_with = "units::duration")]
    pub user_timeout: Duration,
    /// 0 = as the kernel has it.
    #[serde(deserialize_with = "units::size")]
    pub receive_buffer: u64,
    #[serde(deserialize_with = "units::size")]
    pub send_buffer: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The first one is for clients that name nobody of them. None at all: everything in the node's directory.
    #[serde(deserialize_with = "form::one_or_many")]
    pub certificate: Vec<Certificate>,
    pub min_version: TlsVersion,
    /// Of HTTP; TCP offers nothing unless it is told to.
    pub alpn: Vec<String>,
    /// Clients must show a certificate of these authorities: a file on the node, or a name in its directory.
    pub client_ca: Option<String>,
}

/// A name in the node's directory of certificates, or a table of two files on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificate {
    Named(String),
    Files(CertificateFiles),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// PEM, with the chain behind it.
    pub cert: String,
    pub key: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsVersion {
    #[default]
    #[serde(rename = "1.2")]
    V12,
    #[serde(rename = "1.3")]
    V13,
}

/// Whether connections begin with a PROXY header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyMode {
    #[default]
    Off,
    /// Those of trusted proxies do.
    Accept,
    /// All do, and nobody else may connect.
    Require,
}

/// Whole responses of these types are compressed with gzip for clients that take it, unless they come in a coding.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Compression {
    /// 1 (fast) to 9 (small).
    pub level: u32,
    /// Shorter ones stay as they are.
    #[serde(deserialize_with = "units::size")]
    pub min_size: u64,
    /// `text/html`, or all of a family: `text/*`.
    pub types: Vec<String>,
}

/// Who may come: client addresses, of which deny wins and an empty allow list lets everybody in, and what requests
/// must show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    #[serde(deserialize_with = "units::networks")]
    pub allow: Vec<IpNet>,
    #[serde(deserialize_with = "units::networks")]
    pub deny: Vec<IpNet>,
    /// All that follow are about HTTP requests, and all that are there must agree.
    pub basic: Option<Basic>,
    pub jwt: Option<Jwt>,
    pub forward: Option<ForwardAuth>,
    pub ext_authz: Option<ExtAuthz>,
    /// Code of the program that embeds the proxy, which puts fields on requests before they go on.
    pub signer: Option<String>,
}

/// Names and passwords (RFC 7617).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Basic {
    pub realm: String,
    /// bcrypt hashes by name, as `htpasswd -nB` makes them.
    pub users: BTreeMap<String, String>,
    /// More of them, in a file on each node: a line `name:hash` each. Read again when it changes.
    pub file: Option<String>,
    /// Who is not looked at within this is answered with 503.
    #[serde(deserialize_with = "units::duration")]
    pub timeout: Duration,
}

/// Signed tokens (RFC 7519).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jwt {
    /// The set of keys: an address in http or https, or a file on each node.
    pub jwks: String,
    /// Whose certificates are believed in https: a file on the node, or a name in its directory.
    pub ca: Option<String>,
    pub issuer: Option<String>,
    /// One of them must be in the token. Empty: any.
    pub audience: Vec<String>,
    pub algorithms: Vec<JwtAlgorithm>,
    /// The field that has the token: behind `Bearer`, or all of it.
    pub header: String,
    /// Between the clocks of those who make tokens and of the nodes.
    #[serde(deserialize_with = "units::duration")]
    pub leeway: Duration,
    /// How often the keys are fetched, where their server does not say.
    #[serde(deserialize_with = "units::duration")]
    pub refresh: Duration,
    /// Between two fetches at least, however many tokens name keys that are not known.
    #[serde(deserialize_with = "units::duration")]
    pub refresh_floor: Duration,
    /// How long a request waits for keys.
    #[serde(deserialize_with = "units::duration")]
    pub timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JwtAlgorithm {
    #[serde(alias = "RS256")]
    Rs256,
    #[serde(alias = "ES256")]
    Es256,
    #[serde(alias = "EdDSA")]
    EdDsa,
    #[serde(alias = "HS256")]
    Hs256,
}

/// A service over HTTP that is asked about each request. 2xx lets it go on; everything else is its answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForwardAuth {
    pub targets: Vec<Target>,
    pub path: String,
    /// Fields of its answer that go on with the request, in place of those of the client.
    pub copy: Vec<String>,
    #[serde(deserialize_with = "units::duration")]
    pub timeout: Duration,
    pub tls: Option<UpstreamTls>,
}

/// The same over gRPC: Envoy's `ext_authz`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExtAuthz {
    pub targets: Vec<Target>,
    #[serde(deserialize_with = "units::duration")]
    pub timeout: Duration,
    pub tls: Option<UpstreamTls>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    #[default]
    Tcp,
    Http,
}

/// Written as `"host:port"` or a table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Target {
    pub address: String,
    /// Share of new connections among its pool, 0 to 65535; 0 = none.
    #[serde(default = "Target::default_weight")]
    pub weight: u32,
    /// Where it stands, for `balance.zone_aware`.
    #[serde(default)]
    pub zone: Option<String>,
    /// Takes traffic only while too few of the others are fit.
    #[serde(default)]
    pub backup: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    #[serde(default)]
    pub targets: Vec<Target>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resolve {
    pub mode: ResolveMode,
    pub family: Family,
    #[serde(deserialize_with = "units::duration")]
    pub min_ttl: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub max_ttl: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub stale: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResolveMode {
    #[default]
    All,
    First,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    #[default]
    Any,
    V4,
    V6,
}

/// Written as `"p2c"` or a table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct Balance {
    pub policy: Policy,
    /// For `maglev`, `ring_hash` and `rendezvous`.
    pub hash_on: HashOn,
    /// How long a target that comes back, or is new, takes to get its full share. `0s` = at once.
    #[serde(deserialize_with = "units::duration")]
    pub slow_start: Duration,
    /// Prefer targets in the zone of the node for as long as they can carry it.
    pub zone_aware: bool,
    /// With fewer percent of the targets fit, and no backups, all of them are used. 0 = never.
    pub panic_threshold: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    #[default]
    P2c,
    PeakEwma,
    LeastConn,
    Random,
    RoundRobin,
    Maglev,
    RingHash,
    Rendezvous,
    /// Written as `"custom:NAME"`: what the program that embeds the proxy registered under this name.
    Custom(String),
}

/// What a request is known by. TCP sessions are always known by their client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HashOn {
    #[default]
    ClientIp,
    /// Written as `"header:NAME"`.
    Header(String),
    /// Written as `"cookie:NAME"`.
    Cookie(String),
    Path,
}

/// Written as `"/path"`, `"tcp"`, `"grpc"`, `"none"` or a table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct Check {
    #[serde(rename = "type")]
    pub kind: CheckKind,
    pub path: String,
    pub host: Option<String>,
    pub port: Option<u16>,
    #[serde(deserialize_with = "units::duration")]
    pub interval: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub timeout: Duration,
    pub rise: u32,
    pub fall: u32,
    /// Inclusive ranges of status codes; written as `"200-399"` or `204`.
    #[serde(deserialize_with = "units::statuses")]
    pub expect: Vec<(u16, u16)>,
    /// Whose health a gRPC server is asked for; empty: the server's.
    pub service: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    #[default]
    Tcp,
    Http,
    /// grpc.health.v1
    Grpc,
    None,
}

/// One question that each node asks through a generation: in at its listener, along its routes, to
/// its upstreams. A `check` asks one target; a probe asks what a client would.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Probe {
    pub name: String,
    pub kind: ProbeKind,
    #[serde(rename = "type")]
    pub ask: ProbeType,
    /// A port that the app listens on; `None`: the first one that fits.
    pub port: Option<u16>,
    pub path: String,
    pub host: Option<String>,
    /// Inclusive ranges of status codes; written as `"200-399"` or `204`.
    #[serde(deserialize_with = "units::statuses")]
    pub expect: Vec<(u16, u16)>,
    /// What is sent first, for `tcp`.
    pub send: String,
    /// What the answer must contain. Empty: any answer.
    pub body: String,
    /// What `grpc.health.v1` is asked for. Empty: the server as a whole.
    pub service: String,
    /// A program of the node's `[probes] commands` folder, and its arguments.
    pub command: Vec<String>,
    #[serde(deserialize_with = "units::duration")]
    pub interval: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub timeout: Duration,
    /// Passes in a row that make the probe pass.
    pub rise: u32,
    /// Failures in a row that make the probe fail.
    pub fall: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeKind {
    /// Must pass before the generation may serve, and spoils the bake when it fails later.
    #[default]
    Readiness,
    /// Asked while the generation serves; failing during its rollout turns the rollout back.
    Liveness,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeType {
    #[default]
    Http,
    Tcp,
    Grpc,
    Command,
}

/// Endpoints are taken out for a while because of what sessions and requests meet there: not reached, not
/// answered, broken off, or 502, 503 or 504. Not with `check = "none"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outlier {
    /// In a row on one node; 0 = off.
    pub consecutive_failures: u32,
    /// The first time; longer each further time in a row, up to five minutes.
    #[serde(deserialize_with = "units::duration")]
    pub ejection: Duration,
    /// Percent of the endpoints of a pool that may be out at the same time. Never all.
    pub max_ejected: u32,
}

/// An endpoint is left alone while too much of what it answers is an error: the failures above, or any 5xx.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    pub error_percent: u32,
    #[serde(deserialize_with = "units::duration")]
    pub window: Duration,
    /// With fewer in the window nothing is concluded.
    pub min_requests: u32,
    /// How long until a few may try again.
    #[serde(deserialize_with = "units::duration")]
    pub open_for: Duration,
}

/// When an HTTP request is tried again. Never after anything of a response went on to the client, and never
/// once a part of its body was sent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// In all; 1 = no retry.
    pub attempts: u32,
    pub on: Vec<RetryOn>,
    /// Until the head of a response, for each attempt; `0s` = as `timeouts.response_header` has it.
    #[serde(deserialize_with = "units::duration")]
    pub per_try_timeout: Duration,
    pub backoff: Backoff,
    /// Percent of the requests of the last ten seconds that may be retries; a few are free.
    pub budget: u32,
    pub methods: RetryMethods,
    /// Off unless the table is there.
    pub hedge: Option<Hedge>,
}

/// When a request that waits is asked at a further target as well, within the budget; the first answer counts. Only
/// idempotent ones without a body.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hedge {
    /// Without the head of a response; and again after each further so much.
    #[serde(deserialize_with = "units::duration")]
    pub after: Duration,
    /// Beside the first.
    pub max: u32,
}

/// Written as a word, or as a status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryOn {
    Connect,
    /// A target in HTTP/2 says that it has not begun with the request.
    RefusedStream,
    Reset,
    Timeout,
    GatewayError,
    ServerError,
    Status(u16),
}

/// A random part of this is waited for, doubled each time.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Backoff {
    #[serde(deserialize_with = "units::duration")]
    pub base: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub max: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryMethods {
    /// Those that do no more when they are repeated (RFC 9110 §9.2.2).
    #[default]
    Idempotent,
    All,
}

/// `0s` = off.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    #[serde(deserialize_with = "units::duration")]
    pub connect: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub tls_handshake: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub request_header: Duration,
    /// A body that stands still.
    #[serde(deserialize_with = "units::duration")]
    pub request_body: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub response_header: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub request: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub idle: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub tcp_idle: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub tunnel: Duration,
}

/// Per node. 0 = no limit.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub max_connections: u32,
    pub max_connections_per_ip: u32,
    #[serde(deserialize_with = "units::size")]
    pub max_header_size: u64,
    /// 16KiB at most.
    #[serde(deserialize_with = "units::size")]
    pub max_request_line: u64,
    /// 100 at most.
    pub max_header_fields: u32,
    /// Of HTTP/1.1; the connection ends with the last of them.
    pub max_requests_per_connection: u32,
    #[serde(deserialize_with = "units::size")]
    pub max_body_size: u64,
    /// HTTP requests at once, over all targets. Further ones wait.
    pub max_in_flight: u32,
    /// Requests and sessions that may wait for room; one more is refused.
    pub max_pending: u32,
    /// How long each may wait.
    #[serde(deserialize_with = "units::duration")]
    pub pending_timeout: Duration,
    /// Requests and sessions at once at one address of a target. Those that have so many are passed over while
    /// others have fewer.
    pub target_soft: u32,
    /// The same, and never more: who finds nobody below it waits.
    pub target_hard: u32,
    pub rate: Option<Rate>,
}

/// How often each client may ask, per node. What is beyond it is answered with 429.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rate {
    pub key: RateKey,
    pub per_second: u32,
    /// So many may come at once after a pause; 0 = as many as in a second.
    pub burst: u32,
    /// Clients that are known at the same time, so that strangers cannot fill the memory.
    pub max_keys: u32,
}

/// Who is one client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RateKey {
    #[default]
    ClientIp,
    /// All clients of a route together.
    Route,
    /// Written as `"header:NAME"`.
    Header(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamOptions {
    pub max_idle: u32,
    /// Idle connections of HTTP apps that are opened before anybody asks, per target and worker. 0 = none.
    pub warm: u32,
    #[serde(deserialize_with = "units::duration")]
    pub idle_timeout: Duration,
    pub tcp_keepalive: TcpKeepalive,
    pub send_proxy: SendProxy,
    pub protocol: UpstreamProtocol,
    pub tls: Option<UpstreamTls>,
}

/// What HTTP is spoken with targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// What is agreed on inside TLS, and HTTP/1.1 in the clear.
    #[default]
    Auto,
    Http1,
    #[serde(alias = "h2")]
    Http2,
}

/// TLS with targets.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamTls {
    pub enabled: bool,
    /// Asked for, and expected in their certificates; the host of the target unless it is given.
    pub server_name: Option<String>,
    /// Whose certificates are believed: a file on the node, or a name in its directory.
    pub ca: Option<String>,
    /// What is shown to targets that ask who we are.
    pub certificate: Option<Certificate>,
}

/// Begin connections to targets with a PROXY header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SendProxy {
    #[default]
    Off,
    V1,
    V2,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TcpKeepalive {
    #[serde(deserialize_with = "units::duration")]
    pub idle: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub interval: Duration,
    pub count: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Placement {
    pub replicas: Replicas,
    /// Empty: any.
    pub regions: Vec<String>,
    pub spread: Spread,
    /// Labels a node must carry.
    pub require: BTreeMap<String, String>,
    /// Instead of a fixed number of replicas.
    pub autoscale: Option<Autoscale>,
}

/// As many replicas as the load needs. With several targets the one that needs most decides.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Autoscale {
    #[serde(default = "Autoscale::default_min")]
    pub min: u32,
    pub max: u32,
    /// Connections open at the same time, per replica.
    #[serde(default)]
    pub target_connections: Option<u32>,
    /// HTTP requests, or TCP connections begun, per replica.
    #[serde(default)]
    pub target_requests_per_second: Option<u32>,
    /// Of the processors that a node's process may use, averaged over the app's nodes.
    #[serde(default)]
    pub target_cpu_percent: Option<u32>,
    /// Between two changes; fewer replicas only after the load has been low for this long.
    #[serde(default = "Autoscale::default_cooldown", deserialize_with = "units::duration")]
    pub cooldown: Duration,
}

/// Written as `"all"` or a number of nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replicas {
    #[default]
    All,
    Count(u32),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    #[default]
    Zone,
    Node,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rollout {
    pub strategy: RolloutStrategy,
    /// Nodes that shift at the same time.
    pub max_parallel: u32,
    /// Nodes that go through `steps` first, before all others. 0: as the strategy has it.
    pub canary: u32,
    /// The shares of traffic that the new generation takes on a node, one after the other: percents that
    /// rise to 100. On the canary nodes; on every node where there are none.
    pub steps: Vec<u8>,
    /// How long a node must stay ready with the new generation before the next step. It is also the
    /// window in which `abort_on` compares, so 0 compares nothing. Not waited for when nothing served
    /// before.
    #[serde(deserialize_with = "units::duration")]
    pub min_healthy: Duration,
    /// Targets that must have passed their checks on a node before the generation counts as ready there.
    pub min_healthy_targets: u32,
    /// A node that takes longer to become ready fails the rollout.
    #[serde(deserialize_with = "units::duration")]
    pub healthy_deadline: Duration,
    /// A rollout that makes no progress for this long fails.
    #[serde(deserialize_with = "units::duration")]
    pub progress_deadline: Duration,
    /// How long sessions may outlive an app or port that is taken away.
    #[serde(deserialize_with = "units::duration")]
    pub drain: Duration,
    /// False: waits for `rollout promote` after the canaries, and before the last of several steps.
    pub auto_promote: bool,
    pub auto_rollback: bool,
    pub abort_on: AbortOn,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutStrategy {
    /// Node by node, `max_parallel` at a time.
    #[default]
    Rolling,
    /// The same after a first node, or as many as `canary` says.
    Canary,
    /// Prepared everywhere, promoted where that is asked for, then all nodes together.
    BlueGreen,
    /// Prepared everywhere, then all nodes together.
    AllAtOnce,
}

/// When the new generation does worse than the one before it in the same time. What both do badly is
/// nobody's fault.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AbortOn {
    /// Percent of requests answered with 5xx, of connections that found no target, or of sessions
    /// reset, beyond what the old generation has of the same. 0 = off.
    pub error_percent: u32,
    /// The slowest of a hundred requests, where the old generation does better. 0s = off.
    #[serde(deserialize_with = "units::duration")]
    pub p99: Duration,
    /// Requests, or TCP sessions, to judge by. A step with fewer is extended, to three times
    /// `min_healthy` at most, and not at all where there is no traffic.
    pub min_requests: u32,
}

/// Dual stack: IPv4 clients arrive on it too.
fn any_address() -> IpAddr {
    IpAddr::V6(Ipv6Addr::UNSPECIFIED)
}

impl Target {
    /// With everything else as it is unless written.
    pub fn new(address: impl Into<String>, weight: u32) -> Self {
        Self { address: address.into(), weight, zone: None, backup: false }
    }

    pub(crate) fn default_weight() -> u32 {
        100
    }
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            policy: Policy::P2c,
            hash_on: HashOn::ClientIp,
            slow_start: Duration::ZERO,
            zone_aware: false,
            panic_threshold: 30,
        }
    }
}

impl Policy {
    pub(crate) const WORDS: [&str; 8] =
        ["p2c", "peak_ewma", "least_conn", "random", "round_robin", "maglev", "ring_hash", "rendezvous"];

    /// What it is called everywhere but in `custom:NAME`.
    pub fn name(&self) -> &str {
        match self {
            Self::P2c => "p2c",
            Self::PeakEwma => "peak_ewma",
            Self::LeastConn => "least_conn",
            Self::Random => "random",
            Self::RoundRobin => "round_robin",
            Self::Maglev => "maglev",
            Self::RingHash => "ring_hash",
            Self::Rendezvous => "rendezvous",
            Self::Custom(name) => name,
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "p2c" => Self::P2c,
            "peak_ewma" => Self::PeakEwma,
            "least_conn" => Self::LeastConn,
            "random" => Self::Random,
            "round_robin" => Self::RoundRobin,
            "maglev" => Self::Maglev,
            "ring_hash" => Self::RingHash,
            "rendezvous" => Self::Rendezvous,
            text => Self::Custom(text.strip_prefix("custom:")?.to_owned()),
        })
    }

    /// Whether it sends equal requests to the same target.
    pub(crate) fn is_hashing(&self) -> bool {
        match self {
            Self::Maglev | Self::RingHash | Self::Rendezvous | Self::Custom(_) => true,
            Self::P2c | Self::PeakEwma | Self::LeastConn | Self::Random | Self::RoundRobin => false,
        }
    }
}

impl Autoscale {
    pub(crate) fn default_min() -> u32 {
        1
    }

    pub(crate) fn default_cooldown() -> Duration {
        Duration::from_secs(60)
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            port: 0,
            address: any_address(),
            protocol: Protocol::Tcp,
            tls: None,
            proxy_protocol: ProxyMode::Off,
            trusted_proxies: Vec::new(),
            hosts: Vec::new(),
            socket: SocketOptions::default(),
            max_connections: 0,
            redirect_https: RedirectHttps::Off,
        }
    }
}

impl Default for Compression {
    fn default() -> Self {
        let types =
            ["text/*", "application/json", "application/javascript", "application/xml", "image/svg+xml"];
        Self { level: 1, min_size: 1 << 10, types: types.map(str::to_owned).to_vec() }
    }
}

impl Default for UpstreamTls {
    fn default() -> Self {
        Self { enabled: true, server_name: None, ca: None, certificate: None }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificate: Vec::new(),
            min_version: TlsVersion::V12,
            alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
            client_ca: None,
        }
    }
}

impl Default for Resolve {
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

impl Default for Check {
    fn default() -> Self {
        Self {
            kind: CheckKind::Tcp,
            path: "/".to_owned(),
            host: None,
            port: None,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            rise: 2,
            fall: 3,
            expect: vec![(200, 399)],
            service: String::new(),
        }
    }
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            name: String::new(),
            kind: ProbeKind::Readiness,
            ask: ProbeType::Http,
            port: None,
            path: "/".to_owned(),
            host: None,
            expect: vec![(200, 399)],
            send: String::new(),
            body: String::new(),
            service: String::new(),
            command: Vec::new(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            rise: 1,
            fall: 3,
        }
    }
}

impl Default for Outlier {
    fn default() -> Self {
        Self { consecutive_failures: 5, ejection: Duration::from_secs(30), max_ejected: 50 }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            error_percent: 50,
            window: Duration::from_secs(10),
            min_requests: 20,
            open_for: Duration::from_secs(5),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 1,
            on: vec![RetryOn::Connect, RetryOn::RefusedStream],
            per_try_timeout: Duration::ZERO,
            backoff: Backoff::default(),
            budget: 20,
            methods: RetryMethods::Idempotent,
            hedge: None,
        }
    }
}

impl Default for Hedge {
    fn default() -> Self {
        Self { after: Duration::from_millis(100), max: 1 }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

impl RetryOn {
    pub(crate) const WORDS: [(&str, Self); 6] = [
        ("connect", Self::Connect),
        ("refused_stream", Self::RefusedStream),
        ("reset", Self::Reset),
        ("timeout", Self::Timeout),
        ("gateway_error", Self::GatewayError),
        ("server_error", Self::ServerError),
    ];
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

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 0,
            max_connections_per_ip: 0,
            max_header_size: 64 * 1024,
            max_request_line: 16 * 1024,
            max_header_fields: 100,
            max_requests_per_connection: 10_000,
            max_body_size: 0,
            max_in_flight: 0,
            max_pending: 1000,
            pending_timeout: Duration::from_secs(2),
            target_soft: 0,
            target_hard: 0,
            rate: None,
        }
    }
}

impl Default for Basic {
    fn default() -> Self {
        Self {
            realm: "restricted".to_owned(),
            users: BTreeMap::new(),
            file: None,
            timeout: Duration::from_secs(2),
        }
    }
}

impl Default for Jwt {
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

impl Default for ForwardAuth {
    fn default() -> Self {
        Self {
            targets: Vec::new(),
            path: "/".to_owned(),
            copy: Vec::new(),
            timeout: Duration::from_secs(1),
            tls: None,
        }
    }
}

impl Default for ExtAuthz {
    fn default() -> Self {
        Self { targets: Vec::new(), timeout: Duration::from_secs(1), tls: None }
    }
}

impl Default for Rate {
    fn default() -> Self {
        Self { key: RateKey::ClientIp, per_second: 100, burst: 0, max_keys: 65_536 }
    }
}

impl Default for UpstreamOptions {
    fn default() -> Self {
        Self {
            max_idle: 64,
            warm: 0,
            idle_timeout: Duration::from_secs(30),
            tcp_keepalive: TcpKeepalive::default(),
            send_proxy: SendProxy::Off,
            protocol: UpstreamProtocol::Auto,
            tls: None,
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

impl Default for TcpKeepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(10), interval: Duration::from_secs(75), count: 9 }
    }
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            strategy: RolloutStrategy::Rolling,
            max_parallel: 1,
            canary: 0,
            steps: vec![100],
            min_healthy: Duration::from_secs(10),
            min_healthy_targets: 1,
            healthy_deadline: Duration::from_secs(300),
            progress_deadline: Duration::from_secs(600),
            drain: Duration::from_secs(30),
            auto_promote: true,
            auto_rollback: true,
            abort_on: AbortOn::default(),
        }
    }
}

impl Default for AbortOn {
    fn default() -> Self {
        Self { error_percent: 5, p99: Duration::ZERO, min_requests: 100 }
    }
}

impl Rollout {
    /// Nodes that go before all others.
    pub fn canaries(&self) -> u32 {
        match self.strategy {
            RolloutStrategy::Rolling => self.canary,
            RolloutStrategy::Canary => self.canary.max(1),
            RolloutStrategy::BlueGreen | RolloutStrategy::AllAtOnce => 0,
        }
    }
}
