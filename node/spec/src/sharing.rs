//! How apps share a port: which names each of them claims there, and what they must have in common.

use std::collections::BTreeSet;

use crate::{AppSpec, Listen, Protocol, Tls};

/// Stands for all names that nobody else claims.
pub const ANY_HOST: &str = "*";

/// The pool that `targets` make, and where everything goes that no route claims.
pub(crate) const DEFAULT_POOL: &str = "default";

/// The names of a port that are the app's: the hosts of `listen`; else those of its routes, where each names some and
/// there is nothing for other requests; else [`ANY_HOST`]. In lower case, without a dot at the end.
pub fn claims(app: &AppSpec, listen: &Listen) -> BTreeSet<String> {
    if !listen.hosts.is_empty() {
        return listen.hosts.iter().map(|host| normal(host)).collect();
    }
    // Beside HTTP ports the routes are for requests.
    let is_routed =
        listen.protocol == Protocol::Http || app.listen.iter().all(|listen| listen.protocol == Protocol::Tcp);
    let is_closed = !app.route.is_empty()
        && app.targets.is_empty()
        && !app.pool.contains_key(DEFAULT_POOL)
        && app.route.iter().all(|route| !route.matches.host.is_empty());
    if !(is_routed && is_closed) {
        return BTreeSet::from([ANY_HOST.to_owned()]);
    }
    app.route.iter().flat_map(|route| &route.matches.host).map(|host| normal(host)).collect()
}

fn normal(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    host.strip_suffix('.').map_or(host.clone(), str::to_owned)
}

/// What keeps two apps from sharing a port, whatever names they claim; `None`: nothing.
pub fn differ(one: &Listen, other: &Listen) -> Option<&'static str> {
    if one.address != other.address {
        return Some("they listen at different addresses there");
    }
    if one.protocol != other.protocol {
        return Some("one speaks HTTP there and the other TCP");
    }
    let settings = |tls: &Tls| Tls { certificate: Vec::new(), ..tls.clone() };
    match (&one.tls, &other.tls) {
        (None, None) => {}
        (Some(one), Some(other)) if settings(one) == settings(other) => {}
        (Some(_), Some(_)) => return Some("their TLS settings there differ: only certificates may"),
        (None, Some(_)) | (Some(_), None) => return Some("one ends TLS there and the other does not"),
    }
    if one.socket != other.socket {
        return Some("their `socket` options there differ");
    }
    let is_same = one.proxy_protocol == other.proxy_protocol && one.trusted_proxies == other.trusted_proxies;
    (!is_same).then_some("they differ in `proxy_protocol` or `trusted_proxies` there")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, parse};

    fn app(rest: &str) -> AppSpec {
        let text = format!("[[app]]\nname = \"web\"\n{rest}");
        parse(&text, Format::Toml).unwrap_or_else(|error| panic!("{error:?}")).remove(0)
    }

    #[track_caller]
    fn check(rest: &str, expected: &[&str]) {
        let app = app(rest);
        let claims = claims(&app, &app.listen[0]);
        assert_eq!(claims.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{rest}");
    }

    #[test]
    fn an_app_claims_the_hosts_it_names_or_whatever_is_left() {
        let routed = "pool.p.targets = [\"a:1\"]\n[[app.route]]\nname = \"r\"\npool = \"p\"\n";
        check("listen = [\"http:80\"]\ntargets = [\"a:1\"]", &["*"]);
        check(
            "listen = [{ port = 80, protocol = \"http\", hosts = [\"B.test.\", \"*.a.test\"] }]\ntargets = [\"a:1\"]",
            &["*.a.test", "b.test"],
        );
        check(&format!("listen = [\"http:80\"]\n{routed}match = {{ host = [\"A.test\"] }}"), &["a.test"]);
        check(&format!("listen = [\"http:80\"]\n{routed}match = {{ path_prefix = \"/\" }}"), &["*"]);
        check(
            &format!(
                "listen = [\"http:80\"]\ntargets = [\"a:1\"]\n{routed}match = {{ host = [\"a.test\"] }}"
            ),
            &["*"],
        );
        check(
            &format!(
                "listen = [\"http:80\"]\npool.default.targets = [\"a:1\"]\n{routed}match = {{ host = [\"a.test\"] }}"
            ),
            &["*"],
        );
        check(&format!("listen = [443]\n{routed}match = {{ host = [\"a.test\"] }}"), &["a.test"]);
    }

    #[test]
    fn apps_of_one_file_share_a_port_by_their_names() {
        let mistake = |one: &str, other: &str| {
            let app = |name: &str, listen: &str| {
                format!("[[app]]\nname = \"{name}\"\nlisten = [{listen}]\ntargets = [\"a:1\"]\n")
            };
            parse(&(app("one", one) + &app("two", other)), Format::Toml)
                .err()
                .map(|all| all[0].message.clone())
        };
        let http = |rest: &str| format!("{{ port = 80, protocol = \"http\", {rest} }}");
        let (a, b) = (http("hosts = [\"a.test\"]"), http("hosts = [\"b.test\", \"c.test\"]"));
        for (one, other, expected) in [
            (&*a, &*b, None),
            (&a, "\"http:80\"", None),
            ("80", "80", Some("app `one` listens on port 80 too")),
            (&b, &http("hosts = [\"C.test\"]"), Some("app `one` listens on port 80 too, for `c.test`")),
            ("80", &b, Some("app `one` listens on port 80 too, and one speaks HTTP there and the other TCP")),
        ] {
            assert_eq!(mistake(one, other).as_deref(), expected, "{one} {other}");
        }
    }

    #[test]
    fn only_certificates_and_names_may_differ() {
        let listen = |text: &str| app(&format!("listen = [{text}]\ntargets = [\"a:1\"]")).listen.remove(0);
        let check = |one: &str, other: &str, why: Option<&str>| {
            assert_eq!(differ(&listen(one), &listen(other)), why, "{one} {other}");
        };
        check(
            "\"http:80\"",
            "{ port = 80, protocol = \"http\", hosts = [\"a.test\"], max_connections = 7 }",
            None,
        );
        check("80", "\"http:80\"", Some("one speaks HTTP there and the other TCP"));
        check("\"https:443\"", "\"http:443\"", Some("one ends TLS there and the other does not"));
        let tls = |text: &str| format!("{{ port = 443, protocol = \"http\", tls = {{ {text} }} }}");
        check("\"https:443\"", &tls("certificate = \"a\""), None);
        check(
            "\"https:443\"",
            &tls("min_version = \"1.3\""),
            Some("their TLS settings there differ: only certificates may"),
        );
        check(
            "80",
            "{ port = 80, address = \"127.0.0.1\" }",
            Some("they listen at different addresses there"),
        );
    }
}
