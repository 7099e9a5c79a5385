//! Balancers, and where they shall send what.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use flotilla_api::v1;
use flotilla_raft_store::{Balancer, BalancerKind, Fleet, GenerationId, Haproxy, NodeId};
use flotilla_spec::{AppName, Protocol};
use tokio::time::Instant;

use super::{Malformed, protocol_to_text, required};
use crate::balancer::{
    self,
    desired::{Endpoint, Service, State},
    status::{Client, Health, Outcome, Seen, Server, Status},
};

pub(crate) fn balancer_to_pb(fleet: &Fleet, name: &str, balancer: &Balancer) -> v1::Balancer {
    use v1::balancer::Kind;
    let node = |node: NodeId| fleet.node_name(node);
    let kind = match &balancer.kind {
        BalancerKind::Haproxy(haproxy) => Kind::Haproxy(v1::balancer::Haproxy {
            address: haproxy.address.clone(),
            node: haproxy.node.map(node).unwrap_or_default(),
            backend: haproxy.backend.clone(),
            prefix: haproxy.prefix.clone(),
            options: haproxy.options.clone(),
        }),
        BalancerKind::AgentCheck { port } => {
            Kind::AgentCheck(v1::balancer::AgentCheck { port: (*port).into() })
        }
        BalancerKind::TcpCheck { port, closes_on_drain } => {
            Kind::TcpCheck(v1::balancer::TcpCheck { port: (*port).into(), closes_on_drain: *closes_on_drain })
        }
        BalancerKind::Envoy { port, admin } => {
            Kind::Envoy(v1::balancer::Envoy { port: (*port).into(), admin: admin.clone() })
        }
        BalancerKind::Nginx { node: at } => Kind::Nginx(v1::balancer::Nginx { node: node(*at) }),
    };
    v1::Balancer {
        name: name.to_owned(),
        apps: balancer.apps.iter().map(ToString::to_string).collect(),
        min_interval_ms: u64::try_from(balancer.min_interval.as_millis()).unwrap_or(u64::MAX),
        kind: Some(kind),
    }
}

/// Nodes are named; `fleet` knows their ids.
pub(crate) fn balancer(fleet: &Fleet, balancer: v1::Balancer) -> Result<(String, Balancer), Malformed> {
    use v1::balancer::Kind;
    let node = |name: &str| {
        let present =
            fleet.members.keys().find(|id| fleet.member(**id).is_ok_and(|member| member.name == name));
        present.copied().ok_or_else(|| Malformed(format!("there is no node `{name}`")))
    };
    let kind = match required(balancer.kind, "the kind of the balancer")? {
        Kind::Haproxy(haproxy) => BalancerKind::Haproxy(Haproxy {
            address: haproxy.address,
            node: (!haproxy.node.is_empty()).then(|| node(&haproxy.node)).transpose()?,
            backend: or(haproxy.backend, "{app}"),
            prefix: or(haproxy.prefix, "flotilla"),
            options: haproxy.options,
        }),
        Kind::AgentCheck(check) => BalancerKind::AgentCheck { port: port(check.port)? },
        Kind::TcpCheck(check) => {
            BalancerKind::TcpCheck { port: port(check.port)?, closes_on_drain: check.closes_on_drain }
        }
        Kind::Envoy(envoy) => BalancerKind::Envoy { port: port(envoy.port)?, admin: envoy.admin },
        Kind::Nginx(nginx) => BalancerKind::Nginx { node: node(&nginx.node)? },
    };
    let apps = balancer.apps.iter().map(|app| app_name(app)).collect::<Result<BTreeSet<_>, _>>()?;
    let min_interval = Duration::from_millis(balancer.min_interval_ms);
    Ok((balancer.name, Balancer { apps, min_interval, kind }))
}

pub(crate) fn balance_to_pb(
    fleet: &Fleet,
    envelope: Option<v1::Envelope>,
    term: u64,
    name: &str,
    balancer: &Balancer,
    services: &[Service],
) -> v1::BalanceRequest {
    v1::BalanceRequest {
        envelope,
        term,
        balancer: Some(balancer_to_pb(fleet, name, balancer)),
        services: services.iter().map(service_to_pb).collect(),
    }
}

pub(crate) fn services(services: Vec<v1::Service>) -> Result<Vec<Service>, Malformed> {
    services.into_iter().map(service).collect()
}

pub(crate) fn outcome_to_pb(outcome: &Outcome) -> v1::BalanceReply {
    v1::BalanceReply {
        changes: outcome.changes,
        problems: outcome.problems.clone(),
        servers: outcome.servers.iter().map(server_to_pb).collect(),
    }
}

pub(crate) fn outcome(reply: v1::BalanceReply) -> Result<Outcome, Malformed> {
    let servers = reply.servers.into_iter().map(server).collect::<Result<_, _>>()?;
    Ok(Outcome { changes: reply.changes, problems: reply.problems, servers })
}

pub(crate) fn balancer_status_to_pb(
    fleet: &Fleet,
    name: &str,
    settings: &Balancer,
    status: &Status,
) -> v1::BalancerStatus {
    let age = |at: Instant| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
    v1::BalancerStatus {
        balancer: Some(balancer_to_pb(fleet, name, settings)),
        state: health_to_text(status.health).to_owned(),
        problems: status.problems.clone(),
        pushes: status.pushes,
        pushed_age_ms: status.pushed.map(age),
        observed_age_ms: status.observed.map(age),
        servers: status.servers.iter().map(server_to_pb).collect(),
        clients: status.clients.iter().map(client_to_pb).collect(),
        by: balancer::by(&settings.kind).map(|node| fleet.node_name(node)).unwrap_or_default(),
    }
}

