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
    assert_eq!(
        router.route("h", "/", &Method::GET),
        Some(Route { name: Some("r"), index: Some(0), pool: 0 })
    );
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
    let fails = |route: RouteConfig| Router::compile(&[route], &["p".to_owned()]).unwrap_err().to_string();
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
