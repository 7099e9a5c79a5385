//! `host:port`, where a host is an IP address or a DNS name; a service; a socket file.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Findings;
use crate::diagnostic::WRONG_VALUE;

/// unix(7): 108 with the NUL behind it; 104 on other systems, whose nodes say so themselves.
const MAX_PATH_BYTES: usize = 107;

pub(super) fn validate(path: &str, address: &str, findings: &mut Findings) {
    let (checked, help) = if let Some(service) = address.strip_prefix("srv:") {
        (service_name(service), "write \"srv:_http._tcp.example.com\"")
    } else if let Some(file) = address.strip_prefix("unix:") {
        (socket_file(file), "write \"unix:/run/app.sock\"")
    } else {
        (split(address), "write \"host:port\", \"10.0.0.11:3000\" or \"[2001:db8::1]:3000\"")
    };
    let Err(why) = checked else { return };
    findings.add(path, WRONG_VALUE, format!("`{address}` is not a target: {why}")).help(help);
}

/// RFC 2782: `_service._proto.name`.
fn service_name(service: &str) -> Result<(), &'static str> {
    let mut labels = service.splitn(3, '.');
    let (Some(name), Some(proto), Some(domain)) = (labels.next(), labels.next(), labels.next()) else {
        return Err("it has no `_service._proto.name`");
    };
    if ![name, proto].iter().all(|label| label.starts_with('_') && label.len() > 1) {
        return Err("service and protocol begin with `_`");
    }
    if is_host_name(service) && is_host_name(domain) { Ok(()) } else { Err("it is not a DNS name") }
}

/// A path on every node that carries the app.
fn socket_file(path: &str) -> Result<(), &'static str> {
    if !path.starts_with('/') {
        return Err("the path of its socket file does not begin with `/`");
    }
    if path.contains('\0') || path.ends_with('/') {
        return Err("its path is not that of a file");
    }
    if path.len() > MAX_PATH_BYTES {
        return Err("the path of its socket file is longer than 107 bytes, which no system takes");
    }
    Ok(())
}

fn split(address: &str) -> Result<(), &'static str> {
    let (host, port) = address.rsplit_once(':').ok_or("it has no port")?;
    match port.parse::<u16>() {
        Ok(1..) if port.starts_with(|c: char| c.is_ascii_digit()) => {}
        _ => return Err("its port is not a number from 1 to 65535"),
    }
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) if inner.parse::<Ipv6Addr>().is_ok() => Ok(()),
        Some(_) => Err("what stands in brackets is not an IPv6 address"),
        None if host.contains("//") => Err("it is a URL"),
        None if host.contains(':') => Err("an IPv6 address stands in brackets"),
        None if host.is_empty() => Err("it has no host"),
        None if looks_like_ipv4(host) && host.parse::<Ipv4Addr>().is_err() => {
            Err("it looks like an IPv4 address but is none")
        }
        None if is_host_name(host) => Ok(()),
        None => Err("its host is not a DNS name"),
    }
}

/// A last label of digits only is never a top-level domain (RFC 3696 §2).
fn looks_like_ipv4(host: &str) -> bool {
    host.rsplit('.').next().is_some_and(|last| !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()))
}

/// RFC 1123 §2.1, with `_` as container platforms use it, and a dot at the end for "fully qualified".
pub(super) fn is_host_name(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_its_protocol_and_its_domain() {
        for (service, expected) in [
            ("_http._tcp.example.com", Ok(())),
            ("_http._tcp.d", Ok(())),
            ("_http._tcp", Err("it has no `_service._proto.name`")),
            ("http.tcp.example.com", Err("service and protocol begin with `_`")),
            ("_._tcp.example.com", Err("service and protocol begin with `_`")),
            ("_http._tcp.exa mple", Err("it is not a DNS name")),
            ("_http._tcp.", Err("it is not a DNS name")),
        ] {
            assert_eq!(service_name(service), expected, "{service}");
        }
    }

    #[test]
    fn a_socket_file_is_an_absolute_path() {
        let longest = format!("/{}", "a".repeat(106));
        for (file, expected) in [
            ("/run/app.sock", Ok(())),
            ("/srv/a b:80", Ok(())),
            (&longest, Ok(())),
            ("", Err("the path of its socket file does not begin with `/`")),
            ("run/app.sock", Err("the path of its socket file does not begin with `/`")),
            ("@app", Err("the path of its socket file does not begin with `/`")),
            ("/run/", Err("its path is not that of a file")),
            ("/run\0", Err("its path is not that of a file")),
            (
                &format!("{longest}a"),
                Err("the path of its socket file is longer than 107 bytes, which no system takes"),
            ),
        ] {
            assert_eq!(socket_file(file), expected, "{file}");
        }
    }

    #[test]
    fn a_target_is_a_host_and_a_port() {
        for good in [
            "10.0.0.11:3000",
            "[2001:db8::1]:80",
            "shop.internal:65535",
            "shop.internal.:1",
            "my_service:80",
            "localhost:1",
        ] {
            assert_eq!(split(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("10.0.0.11", "it has no port"),
            ("web:0", "its port is not a number from 1 to 65535"),
            ("web:65536", "its port is not a number from 1 to 65535"),
            ("web:+80", "its port is not a number from 1 to 65535"),
            ("web:", "its port is not a number from 1 to 65535"),
            (":80", "it has no host"),
            ("2001:db8::1:80", "an IPv6 address stands in brackets"),
            ("[web]:80", "what stands in brackets is not an IPv6 address"),
            ("10.0.0.256:80", "it looks like an IPv4 address but is none"),
            ("http://web:80", "it is a URL"),
            ("-web:80", "its host is not a DNS name"),
            ("we b:80", "its host is not a DNS name"),
        ] {
            assert_eq!(split(bad), Err(why), "{bad}");
        }
    }
}
