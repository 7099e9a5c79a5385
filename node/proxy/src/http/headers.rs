//! What a message must look like to be forwarded, and what is taken off and put on when it is.
//!
//! Pure. The rules are those of RFC 9110 and RFC 9112 for a gateway; each stands next to its section. What never
//! reaches this file is the business of the parser in front of it: bare CR or NUL, folded lines, a space before the
//! colon, and the fragment of a target, which `http::Uri` drops while parsing.
//!
//! No proxy in front of us is trusted yet, so whatever a client says about where a request came from is replaced by
//! what we saw ourselves.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, FORWARDED, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
        TRANSFER_ENCODING, UPGRADE,
    },
    request, response,
};

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
static HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
static X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED: &str = "x-forwarded-";

/// Why a request is refused before anything of it is forwarded. All but [`BadRequest::Connect`] are a 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRequest {
    #[error("CONNECT is for forward proxies")]
    Connect,
    #[error("the request target is neither a path nor an http address")]
    Target,
    #[error("no Host field")]
    NoHost,
    #[error("more than one Host field")]
    ManyHosts,
    #[error("the Host field is not a host")]
    Host,
    #[error("Content-Length together with Transfer-Encoding")]
    LengthAndEncoding,
    #[error("Content-Length is not one number")]
    Length,
    #[error("Transfer-Encoding other than `chunked`")]
    Encoding,
    #[error("Transfer-Encoding in HTTP/1.0")]
    EncodingInHttp10,
    #[error("TRACE with a body")]
    TraceBody,
}

impl BadRequest {
    pub(crate) fn status(self) -> http::StatusCode {
        match self {
            // RFC 9110 §9.1: a method that is known to be unsupported for every resource.
            Self::Connect => http::StatusCode::NOT_IMPLEMENTED,
            Self::Target
            | Self::NoHost
            | Self::ManyHosts
            | Self::Host
            | Self::LengthAndEncoding
            | Self::Length
            | Self::Encoding
            | Self::EncodingInHttp10
            | Self::TraceBody => http::StatusCode::BAD_REQUEST,
        }
    }
}

/// Refuses what two HTTP implementations could read differently (RFC 9112 §3.2, §6.1-§6.3, §11.2).
pub(crate) fn check_request(request: &request::Parts) -> Result<(), BadRequest> {
    if request.method == Method::CONNECT {
        return Err(BadRequest::Connect);
    }
    check_target(&request.uri, &request.method)?;
    check_host(request)?;
    let body = check_framing(&request.headers, request.version)?;
    // RFC 9110 §9.3.8: TRACE has no content; an origin that echoes one reflects what the client must not see.
    if body && request.method == Method::TRACE {
        return Err(BadRequest::TraceBody);
    }
    Ok(())
}

fn check_target(uri: &Uri, method: &Method) -> Result<(), BadRequest> {
    let fits = match (uri.scheme_str(), uri.authority()) {
        (None, None) => uri.path().starts_with('/') || (uri.path() == "*" && method == Method::OPTIONS),
        // RFC 9110 §4.2.4: userinfo in a target is an error; it makes `http://good@evil/` look like good.
        (Some("http" | "https"), Some(authority)) => is_host(authority.as_str().as_bytes()),
        _ => false,
    };
    if fits { Ok(()) } else { Err(BadRequest::Target) }
}

/// RFC 9112 §3.2: exactly one Host in HTTP/1.1, even when the target is in absolute form.
fn check_host(request: &request::Parts) -> Result<(), BadRequest> {
    let mut hosts = request.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if is_host(host.as_bytes()) => Ok(()),
        (Some(_), None) => Err(BadRequest::Host),
        (Some(_), Some(_)) => Err(BadRequest::ManyHosts),
        (None, _) if request.version == Version::HTTP_11 => Err(BadRequest::NoHost),
        (None, _) => Ok(()),
    }
}

