//! What a message must look like to be forwarded, and what is taken off and put on when it is.
//!
//! Pure. The rules are those of RFC 9110 and RFC 9112 for a gateway; each stands next to its section. Syntax is the
//! business of `head`.
//!
//! No proxy in front of us is trusted yet, so whatever a client says about where a request came from is replaced by
//! what we saw ourselves.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
};

use http::Method;

use super::{
    body::Framing,
    head::{Facts, Field, Head, Tag, tokens},
};

/// Why a request is refused before anything of it is forwarded. All but [`BadRequest::Connect`] are a 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRequest {
    #[error("CONNECT is for forward proxies")]
    Connect,
    #[error("the target of CONNECT is not host:port")]
    ConnectTarget,
    #[error("the Host field is not that of the target of CONNECT")]
    ConnectHost,
    #[error("CONNECT with a length or an encoding")]
    ConnectBody,
    #[error("the method is not one")]
    Method,
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
    pub(crate) fn status(self) -> u16 {
        match self {
            // RFC 9110 §9.1: a method that is known to be unsupported for every resource.
            Self::Connect => 501,
            Self::ConnectTarget
            | Self::ConnectHost
            | Self::ConnectBody
            | Self::Method
            | Self::Target
            | Self::NoHost
            | Self::ManyHosts
            | Self::Host
            | Self::LengthAndEncoding
            | Self::Length
            | Self::Encoding
            | Self::EncodingInHttp10
            | Self::TraceBody => 400,
        }
    }
}

/// Refuses what two HTTP implementations could read differently (RFC 9112 §3.2, §6.1-§6.3, §11.2). How its body
/// comes, where it is fine. CONNECT is refused here; where a route asks for it, [`check_connect`] judges.
pub(crate) fn check_request(head: &Head, method: &Method) -> Result<Framing, BadRequest> {
    if *method == Method::CONNECT {
        return Err(BadRequest::Connect);
    }
    check_target(head, method)?;
    check_host(head)?;
    let body = check_framing(head.facts(), head.is_http10())?;
    // RFC 9110 §9.3.8: TRACE has no content; an origin that echoes one reflects what the client must not see.
    if body != Framing::Length(0) && *method == Method::TRACE {
        return Err(BadRequest::TraceBody);
    }
    Ok(body)
}

/// The same for a CONNECT (RFC 9110 §9.3.6, RFC 9112 §3.2.3), which has no body. HTTP/1.0 does not know it.
///
/// Host is the target, or the target without its port: neither the choice of an app nor that of a route then depends
/// on which of the two is read.
pub(crate) fn check_connect(head: &Head) -> Result<(), BadRequest> {
    if head.is_http10() {
        return Err(BadRequest::Connect);
    }
    let target = head.path_and_query();
    let Some((name, port)) = target.rsplit_once(':').filter(|_| is_host(target.as_bytes())) else {
        return Err(BadRequest::ConnectTarget);
    };
    if port.len() > 5 || port.parse::<u16>().unwrap_or(0) == 0 {
        return Err(BadRequest::ConnectTarget);
    }
    check_host(head)?;
    let host = head.get(Tag::Host).unwrap_or_default();
    if ![target, name].iter().any(|named| host.eq_ignore_ascii_case(named.as_bytes())) {
        return Err(BadRequest::ConnectHost);
    }
    match (head.facts().lengths, head.facts().encodings) {
        (0, 0) => Ok(()),
        (_, _) => Err(BadRequest::ConnectBody),
    }
}

fn check_target(head: &Head, method: &Method) -> Result<(), BadRequest> {
    let fits = match head.authority() {
        None => {
            let path = head.path_and_query();
            path.starts_with('/') || (path == "*" && *method == Method::OPTIONS)
        }
        // RFC 9110 §4.2.4: userinfo in a target is an error; it makes `http://good@evil/` look like good.
        Some(authority) => is_host(authority),
    };
    if fits { Ok(()) } else { Err(BadRequest::Target) }
}

