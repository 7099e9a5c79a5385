//! A route of the spec as the proxy wants it. PURE.

use std::collections::BTreeMap;

use flotilla_proxy::config as proxy;
use flotilla_spec as spec;

pub(super) fn translate(route: &spec::Route) -> proxy::RouteConfig {
    let matches = &route.matches;
    let exact = matches.path.clone().map(proxy::PathMatch::Exact);
    let prefix = matches.path_prefix.clone().map(proxy::PathMatch::Prefix);
    let regex = matches.path_regex.clone().map(proxy::PathMatch::Regex);
    proxy::RouteConfig {
        name: route.name.clone(),
        hosts: matches.host.iter().map(|host| host.to_ascii_lowercase()).collect(),
        path: exact.or(prefix).or(regex),
        methods: matches.methods.clone(),
        headers: values(&matches.headers),
        query: values(&matches.query),
        expr: matches.expr.clone(),
        to: to(route),
        timeout: route.timeout,
        rewrite: proxy::RewriteConfig {
            strip_prefix: route.rewrite.strip_prefix.clone(),
            add_prefix: route.rewrite.add_prefix.clone(),
        },
        request_headers: edits(&route.request_headers),
        response_headers: edits(&route.response_headers),
        mirror: route.mirror.as_ref().map(|mirror| proxy::MirrorConfig {
            pool: mirror.pool.clone(),
            percent: u8::try_from(mirror.percent).unwrap_or(100),
            body_bytes_max: mirror.max_body_size,
        }),
        connect: route.connect,
    }
}

fn values(values: &BTreeMap<String, spec::ValueMatch>) -> Vec<proxy::ValueMatch> {
    let one = |(name, value): (&String, &spec::ValueMatch)| proxy::ValueMatch {
        name: name.clone(),
        value: match value {
            spec::ValueMatch::Exact(value) => proxy::Wanted::Exact(value.clone()),
            spec::ValueMatch::Present(is_there) => proxy::Wanted::Present(*is_there),
            spec::ValueMatch::Regex(pattern) => proxy::Wanted::Regex(pattern.clone()),
        },
    };
    values.iter().map(one).collect()
}

fn to(route: &spec::Route) -> proxy::RouteTo {
    if let Some(spec::Respond { status, headers, body }) = &route.respond {
        return proxy::RouteTo::Respond(proxy::RespondConfig {
            status: *status,
            headers: pairs(headers),
            body: body.clone(),
        });
    }
    if let Some(spec::Redirect { status, scheme, host, port, path }) = &route.redirect {
        let scheme = scheme.map(|scheme| match scheme {
            spec::Scheme::Http => "http".to_owned(),
            spec::Scheme::Https => "https".to_owned(),
        });
        return proxy::RouteTo::Redirect(proxy::RedirectConfig {
            status: *status,
            scheme,
            host: host.clone(),
            port: *port,
            path: path.clone(),
        });
    }
    if !route.split.is_empty() {
        return proxy::RouteTo::Split(proxy::SplitConfig {
            pools: route.split.iter().map(|(pool, weight)| (pool.clone(), *weight)).collect(),
            sticky: route.sticky.as_ref().map(super::hash_on),
        });
    }
    // A route without any of them was refused.
    proxy::RouteTo::Pool(route.pool.clone().unwrap_or_default())
}

fn edits(edits: &spec::HeaderEdits) -> proxy::EditConfig {
    let spec::HeaderEdits { set, add, remove } = edits;
    proxy::EditConfig { set: pairs(set), add: pairs(add), remove: remove.clone() }
}

fn pairs(fields: &BTreeMap<String, String>) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}