fn service_to_pb(service: &Service) -> v1::Service {
    let endpoints = service.endpoints.iter().map(|endpoint| v1::service::Endpoint {
        node_id: endpoint.node.0,
        node: endpoint.node_name.clone(),
        address: endpoint.address.ip().to_string(),
        port: endpoint.address.port().into(),
        weight: endpoint.weight,
        state: state_to_pb(endpoint.state).into(),
        generation: endpoint.generation.0,
    });
    v1::Service {
        name: service.name.clone(),
        app: service.app.to_string(),
        port: service.port.into(),
        protocol: protocol_to_text(service.protocol).to_owned(),
        endpoints: endpoints.collect(),
    }
}

fn service(service: v1::Service) -> Result<Service, Malformed> {
    let endpoints = service.endpoints.into_iter().map(|endpoint| {
        let ip = endpoint.address.parse();
        let ip = ip.map_err(|_| Malformed(format!("{} is not an address", endpoint.address)))?;
        Ok(Endpoint {
            node: NodeId(endpoint.node_id),
            node_name: endpoint.node,
            address: SocketAddr::new(ip, port(endpoint.port)?),
            weight: endpoint.weight,
            state: state(endpoint.state)?,
            generation: GenerationId(endpoint.generation),
        })
    });
    let protocol = match service.protocol.as_str() {
        "tcp" => Protocol::Tcp,
        "http" => Protocol::Http,
        other => return Err(Malformed(format!("protocol {other}"))),
    };
    Ok(Service {
        endpoints: endpoints.collect::<Result<_, Malformed>>()?,
        app: app_name(&service.app)?,
        name: service.name,
        port: port(service.port)?,
        protocol,
    })
}

fn server_to_pb(server: &Server) -> v1::BalancerServer {
    v1::BalancerServer {
        service: server.service.clone(),
        app: server.app.to_string(),
        node: server.node_name.clone(),
        node_id: server.node.0,
        address: server.address.to_string(),
        wanted: state_to_text(server.wanted).to_owned(),
        seen: seen_to_text(server.seen).to_owned(),
    }
}

fn server(server: v1::BalancerServer) -> Result<Server, Malformed> {
    let address = server.address.parse();
    Ok(Server {
        address: address.map_err(|_| Malformed(format!("{} is not an address", server.address)))?,
        app: app_name(&server.app)?,
        node: NodeId(server.node_id),
        node_name: server.node,
        service: server.service,
        wanted: [State::Ready, State::Drain, State::Down, State::Unknown]
            .into_iter()
            .find(|state| state_to_text(*state) == server.wanted)
            .ok_or_else(|| Malformed(format!("state {}", server.wanted)))?,
        seen: [Seen::Ready, Seen::Drain, Seen::Maint, Seen::Failing, Seen::Absent, Seen::Unknown]
            .into_iter()
            .find(|seen| seen_to_text(*seen) == server.seen)
            .ok_or_else(|| Malformed(format!("state {}", server.seen)))?,
    })
}

fn client_to_pb(client: &Client) -> v1::BalancerClient {
    v1::BalancerClient {
        id: client.id.clone(),
        by: client.by.clone(),
        r#type: client.kind.clone(),
        sent: client.sent.clone(),
        acknowledged: client.acknowledged.clone(),
        error: client.error.clone(),
    }
}

fn state_to_pb(state: State) -> v1::service::State {
    match state {
        State::Ready => v1::service::State::Ready,
        State::Drain => v1::service::State::Drain,
        State::Down => v1::service::State::Down,
        State::Unknown => v1::service::State::Unknown,
    }
}

fn state(number: i32) -> Result<State, Malformed> {
    match v1::service::State::try_from(number) {
        Ok(v1::service::State::Ready) => Ok(State::Ready),
        Ok(v1::service::State::Drain) => Ok(State::Drain),
        Ok(v1::service::State::Down) => Ok(State::Down),
        Ok(v1::service::State::Unknown) => Ok(State::Unknown),
        Ok(v1::service::State::Unspecified) | Err(_) => Err(Malformed(format!("state {number}"))),
    }
}

fn state_to_text(state: State) -> &'static str {
    match state {
        State::Ready => "ready",
        State::Drain => "drain",
        State::Down => "down",
        State::Unknown => "unknown",
    }
}

fn seen_to_text(seen: Seen) -> &'static str {
    match seen {
        Seen::Ready => "ready",
        Seen::Drain => "drain",
        Seen::Maint => "maint",
        Seen::Failing => "failing",
        Seen::Absent => "absent",
        Seen::Unknown => "unknown",
    }
}

fn health_to_text(health: Health) -> &'static str {
    match health {
        Health::Unknown => "unknown",
        Health::InSync => "in sync",
        Health::Drifting => "drifting",
        Health::Failing => "failing",
        Health::Waiting => "waiting",
        Health::Asks => "asks",
    }
}

fn or(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

fn port(number: u32) -> Result<u16, Malformed> {
    u16::try_from(number).map_err(|_| Malformed(format!("{number} is not a port")))
}

fn app_name(name: &str) -> Result<AppName, Malformed> {
    AppName::parse(name).map_err(|err| Malformed(err.to_string()))
}
