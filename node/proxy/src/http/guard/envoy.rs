//! Asking a service over gRPC whether a request may pass: Envoy's `ext_authz`, version 3.
//!
//! Only what is used of the messages is written down here (envoy/service/auth/v3/external_auth.proto and
//! attribute_context.proto, envoy/config/core/v3/base.proto and address.proto, google/rpc/status.proto); unknown
//! fields are skipped, as their encoding has it.

use std::collections::HashMap;

use prost::Message;

use super::{
    super::{
        connection::{Client, Connection},
        forward::Parts,
        head::Head,
        headers::{self, Seen},
        refusal::Refusal,
        reply::Answer,
    },
    call::{Call, call, is_about_request},
    forward::may_be_copied,
};
use crate::generation::LocalServing;

const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Of a gRPC message: whether it is compressed, and its length (the gRPC protocol over HTTP/2, "Length-Prefixed-Message").
const PREFIX_BYTES: usize = 5;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    attributes: Option<Attributes>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Attributes {
    #[prost(message, optional, tag = "1")]
    source: Option<Peer>,
    #[prost(message, optional, tag = "4")]
    request: Option<Request>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Peer {
    #[prost(message, optional, tag = "1")]
    address: Option<Address>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Address {
    #[prost(message, optional, tag = "1")]
    socket_address: Option<SocketAddress>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SocketAddress {
    #[prost(string, tag = "2")]
    address: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(message, optional, tag = "2")]
    http: Option<HttpRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HttpRequest {
    #[prost(string, tag = "2")]
    method: String,
    #[prost(map = "string, string", tag = "3")]
    headers: HashMap<String, String>,
    #[prost(string, tag = "4")]
    path: String,
    #[prost(string, tag = "5")]
    host: String,
    #[prost(string, tag = "6")]
    scheme: String,
    #[prost(string, tag = "10")]
    protocol: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(message, optional, tag = "2")]
    denied: Option<Denied>,
    #[prost(message, optional, tag = "3")]
    ok: Option<Allowed>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Denied {
    #[prost(message, optional, tag = "1")]
    status: Option<HttpStatus>,
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderOption>,
    #[prost(string, tag = "3")]
    body: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HttpStatus {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Allowed {
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderOption>,
    #[prost(string, repeated, tag = "5")]
    headers_to_remove: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HeaderOption {
    #[prost(message, optional, tag = "1")]
    header: Option<HeaderValue>,
    #[prost(message, optional, tag = "2")]
    append: Option<BoolValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HeaderValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
    #[prost(bytes = "vec", tag = "3")]
    raw_value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BoolValue {
    #[prost(bool, tag = "1")]
    value: bool,
}

/// Asks, and does to the request what the service wants.
pub(super) async fn pass<C: Client>(
    connection: &mut Connection<C>,
    serving: &LocalServing,
    parts: &mut Parts,
    pool: usize,
) -> Result<(), Refusal> {
    let message = framed(&check_request(&parts.request, &connection.seen));
    let head = format!(
        "POST {METHOD} HTTP/1.1\r\nHost: ext-authz\r\nContent-Type: application/grpc\r\nTE: trailers\r\n\
         Content-Length: {}\r\n\r\n",
        message.len()
    );
    let asked = Call { pool, head: head.as_bytes(), body: &message, is_idempotent: true };
    let called = call(connection, serving, parts, asked).await?;
    let Parts { request, response, .. } = parts;
    if response.status() != 200 || grpc_status(response, &called.trailers) != Some(0) {
        return Err(Refusal::Upstream("the service that decides has no answer\n"));
    }
    let verdict = unframed(&called.body).ok_or(Refusal::Upstream("no whole answer\n"))?;
    decide(verdict, request).map_err(Refusal::answer_with)
}

/// PURE.
fn check_request(request: &Head, seen: &Seen) -> CheckRequest {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut fields = HashMap::<String, String>::new();
    for field in request.iter().filter(|field| is_about_request(request, field.name)) {
        let value = text(field.value);
        // RFC 9110 §5.3.
        fields
            .entry(text(field.name).to_ascii_lowercase())
            .and_modify(|known| {
                known.push(',');
                known.push_str(&value);
            })
            .or_insert(value);
    }
    let http = HttpRequest {
        method: text(request.method()),
        headers: fields,
        path: request.path_and_query().to_owned(),
        host: headers::host_of(request).to_owned(),
        scheme: if seen.is_secure() { "https" } else { "http" }.to_owned(),
        protocol: "HTTP/1.1".to_owned(),
    };
    let address = SocketAddress { address: seen.client().to_owned() };
    let source = Peer { address: Some(Address { socket_address: Some(address) }) };
    let attributes = Attributes { source: Some(source), request: Some(Request { http: Some(http) }) };
    CheckRequest { attributes: Some(attributes) }
}

/// Changes the request as the service wants, or says what its client is answered. A verdict without a status is a
/// refusal. PURE.
fn decide(verdict: CheckResponse, request: &mut Head) -> Result<(), Answer> {
    if verdict.status.is_none_or(|status| status.code != 0) {
        let denied = verdict.denied.unwrap_or_default();
        let status = denied.status.and_then(|status| u16::try_from(status.code).ok());
        let status = status.filter(|status| (200..600).contains(status)).unwrap_or(403);
        let mut fields = Vec::new();
        for (name, value, _) in denied.headers.into_iter().filter_map(HeaderOption::usable) {
            for piece in [name.as_bytes(), b": ", &value, b"\r\n"] {
                fields.extend_from_slice(piece);
            }
        }
        return Err(Answer { status, fields, body: denied.body.into_bytes().into() });
    }
    let Allowed { headers, headers_to_remove } = verdict.ok.unwrap_or_default();
    for name in headers_to_remove.iter().filter(|name| may_be_copied(name)) {
        request.retain(|field| !field.name.eq_ignore_ascii_case(name.as_bytes()));
    }
    for (name, value, is_added) in headers.into_iter().filter_map(HeaderOption::usable) {
        if !is_added {
            request.retain(|field| !field.name.eq_ignore_ascii_case(name.as_bytes()));
        }
        request.add(&name, &[&value]);
    }
    Ok(())
}

impl HeaderOption {
    /// Name, value, and whether it stands beside one of the same name. `None`: it may not be put on a message.
    fn usable(self) -> Option<(String, Vec<u8>, bool)> {
        let HeaderValue { key, value, raw_value } = self.header?;
        let value = if raw_value.is_empty() { value.into_bytes() } else { raw_value };
        let fits = may_be_copied(&key) && http::HeaderValue::from_bytes(&value).is_ok();
        fits.then(|| (key, value, self.append.is_some_and(|append| append.value)))
    }
}

fn framed(message: &CheckRequest) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).expect("a head is far shorter");
    let mut framed = Vec::with_capacity(PREFIX_BYTES + bytes.len());
    framed.push(0);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&bytes);
    framed
}

/// `None`: it is compressed, which nobody asked for, not whole, or no message.
fn unframed(bytes: &[u8]) -> Option<CheckResponse> {
    let (prefix, message) = bytes.split_at_checked(PREFIX_BYTES)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().expect("four are left"));
    let is_whole = prefix[0] == 0 && usize::try_from(length) == Ok(message.len());
    if is_whole { CheckResponse::decode(message).ok() } else { None }
}

/// What the call came to: behind the answer, or in its head where there is no answer.
fn grpc_status(response: &Head, trailers: &[u8]) -> Option<u32> {
    let lines = trailers.split(|byte| *byte == b'\n').filter_map(|line| {
        let at = line.iter().position(|byte| *byte == b':')?;
        Some((&line[..at], line[at + 1..].trim_ascii()))
    });
    let mut fields = response.iter().map(|field| (field.name, field.value)).chain(lines);
    let status = fields.find(|(name, _)| name.eq_ignore_ascii_case(b"grpc-status"))?.1;
    std::str::from_utf8(status).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Head {
        let text =
            b"GET /a?b HTTP/1.1\r\nHost: web\r\nX-A: 1\r\nx-a: 2\r\nX-User: spoofed\r\nConnection: x-hop\r\n\
            X-Hop: h\r\n\r\n";
        let mut head = Head::default();
        head.parse_request(text, 8192).unwrap().unwrap();
        head
    }

    fn header(key: &str, value: &str, append: bool) -> HeaderOption {
        HeaderOption {
            header: Some(HeaderValue { key: key.to_owned(), value: value.to_owned(), raw_value: Vec::new() }),
            append: Some(BoolValue { value: append }),
        }
    }

    #[test]
    fn a_service_is_told_what_is_asked_and_by_whom() {
        let seen = Seen::new("192.0.2.7:1".parse().unwrap(), 80, true);
        let asked = unframed_request(&framed(&check_request(&request(), &seen)));
        let attributes = asked.attributes.unwrap();
        let source = attributes.source.unwrap().address.unwrap().socket_address.unwrap();
        assert_eq!(source.address, "192.0.2.7");
        let http = attributes.request.unwrap().http.unwrap();
        assert_eq!((http.method.as_str(), http.path.as_str(), http.host.as_str()), ("GET", "/a?b", "web"));
        assert_eq!(http.scheme, "https");
        assert_eq!(http.headers["x-a"], "1,2");
        assert!(!http.headers.contains_key("x-hop"), "it is about the connection");
    }

    fn unframed_request(bytes: &[u8]) -> CheckRequest {
        CheckRequest::decode(&bytes[PREFIX_BYTES..]).unwrap()
    }

    #[test]
    fn a_verdict_changes_the_request_or_answers_it() {
        let ok = |headers, remove: &[&str]| CheckResponse {
            status: Some(Status { code: 0 }),
            denied: None,
            ok: Some(Allowed {
                headers,
                headers_to_remove: remove.iter().map(|name| (*name).to_owned()).collect(),
            }),
        };
        let mut head = request();
        let headers = vec![
            header("x-user", "ann", false),
            header("x-a", "3", true),
            header("content-length", "9", false),
            header("x-b", "a\r\nb", false),
        ];
        assert_eq!(decide(ok(headers, &["x-hop", "host"]), &mut head), Ok(()));
        let fields: Vec<String> = head
            .iter()
            .map(|field| format!("{}: {}", field.name.escape_ascii(), field.value.escape_ascii()))
            .collect();
        assert_eq!(fields, ["Host: web", "X-A: 1", "x-a: 2", "Connection: x-hop", "x-user: ann", "x-a: 3"]);
        for (verdict, status, body) in [
            (CheckResponse::default(), 403, ""),
            (CheckResponse { status: Some(Status { code: 7 }), ..Default::default() }, 403, ""),
            (
                CheckResponse {
                    status: Some(Status { code: 16 }),
                    denied: Some(Denied {
                        status: Some(HttpStatus { code: 401 }),
                        headers: vec![header("WWW-Authenticate", "x", false)],
                        body: "who?".to_owned(),
                    }),
                    ok: None,
                },
                401,
                "who?",
            ),
        ] {
            let answer = decide(verdict, &mut request()).unwrap_err();
            assert_eq!((answer.status, &*answer.body), (status, body.as_bytes()));
            assert_eq!(answer.fields.is_empty(), status == 403);
        }
    }

    #[test]
    fn what_is_no_message_is_no_verdict() {
        for bytes in
            [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x01", b"\x01\0\0\0\0", b"\0\0\0\0\x01\xff", b"\0\0\0\0\0x"]
        {
            assert_eq!(unframed(bytes), None, "{bytes:?}");
        }
        assert_eq!(unframed(b"\0\0\0\0\0"), Some(CheckResponse::default()));
    }
}
