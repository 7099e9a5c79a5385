//! The head of a message: its bytes as they came, and where in them each field is.
//!
//! One form for requests and responses. Reading checks the syntax of RFC 9112 strictly and takes note of what
//! the framing rules ask about; what follows from that is decided in `headers`. Fields keep their order, their
//! case and their bytes; a field that is added goes to the end. Pure.

use std::mem::MaybeUninit;

use httparse::{Header, Status};
use memchr::memchr;

pub(crate) mod list;

/// RFC 9112 §3 asks for 8,000 at least.
pub(crate) const REQUEST_LINE_MAX: usize = 16 * 1024;
pub(crate) const FIELDS_MAX: usize = 100;
/// Empty lines before a request that are forgiven (RFC 9112 §2.2).
const EMPTY_LINES_MAX: usize = 2;
/// What a head may keep allocated for the next one.
const KEPT_BYTES_MAX: usize = 16 * 1024;

/// Why bytes are no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    Syntax,
    /// A line that ends with LF alone: others may read on (RFC 9112 §2.2).
    BareLineFeed,
    EmptyLines,
    /// A target that is no part of an address, or one with a fragment, which some drop and some keep.
    Target,
    RequestLine,
    HeaderBytes,
    HeaderFields,
}

/// The fields that mean something to a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    Other,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    KeepAlive,
    ProxyConnection,
    ProxyAuthenticate,
    ProxyAuthorization,
    Te,
    Upgrade,
    Http2Settings,
    Expect,
    Date,
    /// `X-Forwarded-…`, whatever comes behind.
    XForwarded,
    Forwarded,
    XRealIp,
}

/// What the fields say about framing and the connection, as the message came.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Facts {
    /// One bit per [`Tag`].
    tags: u32,
    pub(crate) hosts: u8,
    pub(crate) lengths: u8,
    /// `None` where the value is not one number.
    pub(crate) length: Option<u64>,
    pub(crate) encodings: u8,
    /// The last `Transfer-Encoding` is exactly `chunked`.
    pub(crate) is_chunked: bool,
    pub(crate) options: Options,
    /// A body follows in frames, which say where it ends.
    pub(crate) is_framed: bool,
}

/// What `Connection` says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) upgrade: bool,
    /// It names a field that does not go away by itself.
    pub(crate) names: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Span {
    start: u32,
    end: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    name: Span,
    value: Span,
    tag: Tag,
    /// It stands there as `Name: value CR LF`, which is how it is written.
    is_plain: bool,
}

/// One field line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    pub(crate) tag: Tag,
    pub(crate) name: &'a [u8],
    /// Without the white space around it.
    pub(crate) value: &'a [u8],
}

#[derive(Clone, Default)]
pub(crate) struct Head {
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    /// Of a request.
    method: Span,
    target: Span,
    /// Path and query; the same as the target unless that is in absolute form.
    path: Span,
    authority: Option<Span>,
    /// Of a response.
    status: u16,
    reason: Span,
    is_http10: bool,
    facts: Facts,
}

