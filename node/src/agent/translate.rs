//! An app's spec as the proxy wants it. PURE.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use flotilla_proxy::config as proxy;
use flotilla_raft_store::GenerationId;
use flotilla_spec as spec;

mod access;
mod route;

/// The pool that `targets` of the spec make, and where everything goes that no route claims.
const DEFAULT_POOL: &str = "default";

/// What differs from node to node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Here {
    /// Where this node puts listeners that are meant for every address.
    pub(crate) traffic_address: Option<IpAddr>,
    /// Where certificates are that have a name.
    pub(crate) certificates: PathBuf,
}

/// `ports`: the real port of each entry of `spec.listen`, in its order.
pub(crate) fn translate(
    app: &spec::AppSpec,
    generation: GenerationId,
    ports: &[u16],
    here: &Here,
) -> proxy::AppConfig {
    let mut pools: BTreeMap<String, proxy::PoolConfig> =
        app.pool.iter().map(|(name, named)| (name.clone(), pool(app, &named.targets, here))).collect();
    if !app.targets.is_empty() {
        pools.insert(DEFAULT_POOL.to_owned(), pool(app, &app.targets, here));
    }
    pools.extend(access::pools(app, here));
    proxy::AppConfig {
        app: Arc::from(app.name.as_str()),
        generation: generation.0,
        ports: app
            .listen
            .iter()
            .zip(ports)
            .map(|(listen, &real)| port(listen, real, https_port(app, ports), here))
            .collect(),
        pools,
        routes: app.route.iter().map(route::translate).collect(),
        timeouts: timeouts(&app.timeouts),
        retry: retry(&app.retry),
        limits: proxy::Limits {
            max_connections: size(app.limits.max_connections.into()),
            max_connections_per_source: size(app.limits.max_connections_per_ip.into()),
            max_header_bytes: size(app.limits.max_header_size),
            max_request_line_bytes: u16::try_from(app.limits.max_request_line).unwrap_or(u16::MAX),
            max_header_fields: u8::try_from(app.limits.max_header_fields).unwrap_or(u8::MAX),
            max_requests_per_connection: app.limits.max_requests_per_connection,
            max_body_bytes: app.limits.max_body_size,
            max_in_flight: size(app.limits.max_in_flight.into()),
            target_soft: size(app.limits.target_soft.into()),
            target_hard: size(app.limits.target_hard.into()),
            max_pending: size(app.limits.max_pending.into()),
            pending_timeout: app.limits.pending_timeout,
            rate: app.limits.rate.as_ref().map(rate),
        },
        layers: app.layers.clone(),
        compression: app.compression.as_ref().map(|compression| proxy::CompressionConfig {
            level: compression.level,
            bytes_min: compression.min_size,
            types: compression.types.clone(),
        }),
        access: access::access(&app.access, here),
    }
}

/// Where the app serves https, if it does.
fn https_port(app: &spec::AppSpec, ports: &[u16]) -> Option<u16> {
    let is_https = |listen: &spec::Listen| listen.protocol == spec::Protocol::Http && listen.tls.is_some();
    app.listen.iter().zip(ports).find(|(listen, _)| is_https(listen)).map(|(_, &real)| real)
}

fn port(listen: &spec::Listen, real: u16, https: Option<u16>, here: &Here) -> proxy::PortConfig {
    let address = match here.traffic_address {
        Some(address) if listen.address.is_unspecified() => address,
        Some(_) | None => listen.address,
    };
    let protocol = match listen.protocol {
        spec::Protocol::Tcp => proxy::Protocol::Tcp,
        spec::Protocol::Http => proxy::Protocol::Http,
    };
    proxy::PortConfig {
        max_connections: size(listen.max_connections.into()),
        tls: listen.tls.as_ref().map(|tls| self::tls(tls, listen.protocol, here)),
        proxy_protocol: match listen.proxy_protocol {
            spec::ProxyMode::Off => proxy::ProxyProtocol::Off,
            spec::ProxyMode::Accept => proxy::ProxyProtocol::Accept,
            spec::ProxyMode::Require => proxy::ProxyProtocol::Require,
        },
        trusted_proxies: listen.trusted_proxies.clone(),
        socket: socket(&listen.socket),
        hosts: listen.hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
        redirect_https: match listen.redirect_https {
            spec::RedirectHttps::Off => None,
            // Without such a port the spec was refused.
            spec::RedirectHttps::On => Some(https.unwrap_or(443)),
            spec::RedirectHttps::Port(port) => Some(port),
        },
        ..proxy::PortConfig::new(SocketAddr::new(address, real), protocol)
    }
}

