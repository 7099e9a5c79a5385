//! What a route changes in messages, and what it answers itself.

use super::{Findings, path_fault};
use crate::{
    HeaderEdits, Redirect, Respond, Rewrite, Route,
    diagnostic::{CONTRADICTION, MISSING, OUT_OF_RANGE, TOO_LARGE, WRONG_VALUE},
    validate::{address::is_host_name, balance::is_token},
};

const MAX_EDITS: usize = 50;
const MAX_VALUE_BYTES: usize = 4 * 1024;
/// It is kept in memory and written at once; a larger one is a file that a target serves.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// RFC 9110 §7.6.1 and RFC 9112 §6: what is about one connection, or decides where a message ends or whom it is for.
const FRAMING: [&str; 13] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

pub(super) fn validate(path: &str, route: &Route, findings: &mut Findings) {
    let Route { respond, redirect, timeout, rewrite, request_headers, response_headers, mirror, .. } = route;
    if let Some(respond) = respond {
        answer(&format!("{path}.respond"), respond, findings);
    }
    if let Some(redirect) = redirect {
        elsewhere(&format!("{path}.redirect"), redirect, findings);
    }
    rewrites(&format!("{path}.rewrite"), rewrite, findings);
    fields(&format!("{path}.request_headers"), request_headers, findings);
    fields(&format!("{path}.response_headers"), response_headers, findings);
    if respond.is_none() && redirect.is_none() {
        return;
    }
    let forwards = [
        ("timeout", timeout.is_some()),
        ("rewrite", *rewrite != Rewrite::default()),
        ("request_headers", *request_headers != HeaderEdits::default()),
        ("response_headers", *response_headers != HeaderEdits::default()),
        ("mirror", mirror.is_some()),
    ];
    for (field, _) in forwards.into_iter().filter(|(_, is_there)| *is_there) {
        let message = format!("`{field}` is about requests that go to targets, and this route has none");
        findings.add(&format!("{path}.{field}"), CONTRADICTION, message);
    }
}

fn answer(path: &str, respond: &Respond, findings: &mut Findings) {
    let Respond { status, headers, body } = respond;
    findings.number(&format!("{path}.status"), *status, 200..=599);
    if matches!(status, 204 | 205 | 304) && !body.is_empty() {
        findings.add(&format!("{path}.body"), CONTRADICTION, format!("a {status} has no body"));
    }
    if body.len() > MAX_BODY_BYTES {
        let message = format!("the body has {} bytes; at most {MAX_BODY_BYTES}", body.len());
        findings.add(&format!("{path}.body"), TOO_LARGE, message);
    }
    if headers.len() > MAX_EDITS {
        let message = format!("{} fields; at most {MAX_EDITS}", headers.len());
        findings.add(&format!("{path}.headers"), TOO_LARGE, message);
    }
    for (name, value) in headers {
        field(&format!("{path}.headers.{name}"), name, value, findings);
    }
}

fn elsewhere(path: &str, redirect: &Redirect, findings: &mut Findings) {
    let Redirect { status, scheme, host, port, path: target } = redirect;
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        let message = format!("`{path}.status` must be 301, 302, 303, 307 or 308, not {status}");
        findings.add(&format!("{path}.status"), OUT_OF_RANGE, message);
    }
    if scheme.is_none() && host.is_none() && port.is_none() && target.is_none() {
        findings
            .add(path, MISSING, "a redirect to where the request was is a loop")
            .help("say where to: `scheme`, `host`, `port` or `path`");
    }
    if let Some(host) = host.as_ref().filter(|host| !is_host_name(host)) {
        let message = format!("`{host}` is not a host name");
        findings.add(&format!("{path}.host"), WRONG_VALUE, message).help("without scheme and port");
    }
    if *port == Some(0) {
        findings.number(&format!("{path}.port"), 0, 1..=65_535);
    }
    if let Some(target) = target
        && let Some(why) = fault(target)
    {
        findings.add(&format!("{path}.path"), WRONG_VALUE, format!("`{target}` is not a path: {why}"));
    }
}

fn rewrites(path: &str, rewrite: &Rewrite, findings: &mut Findings) {
    let Rewrite { strip_prefix, add_prefix } = rewrite;
    for (name, prefix) in [("strip_prefix", strip_prefix), ("add_prefix", add_prefix)] {
        let Some(prefix) = prefix else { continue };
        let query = prefix.contains('?').then_some("a query (`?`) is no part of it");
        if let Some(why) = fault(prefix).or(query) {
            findings.add(&format!("{path}.{name}"), WRONG_VALUE, format!("`{prefix}` is not a path: {why}"));
        }
    }
}

fn fault(path: &str) -> Option<&'static str> {
    let odd = path.contains(['<', '>', '`']).then_some("`<`, `>` and `` ` `` are percent-encoded");
    let long = (path.len() > MAX_VALUE_BYTES).then_some("it is longer than 4 KiB");
    path_fault(path).or(odd).or(long)
}

fn fields(path: &str, edits: &HeaderEdits, findings: &mut Findings) {
    let HeaderEdits { set, add, remove } = edits;
    let count = set.len() + add.len() + remove.len();
    if count > MAX_EDITS {
        findings.add(path, TOO_LARGE, format!("{count} changes of fields; at most {MAX_EDITS}"));
    }
    for (kind, values) in [("set", set), ("add", add)] {
        for (name, value) in values {
            field(&format!("{path}.{kind}.{name}"), name, value, findings);
        }
    }
    for (index, name) in remove.iter().enumerate() {
        editable(&format!("{path}.remove[{index}]"), name, findings);
    }
}

fn field(path: &str, name: &str, value: &str, findings: &mut Findings) {
    editable(path, name, findings);
    let is_line = value.bytes().all(|b| matches!(b, b'\t' | b' '..=b'~'));
    if !is_line {
        let message = format!("the value of `{name}` is not one line of ASCII");
        findings
            .add(path, WRONG_VALUE, message)
            .help("line ends and control characters would begin a new field");
    } else if value.trim_ascii() != value {
        findings.add(
            path,
            WRONG_VALUE,
            format!("the value of `{name}` has space around it, which is not sent"),
        );
    } else if value.len() > MAX_VALUE_BYTES {
        let message = format!("the value of `{name}` has {} bytes; at most {MAX_VALUE_BYTES}", value.len());
        findings.add(path, TOO_LARGE, message);
    }
}

fn editable(path: &str, name: &str, findings: &mut Findings) {
    if !is_token(name) {
        findings.add(path, WRONG_VALUE, format!("`{name}` is not the name of a field"));
    } else if FRAMING.contains(&name.to_ascii_lowercase().as_str()) {
        findings
            .add(path, CONTRADICTION, format!("`{name}` is not for a route to change"))
            .help("the proxy writes what frames a message and what is about its connections itself");
    }
}
