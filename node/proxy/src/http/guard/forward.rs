//! Asking a service over HTTP whether a request may pass. 2xx lets it, and may add fields to it; everything else is
//! the client's answer.

use http::HeaderName;

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
};
use crate::{config::ForwardAuthConfig, generation::LocalServing};

pub(super) struct Forward {
    pub(super) config: ForwardAuthConfig,
}

impl Forward {
    /// What the request gets from the answer of the service.
    pub(super) async fn pass<C: Client>(
        &self,
        connection: &mut Connection<C>,
        serving: &LocalServing,
        parts: &mut Parts,
        pool: usize,
    ) -> Result<(), Refusal> {
        let question = question(&self.config.path, &parts.request, &connection.seen);
        let asked = Call { pool, head: &question, body: &[], is_idempotent: true };
        let called = call(connection, serving, parts, asked).await?;
        let Parts { request, response, .. } = parts;
        if !(200..300).contains(&response.status()) {
            return Err(Refusal::answer_with(answer(response, &called.body)));
        }
        let copied =
            |name: &[u8]| self.config.copy.iter().any(|copied| name.eq_ignore_ascii_case(copied.as_bytes()));
        // What the client says itself about these is no answer of the service.
        request.retain(|field| !copied(field.name));
        for field in response.iter().filter(|field| copied(field.name)) {
            let name = std::str::from_utf8(field.name).unwrap_or_default();
            request.add(name, &[field.value]);
        }
        Ok(())
    }
}

/// What is asked: a GET with everything but the body of the request, and what that was in fields of its own, as
/// Traefik and nginx-based gateways have them. PURE.
fn question(path: &str, request: &Head, seen: &Seen) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    let mut put = |pieces: &[&[u8]]| pieces.iter().for_each(|piece| out.extend_from_slice(piece));
    let host = headers::host_of(request).as_bytes();
    put(&[b"GET ", path.as_bytes(), b" HTTP/1.1\r\n"]);
    for (name, value) in [
        ("Host", if host.is_empty() { b"localhost" } else { host }),
        ("X-Forwarded-Method", request.method()),
        ("X-Forwarded-Proto", if seen.is_secure() { b"https" } else { b"http" }),
        ("X-Forwarded-Host", host),
        ("X-Forwarded-Uri", request.path_and_query().as_bytes()),
        ("X-Forwarded-For", seen.client().as_bytes()),
    ] {
        put(&[name.as_bytes(), b": ", value, b"\r\n"]);
    }
    for field in request.iter().filter(|field| is_about_request(request, field.name)) {
        put(&[field.name, b": ", field.value, b"\r\n"]);
    }
    put(&[b"\r\n"]);
    out
}

/// The answer of the service as the client's. PURE.
fn answer(response: &Head, body: &[u8]) -> Answer {
    let mut fields = Vec::new();
    for field in response.iter().filter(|field| is_about_request(response, field.name)) {
        for piece in [field.name, b": ", field.value, b"\r\n"] {
            fields.extend_from_slice(piece);
        }
    }
    // What is no final status cannot be an answer.
    let status = if response.status() < 200 { 503 } else { response.status() };
    Answer { status, fields, body: bytes::Bytes::copy_from_slice(body) }
}

/// Whether a field may be taken over from the answer of a service.
pub(super) fn may_be_copied(name: &str) -> bool {
    use super::super::head::{Tag, tag};
    HeaderName::from_bytes(name.as_bytes()).is_ok() && tag(name.as_bytes()) == Tag::Other
}