impl Head {
    /// Reads the request head that `bytes` begin with; how many they are, or `None` when there are more to come.
    pub(crate) fn parse_request(&mut self, bytes: &[u8], max: usize) -> Result<Option<usize>, Malformed> {
        let Some(skipped) = empty_lines(bytes)? else { return Ok(None) };
        let message = &bytes[skipped..];
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut []);
        let used = match request.parse_with_uninit_headers(message, &mut fields) {
            Ok(Status::Complete(used)) => used,
            Ok(Status::Partial) => return partial(message, max),
            Err(error) => return Err(malformed(error, message)),
        };
        let method = request.method.expect("a whole request has a method");
        let target = request.path.expect("a whole request has a target").as_bytes();
        // Two spaces and `HTTP/1.1`.
        if method.len() + target.len() + 10 > REQUEST_LINE_MAX {
            return Err(Malformed::RequestLine);
        }
        if skipped + used > max {
            return Err(Malformed::HeaderBytes);
        }
        self.start(&message[..used], request.version == Some(0));
        self.method = span_in(message, method.as_bytes());
        self.target = span_in(message, target);
        if !target.iter().all(|&byte| is_target(byte)) {
            return Err(Malformed::Target);
        }
        self.read_target()?;
        self.take(message, used, self.target.end as usize + 9, request.headers)?;
        Ok(Some(skipped + used))
    }

    /// The same for a response.
    pub(crate) fn parse_response(&mut self, bytes: &[u8], max: usize) -> Result<Option<usize>, Malformed> {
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let used = match config.parse_response_with_uninit_headers(&mut response, bytes, &mut fields) {
            Ok(Status::Complete(used)) => used,
            Ok(Status::Partial) if bytes.len() >= max => return Err(Malformed::HeaderBytes),
            Ok(Status::Partial) => return Ok(None),
            Err(error) => return Err(malformed(error, bytes)),
        };
        if used > max {
            return Err(Malformed::HeaderBytes);
        }
        self.start(&bytes[..used], response.version == Some(0));
        self.status = response.code.expect("a whole response has a status");
        let reason = response.reason.unwrap_or_default();
        self.reason = if reason.is_empty() { Span::default() } else { span_in(bytes, reason.as_bytes()) };
        // Origins that end lines with LF alone are read and written anew; nobody reads them a second time.
        for field in response.headers.iter() {
            self.push(bytes, field)?;
        }
        Ok(Some(used))
    }

    /// Whether a request keeps within bounds that are narrower than those of every request.
    pub(crate) fn check_size(&self, line_bytes_max: u16, fields_max: u8) -> Result<(), Malformed> {
        // Two spaces and `HTTP/1.1`.
        if self.at(self.method).len() + self.at(self.target).len() + 10 > usize::from(line_bytes_max) {
            return Err(Malformed::RequestLine);
        }
        if self.slots.len() > usize::from(fields_max) { Err(Malformed::HeaderFields) } else { Ok(()) }
    }

    pub(crate) fn method(&self) -> &[u8] {
        self.at(self.method)
    }

    /// Path and query, or `*`.
    pub(crate) fn path_and_query(&self) -> &str {
        std::str::from_utf8(self.at(self.path)).expect("checked when it was read")
    }

    /// As routes are compared with: without the query.
    pub(crate) fn path(&self) -> &str {
        let path = self.path_and_query();
        memchr(b'?', path.as_bytes()).map_or(path, |query| &path[..query])
    }

    /// What is behind the `?`.
    pub(crate) fn query(&self) -> &str {
        let target = self.path_and_query();
        memchr(b'?', target.as_bytes()).map_or("", |at| &target[at + 1..])
    }

    /// Lets it be a request for that path and query.
    pub(crate) fn set_path(&mut self, path: &str) {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(path.as_bytes());
        self.path = span(begin, self.bytes.len());
    }

    /// Lets it be a response with that status, without a reason.
    pub(crate) fn set_status(&mut self, status: u16) {
        self.status = status;
        self.reason = Span::default();
    }

    /// Takes the first `skip` bytes off the path and puts `add` in front of what is left, which is `/` at least.
    pub(crate) fn replace_path(&mut self, skip: usize, add: &str) {
        let rest = self.path.start as usize + skip..self.path.end as usize;
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(add.as_bytes());
        if self.bytes[rest.clone()].first() != Some(&b'/') {
            self.bytes.push(b'/');
        }
        self.bytes.extend_from_within(rest);
        self.path = span(begin, self.bytes.len());
    }

    /// Of a target in absolute form, or in authority form once that is taken as one.
    pub(crate) fn authority(&self) -> Option<&[u8]> {
        self.authority.map(|authority| self.at(authority))
    }

    /// Of a target that is nothing else (RFC 9112 §3.2.3).
    pub(crate) fn take_authority_form(&mut self) {
        self.authority = Some(self.target);
    }

    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    pub(crate) fn is_http10(&self) -> bool {
        self.is_http10
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) fn has(&self, tag: Tag) -> bool {
        self.facts.tags & tag.bit() != 0
    }

    pub(crate) fn count(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.slots.iter().map(|slot| Field {
            tag: slot.tag,
            name: self.at(slot.name),
            value: self.at(slot.value),
        })
    }

    /// The values of all fields of that kind.
    pub(crate) fn all(&self, tag: Tag) -> impl Iterator<Item = &[u8]> {
        self.iter().filter(move |field| field.tag == tag).map(|field| field.value)
    }

    /// The members of a list field over all its lines (RFC 9110 §5.6.1).
    pub(crate) fn tokens(&self, tag: Tag) -> impl Iterator<Item = &[u8]> {
        self.all(tag).flat_map(tokens)
    }

    /// The first value of that kind; nothing is looked at where there is none.
    pub(crate) fn get(&self, tag: Tag) -> Option<&[u8]> {
        if self.has(tag) { self.all(tag).next() } else { None }
    }

    /// Takes off every field of which `keep` says no.
    pub(crate) fn retain(&mut self, keep: impl Fn(Field<'_>) -> bool) {
        let Head { bytes, slots, .. } = self;
        slots.retain(|slot| {
            keep(Field { tag: slot.tag, name: at(bytes, slot.name), value: at(bytes, slot.value) })
        });
    }

    /// Adds a field behind all others, its value put together from parts.
    pub(crate) fn add(&mut self, name: &str, value: &[&[u8]]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name.as_bytes());
        let name_end = self.bytes.len();
        self.bytes.extend_from_slice(b": ");
        for part in value {
            self.bytes.extend_from_slice(part);
        }
        let end = self.bytes.len();
        self.bytes.extend_from_slice(b"\r\n");
        let slot = Slot {
            name: span(start, name_end),
            value: span(name_end + 2, end),
            tag: tag(name.as_bytes()),
            is_plain: true,
        };
        self.facts.tags |= slot.tag.bit();
        self.slots.push(slot);
    }

    /// The same with the first value of another field; whether there is one.
    pub(crate) fn add_copy(&mut self, name: &str, of: Tag) -> bool {
        let Some(slot) = self.slots.iter().find(|slot| slot.tag == of) else { return false };
        let value = slot.value.start as usize..slot.value.end as usize;
        self.add(name, &[]);
        // In front of the line end that has just been written.
        self.bytes.truncate(self.bytes.len() - 2);
        self.bytes.extend_from_within(value);
        let end = self.bytes.len();
        self.bytes.extend_from_slice(b"\r\n");
        let added = self.slots.last_mut().expect("it has just been added");
        added.value = span(added.value.start as usize, end);
        true
    }

    /// Lets the authority of a target be the host (RFC 9112 §3.2.2).
    pub(crate) fn settle_host(&mut self) {
        let Some(authority) = self.authority else { return };
        if !self.slots.iter().any(|slot| slot.tag == Tag::Host) {
            self.add("Host", &[]);
        }
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.tag == Tag::Host) {
            slot.value = authority;
            slot.is_plain = false;
        }
    }

    /// `GET /path HTTP/1.1`. RFC 9110 §2.5: an intermediary sends its own version.
    pub(crate) fn write_request_line(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.at(self.method));
        out.push(b' ');
        out.extend_from_slice(self.at(self.path));
        out.extend_from_slice(b" HTTP/1.1\r\n");
    }

    /// `HTTP/1.1 200 OK`, in the version of the client.
    pub(crate) fn write_status_line(&self, http10: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(if http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
        write_status(self.status, out);
        out.push(b' ');
        out.extend_from_slice(self.at(self.reason));
        out.extend_from_slice(b"\r\n");
    }

    /// The field lines. Neighbours that stand as they are written are copied in one go.
    pub(crate) fn write_fields(&self, out: &mut Vec<u8>) {
        let mut run = 0..0;
        for slot in &self.slots {
            let line = slot.name.start as usize..slot.value.end as usize + 2;
            if slot.is_plain && line.start == run.end {
                run.end = line.end;
                continue;
            }
            out.extend_from_slice(&self.bytes[std::mem::replace(&mut run, 0..0)]);
            if slot.is_plain {
                run = line;
            } else {
                out.extend_from_slice(self.at(slot.name));
                out.extend_from_slice(b": ");
                out.extend_from_slice(self.at(slot.value));
                out.extend_from_slice(b"\r\n");
            }
        }
        out.extend_from_slice(&self.bytes[run]);
    }

    /// Lets go of what an unusually large head needed.
    pub(crate) fn shrink(&mut self) {
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        }
    }

    fn start(&mut self, bytes: &[u8], is_http10: bool) {
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        self.slots.clear();
        self.authority = None;
        self.is_http10 = is_http10;
        self.facts = Facts::default();
    }

    /// Takes apart a target in absolute form (RFC 9112 §3.2.2). What is neither that nor a path is left for
    /// `headers` to judge.
    fn read_target(&mut self) -> Result<(), Malformed> {
        self.path = self.target;
        let target = self.at(self.target);
        if target.first() == Some(&b'/') {
            return if target.is_ascii() || std::str::from_utf8(target).is_ok() {
                Ok(())
            } else {
                Err(Malformed::Target)
            };
        }
        std::str::from_utf8(target).map_err(|_| Malformed::Target)?;
        let scheme = [&b"http://"[..], b"https://"].into_iter().find(|scheme| {
            target.len() >= scheme.len() && target[..scheme.len()].eq_ignore_ascii_case(scheme)
        });
        let Some(scheme) = scheme else { return Ok(()) };
        let start = self.target.start as usize + scheme.len();
        let rest = &target[scheme.len()..];
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
        let has_path = rest.get(end) == Some(&b'/');
        self.authority = Some(span(start, start + end));
        let path = start + end..self.target.end as usize;
        if has_path {
            self.path = span(path.start, path.end);
        } else {
            let begin = self.bytes.len();
            self.bytes.push(b'/');
            self.bytes.extend_from_within(path);
            self.path = span(begin, self.bytes.len());
        }
        Ok(())
    }

    /// Notes the fields of a request of `used` bytes. `line` is where the request line should end.
    fn take(
        &mut self,
        message: &[u8],
        used: usize,
        line: usize,
        fields: &[Header<'_>],
    ) -> Result<(), Malformed> {
        let mut ends_well = message[line..].starts_with(b"\r\n") && message[..used].ends_with(b"\r\n\r\n");
        for field in fields {
            let start = offset(message, field.name.as_bytes());
            ends_well &= message[..start].ends_with(b"\r\n");
            self.push(message, field)?;
        }
        if ends_well { Ok(()) } else { Err(Malformed::BareLineFeed) }
    }

    fn push(&mut self, message: &[u8], field: &Header<'_>) -> Result<(), Malformed> {
        let name = span_in(message, field.name.as_bytes());
        // An empty value may point anywhere.
        let value = if field.value.is_empty() {
            span(name.end as usize + 1, name.end as usize + 1)
        } else {
            span_in(message, field.value)
        };
        let end = value.end as usize;
        let is_plain = value.start == name.end + 2
            && message[name.end as usize + 1] == b' '
            && message.get(end..end + 2) == Some(b"\r\n");
        // Controls are refused while parsing; DEL is not in all parsers (RFC 9110 §5.5).
        if memchr(0x7f, field.value).is_some() {
            return Err(Malformed::Syntax);
        }
        let tag = tag(field.name.as_bytes());
        if tag != Tag::Other {
            self.facts.note(tag, field.value);
        }
        self.slots.push(Slot { name, value, tag, is_plain });
        Ok(())
    }

    fn at(&self, span: Span) -> &[u8] {
        at(&self.bytes, span)
    }
}

