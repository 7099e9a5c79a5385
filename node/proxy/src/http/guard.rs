//! Watches the raw bytes of a client connection for what the HTTP parser would let pass or hide.
//!
//! hyper drops `Content-Length` when `Transfer-Encoding` is there too, folds equal lengths into one,
//! takes a bare LF for a line end, and drops the fragment of a target. Each of these is harmless
//! alone and a smuggled request together with another implementation (RFC 9112 §11.2), so they must
//! be refused, and only the bytes still tell. The guard follows the framing just closely enough
//! to know which bytes are a head. It changes nothing and parses nothing that is forwarded.
//!
//! Pure.

use memchr::{memchr, memchr2};

/// RFC 9112 §3 asks for 8,000 at least.
pub(crate) const REQUEST_LINE_MAX: usize = 16 * 1024;
/// hyper stores up to 100 fields without an allocation.
pub(crate) const FIELDS_MAX: usize = 100;
/// Empty lines before a request that are forgiven (RFC 9112 §2.2).
const EMPTY_LINES_MAX: usize = 2;

/// Why a connection gets an error answer and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    BareLineFeed,
    BareCarriageReturn,
    Nul,
    Folded,
    LengthAndEncoding,
    DuplicateLength,
    Length,
    Encoding,
    Fragment,
    EmptyLines,
    RequestLine,
    HeaderBytes,
    HeaderFields,
}

/// What may be done with the bytes given to [`Guard::feed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fed {
    /// This many may go to the parser.
    pub(crate) pass: usize,
    /// The byte after them must not. `None` and `pass` short of everything: keep the rest for later.
    pub(crate) violation: Option<Violation>,
}

pub(crate) struct Guard {
    state: State,
    header_bytes_max: usize,
    /// The part of a line that came with an earlier read.
    line: Vec<u8>,
    head: Head,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    Trailers,
    /// After the head of an upgrade: what follows may be no HTTP at all.
    Held,
    /// Framing the parser will refuse by itself.
    Lost,
}

/// What is known of the head that is coming in.
#[derive(Default)]
struct Head {
    bytes: usize,
    empty_lines: usize,
    has_request_line: bool,
    fields: usize,
    length: Option<u64>,
    is_chunked: bool,
    is_upgrade: bool,
}

impl Guard {
    pub(crate) fn new(header_bytes_max: usize) -> Guard {
        Guard { state: State::Head, header_bytes_max, line: Vec::new(), head: Head::default() }
    }

    /// Whether a head has begun and not ended.
    pub(crate) fn is_mid_head(&self) -> bool {
        self.state == State::Head && self.head.bytes > 0
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Fed {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            at += match self.state {
                State::Head => match self.head_line(rest) {
                    Ok(used) => used,
                    Err(violation) => return Fed { pass: at, violation: Some(violation) },
                },
                State::Body(left) => {
                    let used = shorter(rest, left);
                    let left = left - used as u64;
                    self.state = if left == 0 { State::Head } else { State::Body(left) };
                    used
                }
                State::ChunkSize => self.chunk_size(rest),
                State::ChunkData(left) => {
                    let used = shorter(rest, left);
                    let left = left - used as u64;
                    self.state = if left == 0 { State::ChunkSize } else { State::ChunkData(left) };
                    used
                }
                State::Trailers => self.trailer(rest),
                State::Held => break,
                State::Lost => bytes.len() - at,
            };
        }
        Fed { pass: at, violation: None }
    }

    /// Whether what comes now is kept back until an upgrade is decided.
    pub(crate) fn is_holding(&self) -> bool {
        self.state == State::Held
    }

    /// The upgrade did not happen: what follows is HTTP again.
    pub(crate) fn resume(&mut self) {
        if self.state == State::Held {
            self.begin_body();
        }
    }

    fn head_line(&mut self, rest: &[u8]) -> Result<usize, Violation> {
        let end = memchr(b'\n', rest);
        let used = end.map_or(rest.len(), |at| at + 1);
        self.head.bytes += used;
        if self.head.bytes > self.header_bytes_max {
            return Err(Violation::HeaderBytes);
        }
        if !self.head.has_request_line && self.line.len() + used > REQUEST_LINE_MAX {
            return Err(Violation::RequestLine);
        }
        if end.is_none() {
            self.line.extend_from_slice(rest);
            return Ok(used);
        }
        let line = &rest[..used - 1];
        let ended = if self.line.is_empty() {
            self.head.line(line)?
        } else {
            let mut whole = std::mem::take(&mut self.line);
            whole.extend_from_slice(line);
            self.head.line(&whole)?
        };
        if ended {
            if self.head.is_upgrade {
                self.state = State::Held;
            } else {
                self.begin_body();
            }
        }
        Ok(used)
    }

