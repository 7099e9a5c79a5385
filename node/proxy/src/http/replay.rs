//! A request made again from the bytes it was sent as.
//!
//! A pooled connection can turn out closed just when a request is written to it. Copying every
//! request beforehand would cost more than the pool saves; the socket wrapper keeps the bytes of
//! requests that may be repeated, in a buffer that is reused, and this reads them back.

use http::{HeaderName, HeaderValue, Method, Request, Uri, request::Parts};

use super::{body::RequestBody, guard::FIELDS_MAX};

/// Fields the sanitiser and hyper may have added to those of the client.
const ADDED_MAX: usize = 16;

/// Whether repeating a request does no more than sending it once (RFC 9110 §9.2.2).
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}

/// Reads back a request without a body that we wrote ourselves.
pub(crate) fn read_back(written: &[u8]) -> Option<Request<RequestBody>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX + ADDED_MAX];
    let mut head = httparse::Request::new(&mut fields);
    if !head.parse(written).ok()?.is_complete() {
        return None;
    }
    let mut parts: Parts = Request::new(()).into_parts().0;
    parts.method = head.method?.parse().ok()?;
    parts.uri = head.path?.parse::<Uri>().ok()?;
    for field in head.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        parts.headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    Some(Request::from_parts(parts, RequestBody::empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_request_comes_back_as_it_was() {
        let request = read_back(b"GET /a?b=c HTTP/1.1\r\nhost: x\r\nvia: 1\r\nvia: 2\r\n\r\n").unwrap();
        assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::GET, "/a?b=c"));
        assert_eq!(request.headers()["host"], "x");
        assert_eq!(request.headers().get_all("via").iter().count(), 2);
    }

    #[test]
    fn half_a_request_does_not_come_back() {
        assert!(read_back(b"GET / HTTP/1.1\r\nhost: x\r\n").is_none());
    }
}
