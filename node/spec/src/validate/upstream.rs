//! What is spoken with targets.

use super::{Findings, address::is_host_name};
use crate::{
    AppSpec, CheckKind, Protocol, SendProxy, UpstreamProtocol,
    diagnostic::{CONTRADICTION, MISSING, NOT_SUPPORTED, WRONG_VALUE},
};

pub(super) fn validate(spec: &AppSpec, findings: &mut Findings) {
    let AppSpec { upstream, listen, check, .. } = spec;
    let has = |protocol: Protocol| listen.iter().any(|listen| listen.protocol == protocol);
    let targets = || spec.targets.iter().chain(spec.pool.values().flat_map(|pool| &pool.targets));
    let is_file = |target: &crate::Target| target.address.starts_with("unix:");
    if check.port.is_some() && targets().any(is_file) {
        findings
            .add("check.port", CONTRADICTION, "a target is a socket file, which has no port to check")
            .help("leave `port` out: the file itself is checked");
    }
    let tls = upstream.tls.as_ref().filter(|tls| tls.enabled);
    if let Some(tls) = tls {
        if tls.ca.as_ref().is_none_or(String::is_empty) {
            findings
                .add("upstream.tls", MISSING, "nobody is named whose certificates are to be believed")
                .help("add `ca`: a PEM file on the node, or a name in its directory of certificates");
        }
        let is_service = |target: &crate::Target| target.address.starts_with("srv:");
        if tls.server_name.is_none() && targets().any(is_service) {
            findings
                .add(
                    "upstream.tls",
                    MISSING,
                    "the records of a service do not say whose certificates are believed",
                )
                .help("add `server_name`, which the certificates of its hosts must have");
        }
        if tls.server_name.is_none() && targets().any(is_file) {
            findings
                .add("upstream.tls", MISSING, "a socket file does not say whose certificate is believed")
                .help("add `server_name`, which the certificate behind the file must have");
        }
        let is_name = |name: &String| is_host_name(name) || name.parse::<std::net::IpAddr>().is_ok();
        if let Some(name) = tls.server_name.as_ref().filter(|name| !is_name(name)) {
            let message = format!("`{name}` is not the name of a server");
            findings.add("upstream.tls.server_name", WRONG_VALUE, message);
        }
    }
    if upstream.warm > 0 && !listen.is_empty() && !has(Protocol::Http) {
        let message = "connections are opened ahead for requests, and no port of this app is HTTP";
        findings.add("upstream.warm", CONTRADICTION, message);
    }
    if upstream.send_proxy != SendProxy::Off {
        if has(Protocol::Http) {
            let message =
                "PROXY headers are sent for TCP ports only: requests of many clients share a connection";
            findings
                .add("upstream.send_proxy", NOT_SUPPORTED, message)
                .help("HTTP targets are told the client in `X-Forwarded-For`");
        }
        if tls.is_some() {
            let message = "PROXY headers are sent in the clear only";
            findings.add("upstream.send_proxy", NOT_SUPPORTED, message);
        }
    }
    if upstream.protocol == UpstreamProtocol::Http2 {
        if has(Protocol::Tcp) {
            findings.add(
                "upstream.protocol",
                CONTRADICTION,
                "HTTP/2 is for HTTP ports, and one of this app is TCP",
            );
        }
        if check.kind == CheckKind::Http {
            findings
                .add("upstream.protocol", CONTRADICTION, "HTTP checks are asked in HTTP/1.1")
                .help("write `check = \"tcp\"`, or `protocol = \"auto\"` with TLS");
        }
    }
}