/// Whether the request has a body; refuses every framing that leaves room for a second opinion.
fn check_framing(headers: &HeaderMap, version: Version) -> Result<bool, BadRequest> {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (encodings.next(), lengths.next()) {
        (Some(_), Some(_)) => Err(BadRequest::LengthAndEncoding),
        (Some(_), None) if version < Version::HTTP_11 => Err(BadRequest::EncodingInHttp10),
        (Some(encoding), None) => {
            let plain = encoding.as_bytes().eq_ignore_ascii_case(b"chunked") && encodings.next().is_none();
            if plain { Ok(true) } else { Err(BadRequest::Encoding) }
        }
        (None, Some(length)) => {
            // Digits alone: `u64::from_str` would also take a `+`.
            let digits = length.as_bytes().iter().all(u8::is_ascii_digit);
            let number = length.to_str().ok().and_then(|length| length.parse::<u64>().ok());
            match number {
                Some(length) if digits && lengths.next().is_none() => Ok(length > 0),
                _ => Err(BadRequest::Length),
            }
        }
        (None, None) => Ok(false),
    }
}

/// A host with or without port (RFC 3986 §3.2.2). Not empty (RFC 9110 §4.2.1), and without the comma that the RFC
/// allows: it is what two joined Host fields look like.
fn is_host(host: &[u8]) -> bool {
    let port_fits = |rest: &[u8]| match rest.split_first() {
        None => true,
        Some((b':', port)) => port.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    };
    if let Some(rest) = host.strip_prefix(b"[") {
        let Some(end) = rest.iter().position(|&b| b == b']') else { return false };
        let literal = |b: &u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
        return end > 0 && rest[..end].iter().all(literal) && port_fits(&rest[end + 1..]);
    }
    let end = host.iter().position(|&b| b == b':').unwrap_or(host.len());
    let name = |b: &u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(b);
    end > 0 && host[..end].iter().all(name) && port_fits(&host[end..])
}

/// Whether the message asks for (or, with 101, agrees to) another protocol than HTTP on this connection.
///
/// A wish for `h2c` does not count: it would carry requests past everything that is checked here. The caller asks
/// only for HTTP/1.1 messages (RFC 9110 §7.8: ignored in HTTP/1.0).
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    tokens(headers, &UPGRADE).any(|token| !is_h2c(token))
        && tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

/// Whether the client sends nothing after this request (RFC 9112 §9.3, §9.6).
pub(crate) fn is_last(request: &request::Parts) -> bool {
    let has =
        |option: &str| tokens(&request.headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case(option));
    has("close") || request.version < Version::HTTP_11 && !has("keep-alive")
}

/// What we saw of a client ourselves, as the fields say it. Written once per connection: formatting an address costs
/// as much as parsing a small request.
pub(crate) struct Seen {
    client: HeaderValue,
    local_port: HeaderValue,
}

impl Seen {
    pub(crate) fn new(client: SocketAddr, local_port: u16) -> Seen {
        Seen { client: address(client.ip().to_canonical()), local_port: HeaderValue::from(local_port) }
    }
}

