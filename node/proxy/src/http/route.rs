//! Which pool takes a request: the routes of one app, compiled.
//!
//! Pure. The path is compared exactly as it came and is forwarded in that same form; nothing is decoded or
//! normalised here, so no two parties can read it differently.

use std::{collections::HashMap, time::Duration};

use http::Method;
use regex::bytes::Regex;

use super::{
    edit::{EditError, Edits, Rewrite},
    headers::without_port,
    mirror::Mirror,
    reply::Reply,
};
use crate::config::{MirrorConfig, PathMatch, RouteConfig, RouteTo};

mod rule;
mod split;
mod when;

pub(crate) use split::Split;
pub(crate) use when::Request;
use when::{When, pattern};

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
    takes_connect: bool,
}

/// Where a request goes.
#[derive(Clone, Copy)]
pub(crate) struct Route<'a> {
    /// Its place in the file; `None` when no route claimed the request and the `default` pool takes it.
    pub(crate) index: Option<usize>,
    pub(crate) to: To<'a>,
    pub(crate) treatment: Option<&'a Treatment>,
}

#[derive(Clone, Copy)]
pub(crate) enum To<'a> {
    /// Index into the pools given to [`Router::compile`].
    Pool(usize),
    Split(&'a Split),
    Reply(&'a Reply),
}

/// What is done with a request besides sending it on, and with its response. Most routes have none.
#[derive(Debug)]
pub(crate) struct Treatment {
    pub(crate) timeout: Option<Duration>,
    pub(crate) rewrite: Rewrite,
    pub(crate) request: Edits,
    pub(crate) response: Edits,
    pub(crate) mirror: Option<Mirror>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CompileError {
    #[error("route `{route}`: there is no pool `{pool}`")]
    UnknownPool { route: String, pool: String },
    #[error("route `{route}`: no pool has any weight")]
    NoWeight { route: String },
    #[error("route `{route}`: `{host}` is no host name, and neither `*.` nor `.*` with one")]
    Host { route: String, host: String },
    #[error("route `{route}`: `{method}` is not an HTTP method")]
    Method { route: String, method: String },
    #[error("route `{route}`: the path `{path}` does not start with `/`")]
    Path { route: String, path: String },
    #[error("route `{route}`: the pattern `{pattern}`: {why}")]
    Pattern { route: String, pattern: String, why: String },
    #[error("route `{route}`: the rule cannot be: {why}")]
    Rule { route: String, why: String },
    #[error("route `{route}`: {why}")]
    Edit { route: String, why: EditError },
    #[error("route `{route}`: CONNECT leads to a pool, and has no path and no copies")]
    Connect { route: String },
}

#[derive(Debug)]
struct Rule {
    name: Box<str>,
    path: Option<Path>,
    methods: Vec<Method>,
    takes_connect: bool,
    /// On the heap: most routes ask for nothing of the kind.
    when: Option<Box<When>>,
    goal: Goal,
    treatment: Option<Box<Treatment>>,
}

#[derive(Debug)]
enum Path {
    Exact(Box<str>),
    Prefix(Box<str>),
    Regex(Box<Regex>),
}

#[derive(Debug)]
enum Goal {
    Pool(usize),
    Split(Box<Split>),
    Reply(Box<Reply>),
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
            takes_connect: routes.iter().any(|route| route.connect),
        };
        for (index, route) in routes.iter().enumerate() {
            router.rules.push(Rule::compile(route, pool)?);
            if route.hosts.is_empty() {
                router.any_host.push(index);
            }
            for host in &route.hosts {
                let lower = host.to_ascii_lowercase();
                let (name, list) = match (lower.strip_prefix("*."), lower.strip_suffix(".*")) {
                    (Some(suffix), _) => (without_dot(suffix), &mut router.by_suffix),
                    // Its end is not that of a name.
                    (None, Some(prefix)) => (prefix, &mut router.by_prefix),
                    (None, None) => (without_dot(&lower), &mut router.exact),
                };
                if !is_host_name(name) {
                    return Err(CompileError::Host { route: route.name.clone(), host: host.clone() });
                }
                list.entry(name.into()).or_default().push(index);
            }
        }
        Ok(router)
    }

    /// Of the route at that place.
    pub(crate) fn name(&self, route: usize) -> &str {
        &self.rules[route].name
    }

    /// Of its routes, in file order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| &*rule.name)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether there is any route for CONNECT.
    pub(crate) fn takes_connect(&self) -> bool {
        self.takes_connect
    }

    /// The first route in file order that claims the request, else the pool `default`, else `None` (a 404). A CONNECT
    /// goes only where a route asks for it.
    pub(crate) fn route(&self, request: &Request<'_>) -> Option<Route<'_>> {
        let mut first = self.first_of(&self.any_host, usize::MAX, request);
        let mut lower = [0; HOST_BYTES_MAX];
        if let Some(host) = lower_case(without_port(request.host), &mut lower) {
            if let Some(list) = self.exact.get(host) {
                first = self.first_of(list, first, request);
            }
            if !(self.by_suffix.is_empty() && self.by_prefix.is_empty()) {
                for (dot, _) in host.match_indices('.').filter(|&(dot, _)| dot > 0) {
                    let lists = [self.by_suffix.get(&host[dot + 1..]), self.by_prefix.get(&host[..dot])];
                    for list in lists.into_iter().flatten() {
                        first = self.first_of(list, first, request);
                    }
                }
            }
        }
        match self.rules.get(first) {
            Some(rule) => Some(Route {
                index: Some(first),
                to: match &rule.goal {
                    Goal::Pool(pool) => To::Pool(*pool),
                    Goal::Split(split) => To::Split(split),
                    Goal::Reply(reply) => To::Reply(reply),
                },
                treatment: rule.treatment.as_deref(),
            }),
            None if request.is_connect() => None,
            None => {
                let to = To::Pool(self.default?);
                Some(Route { index: None, to, treatment: None })
            }
        }
    }

    /// Of the route at that place.
    pub(crate) fn treatment(&self, index: usize) -> Option<&Treatment> {
        self.rules.get(index)?.treatment.as_deref()
    }

    /// The first rule of `list` that matches and comes before `before` in the file, else `before`.
    fn first_of(&self, list: &[usize], before: usize, request: &Request<'_>) -> usize {
        let mut earlier = list.iter().copied().take_while(|&rule| rule < before);
        earlier.find(|&rule| self.rules[rule].matches(request)).unwrap_or(before)
    }
}

impl Route<'_> {
    /// Of a route that has one.
    pub(crate) fn pool(&self) -> Option<usize> {
        match self.to {
            To::Pool(pool) => Some(pool),
            To::Split(_) | To::Reply(_) => None,
        }
    }
}

