//! Heads that come as a list of fields, as HTTP/2 has them (RFC 9113 §8): no text in between.
//!
//! What the list says is laid out as lines of HTTP/1.1 would be, because that is how it mostly goes on; but nothing is
//! read a second time, and a value cannot be more than a value. Pure.

use http::{HeaderMap, header, request, response};

use super::{FIELDS_MAX, Head, Malformed, REQUEST_LINE_MAX, Slot, Span, Tag, is_target, span, tag};

impl Head {
    /// Takes a request over. `is_whole`: no body follows. `max`: bytes of its fields, as text.
    pub(crate) fn take_request(
        &mut self,
        parts: &request::Parts,
        is_whole: bool,
        max: usize,
    ) -> Result<(), Malformed> {
        self.start(&[], false);
        // RFC 9113 §8.3.1: one that does not name a path is malformed; CONNECT alone has none.
        let path = match parts.uri.path_and_query() {
            Some(path) => path.as_str(),
            None if parts.method == http::Method::CONNECT => "",
            None => return Err(Malformed::Syntax),
        };
        let method = parts.method.as_str();
        if method.len() + path.len() + 10 > REQUEST_LINE_MAX {
            return Err(Malformed::RequestLine);
        }
        if !path.bytes().all(is_target) {
            return Err(Malformed::Target);
        }
        self.method = self.put(method.as_bytes());
        self.target = self.put(path.as_bytes());
        self.path = self.target;
        // RFC 9113 §8.3.1: `:authority` is the host; a Host beside it must say the same.
        let mut hosts = parts.headers.get_all(header::HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(Malformed::Syntax);
        }
        let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
        let host = host.map(http::HeaderValue::as_bytes);
        if authority.is_some() && host.is_some() && authority != host {
            return Err(Malformed::Syntax);
        }
        if let Some(host) = authority.or(host) {
            self.put_field(b"Host", host)?;
        }
        for (name, value) in &parts.headers {
            if *name != header::HOST && *name != header::COOKIE {
                self.put_field(name.as_str().as_bytes(), value.as_bytes())?;
            }
        }
        // RFC 9113 §8.2.3: it may come in pieces, which HTTP/1.1 does not know. Empty ones would leave white space at
        // the end of a value.
        let mut cookies = parts.headers.get_all(header::COOKIE).iter().filter(|piece| !piece.is_empty());
        if let Some(first) = cookies.next() {
            self.put_field(b"Cookie", first.as_bytes())?;
            cookies.try_for_each(|next| self.extend_last(b"; ", next.as_bytes()))?;
        }
        self.facts.is_framed = !is_whole;
        if self.bytes.len() > max { Err(Malformed::HeaderBytes) } else { Ok(()) }
    }

    /// The same for a response. `is_whole`: no body follows, and none is announced.
    pub(crate) fn take_response(&mut self, parts: &response::Parts, is_whole: bool) -> Result<(), Malformed> {
        self.start(&[], false);
        self.status = parts.status.as_u16();
        self.reason = Span::default();
        for (name, value) in &parts.headers {
            self.put_field(name.as_str().as_bytes(), value.as_bytes())?;
        }
        if is_whole && self.facts.lengths == 0 {
            self.put_field(b"content-length", b"0")?;
        }
        Ok(())
    }

    /// Bytes of it.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn put(&mut self, bytes: &[u8]) -> Span {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        span(start, self.bytes.len())
    }

    fn put_field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformed> {
        if self.slots.len() == FIELDS_MAX {
            return Err(Malformed::HeaderFields);
        }
        let tag = tag(name);
        if !may_stand(tag, value) {
            return Err(Malformed::Syntax);
        }
        let name = self.put(name);
        self.put(b": ");
        let value = self.put(value);
        self.put(b"\r\n");
        if tag != Tag::Other {
            let Head { bytes, facts, .. } = self;
            facts.note(tag, super::at(bytes, value));
        }
        self.slots.push(Slot { name, value, tag, is_plain: true });
        Ok(())
    }

    fn extend_last(&mut self, between: &[u8], more: &[u8]) -> Result<(), Malformed> {
        let Some(slot) = self.slots.last_mut() else { return Ok(()) };
        if !may_stand(slot.tag, more) {
            return Err(Malformed::Syntax);
        }
        self.bytes.truncate(slot.value.end as usize);
        self.bytes.extend_from_slice(between);
        self.bytes.extend_from_slice(more);
        slot.value = span(slot.value.start as usize, self.bytes.len());
        self.bytes.extend_from_slice(b"\r\n");
        Ok(())
    }
}

/// Fields that are about a connection of HTTP/1.1 are malformed here (RFC 9113 §8.2.2), and so is a value that begins
/// or ends with white space or has a line end in it (§8.2.1).
fn may_stand(tag: Tag, value: &[u8]) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let is_clean = !is_space(value.first())
        && !is_space(value.last())
        && memchr::memchr3(b'\r', b'\n', 0, value).is_none();
    match tag {
        Tag::Connection | Tag::KeepAlive | Tag::ProxyConnection | Tag::TransferEncoding | Tag::Upgrade => {
            false
        }
        Tag::Te => is_clean && value.eq_ignore_ascii_case(b"trailers"),
        Tag::Other
        | Tag::Host
        | Tag::ContentLength
        | Tag::ProxyAuthenticate
        | Tag::ProxyAuthorization
        | Tag::Http2Settings
        | Tag::Expect
        | Tag::Date
        | Tag::XForwarded
        | Tag::Forwarded
        | Tag::XRealIp => is_clean,
    }
}

