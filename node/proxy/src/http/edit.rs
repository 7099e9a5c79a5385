//! What a route changes in a message: the path of a request, and fields either way.
//!
//! Pure. Everything that could make two readers disagree about the message is refused while it is compiled: fields
//! that frame it or that are about one connection, and values that are more than one line.

use http::{HeaderName, HeaderValue};

use super::head::{self, Head, Tag};
use crate::config::{EditConfig, RewriteConfig};

/// Of one field. Servers take 8 KiB for all of them together (Apache, nginx).
const VALUE_BYTES_MAX: usize = 4 * 1024;
/// A head may have a hundred fields; this leaves room for those of clients and endpoints.
const EDITS_MAX: usize = 50;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EditError {
    #[error("`{0}` is not the name of a field")]
    Name(String),
    #[error("`{0}` is about framing or the connection, and not for a route to change")]
    Framing(String),
    #[error(
        "the value of `{0}` is not one line of visible ASCII, without space around it, of {VALUE_BYTES_MAX} bytes at most"
    )]
    Value(String),
    #[error("{0} changes of fields; at most {EDITS_MAX}")]
    TooMany(usize),
    #[error("the prefix `{0}` is not a path such as `/v1`")]
    Prefix(String),
    #[error("{0} is not the status of a {1}")]
    Status(u16, &'static str),
    #[error("a {0} has no body")]
    Body(u16),
    #[error("a redirect to where the request was is a loop")]
    Loop,
    #[error("`{0}` is not `http` or `https`")]
    Scheme(String),
    #[error("`{0}` is not a host")]
    Host(String),
    #[error("`{0}` is not a path")]
    Path(String),
}

/// Fields of a message.
#[derive(Debug, Default)]
pub(crate) struct Edits {
    /// Taken off first, with those that are set.
    gone: Vec<HeaderName>,
    put: Vec<(Box<str>, Box<str>)>,
}

impl Edits {
    pub(crate) fn compile(config: &EditConfig) -> Result<Edits, EditError> {
        let EditConfig { set, add, remove } = config;
        let count = set.len() + add.len() + remove.len();
        if count > EDITS_MAX {
            return Err(EditError::TooMany(count));
        }
        let names = remove.iter().chain(set.iter().map(|(name, _)| name));
        let put = set.iter().chain(add).map(|(name, value)| field(name, value));
        Ok(Edits {
            gone: names.map(|name| editable(name)).collect::<Result<_, _>>()?,
            put: put.collect::<Result<_, _>>()?,
        })
    }

    pub(crate) fn is_none(&self) -> bool {
        self.gone.is_empty() && self.put.is_empty()
    }

    /// Whether a field of that name comes or goes.
    pub(crate) fn touches(&self, name: &str) -> bool {
        self.gone.iter().any(|gone| gone == name)
            || self.put.iter().any(|(put, _)| put.eq_ignore_ascii_case(name))
    }

    pub(crate) fn apply(&self, head: &mut Head) {
        if !self.gone.is_empty() {
            let is_gone = |name: &[u8]| {
                self.gone.iter().any(|gone| name.eq_ignore_ascii_case(gone.as_str().as_bytes()))
            };
            head.retain(|field| !is_gone(field.name));
        }
        for (name, value) in &self.put {
            head.add(name, &[value.as_bytes()]);
        }
    }
}

/// A name and a value that may be put on a message.
pub(crate) fn field(name: &str, value: &str) -> Result<(Box<str>, Box<str>), EditError> {
    editable(name)?;
    let fits = value.len() <= VALUE_BYTES_MAX
        && value.is_ascii()
        && HeaderValue::from_str(value).is_ok()
        && value.trim_ascii() == value;
    if fits { Ok((name.into(), value.into())) } else { Err(EditError::Value(name.to_owned())) }
}

/// RFC 9110 §7.6.1 and RFC 9112 §6: what is about this hop alone, or decides where a message ends or whom it is for.
fn editable(name: &str) -> Result<HeaderName, EditError> {
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| EditError::Name(name.to_owned()))?;
    if is_editable(&parsed) { Ok(parsed) } else { Err(EditError::Framing(name.to_owned())) }
}

pub(crate) fn is_editable(name: &HeaderName) -> bool {
    match head::tag(name.as_str().as_bytes()) {
        Tag::Other => *name != http::header::TRAILER,
        Tag::Date | Tag::XForwarded | Tag::Forwarded | Tag::XRealIp => true,
        Tag::Host
        | Tag::ContentLength
        | Tag::TransferEncoding
        | Tag::Connection
        | Tag::KeepAlive
        | Tag::ProxyConnection
        | Tag::ProxyAuthenticate
        | Tag::ProxyAuthorization
        | Tag::Te
        | Tag::Upgrade
        | Tag::Http2Settings
        | Tag::Expect => false,
    }
}

/// The path of a request.
#[derive(Debug, Default)]
pub(crate) struct Rewrite {
    /// Both without a `/` at the end.
    strip: Option<Box<str>>,
    add: Option<Box<str>>,
}

impl Rewrite {
    pub(crate) fn compile(config: &RewriteConfig) -> Result<Rewrite, EditError> {
        let prefix = |prefix: &Option<String>| {
            let Some(prefix) = prefix else { return Ok(None) };
            let whole = prefix.strip_suffix('/').unwrap_or(prefix);
            let is_path = is_path(prefix) && !prefix.contains('?');
            // `/` strips nothing and adds nothing.
            if is_path {
                Ok((!whole.is_empty()).then(|| whole.into()))
            } else {
                Err(EditError::Prefix(prefix.clone()))
            }
        };
        Ok(Rewrite { strip: prefix(&config.strip_prefix)?, add: prefix(&config.add_prefix)? })
    }

    pub(crate) fn is_none(&self) -> bool {
        self.strip.is_none() && self.add.is_none()
    }

    /// A target that is no path (`*`) stays.
    pub(crate) fn apply(&self, head: &mut Head) {
        let target = head.path_and_query();
        if !target.starts_with('/') {
            return;
        }
        let rest = self.strip.as_ref().and_then(|strip| target.strip_prefix(&**strip));
        let stripped = rest.filter(|rest| rest.is_empty() || rest.starts_with(['/', '?']));
        let skip = stripped.map_or(0, |rest| target.len() - rest.len());
        let add = self.add.as_deref().unwrap_or_default();
        if skip > 0 || !add.is_empty() {
            head.replace_path(skip, add);
        }
    }
}

/// A path as it stands in a request line (RFC 3986 §3.3), perhaps with a query.
pub(crate) fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= VALUE_BYTES_MAX
        && path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'#' | b'<' | b'>' | b'`'))
}

#[cfg(test)]
mod tests;