fn socket(socket: &spec::SocketOptions) -> proxy::SocketOptions {
    let spec::SocketOptions { backlog, nodelay, keepalive, user_timeout, receive_buffer, send_buffer } =
        socket;
    proxy::SocketOptions {
        backlog: *backlog,
        nodelay: *nodelay,
        keepalive: keepalive.as_ref().map(self::keepalive),
        user_timeout: *user_timeout,
        receive_buffer: size(*receive_buffer),
        send_buffer: size(*send_buffer),
    }
}

fn keepalive(keepalive: &spec::TcpKeepalive) -> proxy::TcpKeepalive {
    let spec::TcpKeepalive { idle, interval, count } = *keepalive;
    proxy::TcpKeepalive { idle, interval, count }
}

fn tls(tls: &spec::Tls, protocol: spec::Protocol, here: &Here) -> proxy::TlsConfig {
    let certificates = tls.certificate.iter().map(|certificate| source(certificate, here));
    let mut certificates: Vec<_> = certificates.collect();
    if certificates.is_empty() {
        certificates.push(proxy::CertificateSource::Directory(here.certificates.clone()));
    }
    // The default is for HTTP; a TCP service speaks whatever it speaks.
    let is_unasked = protocol == spec::Protocol::Tcp && tls.alpn == spec::Tls::default().alpn;
    proxy::TlsConfig {
        certificates,
        min_version: match tls.min_version {
            spec::TlsVersion::V12 => proxy::TlsVersion::V12,
            spec::TlsVersion::V13 => proxy::TlsVersion::V13,
        },
        alpn: if is_unasked { Vec::new() } else { tls.alpn.clone() },
        client_ca: tls.client_ca.as_ref().map(|name| file(name, here)),
    }
}

fn source(certificate: &spec::Certificate, here: &Here) -> proxy::CertificateSource {
    match certificate {
        spec::Certificate::Named(name) => {
            proxy::CertificateSource::Named { directory: here.certificates.clone(), name: name.clone() }
        }
        spec::Certificate::Files(spec::CertificateFiles { cert, key }) => {
            proxy::CertificateSource::Files { chain: cert.into(), key: key.into() }
        }
    }
}

/// A path, or a name in the node's directory.
fn file(name: &str, here: &Here) -> PathBuf {
    if name.contains('/') { name.into() } else { here.certificates.join(format!("{name}.pem")) }
}

fn pool(app: &spec::AppSpec, targets: &[spec::Target], here: &Here) -> proxy::PoolConfig {
    proxy::PoolConfig {
        targets: targets.iter().map(target).collect(),
        resolve: resolve(&app.resolve),
        balance: balance(&app.balance),
        outlier: outlier(&app.outlier),
        breaker: app.breaker.as_ref().map(breaker),
        check: check(&app.check),
        max_idle: size(app.upstream.max_idle.into()),
        warm: size(app.upstream.warm.into()),
        idle_timeout: app.upstream.idle_timeout,
        tcp_keepalive: keepalive(&app.upstream.tcp_keepalive),
        send_proxy: match app.upstream.send_proxy {
            spec::SendProxy::Off => None,
            spec::SendProxy::V1 => Some(proxy::ProxyVersion::V1),
            spec::SendProxy::V2 => Some(proxy::ProxyVersion::V2),
        },
        protocol: match app.upstream.protocol {
            spec::UpstreamProtocol::Auto => proxy::UpstreamProtocol::Auto,
            spec::UpstreamProtocol::Http1 => proxy::UpstreamProtocol::Http1,
            spec::UpstreamProtocol::Http2 => proxy::UpstreamProtocol::Http2,
        },
        tls: app.upstream.tls.as_ref().and_then(|tls| upstream_tls(tls, here)),
    }
}