    fn begin_body(&mut self) {
        let head = std::mem::take(&mut self.head);
        self.state = match (head.is_chunked, head.length.unwrap_or(0)) {
            (true, _) => State::ChunkSize,
            (false, 0) => State::Head,
            (false, length) => State::Body(length),
        };
    }

    /// RFC 9112 §7.1. Extensions are skipped; the parser bounds them.
    fn chunk_size(&mut self, rest: &[u8]) -> usize {
        let (used, Some(line)) = self.whole_line(rest) else { return rest.len() };
        let digits = line.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
        let size = std::str::from_utf8(digits).ok().and_then(|hex| u64::from_str_radix(hex, 16).ok());
        self.state = match size {
            Some(0) => State::Trailers,
            // The CRLF after the data is part of it here.
            Some(size) => State::ChunkData(size.saturating_add(2)),
            None => State::Lost,
        };
        used
    }

    fn trailer(&mut self, rest: &[u8]) -> usize {
        let (used, Some(line)) = self.whole_line(rest) else { return rest.len() };
        if line == b"\r" {
            self.state = State::Head;
        }
        used
    }

    /// The line without its LF, once it is there; the bytes used.
    fn whole_line(&mut self, rest: &[u8]) -> (usize, Option<Vec<u8>>) {
        let end = memchr(b'\n', rest);
        self.line.extend_from_slice(&rest[..end.unwrap_or(rest.len())]);
        if self.line.len() > self.header_bytes_max {
            self.state = State::Lost;
            self.line = Vec::new();
            return (rest.len(), None);
        }
        (end.map_or(rest.len(), |at| at + 1), end.map(|_| std::mem::take(&mut self.line)))
    }
}

impl Head {
    /// Takes the next line, without its LF. True when the head ends with it.
    fn line(&mut self, line: &[u8]) -> Result<bool, Violation> {
        let Some((b'\r', line)) = line.split_last() else { return Err(Violation::BareLineFeed) };
        if !self.has_request_line {
            return self.request_line(line).map(|()| false);
        }
        let Some(&first) = line.first() else { return Ok(true) };
        self.fields += 1;
        if self.fields > FIELDS_MAX {
            return Err(Violation::HeaderFields);
        }
        check_bytes(line)?;
        match first {
            b' ' | b'\t' => Err(Violation::Folded),
            b'c' | b'C' => value(line, b"content-length").map_or(Ok(()), |value| self.length(value)),
            b't' | b'T' => value(line, b"transfer-encoding").map_or(Ok(()), |value| self.encoding(value)),
            b'u' | b'U' => {
                self.is_upgrade |= value(line, b"upgrade").is_some();
                Ok(())
            }
            _ => Ok(()),
        }
        .map(|()| false)
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Violation> {
        if line.is_empty() {
            self.empty_lines += 1;
            return if self.empty_lines > EMPTY_LINES_MAX { Err(Violation::EmptyLines) } else { Ok(()) };
        }
        self.has_request_line = true;
        check_bytes(line)?;
        if memchr(b'#', line).is_some() {
            return Err(Violation::Fragment);
        }
        Ok(())
    }

    fn length(&mut self, value: &[u8]) -> Result<(), Violation> {
        if self.is_chunked {
            return Err(Violation::LengthAndEncoding);
        }
        if self.length.is_some() {
            return Err(Violation::DuplicateLength);
        }
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return Err(Violation::Length);
        }
        let value = std::str::from_utf8(value).expect("digits are text");
        self.length = Some(value.parse().map_err(|_| Violation::Length)?);
        Ok(())
    }

    fn encoding(&mut self, value: &[u8]) -> Result<(), Violation> {
        if self.length.is_some() {
            return Err(Violation::LengthAndEncoding);
        }
        if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Violation::Encoding);
        }
        self.is_chunked = true;
        Ok(())
    }
}

/// The value of a field line of that name, without the white space around it. White space before the
/// colon makes it another, invalid name.
fn value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    start.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

fn check_bytes(line: &[u8]) -> Result<(), Violation> {
    match memchr2(b'\r', 0, line).map(|at| line[at]) {
        Some(0) => Err(Violation::Nul),
        Some(_) => Err(Violation::BareCarriageReturn),
        None => Ok(()),
    }
}