/// RFC 9112 §3.2: exactly one Host in HTTP/1.1, even when the target is in absolute form.
fn check_host(head: &Head) -> Result<(), BadRequest> {
    match (head.facts().hosts, head.get(Tag::Host)) {
        (1, Some(host)) if is_host(host) => Ok(()),
        (1, _) => Err(BadRequest::Host),
        (0, _) if head.is_http10() => Ok(()),
        (0, _) => Err(BadRequest::NoHost),
        (_, _) => Err(BadRequest::ManyHosts),
    }
}

/// How the body comes; refuses every framing that leaves room for a second opinion.
fn check_framing(facts: &Facts, is_http10: bool) -> Result<Framing, BadRequest> {
    match (facts.encodings, facts.lengths) {
        (0, 0) if facts.is_framed => Ok(Framing::UntilClose),
        (0, 0) => Ok(Framing::Length(0)),
        (0, 1) => facts.length.map(Framing::Length).ok_or(BadRequest::Length),
        (0, _) => Err(BadRequest::Length),
        (_, 0) if is_http10 => Err(BadRequest::EncodingInHttp10),
        (1, 0) if facts.is_chunked => Ok(Framing::Chunked),
        (_, 0) => Err(BadRequest::Encoding),
        (_, _) => Err(BadRequest::LengthAndEncoding),
    }
}

/// A host with or without port (RFC 3986 §3.2.2). Not empty (RFC 9110 §4.2.1), and without the comma that the RFC
/// allows: it is what two joined Host fields look like.
pub(crate) fn is_host(host: &[u8]) -> bool {
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

/// The host a request is for, as routes are asked for it.
pub(crate) fn host_of(head: &Head) -> &str {
    let host = head.authority().or_else(|| head.get(Tag::Host)).unwrap_or_default();
    std::str::from_utf8(host).unwrap_or_default()
}

/// `example.com:80` -> `example.com`, `[::1]:80` -> `[::1]`; also without the dot of a fully qualified name.
pub(crate) fn without_port(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !in_brackets(host) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

fn in_brackets(host: &str) -> bool {
    host.starts_with('[') && host.ends_with(']')
}

/// Whether the message asks for (or, with 101, agrees to) another protocol than HTTP on this connection.
///
/// A wish for `h2c` does not count: it would carry requests past everything that is checked here. RFC 9110 §7.8:
/// ignored in HTTP/1.0.
pub(crate) fn is_upgrade(head: &Head) -> bool {
    head.has(Tag::Upgrade)
        && head.facts().options.upgrade
        && !head.is_http10()
        && head.tokens(Tag::Upgrade).any(|token| !is_h2c(token))
}

/// Whether the sender goes on with this connection after the message (RFC 9112 §9.3, §9.6).
pub(crate) fn is_last(head: &Head) -> bool {
    let options = head.facts().options;
    options.close || head.is_http10() && !options.keep_alive
}

pub(crate) fn expects_continue(head: &Head) -> bool {
    head.get(Tag::Expect).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"))
}

/// What we saw of a client ourselves, as the fields say it. Written once per connection: formatting an address costs
/// as much as parsing a small request.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    /// By which it is known where two generations share the port.
    pub(crate) ip: IpAddr,
    pub(crate) is_secure: bool,
    /// Long enough for any address: `ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255`.
    client: [u8; 45],
    client_bytes: u8,
    local_port: [u8; 5],
    local_port_bytes: u8,
}

impl Seen {
    /// `is_secure`: the client speaks TLS with us.
    pub(crate) fn new(client: SocketAddr, local_port: u16, is_secure: bool) -> Seen {
        let ip: IpAddr = client.ip().to_canonical();
        let (client, client_bytes) = written(ip);
        let (local_port, local_port_bytes) = written(local_port);
        Seen { ip, is_secure, client, client_bytes, local_port, local_port_bytes }
    }

    /// For strategies that hash it; everybody else writes it as it is.
    pub(crate) fn client_address(&self) -> Option<IpAddr> {
        std::str::from_utf8(&self.client[..usize::from(self.client_bytes)]).ok()?.parse().ok()
    }

    /// The address of the client.
    pub(crate) fn client(&self) -> &str {
        std::str::from_utf8(&self.client[..usize::from(self.client_bytes)]).expect("an address is ASCII")
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.is_secure
    }

    fn local_port(&self) -> &[u8] {
        &self.local_port[..usize::from(self.local_port_bytes)]
    }
}

fn written<const N: usize>(value: impl std::fmt::Display) -> ([u8; N], u8) {
    let mut text = [0; N];
    let mut left = &mut text[..];
    write!(left, "{value}").expect("it fits, see the fields");
    let bytes = N - left.len();
    (text, u8::try_from(bytes).expect("it is short"))
}

/// What is left to say of a checked request besides its own fields.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Onward {
    /// Keep its wish to change the protocol.
    pub(crate) upgrade: bool,
    pub(crate) body: Framing,
}

