//! Routes: names, matches, and the pools they lead to.

use std::collections::BTreeSet;

use super::{Findings, address::is_host_name};
use crate::{
    AppSpec, Match, Protocol, Route,
    diagnostic::{CONTRADICTION, DUPLICATE, TOO_LARGE, UNKNOWN_NAME, WRONG_VALUE},
};

/// A route is a label of metrics and is tried in order.
const MAX_ROUTES: usize = 1_000;

pub(super) fn validate(spec: &AppSpec, findings: &mut Findings) {
    let routes = &spec.route;
    if routes.len() > MAX_ROUTES {
        findings.add("route", TOO_LARGE, format!("{} routes; an app has at most {MAX_ROUTES}", routes.len()));
    }
    let is_http = spec.listen.iter().any(|listen| listen.protocol == Protocol::Http);
    if !is_http && !spec.listen.is_empty() {
        for (index, Route { matches, .. }) in routes.iter().enumerate() {
            let Match { host, path, path_prefix, methods } = matches;
            if host.is_empty() || path.is_some() || path_prefix.is_some() || !methods.is_empty() {
                findings
                    .add(
                        &format!("route[{index}].match"),
                        CONTRADICTION,
                        "every port of this app is TCP, and there a route has the name of a TLS client to go by",
                    )
                    .help("write `match = { host = [\"a.example\"] }` alone, or `listen = [\"http:8080\"]`");
            }
        }
    }
    let mut names = BTreeSet::new();
    for (index, Route { name, matches, pool }) in routes.iter().enumerate() {
        let path = format!("route[{index}]");
        if !names.insert(name) {
            findings.add(&format!("{path}.name"), DUPLICATE, format!("another route is named `{name}` too"));
        }
        if !is_route_name(name) {
            let message = format!("`{name}` is not a route name: 1 to 63 of a-z, 0-9, `-` and `_`");
            findings.add(&format!("{path}.name"), WRONG_VALUE, message);
        }
        if !spec.pool.contains_key(pool) {
            let names: Vec<_> = spec.pool.keys().map(|name| format!("`{name}`")).collect();
            let help = match names.as_slice() {
                [] => format!("define it: `[app.pool.{pool}]` with its `targets`"),
                names => format!("the app has {}", names.join(", ")),
            };
            let message = format!("the app has no pool `{pool}`");
            findings.add(&format!("{path}.pool"), UNKNOWN_NAME, message).help(&help);
        }
        one_match(&format!("{path}.match"), matches, findings);
    }
}

fn one_match(path: &str, matches: &Match, findings: &mut Findings) {
    let Match { host, path: exact, path_prefix, methods } = matches;
    for (index, host) in host.iter().enumerate() {
        if !is_host_name(host.strip_prefix("*.").unwrap_or(host)) {
            let message = format!("`{host}` is not a host name");
            findings
                .add(&format!("{path}.host[{index}]"), WRONG_VALUE, message)
                .help("write \"shop.example\" or \"*.shop.example\", without scheme and port");
        }
    }
    for (field, value) in [("path", exact), ("path_prefix", path_prefix)] {
        let Some(value) = value else { continue };
        let query = value.contains('?').then_some("a query (`?`) is no part of it");
        if let Some(why) = path_fault(value).or(query) {
            let message = format!("`{value}` is not a path: {why}");
            findings.add(&format!("{path}.{field}"), WRONG_VALUE, message);
        }
    }
    if exact.is_some() && path_prefix.is_some() {
        let message = "`path` and `path_prefix` exclude each other";
        findings.add(&format!("{path}.path_prefix"), CONTRADICTION, message);
    }
    for (index, method) in methods.iter().enumerate() {
        // RFC 9110 §9.1: methods are case-sensitive, and by convention upper case.
        if !(1..=32).contains(&method.len()) || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
            let message = format!("`{method}` is not a method such as \"GET\"");
            findings.add(&format!("{path}.methods[{index}]"), WRONG_VALUE, message);
        }
    }
}

/// It becomes a metric label and a word in commands.
pub(super) fn is_route_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}

/// RFC 3986 §3.3: what may not stand in a path as it is written in a request line.
pub(super) fn path_fault(path: &str) -> Option<&'static str> {
    if !path.starts_with('/') {
        return Some("it must begin with `/`");
    }
    match path.bytes().find(|b| !b.is_ascii_graphic() || matches!(b, b'#')) {
        Some(b'#') => Some("it has a fragment (`#`)"),
        Some(_) => Some("spaces and characters outside ASCII are percent-encoded"),
        None => None,
    }
}
