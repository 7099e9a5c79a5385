//! Ports, and what stands before their protocol.

use std::{collections::HashSet, time::Duration};

use super::{Findings, address::is_host_name, validate_keepalive};
use crate::{
    Certificate, Listen, Protocol, ProxyMode, RedirectHttps, SocketOptions, Tls,
    diagnostic::{CONTRADICTION, DUPLICATE, MISSING, OUT_OF_RANGE, TOO_LARGE, WRONG_VALUE},
    units::size_text,
};

const MAX_LISTENERS: usize = 1_000;
/// Names of one port.
const MAX_HOSTS: usize = 1_000;
/// More than any kernel keeps.
const MAX_BACKLOG: u32 = 1 << 20;
const MAX_USER_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
const BUFFER_BYTES: (u64, u64) = (4 << 10, 64 << 20);
const MAX_CERTIFICATES: usize = 1_000;
/// Of a protocol's name, RFC 7301 §3.1.
const ALPN_BYTES: std::ops::RangeInclusive<usize> = 1..=255;

pub(super) fn validate(listen: &[Listen], findings: &mut Findings) {
    if listen.is_empty() {
        let help = "name at least one port: `listen = [\"http:8080\"]`";
        findings.add("listen", MISSING, "the app listens nowhere").help(help);
    }
    if listen.len() > MAX_LISTENERS {
        let message = format!("{} ports; an app listens on at most {MAX_LISTENERS}", listen.len());
        findings.add("listen", TOO_LARGE, message);
    }
    let mut seen = HashSet::new();
    for (index, one) in listen.iter().enumerate() {
        let Listen {
            port,
            address,
            protocol,
            tls,
            proxy_protocol,
            trusted_proxies,
            hosts,
            max_connections: _,
            socket,
            redirect_https,
        } = one;
        let path = format!("listen[{index}]");
        for (index, host) in hosts.iter().enumerate() {
            if !is_host_name(host.strip_prefix("*.").unwrap_or(host)) {
                findings
                    .add(
                        &format!("{path}.hosts[{index}]"),
                        WRONG_VALUE,
                        format!("`{host}` is not a host name"),
                    )
                    .help("write `www.example.com`, or `*.example.com` for every name below it");
            }
        }
        if hosts.len() > MAX_HOSTS {
            let message = format!("{} hosts; a port has at most {MAX_HOSTS}", hosts.len());
            findings.add(&format!("{path}.hosts"), TOO_LARGE, message);
        }
        // Port 0 is a fresh one each time.
        if *port != 0 && !seen.insert((address, port)) {
            let message = format!("port {port} is listed twice for the same address");
            findings.add(&format!("{path}.port"), DUPLICATE, message);
        }
        match (proxy_protocol, trusted_proxies.is_empty()) {
            (ProxyMode::Off, true) | (ProxyMode::Accept | ProxyMode::Require, false) => {}
            (ProxyMode::Accept | ProxyMode::Require, true) => findings
                .add(&format!("{path}.proxy_protocol"), MISSING, "nobody is trusted to send PROXY headers")
                .help("name the balancers: `trusted_proxies = [\"10.0.0.0/8\"]`"),
            (ProxyMode::Off, false) => findings
                .add(
                    &format!("{path}.trusted_proxies"),
                    CONTRADICTION,
                    "no PROXY header is read from anybody",
                )
                .help("add `proxy_protocol = \"require\"`, or take the list away"),
        }
        validate_socket(&format!("{path}.socket"), socket, findings);
        if *redirect_https != RedirectHttps::Off {
            let path = format!("{path}.redirect_https");
            if *protocol != Protocol::Http || tls.is_some() {
                let message = "only a port of HTTP without TLS sends its clients to https";
                findings.add(&path, CONTRADICTION, message);
            }
            let ends_tls = |listen: &Listen| listen.protocol == Protocol::Http && listen.tls.is_some();
            if *redirect_https == RedirectHttps::On && !listen.iter().any(ends_tls) {
                findings
                    .add(&path, MISSING, "no port of this app ends TLS, so nobody knows where https is")
                    .help("listen on \"https:443\" too, or name the port: `redirect_https = 443`");
            }
        }
        if let Some(tls) = tls {
            validate_tls(&format!("{path}.tls"), tls, *protocol, findings);
        }
    }
}

fn validate_socket(path: &str, socket: &SocketOptions, findings: &mut Findings) {
    let SocketOptions { backlog, nodelay: _, keepalive, user_timeout, receive_buffer, send_buffer } = socket;
    findings.number(&format!("{path}.backlog"), *backlog, 1..=MAX_BACKLOG);
    findings.duration_or_off(&format!("{path}.user_timeout"), *user_timeout, MAX_USER_TIMEOUT);
    if let Some(keepalive) = keepalive {
        validate_keepalive(&format!("{path}.keepalive"), keepalive, findings);
    }
    for (name, bytes) in [("receive_buffer", receive_buffer), ("send_buffer", send_buffer)] {
        let (min, max) = BUFFER_BYTES;
        if *bytes != 0 && !(min..=max).contains(bytes) {
            let message = format!("`{name}` must be 0 or from {} to {}", size_text(min), size_text(max));
            findings.add(&format!("{path}.{name}"), OUT_OF_RANGE, message);
        }
    }
}

fn validate_tls(path: &str, tls: &Tls, protocol: Protocol, findings: &mut Findings) {
    let Tls { certificate, min_version: _, alpn, client_ca } = tls;
    if certificate.len() > MAX_CERTIFICATES {
        let message = format!("{} certificates; at most {MAX_CERTIFICATES} are named", certificate.len());
        findings.add(&format!("{path}.certificate"), TOO_LARGE, message);
    }
    for one in certificate {
        match one {
            Certificate::Named(name) if !is_file_name(name) => findings
                .add(&format!("{path}.certificate"), WRONG_VALUE, format!("`{name}` is not a certificate's name"))
                .help("write the name of a file in the node's directory without `.pem`, or `{ cert = \"/…\", key = \"/…\" }`"),
            Certificate::Named(_) => {}
            Certificate::Files(files) if files.cert.is_empty() || files.key.is_empty() => findings
                .add(&format!("{path}.certificate"), WRONG_VALUE, "a certificate is in a file, and so is its key")
                .help("write `{ cert = \"/etc/tls/web.pem\", key = \"/etc/tls/web.key\" }`"),
            Certificate::Files(_) => {}
        }
    }
    if client_ca.as_ref().is_some_and(String::is_empty) {
        findings.add(&format!("{path}.client_ca"), WRONG_VALUE, "authorities are in a file, or have a name");
    }
    for name in alpn {
        if !ALPN_BYTES.contains(&name.len()) {
            let message = format!("`{name}` is not the name of a protocol: 1 to 255 bytes");
            findings.add(&format!("{path}.alpn"), WRONG_VALUE, message);
        }
        if protocol == Protocol::Http && !["h2", "http/1.1"].contains(&name.as_str()) {
            findings
                .add(&format!("{path}.alpn"), WRONG_VALUE, format!("`{name}` is not spoken on an HTTP port"))
                .help("HTTP has \"h2\" and \"http/1.1\"");
        }
    }
}

/// One part of a path, and none that leads elsewhere.
fn is_file_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.*".contains(&b);
    (1..=200).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(fits)
}
