//! Heads of HTTP messages on their way through.

use http::Method;

use crate::http::{
    body::Framing,
    head::{FIELDS_MAX, Head},
    headers::{self, BadRequest, Onward, Outward, Seen},
};

const MAX: usize = 64 * 1024;

/// A field, its name in lower case.
type Field = (Vec<u8>, Vec<u8>);

/// What a message says before its body.
struct Message {
    line: Vec<u8>,
    fields: Vec<Field>,
}

/// The first byte says how the rest comes: as a request, as a response, or as the list of fields that HTTP/2 has.
///
/// What goes on reads strictly as the message that came: no field more than we add, none less than we take off, and
/// no more than one opinion about where it ends.
pub fn http_head(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 4 {
        0 => request(bytes, false),
        1 => request(bytes, true),
        2 => response(bytes),
        _ => list(bytes),
    }
}

fn request(bytes: &[u8], is_secure: bool) {
    let mut head = Head::default();
    let Ok(Some(used)) = head.parse_request(bytes, MAX) else { return };
    for n in [used / 3, used / 2, used - 1] {
        assert_eq!(Head::default().parse_request(&bytes[..n], MAX), Ok(None), "a part of a good head");
    }
    let mut message = &bytes[..used];
    while let Some(rest) = message.strip_prefix(b"\r\n") {
        message = rest;
    }
    let came = strict(message).expect("what is taken is strictly a head");
    assert_eq!(came.fields, fields_of(&head));
    let target = came.line.split(|byte| *byte == b' ').nth(1).expect("a target").to_vec();
    assert!(!target.contains(&b'#'));
    forwarded(&mut head, &came, is_secure);
}

/// Lines of `name: value` behind one of method and target.
fn list(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut words = lines.next().unwrap_or_default().splitn(2, |byte| *byte == b' ');
    let mut request = http::Request::builder()
        .method(words.next().unwrap_or_default())
        .uri(words.next().unwrap_or_default());
    for line in lines {
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':').unwrap_or(line.len()));
        request = request.header(name, value.get(1..).unwrap_or_default());
    }
    let Ok((parts, ())) = request.body(()).map(http::Request::into_parts) else { return };
    let mut head = Head::default();
    if head.take_request(&parts, bytes.len().is_multiple_of(2), MAX).is_err() {
        return;
    }
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let line = format!("{} {path} HTTP/1.1", parts.method).into_bytes();
    let came = Message { line, fields: fields_of(&head) };
    forwarded(&mut head, &came, true);
}

