//! Which pool takes a request: the routes of one app, compiled.
//!
//! Pure. The path is compared exactly as it came and is forwarded in that same form; nothing is decoded or
//! normalised here, so no two parties can read it differently.

use std::collections::HashMap;

use http::Method;

use crate::config::{PathMatch, RouteConfig};

/// The pool that takes what no route claims.
const DEFAULT_POOL: &str = "default";

/// A DNS name has at most 253 characters (RFC 1035 §2.3.4); a longer host is nobody's.
const HOST_BYTES_MAX: usize = 255;

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
            Some(rule) => Some(Route { name: Some(&rule.name), pool: rule.pool }),
            None => self.default.map(|pool| Route { name: None, pool }),
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
fn without_port(host: &str) -> &str {
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
fn lower_case<'a>(host: &'a str, buffer: &'a mut [u8; HOST_BYTES_MAX]) -> Option<&'a str> {
    if !host.bytes().any(|b| b.is_ascii_uppercase()) {
        return (host.len() <= HOST_BYTES_MAX).then_some(host);
    }
    let lower = buffer.get_mut(..host.len())?;
    lower.copy_from_slice(host.as_bytes());
    lower.make_ascii_lowercase();
    std::str::from_utf8(lower).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name host[,host] path [METHOD,..]`; `-` is nothing, a path ending in `*` is a prefix. The pool is the name.
    fn router(lines: &[&str]) -> Router {
        let mut pools = vec!["default".to_owned()];
        let list = |text: &str| match text {
            "-" => Vec::new(),
            text => text.split(',').map(str::to_owned).collect(),
        };
        let mut routes = Vec::new();
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            pools.push(words[0].to_owned());
            routes.push(RouteConfig {
                name: words[0].to_owned(),
                hosts: list(words[1]),
                path: match words[2] {
                    "-" => None,
                    path => Some(match path.strip_suffix('*') {
                        Some(prefix) => PathMatch::Prefix(prefix.to_owned()),
                        None => PathMatch::Exact(path.to_owned()),
                    }),
                },
                methods: list(words.get(3).copied().unwrap_or("-")),
                pool: words[0].to_owned(),
            });
        }
        Router::compile(&routes, &pools).unwrap()
    }

    #[track_caller]
    fn check(router: &Router, request: &str, expected: Option<&str>) {
        let (method, rest) = request.split_once(' ').unwrap();
        let (host, path) = rest.split_once(' ').unwrap();
        let route = router.route(host, path, &method.parse().unwrap()).unwrap();
        assert_eq!(route.name, expected, "{request}");
        assert_eq!(route.pool == 0, expected.is_none(), "only the default pool is pool 0");
    }

    #[test]
    fn hosts_match_exactly_or_by_whole_labels_at_either_end() {
        let router = router(&[
            "api api.example.com -",
            "wild *.example.com,*.org -",
            "v6 [::1] -",
            "lead admin.*,a.b.* -",
        ]);
        for (host, expected) in [
            ("admin.example.com", Some("wild")),
            ("admin.example.net", Some("lead")),
            ("ADMIN.net:80", Some("lead")),
            ("admin", None),
            ("admin.", None),
            ("administrator.net", None),
            ("x.admin.net", None),
            ("a.b.net", Some("lead")),
            ("a.net", None),
            ("api.example.com", Some("api")),
            ("API.Example.COM", Some("api")),
            ("api.example.com:8080", Some("api")),
            ("api.example.com:", Some("api")),
            ("api.example.com.", Some("api")),
            ("api.example.com.:80", Some("api")),
            ("a.example.com", Some("wild")),
            ("A.b.EXAMPLE.com:1", Some("wild")),
            ("example.com", None),
            (".example.com", None),
            ("xexample.com", None),
            ("example.com.evil", None),
            ("a.b.c.org", Some("wild")),
            ("org", None),
            ("[::1]", Some("v6")),
            ("[::1]:80", Some("v6")),
            ("[::2]:80", None),
            ("", None),
            (":80", None),
            ("api.example.com:80x", None),
        ] {
            check(&router, &format!("GET {host} /"), expected);
        }
    }

    #[test]
    fn a_host_longer_than_any_name_matches_only_routes_without_host() {
        let long = format!("{}.example.com", "A".repeat(300));
        check(&router(&["wild *.example.com -"]), &format!("GET {long} /"), None);
        check(&router(&["wild *.example.com -", "any - -"]), &format!("GET {long} /"), Some("any"));
    }

    #[test]
    fn a_prefix_matches_whole_segments() {
        let router = router(&["exact - /exact", "slash - /s/*", "v1 - /v1*"]);
        for (path, expected) in [
            ("/v1", Some("v1")),
            ("/v1/", Some("v1")),
            ("/v1/x", Some("v1")),
            ("/v10", None),
            ("/V1", None),
            ("/v", None),
            ("/%761", None),
            ("//v1", None),
            ("/s", Some("slash")),
            ("/s/", Some("slash")),
            ("/s/t", Some("slash")),
            ("/st", None),
            ("/exact", Some("exact")),
            ("/exact/", None),
            ("*", None),
        ] {
            check(&router, &format!("GET h {path}"), expected);
        }
        check(&self::router(&["all - /*"]), "GET h /anything", Some("all"));
    }

    #[test]
    fn methods_narrow_a_route() {
        let router = router(&["write - /x* POST,PUT", "odd - /x* PURGE"]);
        check(&router, "POST h /x", Some("write"));
        check(&router, "PUT h /x/1", Some("write"));
        check(&router, "PURGE h /x", Some("odd"));
        check(&router, "GET h /x", None);
        check(&router, "post h /x", None);
    }

    #[test]
    fn the_first_route_in_the_file_wins_whatever_kind_of_host_it_names() {
        let by_order = ["any - /a*", "wild *.x.y /b*", "exact h.x.y -", "deep *.h.x.y -", "late - -"];
        let router = router(&by_order);
        check(&router, "GET h.x.y /a", Some("any"));
        check(&router, "GET h.x.y /b", Some("wild"));
        check(&router, "GET h.x.y /c", Some("exact"));
        check(&router, "GET g.h.x.y /b", Some("wild"));
        check(&router, "GET g.h.x.y /c", Some("deep"));
        check(&router, "GET z /c", Some("late"));
    }

    #[test]
    fn the_answer_is_that_of_trying_every_route_in_order() {
        // All combinations of a small universe against the obvious implementation.
        let hosts = ["-", "a.b", "*.b", "*.a.b", "c"];
        let paths = ["-", "/p", "/p*"];
        let mut lines = Vec::new();
        for turn in 0..60_usize {
            // A fixed shuffle: both factors are coprime to the number of combinations.
            let pick = (turn * 7 + turn / 15) % 15;
            lines.push(format!("r{turn} {} {}", hosts[pick % 5], paths[pick / 5]));
        }
        for start in 0..lines.len() {
            let lines: Vec<&str> = lines[start..].iter().take(4).map(String::as_str).collect();
            let compiled = router(&lines);
            for host in ["a.b", "x.b", "x.a.b", "b", "c", "d"] {
                for path in ["/p", "/p/q", "/q"] {
                    let claims = |line: &&&str| {
                        let words: Vec<&str> = line.split(' ').collect();
                        let by_host = match words[1] {
                            "-" => true,
                            name => match name.strip_prefix('*') {
                                Some(suffix) => host.ends_with(suffix) && host != suffix,
                                None => host == name,
                            },
                        };
                        by_host
                            && match words[2] {
                                "-" => true,
                                "/p" => path == "/p",
                                _ => path == "/p" || path.starts_with("/p/"),
                            }
                    };
                    let expected = lines.iter().find(claims).map(|line| line.split(' ').next().unwrap());
                    check(&compiled, &format!("GET {host} {path}"), expected);
                }
            }
        }
    }

    #[test]
    fn without_a_default_pool_an_unclaimed_request_has_no_route() {
        let route = RouteConfig {
            name: "r".to_owned(),
            hosts: vec!["h".to_owned()],
            path: None,
            methods: Vec::new(),
            pool: "p".to_owned(),
        };
        let router = Router::compile(&[route], &["p".to_owned()]).unwrap();
        assert_eq!(router.route("h", "/", &Method::GET), Some(Route { name: Some("r"), pool: 0 }));
        assert_eq!(router.route("i", "/", &Method::GET), None);
    }

    #[test]
    fn what_cannot_be_compiled_is_named() {
        let good = RouteConfig {
            name: "r".to_owned(),
            hosts: Vec::new(),
            path: None,
            methods: Vec::new(),
            pool: "p".to_owned(),
        };
        let fails =
            |route: RouteConfig| Router::compile(&[route], &["p".to_owned()]).unwrap_err().to_string();
        let pool = RouteConfig { pool: "q".to_owned(), ..good.clone() };
        assert_eq!(fails(pool), "route `r`: there is no pool `q`");
        let method = RouteConfig { methods: vec!["GE T".to_owned()], ..good.clone() };
        assert_eq!(fails(method), "route `r`: `GE T` is not an HTTP method");
        for path in [PathMatch::Prefix("v1".to_owned()), PathMatch::Exact("v1".to_owned())] {
            let path = RouteConfig { path: Some(path), ..good.clone() };
            assert_eq!(fails(path), "route `r`: the path `v1` does not start with `/`");
        }
        for host in ["", "*", "*.", ".*", "a..b", "a b", "*.a.*", "a*", "*.*.b", "a:80", "[::1", "http://a"] {
            let route = RouteConfig { hosts: vec![host.to_owned()], ..good.clone() };
            assert_eq!(
                fails(route),
                format!("route `r`: `{host}` is no host name, and neither `*.` nor `.*` with one")
            );
        }
    }
}