impl Tag {
    fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl Facts {
    fn note(&mut self, tag: Tag, value: &[u8]) {
        self.tags |= tag.bit();
        match tag {
            Tag::Host => self.hosts = self.hosts.saturating_add(1),
            Tag::ContentLength => {
                self.lengths = self.lengths.saturating_add(1);
                self.length = number(value);
            }
            Tag::TransferEncoding => {
                self.encodings = self.encodings.saturating_add(1);
                self.is_chunked = value.eq_ignore_ascii_case(b"chunked");
            }
            Tag::Connection => tokens(value).for_each(|token| self.options.note(token)),
            Tag::Other
            | Tag::KeepAlive
            | Tag::ProxyConnection
            | Tag::ProxyAuthenticate
            | Tag::ProxyAuthorization
            | Tag::Te
            | Tag::Upgrade
            | Tag::Http2Settings
            | Tag::Expect
            | Tag::Date
            | Tag::XForwarded
            | Tag::Forwarded
            | Tag::XRealIp => {}
        }
    }
}

impl Options {
    fn note(&mut self, token: &[u8]) {
        if token.eq_ignore_ascii_case(b"close") {
            self.close = true;
        } else if token.eq_ignore_ascii_case(b"keep-alive") {
            self.keep_alive = true;
        } else if token.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade = true;
        } else if !token.eq_ignore_ascii_case(b"te") {
            self.names = true;
        }
    }
}