/// Checks what becomes of a request.
fn forwarded(head: &mut Head, came: &Message, is_secure: bool) {
    let Ok(method) = Method::from_bytes(head.method()) else { return };
    let Ok(body) = checked(head, &method) else { return };
    if method == Method::CONNECT {
        head.take_authority_form();
    }
    let upgrade = method != Method::CONNECT && headers::is_upgrade(head);
    let seen = Seen::new("192.0.2.7:4711".parse().expect("an address"), 8080, is_secure);
    let host = head.authority().map(<[u8]>::to_vec).or_else(|| value_of(came, "host"));
    headers::sanitize_request(head, &seen, Onward { upgrade, body });
    let mut out = Vec::new();
    head.write_request_line(&mut out);
    head.write_fields(&mut out);
    out.extend_from_slice(b"\r\n");
    let shown = out.escape_ascii().to_string();
    let went = strict(&out).unwrap_or_else(|| panic!("not strictly a head: {shown}"));

    assert_eq!(went.line, line_of(&came.line), "{shown}");
    let named = named(came);
    let kept = came.fields.iter().filter(|(name, _)| {
        let is_named = named.contains(name) && *name != b"host" && *name != b"content-length";
        !is_named && stays(name) && (*name != b"expect" || body != Framing::Length(0))
    });
    let kept = kept.cloned().map(|(name, value)| match &host {
        Some(host) if name == b"host" => (name, host.clone()),
        Some(_) | None => (name, value),
    });
    let kept: Vec<Field> = kept.collect();
    let (same, added) = went.fields.split_at(kept.len().min(went.fields.len()));
    assert_eq!(same, kept, "{shown}");
    let ours: [&[u8]; 8] = [
        b"host",
        b"x-forwarded-host",
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-forwarded-port",
        b"transfer-encoding",
        b"connection",
        b"te",
    ];
    let upgraded = added.iter().filter(|(name, _)| name == b"upgrade").count();
    assert_eq!(upgraded, usize::from(upgrade), "{shown}");
    let is_ours = |name: &Vec<u8>| ours.contains(&name.as_slice()) || name == b"upgrade";
    assert!(added.iter().all(|(name, _)| is_ours(name)), "{shown}");

    assert_eq!(values(&went, "host").len(), 1, "{shown}");
    assert_eq!(value_of(&went, "host").unwrap_or_default(), host.unwrap_or_default(), "{shown}");
    assert_eq!(values(&went, "x-forwarded-for"), [b"192.0.2.7"], "{shown}");
    let (lengths, encodings) = (values(&went, "content-length"), values(&went, "transfer-encoding"));
    match body {
        Framing::Length(0) => assert!(encodings.is_empty() && lengths.iter().all(|l| is_zero(l)), "{shown}"),
        Framing::Length(_) => assert!(encodings.is_empty() && lengths.len() == 1, "{shown}"),
        Framing::Chunked | Framing::UntilClose => {
            assert!(encodings == [b"chunked"] && lengths.is_empty(), "{shown}");
        }
    }
    let mut again = Head::default();
    if went.fields.len() <= FIELDS_MAX && value_of(&went, "host").is_some_and(|host| !host.is_empty()) {
        assert_eq!(again.parse_request(&out, 2 * MAX), Ok(Some(out.len())), "{shown}");
        let checked = checked(&again, &method);
        let framing = if body == Framing::UntilClose { Framing::Chunked } else { body };
        assert_eq!(checked, Ok(framing), "{shown}");
    }
}

/// As where a route takes CONNECT, which has no body and names its host in one way only.
fn checked(head: &Head, method: &Method) -> Result<Framing, BadRequest> {
    if *method != Method::CONNECT {
        return headers::check_request(head, method);
    }
    assert_eq!(headers::check_request(head, method), Err(BadRequest::Connect), "never unasked");
    headers::check_connect(head)?;
    let (name, port) = head.path_and_query().rsplit_once(':').expect("host:port");
    assert!(port.parse::<u16>().is_ok_and(|port| port > 0), "{port}");
    let of = |host| headers::without_port(host).to_ascii_lowercase();
    assert_eq!(of(headers::host_of(head)), of(name));
    Ok(Framing::Length(0))
}

fn response(bytes: &[u8]) {
    let mut head = Head::default();
    let Ok(Some(_)) = head.parse_response(bytes, MAX) else { return };
    let bodiless = bytes.len().is_multiple_of(2);
    let Ok(framing) = headers::check_response(&head, bodiless) else { return };
    let came = Message { line: Vec::new(), fields: fields_of(&head) };
    let status = head.status();
    let chunked = !bodiless && matches!(framing, Framing::Chunked | Framing::UntilClose);
    let outward = Outward { upgrade: false, chunked, connection: Some("close"), date: b"now" };
    headers::sanitize_response(&mut head, &outward);
    let mut out = Vec::new();
    head.write_status_line(false, &mut out);
    head.write_fields(&mut out);
    out.extend_from_slice(b"\r\n");
    let shown = out.escape_ascii().to_string();
    let went = strict(&out).unwrap_or_else(|| panic!("not strictly a head: {shown}"));
    assert!(went.line.starts_with(format!("HTTP/1.1 {status:03} ").as_bytes()), "{shown}");
    let (lengths, encodings) = (values(&went, "content-length"), values(&went, "transfer-encoding"));
    assert_eq!(encodings.len(), usize::from(chunked), "{shown}");
    assert!(lengths.len() <= usize::from(!chunked), "{shown}");
    assert_eq!(values(&went, "connection"), [b"close"], "{shown}");
    let named = named(&came);
    let may_stay = |field: &&Field| !named.contains(&field.0) && came.fields.contains(field);
    let stayed = went.fields.iter().filter(may_stay).count();
    let is_ours =
        |(name, _): &&Field| [&b"date"[..], b"transfer-encoding", b"connection"].contains(&name.as_slice());
    let others = went.fields.iter().filter(|field| !may_stay(field));
    assert!(others.clone().all(|field| is_ours(&field) || field.0 == b"content-length"), "{shown}");
    assert!(stayed + others.count() == went.fields.len());
    if went.fields.len() <= FIELDS_MAX {
        assert_eq!(Head::default().parse_response(&out, 2 * MAX), Ok(Some(out.len())), "{shown}");
    }
}

