//! Routes: names, matches, and what they lead to.

use std::collections::{BTreeMap, BTreeSet};

use super::{Findings, address::is_host_name, balance::is_token};
use crate::{
    AppSpec, Match, Mirror, Protocol, Route, UpstreamProtocol, ValueMatch,
    diagnostic::{CONTRADICTION, DUPLICATE, MISSING, TOO_LARGE, UNKNOWN_NAME, WRONG_VALUE},
    sharing::DEFAULT_POOL,
    units::size_text,
};

mod edit;
mod rule;

/// A route is a label of metrics and is tried in order.
const MAX_ROUTES: usize = 1_000;
/// Each is compiled, and tried on requests that come that far.
const MAX_PATTERNS: usize = 200;
const MAX_PATTERN_BYTES: usize = 1024;
const MAX_PROGRAM_BYTES: usize = 128 * 1024;
/// Of the body of a request that is copied.
const MAX_COPIED_BYTES: u64 = 1 << 20;

pub(super) fn validate(spec: &AppSpec, findings: &mut Findings) {
    let routes = &spec.route;
    if routes.len() > MAX_ROUTES {
        findings.add("route", TOO_LARGE, format!("{} routes; an app has at most {MAX_ROUTES}", routes.len()));
    }
    let is_http = spec.listen.iter().any(|listen| listen.protocol == Protocol::Http);
    if !is_http && !spec.listen.is_empty() {
        for (index, route) in routes.iter().enumerate() {
            by_name(&format!("route[{index}]"), route, findings);
        }
    }
    let mut names = BTreeSet::new();
    let mut patterns = 0;
    for (index, route) in routes.iter().enumerate() {
        let Route { name, matches, timeout, .. } = route;
        let path = format!("route[{index}]");
        if !names.insert(name) {
            findings.add(&format!("{path}.name"), DUPLICATE, format!("another route is named `{name}` too"));
        }
        if !is_route_name(name) {
            let message = format!("`{name}` is not a route name: 1 to 63 of a-z, 0-9, `-` and `_`");
            findings.add(&format!("{path}.name"), WRONG_VALUE, message);
        }
        if let Some(timeout) = timeout {
            findings.duration_or_off(&format!("{path}.timeout"), *timeout, super::MAX_DURATION);
        }
        goal(&path, route, spec, findings);
        if route.connect {
            tunnel(&path, route, spec, findings);
        }
        patterns += one_match(&format!("{path}.match"), matches, findings);
        edit::validate(&path, route, findings);
    }
    if patterns > MAX_PATTERNS {
        let message = format!("{patterns} patterns in all routes; an app has at most {MAX_PATTERNS}");
        findings.add("route", TOO_LARGE, message);
    }
}

/// A route of TCP ports has the name in a TLS hello to go by, and a pool to lead to.
fn by_name(path: &str, route: &Route, findings: &mut Findings) {
    let Route { name, matches, pool, .. } = route;
    let named = Match { host: matches.host.clone(), ..Match::default() };
    if *matches != named || named.host.is_empty() {
        findings
            .add(
                &format!("{path}.match"),
                CONTRADICTION,
                "every port of this app is TCP, and there a route has the name of a TLS client to go by",
            )
            .help("write `match = { host = [\"a.example\"] }` alone, or `listen = [\"http:8080\"]`");
    }
    let plain =
        Route { name: name.clone(), matches: matches.clone(), pool: pool.clone(), ..Route::default() };
    if *route != plain {
        let message = "every port of this app is TCP, and there a route leads to a pool and changes nothing";
        findings.add(path, CONTRADICTION, message);
    }
}

/// Exactly one of the things that a route can lead to.
fn goal(path: &str, route: &Route, spec: &AppSpec, findings: &mut Findings) {
    let Route { pool, split, sticky, respond, redirect, mirror, .. } = route;
    let goals: Vec<&str> = [
        ("pool", pool.is_some()),
        ("split", !split.is_empty()),
        ("respond", respond.is_some()),
        ("redirect", redirect.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, is_there)| is_there.then_some(name))
    .collect();
    match goals.as_slice() {
        [] => findings
            .add(path, MISSING, "the route leads nowhere")
            .help("name one of `pool`, `split`, `respond` and `redirect`"),
        [_] => {}
        [first, second, ..] => {
            let message =
                format!("`{first}` and `{second}` exclude each other: a route leads to one of them");
            findings.add(&format!("{path}.{second}"), CONTRADICTION, message);
        }
    }
    if let Some(pool) = pool {
        known_pool(&format!("{path}.pool"), pool, spec, findings);
    }
    for (name, weight) in split {
        known_pool(&format!("{path}.split.{name}"), name, spec, findings);
        findings.number(&format!("{path}.split.{name}"), *weight, 0..=super::MAX_WEIGHT);
    }
    if !split.is_empty() && split.values().all(|weight| *weight == 0) {
        let message = "every pool has weight 0, so none of them would get any request";
        findings.add(&format!("{path}.split"), CONTRADICTION, message);
    }
    if let Some(on) = sticky {
        super::balance::hash_on(&format!("{path}.sticky"), on, findings);
        if split.is_empty() {
            let message = "without a `split` there is nothing to stay with";
            findings.add(&format!("{path}.sticky"), CONTRADICTION, message);
        }
    }
    if let Some(Mirror { pool, percent, max_body_size }) = mirror {
        // A name alone has no field of that name in the text.
        known_pool(&format!("{path}.mirror"), pool, spec, findings);
        findings.number(&format!("{path}.mirror.percent"), *percent, 0..=100);
        if *max_body_size > MAX_COPIED_BYTES {
            let message = format!(
                "copies of bodies are kept in memory: at most {}, not {}",
                size_text(MAX_COPIED_BYTES),
                size_text(*max_body_size)
            );
            findings.add(&format!("{path}.mirror.max_body_size"), TOO_LARGE, message);
        }
    }
}

