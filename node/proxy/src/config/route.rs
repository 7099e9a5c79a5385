//! What is asked of HTTP requests: which route takes one, and what becomes of it there.

use std::time::Duration;

use super::HashOn;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// Becomes a metric label, so it comes from the user's file and never from a client.
    pub name: String,
    /// Host names without port, lower case; `*.example.com` matches one or more leading labels, `api.*` one or
    /// more trailing ones. Empty: any.
    pub hosts: Vec<String>,
    pub path: Option<PathMatch>,
    /// Empty: any.
    pub methods: Vec<String>,
    /// Fields of the request, as the client sent them; names in any case. All of them must match.
    pub headers: Vec<ValueMatch>,
    /// Parameters of the query, byte for byte as they were sent. All of them must match.
    pub query: Vec<ValueMatch>,
    /// A rule in CEL over `request.method`, `.path`, `.host`, `.headers`, `.query` and `source.ip`; true where the
    /// route takes the request. What cannot be evaluated does not match, and is counted.
    pub expr: Option<String>,
    pub to: RouteTo,
    /// Instead of [`super::Timeouts::request`]; zero = off.
    pub timeout: Option<Duration>,
    pub rewrite: RewriteConfig,
    /// Of what goes to endpoints.
    pub request_headers: EditConfig,
    /// Of what endpoints answer, informational responses and protocol changes excepted.
    pub response_headers: EditConfig,
    pub mirror: Option<MirrorConfig>,
    /// Takes CONNECT as well, in HTTP/1.1: a tunnel to the endpoint that is picked, once that agrees. Needs endpoints
    /// to lead to, and a request without a path: not together with `path`, a reply of our own, or `mirror`.
    pub connect: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    Exact(String),
    /// Matches whole segments: `/v1` matches `/v1` and `/v1/x`, not `/v10`.
    Prefix(String),
    /// Found anywhere in the path, unless it is anchored. Without Unicode classes.
    Regex(String),
}

/// A field or parameter and what is wanted of it. Where it comes several times, one of them must fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueMatch {
    pub name: String,
    pub value: Wanted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Exact(String),
    /// Whatever its value is; `false`: it must not be there.
    Present(bool),
    /// Found anywhere in the value, unless it is anchored.
    Regex(String),
}

/// What a route leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteTo {
    /// A key of [`super::AppConfig::pools`].
    Pool(String),
    Split(SplitConfig),
    Respond(RespondConfig),
    Redirect(RedirectConfig),
}

/// Several pools, each with its share of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitConfig {
    /// Keys of [`super::AppConfig::pools`] with their weights, of which one at least is not 0.
    pub pools: Vec<(String, u32)>,
    /// Requests that are alike in this go to the same pool, as long as the weights stay.
    pub sticky: Option<HashOn>,
}

/// Copies of requests for another pool. They are sent once all of a request is there; nobody waits for what becomes
/// of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorConfig {
    /// A key of [`super::AppConfig::pools`].
    pub pool: String,
    /// Of the requests, 0 to 100.
    pub percent: u8,
    /// A request with a longer body is not copied.
    pub body_bytes_max: u64,
}

/// An answer that needs no endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RespondConfig {
    /// 200 to 599.
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// Sends the client to another address: its own request's where nothing else is said, query included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectConfig {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// `http` or `https`.
    pub scheme: Option<String>,
    pub host: Option<String>,
    /// `None`: that of the request, unless `scheme` or `host` says where else.
    pub port: Option<u16>,
    /// Instead of all of the path.
    pub path: Option<String>,
}

/// What of the path of a request is changed before it goes to an endpoint: first one prefix comes off, then the other
/// is put in front.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RewriteConfig {
    /// Whole segments. A path that does not begin with it stays.
    pub strip_prefix: Option<String>,
    pub add_prefix: Option<String>,
}

/// Fields that are taken off, and then those that are put on. Never those of framing and the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EditConfig {
    /// Instead of all that have the name.
    pub set: Vec<(String, String)>,
    /// Beside those that have the name.
    pub add: Vec<(String, String)>,
    pub remove: Vec<String>,
}

impl RouteConfig {
    /// Whatever is asked of these hosts goes to `pool`.
    pub fn hosts<H: Into<String>>(name: &str, hosts: impl IntoIterator<Item = H>, pool: &str) -> Self {
        Self {
            name: name.to_owned(),
            hosts: hosts.into_iter().map(Into::into).collect(),
            path: None,
            methods: Vec::new(),
            headers: Vec::new(),
            query: Vec::new(),
            expr: None,
            to: RouteTo::Pool(pool.to_owned()),
            timeout: None,
            rewrite: RewriteConfig::default(),
            request_headers: EditConfig::default(),
            response_headers: EditConfig::default(),
            mirror: None,
            connect: false,
        }
    }
}

impl Default for RedirectConfig {
    fn default() -> Self {
        Self { status: 302, scheme: None, host: None, port: None, path: None }
    }
}
