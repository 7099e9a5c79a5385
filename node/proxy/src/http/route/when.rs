//! What a route may ask of a request besides its host, path and method.

use http::Method;
use regex::bytes::{Regex, RegexBuilder};

use super::{CompileError, rule::Rule};
use crate::{
    config::{RouteConfig, ValueMatch, Wanted},
    http::{
        head::Head,
        headers::{self, Seen},
    },
    metrics::Count,
};

/// Of a pattern as it is written, and of what it is compiled to. Matching takes time in proportion to the length of
/// both (the `regex` crate never goes back), so these bound what a request can cost.
const PATTERN_BYTES_MAX: usize = 1024;
const PROGRAM_BYTES_MAX: usize = 128 * 1024;

/// A request, as routes look at it.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    /// The Host field as it came (any case, with or without port).
    pub(crate) host: &'a str,
    /// Without the query.
    pub(crate) path: &'a str,
    pub(crate) method: &'a Method,
    /// Its address.
    pub(crate) client: &'a str,
    /// All of it as it came; `None`: only a name is known.
    pub(crate) head: Option<&'a Head>,
    /// Where rules are counted that could not be evaluated.
    pub(crate) failed: Option<&'a Count>,
}

impl<'a> Request<'a> {
    pub(crate) fn new(head: &'a Head, method: &'a Method, seen: &'a Seen, failed: &'a Count) -> Request<'a> {
        Request {
            host: headers::host_of(head),
            path: head.path(),
            method,
            client: seen.client(),
            head: Some(head),
            failed: Some(failed),
        }
    }

    /// A session in TLS, of which only the name it asks for is known.
    pub(crate) fn by_name(name: &'a str) -> Request<'a> {
        Request { host: name, path: "/", method: &Method::CONNECT, client: "", head: None, failed: None }
    }

    pub(super) fn is_connect(&self) -> bool {
        *self.method == Method::CONNECT && self.head.is_some()
    }
}

#[derive(Debug)]
pub(super) struct When {
    headers: Vec<Ask>,
    query: Vec<Ask>,
    rule: Option<Rule>,
}

#[derive(Debug)]
struct Ask {
    name: Box<[u8]>,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Exact(Box<[u8]>),
    Present,
    Absent,
    Regex(Box<Regex>),
}

impl When {
    pub(super) fn compile(route: &RouteConfig) -> Result<Option<When>, CompileError> {
        let asks = |list: &[ValueMatch]| {
            list.iter().map(|ask| Ask::compile(route, ask)).collect::<Result<Vec<_>, _>>()
        };
        let rule = route.expr.as_ref().map(|text| Rule::compile(route, text)).transpose()?;
        let when = When { headers: asks(&route.headers)?, query: asks(&route.query)?, rule };
        let is_none = when.headers.is_empty() && when.query.is_empty() && when.rule.is_none();
        Ok((!is_none).then_some(when))
    }

    pub(super) fn matches(&self, request: &Request<'_>) -> bool {
        let Some(head) = request.head else { return false };
        let by_headers = self.headers.iter().all(|ask| {
            let named = head.iter().filter(|field| field.name.eq_ignore_ascii_case(&ask.name));
            ask.fits(named.map(|field| field.value))
        });
        by_headers
            && self.query.iter().all(|ask| {
                let named = parameters(head.query()).filter(|(name, _)| *name == &*ask.name);
                ask.fits(named.map(|(_, value)| value))
            })
            && self.rule.as_ref().is_none_or(|rule| {
                rule.takes(request).unwrap_or_else(|error| {
                    tracing::debug!(%error, "a rule cannot be evaluated");
                    if let Some(failed) = request.failed {
                        failed.one();
                    }
                    false
                })
            })
    }
}

impl Ask {
    fn compile(route: &RouteConfig, ask: &ValueMatch) -> Result<Ask, CompileError> {
        let value = match &ask.value {
            Wanted::Exact(value) => Value::Exact(value.as_bytes().into()),
            Wanted::Present(true) => Value::Present,
            Wanted::Present(false) => Value::Absent,
            Wanted::Regex(text) => Value::Regex(Box::new(pattern(route, text)?)),
        };
        Ok(Ask { name: ask.name.as_bytes().into(), value })
    }

    fn fits<'a>(&self, mut values: impl Iterator<Item = &'a [u8]>) -> bool {
        match &self.value {
            Value::Exact(exact) => values.any(|value| value == &**exact),
            Value::Present => values.next().is_some(),
            Value::Absent => values.next().is_none(),
            Value::Regex(pattern) => values.any(|value| pattern.is_match(value)),
        }
    }
}

/// Names and values of a query, neither decoded. One without `=` has an empty value.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = (&[u8], &[u8])> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name.as_bytes(), value.as_bytes())
    })
}

/// Bytes are matched and not characters, so that no class is larger than 256 of them.
pub(super) fn pattern(route: &RouteConfig, text: &str) -> Result<Regex, CompileError> {
    let fails =
        |why: String| CompileError::Pattern { route: route.name.clone(), pattern: text.to_owned(), why };
    if text.len() > PATTERN_BYTES_MAX {
        return Err(fails(format!("longer than {PATTERN_BYTES_MAX} bytes")));
    }
    RegexBuilder::new(text)
        .unicode(false)
        .size_limit(PROGRAM_BYTES_MAX)
        .dfa_size_limit(PROGRAM_BYTES_MAX)
        .build()
        .map_err(|error| fails(error.to_string()))
}