/// The members of one line of a list.
pub(crate) fn tokens(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

pub(crate) fn tag(name: &[u8]) -> Tag {
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    let one = |known: &str, tag| if is(known) { tag } else { Tag::Other };
    match name.len() {
        2 => one("te", Tag::Te),
        4 if is("host") => Tag::Host,
        4 => one("date", Tag::Date),
        6 => one("expect", Tag::Expect),
        7 => one("upgrade", Tag::Upgrade),
        9 if is("forwarded") => Tag::Forwarded,
        9 => one("x-real-ip", Tag::XRealIp),
        10 if is("connection") => Tag::Connection,
        10 => one("keep-alive", Tag::KeepAlive),
        14 if is("content-length") => Tag::ContentLength,
        14 if is("http2-settings") => Tag::Http2Settings,
        16 if is("proxy-connection") => Tag::ProxyConnection,
        17 if is("transfer-encoding") => Tag::TransferEncoding,
        18 if is("proxy-authenticate") => Tag::ProxyAuthenticate,
        19 if is("proxy-authorization") => Tag::ProxyAuthorization,
        12.. if name[..12].eq_ignore_ascii_case(b"x-forwarded-") => Tag::XForwarded,
        _ => Tag::Other,
    }
}

/// Three digits; a status line has no others.
pub(crate) fn write_status(status: u16, out: &mut Vec<u8>) {
    let digit = |value: u16| b'0' + u8::try_from(value % 10).expect("a digit is small");
    out.extend_from_slice(&[digit(status / 100), digit(status / 10), digit(status)]);
}

/// Digits alone, unlike `u64::from_str`, which takes a `+` too.
fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// The bytes of empty lines in front of a request; `None` when that is all there is.
fn empty_lines(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut at = 0;
    loop {
        match bytes[at..] {
            [b'\r', b'\n', ..] if at == 2 * EMPTY_LINES_MAX => return Err(Malformed::EmptyLines),
            [b'\r', b'\n', ..] => at += 2,
            [] | [b'\r'] => return Ok(None),
            [b'\n', ..] => return Err(Malformed::BareLineFeed),
            [..] => return Ok(Some(at)),
        }
    }
}

/// Whether the end of a head may have come behind the first `scanned` bytes.
pub(crate) fn may_be_whole(bytes: &[u8], scanned: usize) -> bool {
    let from = scanned.saturating_sub(2);
    memchr::memchr_iter(b'\n', &bytes[from..])
        .any(|at| matches!(bytes[..from + at], [.., b'\n'] | [.., b'\n', b'\r']))
}

/// A head that is not all there may be known to be too long already.
pub(crate) fn partial(message: &[u8], max: usize) -> Result<Option<usize>, Malformed> {
    let line = memchr(b'\n', &message[..message.len().min(REQUEST_LINE_MAX)]);
    if line.is_none() && message.len() >= REQUEST_LINE_MAX {
        return Err(Malformed::RequestLine);
    }
    if message.len() >= max { Err(Malformed::HeaderBytes) } else { Ok(None) }
}

fn malformed(error: httparse::Error, message: &[u8]) -> Malformed {
    if matches!(error, httparse::Error::TooManyHeaders) {
        return Malformed::HeaderFields;
    }
    // Only the reason: whichever it is, the connection ends.
    match memchr(b'\n', message) {
        Some(end) if end == 0 || message[end - 1] != b'\r' => Malformed::BareLineFeed,
        Some(_) | None => Malformed::Syntax,
    }
}

/// What may stand in a target (RFC 3986 §2), and `"`, `[`, `]`, `\`, `^`, `{`, `|`, `}` and bytes of UTF-8, which
/// clients send although they should not and origins are used to.
fn is_target(byte: u8) -> bool {
    const FITS: [bool; 256] = {
        let mut fits = [false; 256];
        let mut byte = 0x21;
        while byte < 256 {
            fits[byte] = !matches!(byte, 0x23 | 0x3c | 0x3e | 0x60 | 0x7f);
            byte += 1;
        }
        fits
    };
    FITS[usize::from(byte)]
}

fn at(bytes: &[u8], span: Span) -> &[u8] {
    &bytes[span.start as usize..span.end as usize]
}

fn span_in(message: &[u8], part: &[u8]) -> Span {
    let start = offset(message, part);
    span(start, start + part.len())
}

/// Where in `message` a part of it begins.
fn offset(message: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr() - message.as_ptr().addr()
}

#[allow(clippy::cast_possible_truncation, reason = "the bytes of a head are bounded far below 2^32")]
fn span(start: usize, end: usize) -> Span {
    Span { start: start as u32, end: end as u32 }
}

#[cfg(test)]
mod tests;
