use super::*;
use crate::{
    config::{RespondConfig, SplitConfig, ValueMatch, Wanted},
    http::{head::Head, headers::Seen},
    metrics::Count,
};

struct Named {
    router: Router,
    names: Vec<String>,
}

/// `name host[,host] path [METHOD,..]`; `-` is nothing, a path ending in `*` is a prefix. The pool is the name.
fn router(lines: &[&str]) -> Named {
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
            path: match words[2] {
                "-" => None,
                path => Some(match path.strip_suffix('*') {
                    Some(prefix) => PathMatch::Prefix(prefix.to_owned()),
                    None => PathMatch::Exact(path.to_owned()),
                }),
            },
            methods: list(words.get(3).copied().unwrap_or("-")),
            ..RouteConfig::hosts(words[0], list(words[1]), words[0])
        });
    }
    Named { router: Router::compile(&routes, &pools).unwrap(), names: pools.split_off(1) }
}

#[track_caller]
fn check(Named { router, names }: &Named, request: &str, expected: Option<&str>) {
    let (method, rest) = request.split_once(' ').unwrap();
    let (host, path) = rest.split_once(' ').unwrap();
    let route = Request { path, method: &method.parse().unwrap(), ..Request::by_name(host) };
    let route = router.route(&route).unwrap();
    assert_eq!(route.index.map(|index| names[index].as_str()), expected, "{request}");
    assert_eq!(route.pool() == Some(0), expected.is_none(), "only the default pool is pool 0");
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
fn a_pattern_with_an_empty_label_is_refused() {
    for host in ["a..*", ".a.*", ".*", "*..a", "*.", "a..b", ".a", "a..", ""] {
        let route = RouteConfig::hosts("r", [host], "web");
        let refused = Router::compile(&[route], &["web".to_owned()]);
        assert!(matches!(refused, Err(CompileError::Host { .. })), "{host}: {refused:?}");
        assert!(!is_host_pattern(host), "{host}");
    }
    for host in ["a.b.", "*.a.", "a.*", "[::1]"] {
        assert!(is_host_pattern(host), "{host}");
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
    let route = RouteConfig::hosts("r", ["h"], "p");
    let router = Router::compile(&[route], &["p".to_owned()]).unwrap();
    let route = router.route(&Request::by_name("h")).unwrap();
    assert_eq!((route.index, route.pool()), (Some(0), Some(0)));
    assert!(router.route(&Request::by_name("i")).is_none());
}

#[test]
fn a_pattern_is_found_anywhere_in_the_path_unless_it_is_anchored() {
    for (pattern, path, fits) in [
        ("^/v[0-9]+/", "/v12/x", true),
        ("^/v[0-9]+/", "/a/v12/x", false),
        ("/v[0-9]+$", "/a/v12", true),
        (r"\.(png|jpg)$", "/a.png", true),
        (r"\.(png|jpg)$", "/a.png/", false),
        ("(?i)^/API", "/api", true),
        ("^/API", "/api", false),
        ("^/ä", "/ä", true),
        (r"^/\w+$", "/ä", false),
    ] {
        let path_is = Some(PathMatch::Regex(pattern.to_owned()));
        let routes = [RouteConfig { path: path_is, ..RouteConfig::hosts("r", ["h"], "p") }];
        let router = Router::compile(&routes, &["p".to_owned()]).unwrap();
        let found = router.route(&Request { path, ..Request::by_name("h") }).is_some();
        assert_eq!(found, fits, "{pattern} {path}");
    }
}

#[test]
fn fields_and_parameters_narrow_a_route() {
    let wanted = |text: &str| {
        let (name, value) = text.split_once('=').unwrap();
        let value = match (value, value.strip_prefix('~')) {
            ("+", _) => Wanted::Present(true),
            ("-", _) => Wanted::Present(false),
            (_, Some(pattern)) => Wanted::Regex(pattern.to_owned()),
            (exact, None) => Wanted::Exact(exact.to_owned()),
        };
        ValueMatch { name: name.to_owned(), value }
    };
    for (headers, query, target, fields, fits) in [
        ("X-Beta=1", "", "/", "x-beta: 1", true),
        ("X-Beta=1", "", "/", "x-beta: 10", false),
        ("X-Beta=1", "", "/", "x-beta: 0\r\nX-BETA: 1", true),
        ("X-Beta=1", "", "/", "", false),
        ("x-beta=+", "", "/", "x-beta:", true),
        ("x-beta=+", "", "/", "", false),
        ("x-beta=-", "", "/", "", true),
        ("x-beta=-", "", "/", "x-beta: 1", false),
        ("user-agent=~^curl/", "", "/", "user-agent: curl/8", true),
        ("user-agent=~^curl/", "", "/", "user-agent: not curl/8", false),
        ("a=1 b=2", "", "/", "a: 1\r\nb: 2", true),
        ("a=1 b=2", "", "/", "a: 1", false),
        ("", "v=2", "/?v=2", "", true),
        ("", "v=2", "/?a&v=2&b=3", "", true),
        ("", "v=2", "/?v=1&v=2", "", true),
        ("", "v=2", "/?v=22", "", false),
        ("", "v=2", "/?V=2", "", false),
        ("", "v=2", "/?v=%32", "", false),
        ("", "v=2", "/v=2", "", false),
        ("", "v=+", "/?v", "", true),
        ("", "v=+", "/?vv", "", false),
        ("", "v=-", "/", "", true),
        ("", "v=~^[0-9]+$", "/?v=17", "", true),
        ("", "v=~^[0-9]+$", "/?v=1x", "", false),
        ("a=1", "v=2", "/?v=2", "a: 1", true),
        ("a=1", "v=2", "/?v=2", "a: 2", false),
    ] {
        let list = |text: &str| text.split_whitespace().map(wanted).collect::<Vec<_>>();
        let routes = [RouteConfig {
            headers: list(headers),
            query: list(query),
            ..RouteConfig::hosts("r", ["h"], "p")
        }];
        let router = Router::compile(&routes, &["p".to_owned()]).unwrap();
        let mut head = Head::default();
        let fields = if fields.is_empty() { String::new() } else { format!("{fields}\r\n") };
        let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        assert_eq!(head.parse_request(text.as_bytes(), 9999), Ok(Some(text.len())));
        let seen = Seen::new("192.0.2.1:1".parse().unwrap(), 80, false);
        let failed = Count::unseen();
        let found = router.route(&Request::new(&head, &Method::GET, &seen, &failed)).is_some();
        assert_eq!(found, fits, "{headers} {query}: {text}");
        assert!(router.route(&Request::by_name("h")).is_none(), "a name alone has neither");
    }
}

#[test]
fn a_rule_takes_what_it_is_true_of_and_is_counted_where_it_cannot_be_evaluated() {
    for (rule, takes, failed) in [
        ("true", true, 0),
        ("false", false, 0),
        (r#"request.method == "GET" && request.path == "/a/b""#, true, 0),
        (r#"request.host == "h.example""#, true, 0),
        (r#"request.headers["x-beta"] == "1" && source.ip.startsWith("192.0.")"#, true, 0),
        (r#"request.headers["x-beta"] == "2""#, false, 0),
        (r#"request.headers["x-twice"] == "1, 2" && request.headers.cookie == "a=1; b=2""#, true, 0),
        (r#""x-none" in request.headers"#, false, 0),
        (r#"has(request.query.v) && int(request.query.v) > 2"#, true, 0),
        (r#"request.query.w == "%20""#, true, 0),
        (r#"request.query.size() == 2"#, true, 0),
        (r#"request.headers.exists(name, name.startsWith("x-t"))"#, true, 0),
        (r#"request.path.matches("^/[a-z]/")"#, true, 0),
        (r#"source.ip == "192.0.2.1""#, true, 0),
        (r#"request.headers["x-none"] == "1""#, false, 1),
        (r#"request.headers["x-none"] != "1""#, false, 1),
        (r#"int(request.headers["x-word"]) > 1"#, false, 1),
        (r#"request.path"#, false, 1),
        (r#"request.body == """#, false, 1),
        (r#"path == "/""#, false, 1),
    ] {
        let routes = [RouteConfig {
            expr: Some(rule.to_owned()),
            ..RouteConfig::hosts("r", Vec::<String>::new(), "p")
        }];
        let router = Router::compile(&routes, &["p".to_owned()]).unwrap();
        let mut head = Head::default();
        let text = "GET /a/b?v=3&w=%20&v=4 HTTP/1.1\r\nHost: H.example:80\r\nX-Beta: 1\r\nX-Twice: 1\r\n\
            x-twice: 2\r\nCookie: a=1\r\ncookie: b=2\r\nx-word: two\r\n\r\n";
        assert_eq!(head.parse_request(text.as_bytes(), 9999), Ok(Some(text.len())));
        let seen = Seen::new("192.0.2.1:1".parse().unwrap(), 80, false);
        let count = Count::unseen();
        let found = router.route(&Request::new(&head, &Method::GET, &seen, &count)).is_some();
        assert_eq!((found, count.pending()), (takes, failed), "{rule}");
    }
    for rule in ["(", "", "request.path ==", &"x".repeat(2000)] {
        let routes = [RouteConfig {
            expr: Some(rule.to_owned()),
            ..RouteConfig::hosts("r", Vec::<String>::new(), "p")
        }];
        let error = Router::compile(&routes, &["p".to_owned()]).unwrap_err().to_string();
        assert!(error.starts_with("route `r`: the rule cannot be: "), "{error}");
    }
}

#[test]
fn a_connect_goes_only_where_a_route_asks_for_it() {
    let pools = ["default".to_owned(), "p".to_owned()];
    let any = RouteConfig::hosts("any", Vec::<String>::new(), "p");
    let tunnel = RouteConfig { connect: true, ..RouteConfig::hosts("tunnel", ["a", "*.a"], "p") };
    let only = RouteConfig {
        methods: vec!["CONNECT".to_owned()],
        ..RouteConfig { name: "only".to_owned(), hosts: vec!["b".to_owned()], ..tunnel.clone() }
    };
    let narrow =
        RouteConfig { methods: vec!["GET".to_owned()], hosts: vec!["c".to_owned()], ..tunnel.clone() };
    let path = RouteConfig { path: Some(PathMatch::Prefix("/".to_owned())), ..any.clone() };
    let with = [path.clone(), only, narrow, tunnel.clone(), any.clone()];
    let without = [path.clone(), any.clone()];
    for (routes, request, want) in [
        (&with[..], "CONNECT a:443", Some(3)),
        (&with[..], "CONNECT x.A:443", Some(3)),
        (&with[..], "CONNECT b:443", Some(1)),
        (&with[..], "CONNECT c:443", None),
        (&with[..], "CONNECT d:443", None),
        (&with[1..], "GET a:443", Some(2)),
        (&with[1..], "GET b:443", Some(3)),
        (&without[..], "CONNECT a:443", None),
    ] {
        let router = Router::compile(routes, &pools).unwrap();
        assert_eq!(router.takes_connect(), routes.len() > 2);
        let (method, host) = request.split_once(' ').unwrap();
        let target = if method == "CONNECT" { host } else { "/" };
        let text = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let mut head = Head::default();
        head.parse_request(text.as_bytes(), 4096).unwrap().unwrap();
        let (method, failed) = (method.parse().unwrap(), Count::unseen());
        let seen = Seen::new("192.0.2.7:4711".parse().unwrap(), 80, false);
        let found = router.route(&Request::new(&head, &method, &seen, &failed));
        assert_eq!(found.map(|route| route.index), want.map(Some), "{request}");
    }
    let respond = RouteTo::Respond(RespondConfig { status: 200, headers: Vec::new(), body: String::new() });
    let mirror = Some(MirrorConfig { pool: "p".to_owned(), percent: 1, body_bytes_max: 0 });
    for route in [
        RouteConfig { connect: true, ..path },
        RouteConfig { to: respond, ..tunnel.clone() },
        RouteConfig { mirror, ..tunnel },
    ] {
        let why = Router::compile(std::slice::from_ref(&route), &pools).unwrap_err();
        assert_eq!(why, CompileError::Connect { route: route.name });
    }
    // A name in TLS is no request.
    assert!(Router::compile(&[any], &pools).unwrap().route(&Request::by_name("a")).is_some());
}

#[test]
fn a_split_gives_each_pool_its_share_and_equal_keys_the_same_pool() {
    let pools = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
    let split = |weights: &[(&str, u32)]| {
        let pools_of = weights.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
        let to = RouteTo::Split(SplitConfig { pools: pools_of, sticky: None });
        Router::compile(&[RouteConfig { to, ..RouteConfig::hosts("r", ["h"], "") }], &pools)
    };
    let spread = |router: &Router, keyed: bool| {
        let Some(Route { to: To::Split(split), .. }) = router.route(&Request::by_name("h")) else {
            panic!("it is split")
        };
        let mut counts = [0_u32; 3];
        for n in 0..100_000_u64 {
            let number = crate::upstream::key::hash(&n.to_be_bytes());
            let pool = if keyed { split.choose(Some(number), 0) } else { split.choose(None, number) };
            assert!(!keyed || pool == split.choose(Some(number), u64::MAX), "the key alone decides");
            counts[pool] += 1;
        }
        counts
    };
    for keyed in [false, true] {
        let counts = spread(&split(&[("b", 5), ("a", 95), ("c", 0)]).unwrap(), keyed);
        assert!((94_500..95_500).contains(&counts[0]) && counts[2] == 0, "{counts:?}");
        assert_eq!(spread(&split(&[("c", 1)]).unwrap(), keyed), [0, 0, 100_000]);
    }
    let fails = |weights| split(weights).unwrap_err().to_string();
    assert_eq!(fails(&[("a", 0), ("b", 0)]), "route `r`: no pool has any weight");
    assert_eq!(fails(&[]), "route `r`: no pool has any weight");
    assert_eq!(fails(&[("q", 1)]), "route `r`: there is no pool `q`");
}

#[test]
fn what_cannot_be_compiled_is_named() {
    let good = RouteConfig::hosts("r", Vec::<String>::new(), "p");
    let fails = |route: RouteConfig| Router::compile(&[route], &["p".to_owned()]).unwrap_err().to_string();
    let pool = RouteConfig { to: RouteTo::Pool("q".to_owned()), ..good.clone() };
    assert_eq!(fails(pool), "route `r`: there is no pool `q`");
    let method = RouteConfig { methods: vec!["GE T".to_owned()], ..good.clone() };
    assert_eq!(fails(method), "route `r`: `GE T` is not an HTTP method");
    for path in [PathMatch::Prefix("v1".to_owned()), PathMatch::Exact("v1".to_owned())] {
        let path = RouteConfig { path: Some(path), ..good.clone() };
        assert_eq!(fails(path), "route `r`: the path `v1` does not start with `/`");
    }
    let long = "a".repeat(2000);
    for pattern in ["(", "a{9999}{9999}", &long] {
        let path = RouteConfig { path: Some(PathMatch::Regex(pattern.to_owned())), ..good.clone() };
        let why = fails(path);
        assert!(why.starts_with(&format!("route `r`: the pattern `{pattern}`: ")), "{why}");
    }
    for host in ["", "*", "*.", ".*", "a..b", "a b", "*.a.*", "a*", "*.*.b", "a:80", "[::1", "http://a"] {
        let route = RouteConfig { hosts: vec![host.to_owned()], ..good.clone() };
        assert_eq!(
            fails(route),
            format!("route `r`: `{host}` is no host name, and neither `*.` nor `.*` with one")
        );
    }
}