/// What may be passed on of a trailer section (RFC 9110 §6.5.1), as field lines.
pub(crate) fn write_trailers(trailers: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in trailers {
        let name = name.as_str().as_bytes();
        let (tag, value) = (tag(name), value.as_bytes());
        if super::super::headers::is_trailer(tag) && may_stand(tag, value) {
            for piece in [name, b": ", value, b"\r\n"] {
                out.extend_from_slice(piece);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};

    use super::*;

    /// The request as it would go on, or why not.
    fn check(request: http::request::Builder, is_whole: bool) -> Result<String, Malformed> {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let mut head = Head::default();
        head.take_request(&parts, is_whole, 4096)?;
        let mut out = Vec::new();
        head.write_request_line(&mut out);
        head.write_fields(&mut out);
        out.extend_from_slice(b"\r\n");
        // A strict reader finds the same in it.
        let mut again = Head::default();
        assert_eq!(again.parse_request(&out, 8192), Ok(Some(out.len())));
        let fields = |head: &Head| -> Vec<(Vec<u8>, Vec<u8>)> {
            head.iter().map(|field| (field.name.to_vec(), field.value.to_vec())).collect()
        };
        assert_eq!(fields(&head), fields(&again));
        assert_eq!((head.method(), head.path()), (again.method(), again.path()));
        assert_eq!(head.facts().is_framed, !is_whole);
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_list_of_fields_says_what_lines_would() {
        let get = |uri: &str| Request::get(uri);
        for (request, want) in [
            (get("http://a.test/x?y=z"), Ok("GET /x?y=z HTTP/1.1\r\nHost: a.test\r\n\r\n")),
            (get("http://a/").header("host", "a"), Ok("GET / HTTP/1.1\r\nHost: a\r\n\r\n")),
            (get("/").header("host", "a"), Ok("GET / HTTP/1.1\r\nHost: a\r\n\r\n")),
            (
                get("http://a/").header("cookie", "b=1").header("x", "").header("cookie", "c=2"),
                Ok("GET / HTTP/1.1\r\nHost: a\r\nx: \r\nCookie: b=1; c=2\r\n\r\n"),
            ),
            (
                get("http://a/").header("cookie", "").header("cookie", "b=1").header("cookie", ""),
                Ok("GET / HTTP/1.1\r\nHost: a\r\nCookie: b=1\r\n\r\n"),
            ),
            (Request::options("*").header("host", "a"), Ok("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")),
            (get("http://a/").header("host", "b"), Err(Malformed::Syntax)),
            (get("/").header("host", "a").header("host", "a"), Err(Malformed::Syntax)),
            (get("http://a/").header("x", " a"), Err(Malformed::Syntax)),
            (get("http://a/").header("x", "a\t"), Err(Malformed::Syntax)),
            (get("http://a/").header("cookie", "a").header("cookie", " b"), Err(Malformed::Syntax)),
            (get("http://a/").header("connection", "x"), Err(Malformed::Syntax)),
            (get("http://a/").header("transfer-encoding", "chunked"), Err(Malformed::Syntax)),
            (get("http://a/").header("keep-alive", "1"), Err(Malformed::Syntax)),
            (get("http://a/").header("proxy-connection", "x"), Err(Malformed::Syntax)),
            (get("http://a/").header("upgrade", "websocket"), Err(Malformed::Syntax)),
            (get("http://a/").header("te", "gzip"), Err(Malformed::Syntax)),
            (get("http://a/").header("x", "y".repeat(4096)), Err(Malformed::HeaderBytes)),
            (
                (0..FIELDS_MAX).fold(get("http://a/"), |request, _| request.header("x", "y")),
                Err(Malformed::HeaderFields),
            ),
            (get(&format!("http://a/{}", "x".repeat(REQUEST_LINE_MAX))), Err(Malformed::RequestLine)),
        ] {
            let shown = format!("{:?}", request.headers_ref());
            assert_eq!(check(request, true).as_deref(), want.as_ref().map(|want| *want), "{shown:.200}");
        }
        assert!(check(Request::post("http://a/"), false).is_ok());
    }

    #[test]
    fn a_response_without_a_body_says_so() {
        for (is_whole, length, want) in
            [(true, None, "x: y\r\ncontent-length: 0\r\n"), (false, None, "x: y\r\n")].into_iter().chain([(
                true,
                Some("7"),
                "x: y\r\ncontent-length: 7\r\n",
            )])
        {
            let mut response = Response::builder().status(204).header("x", "y");
            if let Some(length) = length {
                response = response.header("content-length", length);
            }
            let (parts, ()) = response.body(()).unwrap().into_parts();
            let (mut head, mut out) = (Head::default(), Vec::new());
            head.take_response(&parts, is_whole).unwrap();
            head.write_fields(&mut out);
            assert_eq!((head.status(), String::from_utf8(out).unwrap().as_str()), (204, want));
        }
    }

    #[test]
    fn trailers_that_decide_about_a_message_are_not_passed_on() {
        let mut trailers = HeaderMap::new();
        for (name, value) in [("grpc-status", "0"), ("content-length", "3"), ("host", "a"), ("x", " y")] {
            trailers.insert(name, value.parse().unwrap());
        }
        let mut out = Vec::new();
        write_trailers(&trailers, &mut out);
        assert_eq!(out, b"grpc-status: 0\r\n");
    }
}