fn upstream_tls(tls: &spec::UpstreamTls, here: &Here) -> Option<proxy::UpstreamTls> {
    tls.enabled.then(|| proxy::UpstreamTls {
        server_name: tls.server_name.clone(),
        ca: file(tls.ca.as_deref().unwrap_or_default(), here),
        identity: tls.certificate.as_ref().map(|certificate| source(certificate, here)),
    })
}

fn target(target: &spec::Target) -> proxy::TargetConfig {
    let spec::Target { address, weight, zone, backup } = target;
    proxy::TargetConfig { address: address.clone(), weight: *weight, zone: zone.clone(), backup: *backup }
}

fn balance(balance: &spec::Balance) -> proxy::BalanceConfig {
    let spec::Balance { policy, hash_on, slow_start, zone_aware, panic_threshold } = balance;
    proxy::BalanceConfig {
        strategy: policy.name().to_owned(),
        hash_on: self::hash_on(hash_on),
        slow_start: *slow_start,
        zone_aware: *zone_aware,
        panic_threshold: *panic_threshold,
    }
}

fn hash_on(hash_on: &spec::HashOn) -> proxy::HashOn {
    match hash_on {
        spec::HashOn::ClientIp => proxy::HashOn::ClientIp,
        spec::HashOn::Path => proxy::HashOn::Path,
        spec::HashOn::Header(name) => proxy::HashOn::Header(name.to_ascii_lowercase()),
        spec::HashOn::Cookie(name) => proxy::HashOn::Cookie(name.clone()),
    }
}

fn outlier(outlier: &spec::Outlier) -> proxy::OutlierConfig {
    let spec::Outlier { consecutive_failures, ejection, max_ejected } = *outlier;
    proxy::OutlierConfig { consecutive_failures, ejection, max_ejected }
}

fn breaker(breaker: &spec::Breaker) -> proxy::BreakerConfig {
    let spec::Breaker { error_percent, window, min_requests, open_for } = *breaker;
    proxy::BreakerConfig { error_percent, window, min_requests, open_for }
}

fn rate(rate: &spec::Rate) -> proxy::RateConfig {
    let spec::Rate { key, per_second, burst, max_keys } = rate;
    proxy::RateConfig {
        key: match key {
            spec::RateKey::ClientIp => proxy::RateKey::ClientIp,
            spec::RateKey::Route => proxy::RateKey::Route,
            spec::RateKey::Header(name) => proxy::RateKey::Header(name.to_ascii_lowercase()),
        },
        per_second: *per_second,
        burst: if *burst == 0 { *per_second } else { *burst },
        max_keys: size((*max_keys).into()),
    }
}

fn retry(retry: &spec::Retry) -> proxy::RetryConfig {
    let spec::Retry { attempts, on, per_try_timeout, backoff, budget, methods, hedge } = retry;
    let trouble = |on: &spec::RetryOn| match *on {
        spec::RetryOn::Connect => proxy::RetryOn::Connect,
        spec::RetryOn::RefusedStream => proxy::RetryOn::RefusedStream,
        spec::RetryOn::Reset => proxy::RetryOn::Reset,
        spec::RetryOn::Timeout => proxy::RetryOn::Timeout,
        spec::RetryOn::GatewayError => proxy::RetryOn::GatewayError,
        spec::RetryOn::ServerError => proxy::RetryOn::ServerError,
        spec::RetryOn::Status(status) => proxy::RetryOn::Status(status),
    };
    proxy::RetryConfig {
        attempts: *attempts,
        on: on.iter().map(trouble).collect(),
        per_try_timeout: *per_try_timeout,
        backoff: (backoff.base, backoff.max),
        budget_percent: *budget,
        methods: match methods {
            spec::RetryMethods::Idempotent => proxy::RetryMethods::Idempotent,
            spec::RetryMethods::All => proxy::RetryMethods::All,
        },
        hedge: hedge.as_ref().map(|hedge| proxy::HedgeConfig { after: hedge.after, max: hedge.max }),
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
            spec::CheckKind::Grpc => proxy::CheckKind::Grpc { service: check.service.clone() },
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

fn timeouts(timeouts: &spec::Timeouts) -> proxy::Timeouts {
    proxy::Timeouts {
        connect: timeouts.connect,
        tls_handshake: timeouts.tls_handshake,
        request_header: timeouts.request_header,
        request_body: timeouts.request_body,
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
mod shared_ports;
#[cfg(test)]
mod tests;