/// Makes a checked request ready for an origin.
///
/// Fields about this connection come off, those named in `Connection` too; the target becomes a path with the host
/// in `Host`; and `X-Forwarded-*` says what we saw, whatever the client claimed.
pub(crate) fn sanitize_request(head: &mut Head, seen: &Seen, onward: Onward) {
    let protocols = if onward.upgrade { Some(offered_protocols(head)) } else { None };
    // RFC 9110 §10.1.4: whether the *client* takes trailers is worth passing on; codings are between two hops.
    let trailers =
        head.has(Tag::Te) && head.tokens(Tag::Te).any(|token| token.eq_ignore_ascii_case(b"trailers"));
    let has_body = onward.body != Framing::Length(0);
    let named = named_in_connection(head);
    head.retain(|field| match field.tag {
        Tag::Other | Tag::Date => !names(&named, &field),
        Tag::Host | Tag::ContentLength => true,
        // Nothing to continue with; an origin might wait for it.
        Tag::Expect => has_body && !names(&named, &field),
        Tag::Connection
        | Tag::KeepAlive
        | Tag::ProxyConnection
        | Tag::ProxyAuthenticate
        | Tag::ProxyAuthorization
        | Tag::Te
        | Tag::TransferEncoding
        | Tag::Upgrade
        | Tag::Http2Settings => false,
        // Fields by which a client could pass for another one with an origin that trusts its proxy.
        Tag::XForwarded | Tag::Forwarded | Tag::XRealIp => false,
    });
    head.settle_host();
    if !head.add_copy("X-Forwarded-Host", Tag::Host) {
        // HTTP/1.0 may go without; what we send is HTTP/1.1 (RFC 9112 §3.2: then it is empty).
        head.add("Host", &[]);
    }
    head.add("X-Forwarded-For", &[seen.client().as_bytes()]);
    head.add("X-Forwarded-Proto", &[if seen.is_secure { b"https" } else { b"http" }]);
    head.add("X-Forwarded-Port", &[seen.local_port()]);
    if matches!(onward.body, Framing::Chunked | Framing::UntilClose) {
        head.add("Transfer-Encoding", &[b"chunked"]);
    }
    // Both fields must be named in `Connection` again (RFC 9110 §7.6.1).
    let named: &[u8] = match (protocols.is_some(), trailers) {
        (false, false) => return,
        (false, true) => b"te",
        (true, false) => b"upgrade",
        (true, true) => b"upgrade, te",
    };
    head.add("Connection", &[named]);
    if trailers {
        head.add("TE", &[b"trailers"]);
    }
    if let Some(protocols) = protocols {
        head.add("Upgrade", &[&protocols]);
    }
}

/// What a response looks like to the client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outward<'a> {
    /// This is the 101 of a protocol change.
    pub(crate) upgrade: bool,
    /// Its body goes out in chunks.
    pub(crate) chunked: bool,
    /// What `Connection` says about the connection to the client.
    pub(crate) connection: Option<&'a str>,
    /// What `Date` says where the origin has left it out (RFC 9110 §6.6.1).
    pub(crate) date: &'a [u8],
}

