//! The types. Every field that is here does what it says; a field that nothing acts on yet is not
//! here, so a spec that asks for it is refused instead of silently ignored.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{AppName, units};

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
    #[serde(default)]
    pub timeouts: Timeouts,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub upstream: UpstreamOptions,
    #[serde(default)]
    pub route: Vec<Route>,
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
    /// Per listener and node; 0 = no limit.
    #[serde(default)]
    pub max_connections: u32,
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct Balance {
    pub policy: Policy,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    #[default]
    P2c,
    RoundRobin,
}

/// Written as `"/path"`, `"tcp"`, `"none"` or a table.
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
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    #[default]
    Tcp,
    Http,
    None,
}

/// `0s` = off.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    #[serde(deserialize_with = "units::duration")]
    pub connect: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub request_header: Duration,
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
    #[serde(deserialize_with = "units::size")]
    pub max_header_size: u64,
    #[serde(deserialize_with = "units::size")]
    pub max_body_size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamOptions {
    pub max_idle: u32,
    #[serde(deserialize_with = "units::duration")]
    pub idle_timeout: Duration,
    pub tcp_keepalive: TcpKeepalive,
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

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub name: String,
    /// TOML key `match`.
    #[serde(default, rename = "match")]
    pub matches: Match,
    pub pool: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    pub host: Vec<String>,
    pub path: Option<String>,
    pub path_prefix: Option<String>,
    pub methods: Vec<String>,
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
    /// Nodes that shift at the same time.
    pub max_parallel: u32,
    /// How long a node must stay ready with the new generation before the next one shifts.
    /// Not waited for when nothing served before.
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
    pub auto_rollback: bool,
}

/// Dual stack: IPv4 clients arrive on it too.
fn any_address() -> IpAddr {
    IpAddr::V6(Ipv6Addr::UNSPECIFIED)
}

impl Target {
    pub(crate) fn default_weight() -> u32 {
        100
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self { port: 0, address: any_address(), protocol: Protocol::Tcp, max_connections: 0 }
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
        }
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
        Self { max_connections: 0, max_header_size: 64 * 1024, max_body_size: 0 }
    }
}

impl Default for UpstreamOptions {
    fn default() -> Self {
        Self { max_idle: 64, idle_timeout: Duration::from_secs(30), tcp_keepalive: TcpKeepalive::default() }
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
            max_parallel: 1,
            min_healthy: Duration::from_secs(10),
            min_healthy_targets: 1,
            healthy_deadline: Duration::from_secs(300),
            progress_deadline: Duration::from_secs(600),
            drain: Duration::from_secs(30),
            auto_rollback: true,
        }
    }
}
