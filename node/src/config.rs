//! `node.toml`: [`ConfigFile`] is what was typed, [`Config`] is what it means.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use flotilla_proxy::{ProxyConfig, config::Http2Limits};
use flotilla_raft_store::{Availability, Member, StoreOptions, types::Timings};
use serde::Deserialize;

use crate::balancer::nginx::NginxConfig;

use crate::agent::translate::Here;

/// Every field is optional, so that flags and environment can fill in what the file leaves out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConfigFile {
    pub name: Option<String>,
    pub region: Option<String>,
    pub zone: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// The node's share of apps and ports, in percent of a normal node.
    pub weight: Option<u32>,
    pub data_dir: Option<PathBuf>,
    pub cluster: ClusterSection,
    pub admin: AdminSection,
    pub join: JoinSection,
    pub traffic: TrafficSection,
    pub nginx: Option<NginxSection>,
    pub certificates: CertificatesSection,
    pub ports: PortsSection,
    pub limits: LimitsSection,
    pub probes: ProbesSection,
    pub raft: RaftSection,
    pub log: LogSection,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterSection {
    /// `host:port` or `:port`.
    pub listen: Option<String>,
    /// How peers reach this node; needed when it listens on a wildcard.
    pub advertise: Option<String>,
    /// A node that is silent for this long is given up: other nodes take its apps and its vote until it
    /// returns. The leader's setting counts.
    #[serde(with = "duration")]
    pub lost_after: Option<Duration>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSection {
    pub listen: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JoinSection {
    /// Members to ask, and to look for at every start; `host:port` each.
    pub addresses: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrafficSection {
    /// Where apps that listen on every address listen on this node.
    pub address: Option<IpAddr>,
    /// The address of this node under which balancers find its apps; needed when neither `address` nor the
    /// address of [cluster] is it.
    pub advertise: Option<IpAddr>,
    /// How long a stopping node waits for its sessions.
    #[serde(with = "duration")]
    pub drain: Option<Duration>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CertificatesSection {
    /// `NAME.pem` and `NAME.key` of the certificates that apps name, read again when they change.
    pub directory: Option<PathBuf>,
}

/// An nginx on this machine that `flotilla balancer add nginx` may name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NginxSection {
    pub program: Option<PathBuf>,
    /// The main file, which includes `upstreams` in its `stream` block.
    pub config: Option<PathBuf>,
    /// The file that this node writes.
    pub upstreams: Option<PathBuf>,
    pub pid: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PortsSection {
    /// `from-to`, for apps that ask for port 0.
    pub pool: Option<String>,
    /// Ports that apps must not use.
    pub reserved: Option<Vec<u16>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSection {
    pub max_connections: Option<usize>,
    pub max_connections_per_source: Option<usize>,
    /// Bytes; from 95 % of it on, new connections are turned away until it is less than 90 %. Left out: what the
    /// machine and the control groups of the process allow; 0 = no limit.
    pub memory_budget_bytes: Option<u64>,
    /// From accept to the end of a PROXY header; from there to the end of a TLS hello that is only looked at.
    #[serde(with = "duration")]
    pub proxy_header_timeout: Option<Duration>,
    #[serde(with = "duration")]
    pub hello_timeout: Option<Duration>,
    /// HTTP/2, of one connection of a client: requests at once.
    pub h2_streams: Option<u32>,
    /// Bytes of a body that may be on their way here, of one request and of all together.
    pub h2_stream_window_bytes: Option<u32>,
    pub h2_connection_window_bytes: Option<u32>,
    /// Of the fields of a request, and of the table that compresses them.
    pub h2_header_list_bytes: Option<u32>,
    pub h2_header_table_bytes: Option<u32>,
    /// In ten seconds; one more ends the connection.
    pub h2_resets: Option<u32>,
    pub h2_pings: Option<u32>,
    pub h2_settings: Option<u32>,
    /// Traffic threads; 0 = one per core.
    pub workers: Option<usize>,
    /// Free bytes on the data disk below which writes are refused.
    pub free_space_min_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbesSection {
    /// Folder of the programs that an app's `command` probes may run here, as the user of the node.
    /// Left out: none, because a spec must not be able to run what it likes.
    pub commands: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RaftSection {
    #[serde(with = "duration")]
    pub heartbeat: Option<Duration>,
    #[serde(with = "duration")]
    pub election_min: Option<Duration>,
    #[serde(with = "duration")]
    pub election_max: Option<Duration>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSection {
    /// A tracing filter: `info`, `flotilla_node=debug,info`.
    pub level: Option<String>,
    pub format: Option<LogFormat>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// A node's settings with every default filled in and every rule checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub name: String,
    pub region: String,
    pub zone: String,
    pub labels: BTreeMap<String, String>,
    pub weight: u32,
    pub data_dir: PathBuf,
    pub cluster_listen: SocketAddr,
    /// `host:port` that other members dial.
    pub cluster_advertise: String,
    pub lost_after: Duration,
    pub admin_listen: SocketAddr,
    pub join: Vec<String>,
    pub traffic_address: Option<IpAddr>,
    pub certificates: PathBuf,
    /// Where balancers find its apps: an IP, or a host that could not be resolved.
    pub traffic_advertise: String,
    pub nginx: Option<NginxConfig>,
    pub drain: Duration,
    pub port_pool: (u16, u16),
    pub reserved_ports: Vec<u16>,
    pub max_connections: usize,
    pub max_connections_per_source: usize,
    pub memory_budget: Option<u64>,
    pub proxy_header_timeout: Duration,
    pub hello_timeout: Duration,
    pub http2: Http2Limits,
    pub workers: usize,
    pub free_space_min_bytes: u64,
    pub probe_commands: Option<PathBuf>,
    pub raft: Timings,
    pub log_level: String,
    pub log_format: LogFormat,
}

impl ConfigFile {
    /// Errors name the file, the line and the column.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    pub fn resolve(self) -> anyhow::Result<Config> {
        let cluster_listen = listen_address(self.cluster.listen.as_deref().unwrap_or(":7400"))
            .context("read [cluster] listen")?;
        let admin_listen = listen_address(self.admin.listen.as_deref().unwrap_or("127.0.0.1:7401"))
            .context("read [admin] listen")?;
        let cluster_advertise = match self.cluster.advertise {
            Some(address) => address,
            None => {
                ensure!(
                    !cluster_listen.ip().is_unspecified(),
                    "[cluster] listens on every address ({cluster_listen}), so peers cannot know which one to dial: \
                     set [cluster] advertise = \"<address of this node>:{}\"",
                    cluster_listen.port()
                );
                cluster_listen.to_string()
            }
        };
        ensure!(
            cluster_advertise
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()),
            "[cluster] advertise = \"{cluster_advertise}\" is not host:port"
        );

        let raft = Timings {
            heartbeat: self.raft.heartbeat.unwrap_or(Timings::PRODUCTION.heartbeat),
            election_min: self.raft.election_min.unwrap_or(Timings::PRODUCTION.election_min),
            election_max: self.raft.election_max.unwrap_or(Timings::PRODUCTION.election_max),
            ..Timings::PRODUCTION
        };
        ensure!(
            raft.heartbeat * 2 <= raft.election_min && raft.election_min < raft.election_max,
            "[raft] needs 2 x heartbeat <= election_min < election_max, else one late heartbeat is an election \
             (heartbeat {:?}, election_min {:?}, election_max {:?})",
            raft.heartbeat,
            raft.election_min,
            raft.election_max
        );

        let name = self.name.unwrap_or_else(|| {
            nix::unistd::gethostname().map_or_else(
                |_| "node".to_owned(),
                |name| name.to_string_lossy().split('.').next().unwrap_or("node").to_owned(),
            )
        });
        ensure!(
            !name.is_empty()
                && name.len() <= 63
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)),
            "name = \"{name}\": a node's name has 1 to 63 letters, digits, `-`, `_` or `.`"
        );
        let weight = self.weight.unwrap_or(100);
        ensure!(
            (1..=10_000).contains(&weight),
            "weight = {weight}: a node's share is 1 to 10000 percent of a normal one"
        );
        let workers = match self.limits.workers.unwrap_or(0) {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };

        let defaults = ProxyConfig::default();
        let data_dir = self.data_dir.unwrap_or_else(|| PathBuf::from("/var/lib/flotilla"));
        let traffic_advertise = match self.traffic.advertise.or(self.traffic.address) {
            Some(address) if !address.is_unspecified() => address.to_string(),
            Some(_) | None => address_of(&cluster_advertise),
        };

        Ok(Config {
            name,
            region: self.region.unwrap_or_else(|| "default".to_owned()),
            zone: self.zone.unwrap_or_else(|| "default".to_owned()),
            labels: self.labels,
            weight,
            certificates: self.certificates.directory.unwrap_or_else(|| data_dir.join("certificates")),
            data_dir,
            cluster_listen,
            cluster_advertise,
            lost_after: self.cluster.lost_after.unwrap_or(Duration::from_secs(60)),
            admin_listen,
            join: self.join.addresses,
            traffic_address: self.traffic.address,
            traffic_advertise,
            nginx: self.nginx.map(|nginx| NginxConfig {
                program: nginx.program.unwrap_or_else(|| PathBuf::from("/usr/sbin/nginx")),
                config: nginx.config.unwrap_or_else(|| PathBuf::from("/etc/nginx/nginx.conf")),
                upstreams: nginx.upstreams.unwrap_or_else(|| PathBuf::from("/etc/nginx/flotilla.conf")),
                pid: nginx.pid.unwrap_or_else(|| PathBuf::from("/run/nginx.pid")),
            }),
            drain: self.traffic.drain.unwrap_or(Duration::from_secs(30)),
            port_pool: port_pool(self.ports.pool.as_deref().unwrap_or("20000-29999"))?,
            reserved_ports: self.ports.reserved.unwrap_or_else(|| vec![22]),
            max_connections: self.limits.max_connections.unwrap_or(50_000),
            max_connections_per_source: self.limits.max_connections_per_source.unwrap_or(1_024),
            memory_budget: self.limits.memory_budget_bytes,
            proxy_header_timeout: early(
                "proxy_header_timeout",
                self.limits.proxy_header_timeout,
                defaults.proxy_header_timeout,
            )?,
            hello_timeout: early("hello_timeout", self.limits.hello_timeout, defaults.hello_timeout)?,
            http2: http2(&self.limits)?,
            workers,
            free_space_min_bytes: self.limits.free_space_min_bytes.unwrap_or(64 << 20),
            probe_commands: self.probes.commands,
            raft,
            log_level: self.log.level.unwrap_or_else(|| "info".to_owned()),
            log_format: self.log.format.unwrap_or_default(),
        })
    }
}

/// A wait of connections that nobody knows yet: never endless, or strangers could keep all places.
fn early(name: &str, asked: Option<Duration>, default: Duration) -> anyhow::Result<Duration> {
    let timeout = asked.unwrap_or(default);
    ensure!(
        (Duration::from_millis(1)..=Duration::from_secs(60)).contains(&timeout),
        "[limits] {name} = \"{}\": 1ms to 60s",
        humantime::format_duration(timeout)
    );
    Ok(timeout)
}

fn http2(limits: &LimitsSection) -> anyhow::Result<Http2Limits> {
    let default = Http2Limits::default();
    let within = |name: &str, asked: Option<u32>, default: u32, (min, max): (u32, u32)| {
        let number = asked.unwrap_or(default);
        ensure!((min..=max).contains(&number), "[limits] {name} = {number}: {min} to {max}");
        Ok(number)
    };
    // RFC 9113 §6.5.2, §6.9.1: a window has 31 bits. Less than that of the protocol would stop clients that do not wait
    // for our settings.
    let window = (65_535, (1 << 31) - 1);
    let often = (10, 1_000_000);
    let kib = |from: u32, to: u32| (from << 10, to << 10);
    Ok(Http2Limits {
        streams: within("h2_streams", limits.h2_streams, default.streams, (1, 10_000))?,
        stream_window_bytes: within(
            "h2_stream_window_bytes",
            limits.h2_stream_window_bytes,
            default.stream_window_bytes,
            window,
        )?,
        connection_window_bytes: within(
            "h2_connection_window_bytes",
            limits.h2_connection_window_bytes,
            default.connection_window_bytes,
            window,
        )?,
        header_list_bytes: within(
            "h2_header_list_bytes",
            limits.h2_header_list_bytes,
            default.header_list_bytes,
            kib(8, 1024),
        )?,
        header_table_bytes: within(
            "h2_header_table_bytes",
            limits.h2_header_table_bytes,
            default.header_table_bytes,
            (0, 64 << 10),
        )?,
        resets: within("h2_resets", limits.h2_resets, default.resets, often)?,
        pings: within("h2_pings", limits.h2_pings, default.pings, often)?,
        settings: within("h2_settings", limits.h2_settings, default.settings, often)?,
    })
}

impl Config {
    /// Ports that apps cannot have here: those reserved, and those this node itself listens on where
    /// its apps do.
    fn taken_ports(&self) -> Vec<u16> {
        let meets_apps = |own: &&SocketAddr| {
            own.ip().is_unspecified() || self.traffic_address.is_none_or(|traffic| traffic == own.ip())
        };
        let own = [self.cluster_listen, self.admin_listen];
        let mut taken = self.reserved_ports.clone();
        taken.extend(own.iter().filter(meets_apps).map(SocketAddr::port));
        taken.sort_unstable();
        taken.dedup();
        taken
    }

    pub(crate) fn store(&self) -> StoreOptions {
        StoreOptions { free_space_min_bytes: self.free_space_min_bytes, ..StoreOptions::default() }
    }

    /// What apps find here.
    pub(crate) fn here(&self) -> Here {
        Here { traffic_address: self.traffic_address, certificates: self.certificates.clone() }
    }

    /// What the fleet shall know of this node.
    pub(crate) fn member(&self) -> Member {
        Member {
            name: self.name.clone(),
            region: self.region.clone(),
            zone: self.zone.clone(),
            cluster_address: self.cluster_advertise.clone(),
            admin_address: self.admin_listen.to_string(),
            traffic_address: self.traffic_advertise.clone(),
            labels: self.labels.clone(),
            port_pool: self.port_pool,
            reserved_ports: self.taken_ports(),
            availability: Availability::Active,
            drain: None,
            weight: self.weight,
            binary_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// The address of a host; the host itself while nobody knows it.
fn address_of(host_port: &str) -> String {
    let address = host_port.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    match address {
        Some(address) => address.ip().to_string(),
        None => host_port.rsplit_once(':').map_or(host_port, |(host, _)| host).to_owned(),
    }
}

/// `host:port`, or `:port` for every address of the node.
fn listen_address(text: &str) -> anyhow::Result<SocketAddr> {
    let text = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    text.to_socket_addrs()
        .with_context(|| format!("\"{text}\" is not host:port"))?
        .next()
        .with_context(|| format!("\"{text}\" has no address"))
}

fn port_pool(text: &str) -> anyhow::Result<(u16, u16)> {
    let range = text
        .split_once('-')
        .and_then(|(from, to)| Some((from.trim().parse::<u16>().ok()?, to.trim().parse::<u16>().ok()?)));
    let (from, to) =
        range.with_context(|| format!("[ports] pool = \"{text}\" is not FROM-TO, as in \"20000-29999\""))?;
    ensure!(0 < from && from <= to, "[ports] pool = \"{text}\": the range is empty or begins at 0");
    Ok((from, to))
}

/// `"500ms"`, `"1m30s"`.
mod duration {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, de::Error as _};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_duration(&text).map(Some).map_err(|err| {
            D::Error::custom(format!("`{text}` is not a duration such as \"500ms\" or \"1m30s\": {err}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> anyhow::Result<Config> {
        toml::from_str::<ConfigFile>(text)?.resolve()
    }

    #[test]
    fn each_limit_of_a_connection_can_be_said() {
        let text = "[cluster]\nlisten = \"127.0.0.1:7400\"\n[limits]\nproxy_header_timeout = \"1s\"\n\
            hello_timeout = \"2s\"\nh2_streams = 3\nh2_stream_window_bytes = 70000\n\
            h2_connection_window_bytes = 80000\nh2_header_list_bytes = 9000\nh2_header_table_bytes = 0\n\
            h2_resets = 10\nh2_pings = 11\nh2_settings = 12";
        let config = resolve(text).unwrap();
        assert_eq!(config.proxy_header_timeout, Duration::from_secs(1));
        assert_eq!(config.hello_timeout, Duration::from_secs(2));
        let expected = Http2Limits {
            streams: 3,
            stream_window_bytes: 70_000,
            connection_window_bytes: 80_000,
            header_list_bytes: 9_000,
            header_table_bytes: 0,
            resets: 10,
            pings: 11,
            settings: 12,
        };
        assert_eq!(config.http2, expected);
        let defaults = resolve("[cluster]\nlisten = \"127.0.0.1:7400\"").unwrap();
        assert_eq!(defaults.http2, Http2Limits::default());
    }

    #[test]
    fn a_file_that_says_little_gets_the_documented_defaults() {
        let config = resolve("name = \"n1\"\n[cluster]\nlisten = \"127.0.0.1:7400\"").unwrap();
        assert_eq!(config.cluster_advertise, "127.0.0.1:7400");
        assert_eq!(config.admin_listen, "127.0.0.1:7401".parse().unwrap());
        assert_eq!(config.port_pool, (20_000, 29_999));
        assert_eq!(config.certificates, Path::new("/var/lib/flotilla/certificates"));
        assert_eq!(config.reserved_ports, [22]);
        assert_eq!(config.max_connections, 50_000);
        assert_eq!(config.raft, Timings::PRODUCTION);
    }

    #[test]
    fn apps_cannot_have_the_ports_on_which_the_node_itself_listens() {
        let file = |traffic: &str| {
            format!(
                "name = \"n1\"\n[cluster]\nlisten = \"127.0.0.9:7400\"\n[admin]\nlisten = \"127.0.0.1:7401\"\n{traffic}"
            )
        };
        for (traffic, taken) in [
            ("", [22, 7400, 7401].as_slice()),
            ("[traffic]\naddress = \"127.0.0.9\"", &[22, 7400]),
            ("[traffic]\naddress = \"10.0.0.1\"", &[22]),
        ] {
            assert_eq!(resolve(&file(traffic)).unwrap().member().reserved_ports, taken, "{traffic}");
        }
    }

    #[test]
    fn a_file_that_cannot_work_is_refused_with_the_reason() {
        for (text, why) in [
            ("name = \"n1\"", "peers cannot know which one to dial"),
            ("nme = \"n1\"", "unknown field `nme`"),
            ("[raft]\nheartbeat = \"1x\"", "is not a duration"),
            ("[raft]\nheartbeat = 500", "invalid type: integer"),
            (
                "[cluster]\nlisten = \"127.0.0.1:7400\"\n[raft]\nheartbeat = \"1s\"",
                "2 x heartbeat <= election_min",
            ),
            ("[cluster]\nlisten = \"127.0.0.1:7400\"\n[ports]\npool = \"9-3\"", "the range is empty"),
            ("[cluster]\nlisten = \"127.0.0.1:7400\"\n[ports]\npool = \"nine\"", "is not FROM-TO"),
            ("[cluster]\nlisten = \":7400\"\nadvertise = \"nowhere\"", "is not host:port"),
            ("name = \"n 1\"\n[cluster]\nlisten = \"127.0.0.1:7400\"", "1 to 63 letters"),
            (
                "[cluster]\nlisten = \"127.0.0.1:7400\"\n[limits]\nhello_timeout = \"0s\"",
                "[limits] hello_timeout = \"0s\": 1ms to 60s",
            ),
            (
                "[cluster]\nlisten = \"127.0.0.1:7400\"\n[limits]\nh2_stream_window_bytes = 1000",
                "[limits] h2_stream_window_bytes = 1000: 65535 to 2147483647",
            ),
        ] {
            let error = format!("{:#}", resolve(text).expect_err(text));
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