/// Makes a checked request ready for an origin. `upgrade`: keep the request's wish to change the protocol.
///
/// Fields about this connection come off, those named in `Connection` too; the target becomes a path with the host
/// in `Host`; and `X-Forwarded-*` says what we saw, whatever the client claimed.
pub(crate) fn sanitize_request(request: &mut request::Parts, seen: &Seen, upgrade: bool) {
    let headers = &mut request.headers;
    let upgrade = if upgrade { offered_protocols(headers) } else { None };
    // RFC 9110 §10.1.4: whether the *client* takes trailers is worth passing on; codings are between two hops.
    let trailers =
        headers.contains_key(TE) && tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    strip_connection_fields(headers);
    strip_client_claims(headers);
    // Both fields must be named in `Connection` again (RFC 9110 §7.6.1).
    let named = match (&upgrade, trailers) {
        (None, false) => None,
        (None, true) => Some("te"),
        (Some(_), false) => Some("upgrade"),
        (Some(_), true) => Some("upgrade, te"),
    };
    if let Some(named) = named {
        headers.insert(CONNECTION, HeaderValue::from_static(named));
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocols) = upgrade {
        headers.insert(UPGRADE, protocols);
    }
    // RFC 9112 §3.2.2: the authority of an absolute form replaces the received Host.
    if let Some(authority) = request.uri.authority() {
        let host = HeaderValue::from_str(authority.as_str()).expect("an authority is visible ASCII");
        headers.insert(HOST, host);
        request.uri = request.uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
    }
    match headers.get(HOST).cloned() {
        Some(host) => headers.insert(&X_FORWARDED_HOST, host),
        // HTTP/1.0 may go without; what we send is HTTP/1.1 (RFC 9112 §3.2: then it is empty).
        None => headers.insert(HOST, HeaderValue::from_static("")),
    };
    headers.insert(&X_FORWARDED_FOR, seen.client.clone());
    headers.insert(&X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    headers.insert(&X_FORWARDED_PORT, seen.local_port.clone());
    // RFC 9110 §2.5: an intermediary sends its own version.
    request.version = Version::HTTP_11;
}

/// Makes a response ready for the client. `upgrade`: this is the 101 of a protocol change.
pub(crate) fn sanitize_response(response: &mut response::Parts, upgrade: bool) {
    let headers = &mut response.headers;
    let protocol = if upgrade { headers.get(UPGRADE).cloned() } else { None };
    // RFC 9112 §6.3: the encoding overrides the length, which must not travel on as if it were true.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    strip_connection_fields(headers);
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    response.version = Version::HTTP_11;
}

/// RFC 9110 §7.6.1: what concerns one connection ends with it, and so does every field that `Connection` names.
fn strip_connection_fields(headers: &mut HeaderMap) {
    if !headers.keys().any(concerns_connection) {
        return;
    }
    for named in named_in_connection(headers) {
        headers.remove(named);
    }
    for name in [
        &CONNECTION,
        &KEEP_ALIVE,
        &PROXY_CONNECTION,
        &PROXY_AUTHENTICATE,
        &PROXY_AUTHORIZATION,
        &TE,
        &TRANSFER_ENCODING,
        &UPGRADE,
        &HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
}

fn concerns_connection(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// The fields that `Connection` asks to remove beyond those that go anyway. Empty, and then free, for nearly all.
///
/// A client must not be able to take off what the next hop depends on: the framing, the host, and what we say
/// about the client.
fn named_in_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let option = |token: &&str| {
        !["close", "keep-alive", "upgrade", "te"].iter().any(|known| token.eq_ignore_ascii_case(known))
    };
    tokens(headers, &CONNECTION)
        .filter(option)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH && !name.as_str().starts_with(X_FORWARDED))
        .collect()
}

/// Fields by which a client could pass for another one with an origin that trusts its proxy.
fn strip_client_claims(headers: &mut HeaderMap) {
    let claim = |name: &&HeaderName| {
        name.as_str().starts_with(X_FORWARDED) || **name == FORWARDED || **name == X_REAL_IP
    };
    let claims: Vec<HeaderName> = headers.keys().filter(claim).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
}

/// The protocols of `Upgrade` without `h2c`; `None` when none is left.
fn offered_protocols(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(UPGRADE).iter();
    let first = values.next()?;
    if values.next().is_none() && !tokens(headers, &UPGRADE).any(is_h2c) {
        return Some(first.clone());
    }
    let kept: Vec<&str> = tokens(headers, &UPGRADE).filter(|token| !is_h2c(token)).collect();
    HeaderValue::from_str(&kept.join(", ")).ok().filter(|value| !value.is_empty())
}

fn is_h2c(token: &str) -> bool {
    token.eq_ignore_ascii_case("h2c")
}

/// The members of a list field over all its lines (RFC 9110 §5.6.1). A line that is not ASCII has none.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

fn address(ip: IpAddr) -> HeaderValue {
    // Long enough for any address: `ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255`.
    let mut text = [0; 45];
    let mut left = &mut text[..];
    write!(left, "{ip}").expect("an address fits 45 bytes");
    let length = 45 - left.len();
    HeaderValue::from_bytes(&text[..length]).expect("an address is visible ASCII")
}

#[cfg(test)]
mod tests;
