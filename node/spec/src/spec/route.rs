//! Routes: which requests they take, and what becomes of those.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{HashOn, units};

/// One of `pool`, `split`, `respond` and `redirect` says where it leads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub name: String,
    /// TOML key `match`.
    #[serde(default, rename = "match")]
    pub matches: Match,
    /// `default`: the targets of the app.
    #[serde(default)]
    pub pool: Option<String>,
    /// Pools with their weights.
    #[serde(default)]
    pub split: BTreeMap<String, u32>,
    /// Requests that are alike in this get the same pool of `split` each time.
    #[serde(default)]
    pub sticky: Option<HashOn>,
    #[serde(default)]
    pub respond: Option<Respond>,
    #[serde(default)]
    pub redirect: Option<Redirect>,
    /// Instead of `timeouts.request`; `0s` = off.
    #[serde(default, deserialize_with = "units::some_duration")]
    pub timeout: Option<Duration>,
    #[serde(default)]
    pub rewrite: Rewrite,
    /// Of what goes to targets.
    #[serde(default)]
    pub request_headers: HeaderEdits,
    /// Of what targets answer.
    #[serde(default)]
    pub response_headers: HeaderEdits,
    /// Copies go to another pool.
    #[serde(default)]
    pub mirror: Option<Mirror>,
    /// Takes CONNECT as well, as HTTP/1.1 has it, and makes a tunnel to the target that is picked.
    #[serde(default)]
    pub connect: bool,
}

/// All of what is said here must be true of a request. What is empty is true of any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    pub host: Vec<String>,
    pub path: Option<String>,
    pub path_prefix: Option<String>,
    /// Found anywhere in the path unless it is anchored. The words of the `regex` crate, over bytes.
    pub path_regex: Option<String>,
    pub methods: Vec<String>,
    /// Names in any case.
    pub headers: BTreeMap<String, ValueMatch>,
    /// As they were sent: nothing is decoded.
    pub query: BTreeMap<String, ValueMatch>,
    /// A rule in CEL over `request.method`, `request.path`, `request.host`, `request.headers`, `request.query` and
    /// `source.ip`, that must be true. A request for which it cannot be evaluated does not match.
    pub expr: Option<String>,
}

/// Written as the exact value, or as a table of one of the three. Where it comes several times, one must fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    Exact(String),
    Present(bool),
    Regex(String),
}

/// Written as the name of the pool or a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Mirror {
    pub pool: String,
    /// Of the requests.
    #[serde(default = "Mirror::default_percent")]
    pub percent: u32,
    /// A request with a longer body is not copied.
    #[serde(default = "Mirror::default_body_size", deserialize_with = "units::size")]
    pub max_body_size: u64,
}

/// An answer of our own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Respond {
    pub status: u16,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// `text/plain` unless `headers` has another type.
    #[serde(default)]
    pub body: String,
}

/// To the address of the request where nothing else is said, query included.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redirect {
    pub status: u16,
    pub scheme: Option<Scheme>,
    pub host: Option<String>,
    pub port: Option<u16>,
    /// Instead of all of the path.
    pub path: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    Http,
    Https,
}

/// First one prefix of whole segments comes off the path, then the other is put in front.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rewrite {
    pub strip_prefix: Option<String>,
    pub add_prefix: Option<String>,
}

/// `set` replaces, `add` comes beside what is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeaderEdits {
    pub set: BTreeMap<String, String>,
    pub add: BTreeMap<String, String>,
    pub remove: Vec<String>,
}

/// Written as `true`, or as the port of the address that clients are sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedirectHttps {
    #[default]
    Off,
    /// To the first port of the app that ends TLS.
    On,
    Port(u16),
}

impl Mirror {
    pub fn new(pool: impl Into<String>) -> Self {
        let (percent, max_body_size) = (Self::default_percent(), Self::default_body_size());
        Self { pool: pool.into(), percent, max_body_size }
    }

    fn default_percent() -> u32 {
        100
    }

    fn default_body_size() -> u64 {
        64 << 10
    }
}

impl Default for Redirect {
    fn default() -> Self {
        Self { status: 302, scheme: None, host: None, port: None, path: None }
    }
}
