//! Routes compiled and asked, and the rules in them.

use http::Method;
use regex::bytes::RegexBuilder;

use super::Choices;
use crate::{
    config::{PathMatch, RouteConfig, ValueMatch, Wanted},
    http::{
        head::Head,
        headers::host_of,
        route::{Request, Router},
    },
};

const LABELS: [&str; 8] = ["a", "b", "api", "example", "com", "A", "x-1", ""];
const SEGMENTS: [&str; 7] = ["", "a", "v1", "v10", "%61", "b", "."];
const METHODS: [&str; 5] = ["GET", "POST", "PURGE", "get", "CONNECT"];
const NAMES: [&str; 4] = ["x", "X-Beta", "host", "y"];
const VALUES: [&str; 5] = ["1", "", "ab", "b", "x y"];
const PATTERNS: [&str; 6] = ["^/a", "b$", "1", "a|b", "^$", "(?i)V1"];

/// Whatever is asked of a router, it answers as one that tries every route in the order of the file.
pub fn http_route(data: &[u8]) {
    let mut choices = Choices(data);
    let count = choices.below(7);
    let routes: Vec<RouteConfig> = (0..count).map(|number| route(number, &mut choices)).collect();
    let has_default = choices.one_in(2);
    let pools = [if has_default { "default" } else { "other" }, "web"].map(str::to_owned);
    let Ok(router) = Router::compile(&routes, &pools) else { return };
    for _ in 0..4 {
        let text = request(&mut choices);
        let mut head = Head::default();
        let Ok(Some(_)) = head.parse_request(text.as_bytes(), 64 * 1024) else { continue };
        let Ok(method) = Method::from_bytes(head.method()) else { continue };
        let asked = Request {
            host: host_of(&head),
            path: head.path(),
            method: &method,
            client: "192.0.2.7",
            head: Some(&head),
            failed: None,
        };
        let got = router.route(&asked).map(|route| route.index);
        let first = routes.iter().position(|route| takes(route, &asked));
        let has_default = has_default && method != Method::CONNECT;
        let want = if first.is_none() && !has_default { None } else { Some(first) };
        assert_eq!(got, want, "{text:?} among {routes:?}");
    }
}

/// A rule that is taken can be evaluated, whatever comes of it.
pub fn route_rule(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let route = RouteConfig { expr: Some(text.to_owned()), ..RouteConfig::hosts("r", ["a"], "web") };
    let Ok(router) = Router::compile(&[route], &["web".to_owned()]) else { return };
    let mut head = Head::default();
    let request = b"GET /v1/x?a=1&b=&a=2 HTTP/1.1\r\nHost: A:80\r\nx-beta: 1\r\nCookie: a=b\r\n\r\n";
    assert_eq!(head.parse_request(request, 64 * 1024), Ok(Some(request.len())));
    let asked = Request {
        host: host_of(&head),
        path: head.path(),
        method: &Method::GET,
        client: "192.0.2.7",
        head: Some(&head),
        failed: None,
    };
    let first = router.route(&asked).is_some();
    assert_eq!(router.route(&asked).is_some(), first, "the same request, the same answer");
}

fn route(number: usize, choices: &mut Choices<'_>) -> RouteConfig {
    let hosts: Vec<String> = (0..choices.below(3)).map(|_| host_pattern(choices)).collect();
    let path = match choices.below(5) {
        0 | 1 => None,
        2 => Some(PathMatch::Exact(path(choices))),
        3 => Some(PathMatch::Prefix(path(choices))),
        _ if choices.one_in(4) => Some(PathMatch::Regex(choices.text().to_owned())),
        _ => Some(PathMatch::Regex(choices.pick(&PATTERNS).to_owned())),
    };
    let asks = |choices: &mut Choices<'_>| -> Vec<ValueMatch> {
        (0..choices.below(5).saturating_sub(2)).map(|_| ask(choices)).collect()
    };
    RouteConfig {
        connect: path.is_none() && choices.one_in(4),
        path,
        methods: (0..choices.below(4).saturating_sub(1)).map(|_| choices.pick(&METHODS).to_owned()).collect(),
        headers: asks(choices),
        query: asks(choices),
        ..RouteConfig::hosts(&format!("r{number}"), hosts, "web")
    }
}

fn host_pattern(choices: &mut Choices<'_>) -> String {
    match choices.below(8) {
        0 | 1 => labels(choices),
        2 | 3 => format!("*.{}", labels(choices)),
        4 | 5 => format!("{}.*", labels(choices)),
        6 => choices.pick(&["[::1]", "*", "*.*", "a.b.", "*.b."]).to_owned(),
        _ => choices.text().to_owned(),
    }
}

fn labels(choices: &mut Choices<'_>) -> String {
    let labels: Vec<_> = (0..=choices.below(3)).map(|_| choices.pick(&LABELS)).collect();
    labels.join(".")
}

