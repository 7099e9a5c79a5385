//! `flotilla balancer add …`

use std::time::Duration;

use clap::Subcommand;
use flotilla_api::v1::{Balancer, PutBalancerRequest, balancer};

use crate::{
    args::Shell,
    client::fleet,
    exit::{Exit, Failure},
    json,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Haproxy(Haproxy),
    Envoy(Envoy),
    Nginx(Nginx),
    AgentCheck(AgentCheck),
    TcpCheck(TcpCheck),
}

#[derive(Debug, clap::Args)]
struct Common {
    /// What people call it: a-z, 0-9 and `-`
    name: String,
    /// An app that it is told about; may be repeated. Without: all apps
    #[arg(long = "app", value_name = "APP")]
    apps: Vec<String>,
    /// From one change of it to the next, at least
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    min_interval: Option<Duration>,
    /// Change the balancer of that name, if there is one
    #[arg(long)]
    replace: bool,
}

/// HAProxy, over its runtime API
///
/// The leader keeps the servers of one backend per service at what it should be, within milliseconds of
/// a change and again after a reload. Servers whose names begin with the prefix are the fleet's: slots
/// of a `server-template flotilla 10 127.0.0.1:1 check disabled`, or added at run time when no slot is
/// free. All others are left alone. HAProxy needs `stats socket ipv4@ADDRESS:PORT level admin`, in a
/// network that only the nodes reach.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla balancer add haproxy edge --address 10.0.0.9:9999 --app web
  flotilla balancer add haproxy edge --address /run/haproxy/admin.sock --node n1 --backend 'be_{app}'")]
pub(crate) struct Haproxy {
    #[command(flatten)]
    common: Common,
    /// Its stats socket: host:port, or a path, which needs --node
    #[arg(long, value_name = "ADDRESS")]
    address: String,
    /// The node that reaches the address; without: the leader
    #[arg(long)]
    node: Option<String>,
    /// Names of backends. {app} is the service: the app, and for its second and later ports APP-PORT
    #[arg(long, default_value = "{app}", value_name = "TEMPLATE")]
    backend: String,
    /// How the names of the servers begin that are the fleet's
    #[arg(long, default_value = "flotilla")]
    prefix: String,
    /// Parameters of servers that are added at run time
    #[arg(long, default_value = "check inter 1s fall 2 rise 2", allow_hyphen_values = true)]
    options: String,
}

/// Envoys, which subscribe to endpoints over gRPC
///
/// Every node becomes an xDS server (ADS and EDS, state of the world and incremental) on the port, plain
/// text, on the address of its cluster port. An EDS cluster of Envoy names the service: the app, and for its second
/// and later ports APP-PORT.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla balancer add envoy mesh --port 7403
  flotilla balancer add envoy mesh --port 7403 --admin 10.0.0.9:9901")]
pub(crate) struct Envoy {
    #[command(flatten)]
    common: Common,
    /// Of each node
    #[arg(long)]
    port: u16,
    /// host:port of the admin interface of an Envoy, to see what it really has; may be repeated. Without,
    /// its acknowledgement is believed
    #[arg(long, value_name = "ADDRESS")]
    admin: Vec<String>,
}

/// nginx with its stream module, on the machine of a node
///
/// The node writes a file with the upstreams, has nginx test it, reloads nginx and waits for the new workers.
/// Where file and program are is said in [nginx] of its node.toml. For an nginx elsewhere see `flotilla lb export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla balancer add nginx local --node n1 --min-interval 5s")]
pub(crate) struct Nginx {
    #[command(flatten)]
    common: Common,
    /// The node beside which it runs
    #[arg(long)]
    node: String,
}

/// An answer to HAProxy's agent checks, on one port of each node
///
/// HAProxy asks each node how an app is there, by `agent-check agent-port PORT agent-send \"APP\\n\"`, and is
/// told `up ready 100%`, `drain`, `maint` or `down`. With a single --app nothing needs to be sent.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla balancer add agent-check edge-agents --port 7402")]
pub(crate) struct AgentCheck {
    #[command(flatten)]
    common: Common,
    /// Of each node
    #[arg(long)]
    port: u16,
}

/// A port of each node that is open while an app serves there
///
/// For any balancer that can check a TCP port other than the one it forwards to.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla balancer add tcp-check web-check --port 7410 --app web --closes-on-drain")]
pub(crate) struct TcpCheck {
    #[command(flatten)]
    common: Common,
    /// Of each node
    #[arg(long)]
    port: u16,
    /// Close it as soon as the node drains. Some balancers reset the sessions of a target whose check fails:
    /// leave it out for those
    #[arg(long)]
    closes_on_drain: bool,
}

pub(crate) async fn run(verb: Verb, shell: &Shell) -> Result<Exit, Failure> {
    use balancer::Kind;
    let (common, kind) = match verb {
        Verb::Haproxy(Haproxy { common, address, node, backend, prefix, options }) => {
            let node = node.unwrap_or_default();
            (common, Kind::Haproxy(balancer::Haproxy { address, node, backend, prefix, options }))
        }
        Verb::Envoy(Envoy { common, port, admin }) => {
            (common, Kind::Envoy(balancer::Envoy { port: port.into(), admin }))
        }
        Verb::Nginx(Nginx { common, node }) => (common, Kind::Nginx(balancer::Nginx { node })),
        Verb::AgentCheck(AgentCheck { common, port }) => {
            (common, Kind::AgentCheck(balancer::AgentCheck { port: port.into() }))
        }
        Verb::TcpCheck(TcpCheck { common, port, closes_on_drain }) => {
            (common, Kind::TcpCheck(balancer::TcpCheck { port: port.into(), closes_on_drain }))
        }
    };
    let interval = common.min_interval.unwrap_or_default();
    let balancer = Balancer {
        name: common.name,
        apps: common.apps,
        min_interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
        kind: Some(kind),
    };
    let client = shell.client();
    let request = PutBalancerRequest {
        request: Some(client.request_id()),
        balancer: Some(balancer.clone()),
        replace: common.replace,
    };
    client
        .write(shell.answer_within(), async |channel| fleet(channel).put_balancer(request.clone()).await)
        .await?;
    shell.output.emit(
        "BalancerAdded",
        || json::balancer(&balancer),
        |style| format!("{} balancer {} is told where apps serve", style.green("✓"), balancer.name),
    )?;
    shell.output.note(format!("See how it is with:  flotilla balancer describe {}", balancer.name));
    Ok(Exit::Done)
}