/// A route for CONNECT leads to a target, and what it goes by must be in such a request.
fn tunnel(path: &str, route: &Route, spec: &AppSpec, findings: &mut Findings) {
    let Route { matches, respond, redirect, mirror, .. } = route;
    let path = format!("{path}.connect");
    let others =
        [("respond", respond.is_some()), ("redirect", redirect.is_some()), ("mirror", mirror.is_some())];
    for (other, _) in others.into_iter().filter(|(_, is_there)| *is_there) {
        let message = format!("`connect` and `{other}` exclude each other: a tunnel leads to one target");
        findings
            .add(&path, CONTRADICTION, message)
            .help("write a route of its own for CONNECT, with a `pool` or a `split`");
    }
    if matches.path.is_some() || matches.path_prefix.is_some() || matches.path_regex.is_some() {
        findings
            .add(&path, CONTRADICTION, "a CONNECT names a host and a port, and no path that could match")
            .help("go by `host`, or write a route of its own for CONNECT");
    }
    if !matches.methods.is_empty() && !matches.methods.iter().any(|method| method == "CONNECT") {
        findings
            .add(&path, CONTRADICTION, "`match.methods` leaves CONNECT out, so that it takes none")
            .help("write `methods = [\"CONNECT\"]`, or leave `methods` or `connect` out");
    }
    if spec.upstream.protocol == UpstreamProtocol::Http2 {
        findings
            .add(&path, CONTRADICTION, "targets are asked in HTTP/2, in which no CONNECT is sent")
            .help("write `upstream.protocol = \"http1\"`");
    }
}

fn known_pool(path: &str, pool: &str, spec: &AppSpec, findings: &mut Findings) {
    if spec.pool.contains_key(pool) || pool == DEFAULT_POOL && !spec.targets.is_empty() {
        return;
    }
    let names: Vec<_> = spec.pool.keys().map(|name| format!("`{name}`")).collect();
    let help = match names.as_slice() {
        [] => format!("define it: `[app.pool.{pool}]` with its `targets`"),
        names => format!("the app has {}", names.join(", ")),
    };
    findings.add(path, UNKNOWN_NAME, format!("the app has no pool `{pool}`")).help(&help);
}

/// How many patterns there are in it.
fn one_match(path: &str, matches: &Match, findings: &mut Findings) -> usize {
    let Match { host, path: exact, path_prefix, path_regex, methods, headers, query, expr } = matches;
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
    let paths = [
        ("path", exact.is_some()),
        ("path_prefix", path_prefix.is_some()),
        ("path_regex", path_regex.is_some()),
    ];
    let mut paths = paths.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name);
    if let (Some(first), Some(second)) = (paths.next(), paths.next()) {
        let message = format!("`{first}` and `{second}` exclude each other");
        findings.add(&format!("{path}.{second}"), CONTRADICTION, message);
    }
    for (index, method) in methods.iter().enumerate() {
        // RFC 9110 §9.1: methods are case-sensitive, and by convention upper case.
        if !(1..=32).contains(&method.len()) || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
            let message = format!("`{method}` is not a method such as \"GET\"");
            findings.add(&format!("{path}.methods[{index}]"), WRONG_VALUE, message);
        }
    }
    let mut patterns = 0;
    if let Some(pattern) = path_regex {
        patterns += 1;
        is_pattern(&format!("{path}.path_regex"), pattern, findings);
    }
    for name in headers.keys().filter(|name| !is_token(name)) {
        let message = format!("`{name}` is not the name of a field");
        findings.add(&format!("{path}.headers.{name}"), WRONG_VALUE, message);
    }
    if let Some(rule) = expr
        && let Err(why) = rule::check(rule)
    {
        findings.add(&format!("{path}.expr"), WRONG_VALUE, format!("this is not a rule: {why}"));
    }
    patterns
        + values(&format!("{path}.headers"), headers, findings)
        + values(&format!("{path}.query"), query, findings)
}

fn values(path: &str, values: &BTreeMap<String, ValueMatch>, findings: &mut Findings) -> usize {
    let mut patterns = 0;
    for (name, value) in values {
        match value {
            ValueMatch::Exact(_) | ValueMatch::Present(_) => {}
            ValueMatch::Regex(pattern) => {
                patterns += 1;
                is_pattern(&format!("{path}.{name}"), pattern, findings);
            }
        }
    }
    patterns
}

/// The same bounds as the proxy has, which compiles it anew.
fn is_pattern(path: &str, pattern: &str, findings: &mut Findings) {
    if pattern.len() > MAX_PATTERN_BYTES {
        let message = format!("the pattern has {} bytes; at most {MAX_PATTERN_BYTES}", pattern.len());
        findings.add(path, TOO_LARGE, message);
        return;
    }
    let built = regex::bytes::RegexBuilder::new(pattern)
        .unicode(false)
        .size_limit(MAX_PROGRAM_BYTES)
        .dfa_size_limit(MAX_PROGRAM_BYTES)
        .build();
    match built {
        Ok(_) => {}
        Err(regex::Error::CompiledTooBig(_)) => {
            findings
                .add(
                    path,
                    TOO_LARGE,
                    format!("`{pattern}` becomes too large: at most {MAX_PROGRAM_BYTES} bytes"),
                )
                .help("repeat less: `{1,50}` of a large class is fifty classes");
        }
        Err(error) => {
            // The reason is the last line; those before draw the place.
            let text = error.to_string();
            let why = text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
            findings.add(path, WRONG_VALUE, format!("`{pattern}` is not a pattern: {why}"));
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
