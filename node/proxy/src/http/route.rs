//! Which pool takes a request: the routes of one app, compiled.
//!
//! Pure. The path is compared exactly as it came and is forwarded in that same form; nothing is decoded or
//! normalised here, so no two parties can read it differently.

use std::collections::HashMap;

use http::Method;

use crate::config::{PathMatch, RouteConfig};

/// The pool that takes what no route claims.
pub(crate) const DEFAULT_POOL: &str = "default";

/// A DNS name has at most 253 characters (RFC 1035 §2.3.4); a longer host is nobody's.
pub(crate) const HOST_BYTES_MAX: usize = 255;

/// Routes compiled against the pools of one generation.
///
/// Routes are filed by host, each list in file order, so the cost of a choice depends on how many routes share the
/// request's host and not on how many hosts there are.
#[derive(Debug)]
pub(crate) struct Router {
    rules: Vec<Rule>,
    exact: HashMap<Box<str>, Vec<usize>>,
    /// `*.example.com`, by `example.com`.
    by_suffix: HashMap<Box<str>, Vec<usize>>,
    /// `api.*`, by `api`.
    by_prefix: HashMap<Box<str>, Vec<usize>>,
    /// Rules that name no host.
    any_host: Vec<usize>,
    default: Option<usize>,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route<'a> {
    /// The route's name; `None` when no route claimed the request and the `default` pool takes it.
    pub(crate) name: Option<&'a str>,
    /// Its place in the file.
    pub(crate) index: Option<usize>,
    /// Index into the pools given to [`Router::compile`].
    pub(crate) pool: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CompileError {
    #[error("route `{route}`: there is no pool `{pool}`")]
    UnknownPool { route: String, pool: String },
    #[error("route `{route}`: `{host}` is no host name, and neither `*.` nor `.*` with one")]
    Host { route: String, host: String },
    #[error("route `{route}`: `{method}` is not an HTTP method")]
    Method { route: String, method: String },
    #[error("route `{route}`: the path `{path}` does not start with `/`")]
    Path { route: String, path: String },
}

#[derive(Debug)]
struct Rule {
    name: Box<str>,
    path: Option<PathMatch>,
    methods: Vec<Method>,
    pool: usize,
}

impl Router {
    pub(crate) fn compile(routes: &[RouteConfig], pools: &[String]) -> Result<Self, CompileError> {
        let pool = |name: &str| pools.iter().position(|pool| pool == name);
        let mut router = Self {
            rules: Vec::with_capacity(routes.len()),
            exact: HashMap::new(),
            by_suffix: HashMap::new(),
            by_prefix: HashMap::new(),
            any_host: Vec::new(),
            default: pool(DEFAULT_POOL),
        };
        for (index, route) in routes.iter().enumerate() {
            let Some(pool) = pool(&route.pool) else {
                return Err(CompileError::UnknownPool {
                    route: route.name.clone(),
                    pool: route.pool.clone(),
                });
            };
            router.rules.push(Rule::compile(route, pool)?);
            if route.hosts.is_empty() {
                router.any_host.push(index);
            }
            for host in &route.hosts {
                let lower = host.to_ascii_lowercase();
                let (name, list) = match (lower.strip_prefix("*."), lower.strip_suffix(".*")) {
                    (Some(suffix), _) => (suffix, &mut router.by_suffix),
                    (None, Some(prefix)) => (prefix, &mut router.by_prefix),
                    (None, None) => (lower.as_str(), &mut router.exact),
                };
                let name = name.strip_suffix('.').unwrap_or(name);
                if !is_host_name(name) {
                    return Err(CompileError::Host { route: route.name.clone(), host: host.clone() });
                }
                list.entry(name.into()).or_default().push(index);
            }
        }
        Ok(router)
    }