fn path(choices: &mut Choices<'_>) -> String {
    if choices.one_in(8) {
        return format!("/{}", choices.text());
    }
    let segments: Vec<_> = (0..=choices.below(3)).map(|_| choices.pick(&SEGMENTS)).collect();
    format!("/{}", segments.join("/"))
}

fn ask(choices: &mut Choices<'_>) -> ValueMatch {
    let value = match choices.below(4) {
        0 => Wanted::Exact(choices.pick(&VALUES).to_owned()),
        1 => Wanted::Present(true),
        2 => Wanted::Present(false),
        _ => Wanted::Regex(choices.pick(&PATTERNS).to_owned()),
    };
    ValueMatch { name: choices.pick(&NAMES).to_owned(), value }
}

fn request(choices: &mut Choices<'_>) -> String {
    let method = choices.pick(&METHODS);
    let host = match choices.below(6) {
        0..4 => labels(choices) + choices.pick(&["", "", ".", ":80", ".:80", ":", ":8x"]),
        4 => choices.pick(&["[::1]", "[::1]:80", "", "."]).to_owned(),
        _ => choices.text().to_owned(),
    };
    let parameters: Vec<String> = (0..choices.below(3))
        .map(|_| choices.pick(&NAMES).to_owned() + choices.pick(&["", "=", "=1", "=ab", "=b&"]))
        .collect();
    let query = if parameters.is_empty() { String::new() } else { format!("?{}", parameters.join("&")) };
    let fields: String = (0..choices.below(4))
        .map(|_| format!("{}: {}\r\n", choices.pick(&["x", "X", "x-beta", "Y"]), choices.pick(&VALUES)))
        .collect();
    format!("{method} {}{query} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n", path(choices))
}

/// What the docstrings of [`RouteConfig`] say, word by word.
fn takes(route: &RouteConfig, request: &Request<'_>) -> bool {
    let Some(head) = request.head else { return false };
    let host = name_of(request.host);
    let by_host = route.hosts.is_empty() || route.hosts.iter().any(|pattern| is_host(pattern, &host));
    let by_path = match &route.path {
        None => true,
        Some(PathMatch::Exact(exact)) => request.path == exact,
        Some(PathMatch::Prefix(prefix)) => {
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            request.path == prefix || request.path.starts_with(&format!("{prefix}/"))
        }
        Some(PathMatch::Regex(pattern)) => is_match(pattern, request.path.as_bytes()),
    };
    let by_method = (route.methods.is_empty()
        || route.methods.iter().any(|method| *request.method == **method))
        && (route.connect || *request.method != Method::CONNECT);
    let fields = |name: &str| -> Vec<Vec<u8>> {
        let named = head.iter().filter(|field| field.name.eq_ignore_ascii_case(name.as_bytes()));
        named.map(|field| field.value.to_vec()).collect()
    };
    let parameters = |name: &str| -> Vec<Vec<u8>> {
        let pairs = head.query().split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.filter(|(found, _)| *found == name).map(|(_, value)| value.as_bytes().to_vec()).collect()
    };
    by_host
        && by_path
        && by_method
        && route.headers.iter().all(|ask| fits(&ask.value, &fields(&ask.name)))
        && route.query.iter().all(|ask| fits(&ask.value, &parameters(&ask.name)))
}

/// In lower case, without port and without a dot at its end.
fn name_of(host: &str) -> String {
    let lower = host.to_ascii_lowercase();
    let name = match lower.rfind(':') {
        Some(_) if lower.starts_with('[') && lower.ends_with(']') => &lower[..],
        Some(colon) if lower[colon + 1..].bytes().all(|byte| byte.is_ascii_digit()) => &lower[..colon],
        Some(_) | None => &lower[..],
    };
    name.strip_suffix('.').unwrap_or(name).to_owned()
}

fn is_host(pattern: &str, host: &str) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    if let Some(suffix) = pattern.strip_prefix("*.") {
        let suffix = suffix.strip_suffix('.').unwrap_or(suffix);
        return host
            .strip_suffix(suffix)
            .and_then(|lead| lead.strip_suffix('.'))
            .is_some_and(|lead| !lead.is_empty());
    }
    if let Some(prefix) = pattern.strip_suffix(".*") {
        return host.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
    }
    host == pattern.strip_suffix('.').unwrap_or(&pattern)
}

fn fits(wanted: &Wanted, values: &[Vec<u8>]) -> bool {
    match wanted {
        Wanted::Exact(exact) => values.iter().any(|value| value == exact.as_bytes()),
        Wanted::Present(present) => *present != values.is_empty(),
        Wanted::Regex(pattern) => values.iter().any(|value| is_match(pattern, value)),
    }
}

fn is_match(pattern: &str, value: &[u8]) -> bool {
    let pattern = RegexBuilder::new(pattern).unicode(false).build().expect("it was compiled before");
    pattern.is_match(value)
}