/// Read by the letter of RFC 9112 §2-§5: lines that end with CRLF, of which the last is empty.
fn strict(bytes: &[u8]) -> Option<Message> {
    let mut lines = Vec::new();
    let mut rest = bytes;
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let (line, behind) = (&rest[..end], &rest[end + 2..]);
        if line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            return None;
        }
        rest = behind;
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let (line, fields) = lines.split_first()?;
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let is_text = |byte: &u8| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f;
    let field = |line: &&[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let fits = !name.is_empty() && name.iter().all(is_token) && value.iter().all(is_text);
        fits.then(|| (name.to_ascii_lowercase(), value.to_vec()))
    };
    let fields = fields.iter().map(field).collect::<Option<Vec<_>>>()?;
    (rest.is_empty() && line.iter().all(is_text)).then(|| Message { line: line.to_vec(), fields })
}

fn fields_of(head: &Head) -> Vec<Field> {
    head.iter().map(|field| (field.name.to_ascii_lowercase(), field.value.to_vec())).collect()
}

fn values<'a>(message: &'a Message, name: &str) -> Vec<&'a [u8]> {
    let named = message.fields.iter().filter(|(found, _)| found == name.as_bytes());
    named.map(|(_, value)| value.as_slice()).collect()
}

fn value_of(message: &Message, name: &str) -> Option<Vec<u8>> {
    values(message, name).first().map(|value| value.to_vec())
}

/// The fields that `Connection` names.
fn named(message: &Message) -> Vec<Vec<u8>> {
    let members = values(message, "connection").into_iter().flat_map(|line| line.split(|byte| *byte == b','));
    members.map(|member| member.trim_ascii().to_ascii_lowercase()).collect()
}

/// Whether a field of a request is anybody's but this hop's.
fn stays(name: &[u8]) -> bool {
    let gone: [&[u8]; 11] = [
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"forwarded",
        b"x-real-ip",
    ];
    !gone.contains(&name) && !name.starts_with(b"x-forwarded-")
}

fn is_zero(length: &[u8]) -> bool {
    !length.is_empty() && length.iter().all(|byte| *byte == b'0')
}

/// The request line as it goes on: path and query alone, in the version that is ours.
fn line_of(came: &[u8]) -> Vec<u8> {
    let words: Vec<&[u8]> = came.split(|byte| *byte == b' ').collect();
    let target = words[1];
    let lower = target.to_ascii_lowercase();
    let path = match [&b"http://"[..], b"https://"].into_iter().find(|scheme| lower.starts_with(scheme)) {
        None => target.to_vec(),
        Some(scheme) => {
            let rest = &target[scheme.len()..];
            let path =
                rest.iter().position(|byte| matches!(byte, b'/' | b'?')).map_or(&b""[..], |at| &rest[at..]);
            if path.starts_with(b"/") { path.to_vec() } else { [b"/", path].concat() }
        }
    };
    [words[0], &path, b"HTTP/1.1"].join(&b' ')
}
