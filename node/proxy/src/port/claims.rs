//! Which names of a port an app claims, and on what terms it can share the port.

use std::{collections::BTreeSet, fmt};

use ipnet::IpNet;

use crate::config::{AppConfig, PortConfig, Protocol, ProxyProtocol, SocketOptions, TlsConfig};

/// A name of which one app can have a port. Lower case, without a dot at the end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Claim {
    /// Whatever nobody else claims.
    Any,
    Exact(Box<str>),
    /// `*.example.com`, by `example.com`.
    Suffix(Box<str>),
    /// `api.*`, by `api`.
    Prefix(Box<str>),
}

impl Claim {
    pub(crate) fn parse(name: &str) -> Claim {
        let name = name.to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        match (name.strip_prefix("*."), name.strip_suffix(".*")) {
            (Some(suffix), _) => Claim::Suffix(suffix.into()),
            (None, Some(prefix)) => Claim::Prefix(prefix.into()),
            (None, None) => Claim::Exact(name.into()),
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Claim::Any => write!(f, "any host"),
            Claim::Exact(name) => write!(f, "host `{name}`"),
            Claim::Suffix(name) => write!(f, "host `*.{name}`"),
            Claim::Prefix(name) => write!(f, "host `{name}.*`"),
        }
    }
}

/// What an app claims of one of its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) names: BTreeSet<Claim>,
    /// Asked for other names it answers itself, as long as the port is its own.
    pub(crate) takes_all_alone: bool,
}

impl Claims {
    /// The hosts of the port; else those of the routes, where every request must match one; else all.
    pub(crate) fn of(app: &AppConfig, port: &PortConfig) -> Claims {
        if !port.hosts.is_empty() {
            let names = port.hosts.iter().map(|host| Claim::parse(host)).collect();
            return Claims { names, takes_all_alone: false };
        }
        // Beside HTTP ports the routes are for requests.
        let is_routed =
            port.protocol == Protocol::Http || app.ports.iter().all(|port| port.protocol == Protocol::Tcp);
        let is_open = app.routes.is_empty()
            || app.routes.iter().any(|route| route.hosts.is_empty())
            || app.pools.contains_key(crate::http::route::DEFAULT_POOL);
        let hosts = app.routes.iter().flat_map(|route| &route.hosts);
        let names = if is_routed && !is_open {
            hosts.map(|host| Claim::parse(host)).collect()
        } else {
            BTreeSet::from([Claim::Any])
        };
        Claims { names, takes_all_alone: true }
    }
}

/// What must be known of a connection before its app is: the same for all apps of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms<'a> {
    protocol: Protocol,
    /// Without certificates, which are each app's own.
    tls: Option<TlsConfig>,
    proxy_protocol: ProxyProtocol,
    trusted_proxies: &'a [IpNet],
    socket: &'a SocketOptions,
}

impl Terms<'_> {
    pub(crate) fn of(port: &PortConfig) -> Terms<'_> {
        let PortConfig {
            address: _,
            port: _,
            protocol,
            max_connections: _,
            tls,
            proxy_protocol,
            trusted_proxies,
            hosts: _,
            socket,
            // Of each app alone: it is known by the host of the request.
            redirect_https: _,
        } = port;
        let tls = tls.as_ref().map(|tls| TlsConfig { certificates: Vec::new(), ..tls.clone() });
        Terms { protocol: *protocol, tls, proxy_protocol: *proxy_protocol, trusted_proxies, socket }
    }

    /// What keeps two apps from sharing a port; `None`: nothing.
    pub(crate) fn differ(&self, other: &Terms<'_>) -> Option<&'static str> {
        if self.protocol != other.protocol {
            return Some("one speaks HTTP there and the other TCP");
        }
        if self.tls.is_some() != other.tls.is_some() {
            return Some("one ends TLS there and the other does not");
        }
        if self.tls != other.tls {
            return Some("their TLS settings there differ: only certificates may");
        }
        if self.socket != other.socket {
            return Some("their `socket` options there differ");
        }
        if self.proxy_protocol != other.proxy_protocol || self.trusted_proxies != other.trusted_proxies {
            return Some("they differ in `proxy_protocol` or `trusted_proxies` there");
        }
        None
    }
}