    /// The first route in file order that claims the request, else the pool `default`, else `None` (a 404).
    /// `host` is the Host field as it came (any case, with or without port), `path` the path without the query.
    pub(crate) fn route(&self, host: &str, path: &str, method: &Method) -> Option<Route<'_>> {
        let mut first = self.first_of(&self.any_host, usize::MAX, path, method);
        let mut lower = [0; HOST_BYTES_MAX];
        if let Some(host) = lower_case(without_port(host), &mut lower) {
            if let Some(list) = self.exact.get(host) {
                first = self.first_of(list, first, path, method);
            }
            if !(self.by_suffix.is_empty() && self.by_prefix.is_empty()) {
                for (dot, _) in host.match_indices('.').filter(|&(dot, _)| dot > 0) {
                    let lists = [self.by_suffix.get(&host[dot + 1..]), self.by_prefix.get(&host[..dot])];
                    for list in lists.into_iter().flatten() {
                        first = self.first_of(list, first, path, method);
                    }
                }
            }
        }
        match self.rules.get(first) {
            Some(rule) => Some(Route { name: Some(&rule.name), index: Some(first), pool: rule.pool }),
            None => self.default.map(|pool| Route { name: None, index: None, pool }),
        }
    }

    /// The first rule of `list` that matches and comes before `before` in the file, else `before`.
    fn first_of(&self, list: &[usize], before: usize, path: &str, method: &Method) -> usize {
        let mut earlier = list.iter().copied().take_while(|&rule| rule < before);
        earlier.find(|&rule| self.rules[rule].matches(path, method)).unwrap_or(before)
    }
}

impl Rule {
    fn compile(route: &RouteConfig, pool: usize) -> Result<Self, CompileError> {
        if let Some(PathMatch::Exact(path) | PathMatch::Prefix(path)) = &route.path
            && !path.starts_with('/')
        {
            return Err(CompileError::Path { route: route.name.clone(), path: path.clone() });
        }
        let path = route.path.clone().map(|path| match path {
            PathMatch::Exact(path) => PathMatch::Exact(path),
            // `/v1/` and `/v1` are the same segments; `/` is no segment at all and matches everything.
            PathMatch::Prefix(path) => PathMatch::Prefix(path.strip_suffix('/').unwrap_or(&path).to_owned()),
        });
        let methods = route.methods.iter().map(|method| {
            method
                .parse()
                .map_err(|_| CompileError::Method { route: route.name.clone(), method: method.clone() })
        });
        Ok(Self { name: route.name.as_str().into(), path, methods: methods.collect::<Result<_, _>>()?, pool })
    }

    fn matches(&self, path: &str, method: &Method) -> bool {
        let path_matches = match &self.path {
            None => true,
            Some(PathMatch::Exact(exact)) => path == exact,
            Some(PathMatch::Prefix(prefix)) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        };
        path_matches && (self.methods.is_empty() || self.methods.contains(method))
    }
}

/// A host name, or one with `*.` before or `.*` behind it.
pub(crate) fn is_host_pattern(host: &str) -> bool {
    let name = host.strip_prefix("*.").or_else(|| host.strip_suffix(".*")).unwrap_or(host);
    is_host_name(name.strip_suffix('.').unwrap_or(name))
}

/// Letters, digits, `-`, `_` and dots between them, or an IPv6 address in brackets.
fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match literal {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.len() < HOST_BYTES_MAX && name.split('.').all(label),
    }
}

/// `example.com:80` -> `example.com`, `[::1]:80` -> `[::1]`; also without the dot of a fully qualified name.
pub(crate) fn without_port(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !in_brackets(host) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

fn in_brackets(host: &str) -> bool {
    host.starts_with('[') && host.ends_with(']')
}

/// Lower case without allocating; `None` when the name is longer than any name.
pub(crate) fn lower_case<'a>(host: &'a str, buffer: &'a mut [u8; HOST_BYTES_MAX]) -> Option<&'a str> {
    if !host.bytes().any(|b| b.is_ascii_uppercase()) {
        return (host.len() <= HOST_BYTES_MAX).then_some(host);
    }
    let lower = buffer.get_mut(..host.len())?;
    lower.copy_from_slice(host.as_bytes());
    lower.make_ascii_lowercase();
    std::str::from_utf8(lower).ok()
}

#[cfg(test)]
mod tests;