/// Refuses a response that two readers could take for different ones (RFC 9112 §6.3). How its body comes, where it
/// is fine. `bodiless`: it has none, whatever its fields say.
pub(crate) fn check_response(head: &Head, bodiless: bool) -> Result<Framing, &'static str> {
    let facts = head.facts();
    match (facts.encodings, facts.lengths) {
        (0, 0) if bodiless => Ok(Framing::Length(0)),
        (0, 0) => Ok(Framing::UntilClose),
        (0, 1) if facts.length.is_none() => Err("the endpoint sent a length that is no number\n"),
        (0, 1) if bodiless => Ok(Framing::Length(0)),
        (0, 1) => Ok(facts.length.map_or(Framing::UntilClose, Framing::Length)),
        (0, _) => Err("the endpoint sent two lengths\n"),
        (_, lengths) if lengths > 0 && !bodiless => Err("the endpoint sent both a length and an encoding\n"),
        (1, _) if facts.is_chunked => Ok(if bodiless { Framing::Length(0) } else { Framing::Chunked }),
        (_, _) => Err("the endpoint sent an unknown transfer encoding\n"),
    }
}

/// Makes a response ready for the client.
pub(crate) fn sanitize_response(head: &mut Head, outward: &Outward<'_>) {
    // RFC 9112 §6.3: the encoding overrides the length, which must not travel on as if it were true.
    let has_encoding = head.has(Tag::TransferEncoding);
    let named = named_in_connection(head);
    head.retain(|field| match field.tag {
        Tag::Other
        | Tag::Host
        | Tag::Expect
        | Tag::Date
        | Tag::XForwarded
        | Tag::Forwarded
        | Tag::XRealIp => !names(&named, &field),
        Tag::ContentLength => !has_encoding,
        Tag::Upgrade => outward.upgrade,
        Tag::Connection
        | Tag::KeepAlive
        | Tag::ProxyConnection
        | Tag::ProxyAuthenticate
        | Tag::ProxyAuthorization
        | Tag::Te
        | Tag::TransferEncoding
        | Tag::Http2Settings => false,
    });
    if !head.has(Tag::Date) {
        head.add("Date", &[outward.date]);
    }
    if outward.chunked {
        head.add("Transfer-Encoding", &[b"chunked"]);
    }
    if outward.upgrade {
        head.add("Connection", &[b"upgrade"]);
    } else if let Some(connection) = outward.connection {
        head.add("Connection", &[connection.as_bytes()]);
    }
}

/// What may not come as a trailer: what decides about framing, routing or the connection had to be known before
/// (RFC 9110 §6.5.1).
pub(crate) fn is_trailer(field: Tag) -> bool {
    matches!(field, Tag::Other | Tag::Date)
}

/// The fields that `Connection` asks to remove beyond those that go anyway. Empty, and then free, for nearly all.
///
/// A client must not be able to take off what the next hop depends on: the framing, the host, and what we say
/// about the client. Those are no names here, see the callers.
fn named_in_connection(head: &Head) -> Vec<Vec<u8>> {
    if !head.facts().options.names {
        return Vec::new();
    }
    head.tokens(Tag::Connection).map(<[u8]>::to_vec).collect()
}

fn names(named: &[Vec<u8>], field: &Field<'_>) -> bool {
    named.iter().any(|name| name.eq_ignore_ascii_case(field.name))
}

/// The protocols of `Upgrade` without `h2c`.
fn offered_protocols(head: &Head) -> Vec<u8> {
    let mut values = head.all(Tag::Upgrade);
    match (values.next(), values.next()) {
        (Some(only), None) if !tokens(only).any(is_h2c) => only.to_vec(),
        _ => {
            let kept: Vec<&[u8]> = head.tokens(Tag::Upgrade).filter(|token| !is_h2c(token)).collect();
            kept.join(&b", "[..])
        }
    }
}

fn is_h2c(token: &[u8]) -> bool {
    token.eq_ignore_ascii_case(b"h2c")
}

#[cfg(test)]
mod tests;
