//! Where to connect: what was typed, and the socket addresses it stands for.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use tokio::net::lookup_host;

use crate::exit::{Exit, Failure};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// Without brackets.
    host: String,
    port: u16,
    /// Of a URL.
    pub(super) path: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Any,
    V4,
    V6,
}

impl Address {
    pub(super) fn parse(typed: &str) -> Result<Self, String> {
        if typed.starts_with("https://") {
            return Err("TLS is not supported yet".to_owned());
        }
        let (authority, path) = match typed.strip_prefix("http://") {
            None => (typed, None),
            Some(rest) => match rest.find('/') {
                None => (rest, Some("/".to_owned())),
                Some(slash) => (&rest[..slash], Some(rest[slash..].to_owned())),
            },
        };
        // A URL without a port means 80.
        let has_port = authority.rfind(':') > authority.rfind(']');
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if has_port => {
                (host, port.parse().map_err(|_| format!("`{port}` is not a port (1 to 65535)"))?)
            }
            _ if path.is_some() => (authority, 80),
            _ => return Err("it has no port: write host:port or [v6]:port".to_owned()),
        };
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        let host = if is_bracketed { &host[1..host.len() - 1] } else { host };
        match host {
            "" => Err("it has no host".to_owned()),
            host if host.contains(':') && !is_bracketed => {
                Err("an IPv6 address stands in brackets: [v6]:port".to_owned())
            }
            _ if port == 0 => Err("`0` is not a port (1 to 65535)".to_owned()),
            host => Ok(Self { host: host.to_owned(), port, path }),
        }
    }

    /// As in the `Host` field of a request.
    pub(super) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// In the order of the resolver; at least one.
    pub(super) async fn resolve(&self, family: Family) -> Result<Vec<SocketAddr>, Failure> {
        let found = lookup_host((self.host.as_str(), self.port))
            .await
            .map_err(|error| Failure::new(Exit::Unreachable, format!("resolve {}: {error}", self.host)))?;
        let found: Vec<_> = found.filter(|address| family.has(address.ip())).collect();
        match found.is_empty() {
            false => Ok(found),
            true => Err(Failure::new(Exit::Unreachable, format!("{} has no {family} address", self.host))),
        }
    }
}

impl Family {
    fn has(self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "IP",
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "http://{}{path}", self.authority()),
            None => f.write_str(&self.authority()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_people_type_it() {
        for (typed, host, port, path) in [
            ("127.0.0.1:80", "127.0.0.1", 80, None),
            ("localhost:8080", "localhost", 8080, None),
            ("[::1]:80", "::1", 80, None),
            ("http://localhost:8080", "localhost", 8080, Some("/")),
            ("http://shop.example", "shop.example", 80, Some("/")),
            ("http://[::1]/a?b", "::1", 80, Some("/a?b")),
        ] {
            let address = Address::parse(typed).unwrap();
            let expected = Address { host: host.to_owned(), port, path: path.map(str::to_owned) };
            assert_eq!(address, expected, "{typed}");
        }
        for typed in ["localhost", "::1:80", ":80", "a:0", "a:99999", "https://a", "[::1]", ""] {
            assert!(Address::parse(typed).is_err(), "{typed}");
        }
    }

    #[tokio::test]
    async fn only_addresses_of_the_wanted_family_are_used() {
        let address = Address::parse("127.0.0.1:80").unwrap();
        assert_eq!(address.resolve(Family::V4).await.unwrap(), ["127.0.0.1:80".parse().unwrap()]);
        let refused = address.resolve(Family::V6).await.unwrap_err();
        assert_eq!(refused.message, "127.0.0.1 has no IPv6 address");
    }
}
