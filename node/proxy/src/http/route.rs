//! Which pool takes a request: the routes of one app, compiled.
//!
//! Pure. The path is compared exactly as it came and is forwarded in that same form; nothing is decoded or
//! normalised here, so no two parties can read it differently.

use http::Method;

use crate::config::RouteConfig;

/// Routes compiled against the pools of one generation.
#[derive(Debug)]
pub struct Router {}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<'a> {
    /// The route's name; `None` when no route claimed the request and the `default` pool takes it.
    pub name: Option<&'a str>,
    /// Index into the pools given to [`Router::compile`].
    pub pool: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("route `{route}`: there is no pool `{pool}`")]
    UnknownPool { route: String, pool: String },
    #[error("route `{route}`: `{host}` is neither a host name nor `*.` and a host name")]
    Host { route: String, host: String },
    #[error("route `{route}`: `{method}` is not an HTTP method")]
    Method { route: String, method: String },
    #[error("route `{route}`: the path `{path}` does not start with `/`")]
    Path { route: String, path: String },
}

impl Router {
    pub fn compile(_routes: &[RouteConfig], _pools: &[String]) -> Result<Self, CompileError> {
        Ok(Self {})
    }

    /// The first route in file order that claims the request, else the pool `default`, else `None` (a 404).
    /// `host` is the Host field as it came (any case, with or without port), `path` the path without the query.
    pub fn route(&self, _host: &str, _path: &str, _method: &Method) -> Option<Route<'_>> {
        None
    }
}