impl Rule {
    fn compile(route: &RouteConfig, pool: impl Fn(&str) -> Option<usize>) -> Result<Self, CompileError> {
        let methods = route.methods.iter().map(|method| {
            method
                .parse()
                .map_err(|_| CompileError::Method { route: route.name.clone(), method: method.clone() })
        });
        let pool = |name: &str| {
            let unknown = || CompileError::UnknownPool { route: route.name.clone(), pool: name.to_owned() };
            pool(name).ok_or_else(unknown)
        };
        let mirror = route.mirror.as_ref().map(|mirror| {
            let MirrorConfig { pool: name, percent, body_bytes_max } = mirror;
            Ok(Mirror { pool: pool(name)?, percent: *percent, body_bytes_max: *body_bytes_max })
        });
        let is_forwarded = matches!(route.to, RouteTo::Pool(_) | RouteTo::Split(_));
        if route.connect && (!is_forwarded || route.path.is_some() || route.mirror.is_some()) {
            return Err(CompileError::Connect { route: route.name.clone() });
        }
        let goal = match &route.to {
            RouteTo::Pool(name) => Goal::Pool(pool(name)?),
            RouteTo::Split(config) => Goal::Split(Box::new(Split::compile(route, config, pool)?)),
            RouteTo::Respond(config) => Goal::Reply(Box::new(Reply::fixed(config).map_err(edit_of(route))?)),
            RouteTo::Redirect(config) => {
                Goal::Reply(Box::new(Reply::redirect(config).map_err(edit_of(route))?))
            }
        };
        Ok(Self {
            name: route.name.as_str().into(),
            path: route.path.as_ref().map(|path| Path::compile(route, path)).transpose()?,
            methods: methods.collect::<Result<_, _>>()?,
            takes_connect: route.connect,
            when: When::compile(route)?.map(Box::new),
            goal,
            treatment: Treatment::compile(route, mirror.transpose()?).map_err(edit_of(route))?.map(Box::new),
        })
    }

    fn matches(&self, request: &Request<'_>) -> bool {
        self.path.as_ref().is_none_or(|path| path.matches(request.path))
            && (self.methods.is_empty() || self.methods.contains(request.method))
            && (self.takes_connect || !request.is_connect())
            && self.when.as_ref().is_none_or(|when| when.matches(request))
    }
}

fn edit_of(route: &RouteConfig) -> impl Fn(EditError) -> CompileError {
    |why| CompileError::Edit { route: route.name.clone(), why }
}

impl Path {
    fn compile(route: &RouteConfig, path: &PathMatch) -> Result<Path, CompileError> {
        match path {
            PathMatch::Exact(path) | PathMatch::Prefix(path) if !path.starts_with('/') => {
                Err(CompileError::Path { route: route.name.clone(), path: path.clone() })
            }
            PathMatch::Exact(path) => Ok(Path::Exact(path.as_str().into())),
            // `/v1/` and `/v1` are the same segments; `/` is no segment at all and matches everything.
            PathMatch::Prefix(path) => Ok(Path::Prefix(path.strip_suffix('/').unwrap_or(path).into())),
            PathMatch::Regex(path) => Ok(Path::Regex(Box::new(pattern(route, path)?))),
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Path::Exact(exact) => path == &**exact,
            Path::Prefix(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Path::Regex(pattern) => pattern.is_match(path.as_bytes()),
        }
    }
}

impl Treatment {
    fn compile(route: &RouteConfig, mirror: Option<Mirror>) -> Result<Option<Treatment>, EditError> {
        let treatment = Treatment {
            timeout: route.timeout,
            rewrite: Rewrite::compile(&route.rewrite)?,
            request: Edits::compile(&route.request_headers)?,
            response: Edits::compile(&route.response_headers)?,
            mirror,
        };
        let Treatment { timeout, rewrite, request, response, mirror } = &treatment;
        let is_none = timeout.is_none()
            && rewrite.is_none()
            && request.is_none()
            && response.is_none()
            && mirror.is_none();
        Ok((!is_none).then_some(treatment))
    }
}

/// A host name, or one with `*.` before or `.*` behind it.
pub(crate) fn is_host_pattern(host: &str) -> bool {
    match host.strip_suffix(".*") {
        Some(prefix) if !host.starts_with("*.") => is_host_name(prefix),
        Some(_) | None => is_host_name(without_dot(host.strip_prefix("*.").unwrap_or(host))),
    }
}

fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
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
