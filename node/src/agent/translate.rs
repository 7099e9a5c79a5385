//! An app's spec as the proxy wants it. PURE.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use flotilla_proxy::config as proxy;
use flotilla_raft_store::GenerationId;
use flotilla_spec as spec;

/// The pool that `targets` of the spec make, and where everything goes that no route claims.
const DEFAULT_POOL: &str = "default";

/// `ports`: the real port of each entry of `spec.listen`, in its order. `traffic_address`: where this
/// node puts listeners that are meant for every address.
pub(crate) fn translate(
    app: &spec::AppSpec,
    generation: GenerationId,
    ports: &[u16],
    traffic_address: Option<IpAddr>,
) -> proxy::AppConfig {
    let mut pools: BTreeMap<String, proxy::PoolConfig> =
        app.pool.iter().map(|(name, named)| (name.clone(), pool(app, &named.targets))).collect();
    if !app.targets.is_empty() {
        pools.insert(DEFAULT_POOL.to_owned(), pool(app, &app.targets));
    }
    proxy::AppConfig {
        app: Arc::from(app.name.as_str()),
        generation: generation.0,
        ports: app
            .listen
            .iter()
            .zip(ports)
            .map(|(listen, &real)| port(listen, real, traffic_address))
            .collect(),
        pools,
        routes: app.route.iter().map(route).collect(),
        timeouts: timeouts(&app.timeouts),
        limits: proxy::Limits {
            max_connections: size(app.limits.max_connections.into()),
            max_header_bytes: size(app.limits.max_header_size),
            max_body_bytes: app.limits.max_body_size,
        },
    }
}

fn port(listen: &spec::Listen, real: u16, traffic_address: Option<IpAddr>) -> proxy::PortConfig {
    let address = match traffic_address {
        Some(address) if listen.address.is_unspecified() => address,
        Some(_) | None => listen.address,
    };
    let protocol = match listen.protocol {
        spec::Protocol::Tcp => proxy::Protocol::Tcp,
        spec::Protocol::Http => proxy::Protocol::Http,
    };
    proxy::PortConfig { address, port: real, protocol, max_connections: size(listen.max_connections.into()) }
}

fn pool(app: &spec::AppSpec, targets: &[spec::Target]) -> proxy::PoolConfig {
    let keepalive = &app.upstream.tcp_keepalive;
    proxy::PoolConfig {
        targets: targets
            .iter()
            .map(|target| proxy::TargetConfig { address: target.address.clone(), weight: target.weight })
            .collect(),
        resolve: resolve(&app.resolve),
        balance: match app.balance.policy {
            spec::Policy::P2c => "p2c",
            spec::Policy::RoundRobin => "round_robin",
        }
        .to_owned(),
        check: check(&app.check),
        max_idle: size(app.upstream.max_idle.into()),
        idle_timeout: app.upstream.idle_timeout,
        tcp_keepalive: proxy::TcpKeepalive {
            idle: keepalive.idle,
            interval: keepalive.interval,
            count: keepalive.count,
        },
    }
}

fn resolve(resolve: &spec::Resolve) -> proxy::ResolveConfig {
    proxy::ResolveConfig {
        mode: match resolve.mode {
            spec::ResolveMode::All => proxy::ResolveMode::All,
            spec::ResolveMode::First => proxy::ResolveMode::First,
        },
        family: match resolve.family {
            spec::Family::Any => proxy::Family::Any,
            spec::Family::V4 => proxy::Family::V4,
            spec::Family::V6 => proxy::Family::V6,
        },
        min_ttl: resolve.min_ttl,
        max_ttl: resolve.max_ttl,
        stale: resolve.stale,
    }
}

fn check(check: &spec::Check) -> proxy::CheckConfig {
    proxy::CheckConfig {
        kind: match check.kind {
            spec::CheckKind::None => proxy::CheckKind::None,
            spec::CheckKind::Tcp => proxy::CheckKind::Tcp,
            spec::CheckKind::Http => proxy::CheckKind::Http {
                path: check.path.clone(),
                host: check.host.clone(),
                expect: check.expect.clone(),
            },
        },
        port: check.port,
        interval: check.interval,
        timeout: check.timeout,
        rise: check.rise,
        fall: check.fall,
    }
}

fn route(route: &spec::Route) -> proxy::RouteConfig {
    let matches = &route.matches;
    let exact = matches.path.clone().map(proxy::PathMatch::Exact);
    let prefix = matches.path_prefix.clone().map(proxy::PathMatch::Prefix);
    proxy::RouteConfig {
        name: route.name.clone(),
        hosts: matches.host.iter().map(|host| host.to_ascii_lowercase()).collect(),
        path: exact.or(prefix),
        methods: matches.methods.clone(),
        pool: route.pool.clone(),
    }
}

fn timeouts(timeouts: &spec::Timeouts) -> proxy::Timeouts {
    proxy::Timeouts {
        connect: timeouts.connect,
        request_header: timeouts.request_header,
        response_header: timeouts.response_header,
        request: timeouts.request,
        idle: timeouts.idle,
        tcp_idle: timeouts.tcp_idle,
        tunnel: timeouts.tunnel,
    }
}

/// A limit beyond what this machine can count is no limit.
fn size(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
