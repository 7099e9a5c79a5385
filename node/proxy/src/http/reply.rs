//! Answers that a route, or a listener, gives itself.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use super::{
    edit::{EditError, field, is_path},
    head::Head,
    headers::{self, Seen},
};
use crate::config::{RedirectConfig, RespondConfig};

/// An answer as it is configured.
#[derive(Debug)]
pub(crate) enum Reply {
    Fixed(Arc<Answer>),
    Redirect(Redirect),
}

/// Everything of a response but its framing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Whole lines.
    pub(crate) fields: Vec<u8>,
    pub(crate) body: Bytes,
}

/// A redirect of the request that asks.
#[derive(Debug)]
pub(crate) struct Redirect(RedirectConfig);

impl Reply {
    pub(crate) fn fixed(config: &RespondConfig) -> Result<Reply, EditError> {
        let RespondConfig { status, headers, body } = config;
        if !(200..600).contains(status) {
            return Err(EditError::Status(*status, "response"));
        }
        if is_bodiless(*status) && !body.is_empty() {
            return Err(EditError::Body(*status));
        }
        let mut fields = Vec::new();
        for (name, value) in headers {
            let (name, value) = field(name, value)?;
            push(&mut fields, &name, &value);
        }
        let has_type = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        if !has_type && !body.is_empty() {
            push(&mut fields, "Content-Type", "text/plain");
        }
        Ok(Reply::Fixed(Arc::new(Answer {
            status: *status,
            fields,
            body: Bytes::copy_from_slice(body.as_bytes()),
        })))
    }

    pub(crate) fn redirect(config: &RedirectConfig) -> Result<Reply, EditError> {
        let RedirectConfig { status, scheme, host, port, path } = config;
        if !matches!(status, 301 | 302 | 303 | 307 | 308) {
            return Err(EditError::Status(*status, "redirect"));
        }
        if scheme.is_none() && host.is_none() && port.is_none() && path.is_none() {
            return Err(EditError::Loop);
        }
        if let Some(scheme) = scheme.as_ref().filter(|scheme| !matches!(scheme.as_str(), "http" | "https")) {
            return Err(EditError::Scheme(scheme.clone()));
        }
        let is_bare = |host: &str| headers::is_host(host.as_bytes()) && headers::without_port(host) == host;
        if let Some(host) = host.as_ref().filter(|host| !is_bare(host)) {
            return Err(EditError::Host(host.clone()));
        }
        if let Some(path) = path.as_ref().filter(|path| !is_path(path)) {
            return Err(EditError::Path(path.clone()));
        }
        Ok(Reply::Redirect(Redirect(config.clone())))
    }

    /// `None`: the request names no host, so there is no address to send it to.
    pub(crate) fn answer(&self, request: &Head, seen: &Seen) -> Option<Arc<Answer>> {
        match self {
            Reply::Fixed(answer) => Some(Arc::clone(answer)),
            Reply::Redirect(redirect) => redirect.answer(request, seen).map(Arc::new),
        }
    }
}

impl Redirect {
    /// To the same address in `https`. RFC 9110 §15.4.9: 308 keeps the method and the body.
    pub(crate) fn to_https(port: u16) -> Redirect {
        Redirect(RedirectConfig {
            status: 308,
            scheme: Some("https".to_owned()),
            port: Some(port),
            ..RedirectConfig::default()
        })
    }

    /// What is put together here was checked when it was read: the host and the target of the request hold nothing
    /// that ends a line.
    pub(crate) fn answer(&self, request: &Head, seen: &Seen) -> Option<Answer> {
        let RedirectConfig { status, scheme, host, port, path } = &self.0;
        let asked = headers::host_of(request);
        let name = host.as_deref().unwrap_or_else(|| headers::without_port(asked));
        if name.is_empty() {
            return None;
        }
        let own_scheme = if seen.is_secure() { "https" } else { "http" };
        let scheme = scheme.as_deref().unwrap_or(own_scheme);
        let stays = host.is_none() && scheme == own_scheme;
        let asked_port = || asked.rsplit_once(':').filter(|_| stays).and_then(|(_, port)| port.parse().ok());
        let usual = if scheme == "https" { 443 } else { 80 };
        let port = port.or_else(asked_port).filter(|port| *port != usual);
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        let target = request.path_and_query();
        let (own_path, query) = match target.find('?') {
            _ if !target.starts_with('/') => ("/", ""),
            Some(at) => target.split_at(at),
            None => (target, ""),
        };
        let path = path.as_deref().unwrap_or(own_path);
        let query = if path.contains('?') { "" } else { query };
        let mut fields = Vec::new();
        push(&mut fields, "Location", &format!("{scheme}://{name}{port}{path}{query}"));
        Some(Answer { status: *status, fields, body: Bytes::new() })
    }
}

fn push(fields: &mut Vec<u8>, name: &str, value: &str) {
    for part in [name, ": ", value, "\r\n"] {
        fields.extend_from_slice(part.as_bytes());
    }
}

/// RFC 9110 §15.3.5, §15.3.6, §15.4.5.
pub(crate) fn is_bodiless(status: u16) -> bool {
    matches!(status, 204 | 205 | 304)
}

impl Answer {
    /// Writes it; how many bytes of it are the head. `connection` is what is said about the connection, if anything.
    pub(crate) fn write(&self, date: &[u8], connection: Option<&str>, out: &mut Vec<u8>) -> usize {
        let Answer { status, fields, body } = self;
        let reason = StatusCode::from_u16(*status).ok().and_then(|status| status.canonical_reason());
        out.extend_from_slice(format!("HTTP/1.1 {status} {}\r\n", reason.unwrap_or_default()).as_bytes());
        out.extend_from_slice(fields);
        // RFC 9110 §6.6.1: who answers itself says when.
        for part in [b"Date: ", date, b"\r\n"] {
            out.extend_from_slice(part);
        }
        // RFC 9110 §8.6: never with a 204; with a 304 it would be the length of what is not sent.
        if !matches!(status, 204 | 304) {
            out.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        if let Some(connection) = connection {
            out.extend_from_slice(format!("Connection: {connection}\r\n").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        let head = out.len();
        out.extend_from_slice(body);
        head
    }
}

#[cfg(test)]
mod tests;