fn shorter(rest: &[u8], left: u64) -> usize {
    usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    /// Feeds `text` whole and byte by byte; both must come to the same verdict.
    fn check(text: &str, want: Option<Violation>) {
        let mut whole = Guard::new(64 * 1024);
        let fed = whole.feed(text.as_bytes());
        assert_eq!(fed.violation, want, "{text:?}");
        let mut split = Guard::new(64 * 1024);
        let found = text.as_bytes().iter().find_map(|byte| split.feed(&[*byte]).violation);
        assert_eq!(found, want, "byte by byte: {text:?}");
        if want.is_none() {
            assert_eq!(whole.state, split.state, "{text:?}");
        }
    }

    #[test]
    fn every_smuggling_class_is_refused_and_plain_requests_are_not() {
        let head = |fields: &str| format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        for (fields, want) in [
            ("", None),
            ("content-length: 3\r\n", None),
            ("Content-Length:3\r\n", None),
            ("transfer-encoding: chunked\r\n", None),
            ("Transfer-Encoding: CHUNKED \r\n", None),
            ("content-length-x: 3\r\ntransfer-encodings: x\r\n", None),
            ("content-length: 3\r\ntransfer-encoding: chunked\r\n", Some(Violation::LengthAndEncoding)),
            ("transfer-encoding: chunked\r\nContent-length: 3\r\n", Some(Violation::LengthAndEncoding)),
            ("content-length: 3\r\ncontent-length: 3\r\n", Some(Violation::DuplicateLength)),
            ("content-length: 3\r\ncontent-length: 4\r\n", Some(Violation::DuplicateLength)),
            ("content-length: 3, 3\r\n", Some(Violation::Length)),
            ("content-length: +3\r\n", Some(Violation::Length)),
            ("content-length: 0x3\r\n", Some(Violation::Length)),
            ("content-length:\r\n", Some(Violation::Length)),
            ("content-length: 99999999999999999999\r\n", Some(Violation::Length)),
            ("transfer-encoding: gzip, chunked\r\n", Some(Violation::Encoding)),
            ("transfer-encoding: chunked, identity\r\n", Some(Violation::Encoding)),
            ("transfer-encoding: xchunked\r\n", Some(Violation::Encoding)),
            ("transfer-encoding: \x0bchunked\r\n", Some(Violation::Encoding)),
            ("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", Some(Violation::Encoding)),
            ("transfer-encoding: chunked\r\ntransfer-encoding: x\r\n", Some(Violation::Encoding)),
            ("x: 1\r\n y: 2\r\n", Some(Violation::Folded)),
            ("x: 1\r\n\ttransfer-encoding: chunked\r\n", Some(Violation::Folded)),
            ("x: 1\ny: 2\r\n", Some(Violation::BareLineFeed)),
            ("x: 1\ry: 2\r\n", Some(Violation::BareCarriageReturn)),
            ("x: 1\0\r\n", Some(Violation::Nul)),
        ] {
            check(&head(fields), want);
        }
        check("GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n", Some(Violation::Fragment));
        check("GET / HTTP/1.1\nhost: a\r\n\r\n", Some(Violation::BareLineFeed));
        check("\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", None);
        check("\r\n\r\n\r\nGET", Some(Violation::EmptyLines));
    }

    #[test]
    fn the_next_head_is_found_after_every_kind_of_body() {
        let evil = "GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n";
        for body in [
            "POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\n\n\0a#b",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\na\n\0\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\r\n\r\n",
            GET,
        ] {
            check(&format!("{body}{GET}"), None);
            check(&format!("{body}{evil}"), Some(Violation::DuplicateLength));
        }
    }

    #[test]
    fn nothing_of_a_refused_field_or_after_it_passes() {
        let text = "POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\nx";
        let fed = Guard::new(65_536).feed(text.as_bytes());
        assert_eq!(&text[fed.pass..fed.pass + 10], "transfer-e");
    }

    #[test]
    fn what_follows_an_upgrade_is_held_until_it_is_decided() {
        let head = "GET / HTTP/1.1\r\nhost: a\r\nUpgrade: websocket\r\n\r\n";
        let mut guard = Guard::new(65_536);
        let fed = guard.feed(format!("{head}\n\n").as_bytes());
        assert_eq!(fed, Fed { pass: head.len(), violation: None });
        assert_eq!(guard.feed(b"anything").pass, 0);
        guard.resume();
        assert_eq!(guard.feed(GET.as_bytes()), Fed { pass: GET.len(), violation: None });
    }

    #[test]
    fn heads_are_bounded_in_every_direction() {
        let long = "x".repeat(REQUEST_LINE_MAX);
        check(&format!("GET /{long} HTTP/1.1\r\n\r\n"), Some(Violation::RequestLine));
        let fields = "a: b\r\n".repeat(FIELDS_MAX);
        check(&format!("GET / HTTP/1.1\r\n{fields}\r\n"), None);
        check(&format!("GET / HTTP/1.1\r\n{fields}a: b\r\n\r\n"), Some(Violation::HeaderFields));
        let huge = "y".repeat(64 * 1024);
        check(&format!("GET / HTTP/1.1\r\nx: {huge}\r\n\r\n"), Some(Violation::HeaderBytes));
    }
}
