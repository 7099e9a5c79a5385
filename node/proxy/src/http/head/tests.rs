use super::*;

const MAX: usize = 64 * 1024;

/// Reads `text` whole and then every part of it: no part of a good head may be refused, none of a bad one taken.
#[track_caller]
fn check(text: &str, want: Option<Malformed>) {
    let mut head = Head::default();
    let bytes = text.as_bytes();
    match want {
        None => assert_eq!(head.parse_request(bytes, MAX), Ok(Some(bytes.len())), "{text:?}"),
        Some(malformed) => assert_eq!(head.parse_request(bytes, MAX), Err(malformed), "{text:?}"),
    }
    for end in (0..bytes.len()).take(300) {
        match head.parse_request(&bytes[..end], MAX) {
            Ok(used) => assert_eq!(used, None, "{:?}", &text[..end]),
            Err(_) => assert!(want.is_some(), "{:?}", &text[..end]),
        }
    }
}

#[test]
fn a_head_that_two_could_read_differently_is_none() {
    use Malformed::*;
    let head = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    for (fields, want) in [
        ("", None),
        ("x:\r\n", None),
        ("x: \"\u{e9}\"\t \r\n", None),
        ("x : 1\r\n", Some(Syntax)),
        ("x\u{e9}: 1\r\n", Some(Syntax)),
        ("x y: 1\r\n", Some(Syntax)),
        ("x\r\n", Some(Syntax)),
        (": 1\r\n", Some(Syntax)),
        ("x: 1\r\n y: 2\r\n", Some(Syntax)),
        ("x: 1\r\n\ttransfer-encoding: chunked\r\n", Some(Syntax)),
        ("x: 1\ny: 2\r\n", Some(BareLineFeed)),
        ("x: 1\n", Some(BareLineFeed)),
        ("x: 1\ry: 2\r\n", Some(Syntax)),
        ("x: 1\r\r\n", Some(Syntax)),
        ("x: 1\0\r\n", Some(Syntax)),
        ("x: 1\x0b\r\n", Some(Syntax)),
        ("x: 1\x7f\r\n", Some(Syntax)),
    ] {
        check(&head(fields), want);
    }
    for (line, want) in [
        ("GET / HTTP/1.0", None),
        ("GET /\u{e9}\"{}|\\^[] HTTP/1.1", None),
        ("GET  / HTTP/1.1", Some(Syntax)),
        ("GET /  HTTP/1.1", Some(Syntax)),
        ("GET\t/ HTTP/1.1", Some(Syntax)),
        (" GET / HTTP/1.1", Some(Syntax)),
        ("G(T / HTTP/1.1", Some(Syntax)),
        ("GET / HTTP/1.2", Some(Syntax)),
        ("GET / HTTP/2.0", Some(Syntax)),
        ("GET / http/1.1", Some(Syntax)),
        ("GET /", Some(Syntax)),
        ("GET /a#b HTTP/1.1", Some(Target)),
        ("GET /a<b HTTP/1.1", Some(Target)),
        ("GET http://a/b#c HTTP/1.1", Some(Target)),
    ] {
        check(&format!("{line}\r\nhost: a\r\n\r\n"), want);
    }
    check("GET / HTTP/1.1\nhost: a\r\n\r\n", Some(BareLineFeed));
    check("GET / HTTP/1.1\r\nhost: a\r\n\n", Some(BareLineFeed));
    check("GET / HTTP/1.1\n\n", Some(BareLineFeed));
    check("\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", None);
    check("\r\n\r\n\r\nGET", Some(EmptyLines));
    check("\nGET / HTTP/1.1\r\n\r\n", Some(BareLineFeed));
    let bytes = b"GET /\xff HTTP/1.1\r\n\r\n";
    assert_eq!(Head::default().parse_request(bytes, MAX), Err(Malformed::Syntax), "not even UTF-8");
}

#[test]
fn heads_are_bounded_in_every_direction() {
    let line = |bytes: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(bytes - 14));
    check(&line(REQUEST_LINE_MAX), None);
    check(&line(REQUEST_LINE_MAX + 1), Some(Malformed::RequestLine));
    let endless = "x".repeat(REQUEST_LINE_MAX);
    check(&endless, Some(Malformed::RequestLine));
    let fields = "a: b\r\n".repeat(FIELDS_MAX);
    check(&format!("GET / HTTP/1.1\r\n{fields}\r\n"), None);
    check(&format!("GET / HTTP/1.1\r\n{fields}a: b\r\n\r\n"), Some(Malformed::HeaderFields));
    let huge = "y".repeat(MAX);
    check(&format!("GET / HTTP/1.1\r\nx: {huge}\r\n\r\n"), Some(Malformed::HeaderBytes));
    check(&format!("GET / HTTP/1.1\r\nx: {huge}"), Some(Malformed::HeaderBytes));
}

#[test]
fn the_end_of_a_head_is_found_wherever_the_reads_end() {
    for text in ["GET / HTTP/1.1\r\nhost: a\r\n\r\n", "GET / HTTP/1.1\nhost: a\n\n"] {
        for scanned in 1..text.len() {
            assert!(may_be_whole(text.as_bytes(), scanned), "{scanned} of {text:?}");
            assert!(!may_be_whole(&text.as_bytes()[..text.len() - 1], scanned), "{scanned} of {text:?}");
        }
    }
}

#[test]
fn a_number_is_digits_that_fit() {
    for (value, want) in [
        ("0", Some(0)),
        ("007", Some(7)),
        ("18446744073709551615", Some(u64::MAX)),
        ("18446744073709551616", None),
        ("", None),
        ("+1", None),
        ("-1", None),
        ("1 ", None),
        ("1,1", None),
        ("0x1", None),
    ] {
        assert_eq!(number(value.as_bytes()), want, "{value}");
    }
}

#[test]
fn every_known_name_is_known_in_any_case_and_nothing_else_is() {
    let known = [
        ("Host", Tag::Host),
        ("Content-Length", Tag::ContentLength),
        ("Transfer-Encoding", Tag::TransferEncoding),
        ("Connection", Tag::Connection),
        ("Keep-Alive", Tag::KeepAlive),
        ("Proxy-Connection", Tag::ProxyConnection),
        ("Proxy-Authenticate", Tag::ProxyAuthenticate),
        ("Proxy-Authorization", Tag::ProxyAuthorization),
        ("TE", Tag::Te),
        ("Upgrade", Tag::Upgrade),
        ("HTTP2-Settings", Tag::Http2Settings),
        ("Expect", Tag::Expect),
        ("Date", Tag::Date),
        ("X-Forwarded-For", Tag::XForwarded),
        ("X-Forwarded-Anything-Else-At-All", Tag::XForwarded),
        ("Forwarded", Tag::Forwarded),
        ("X-Real-IP", Tag::XRealIp),
    ];
    for (name, want) in known {
        for name in [name.to_owned(), name.to_ascii_lowercase(), name.to_ascii_uppercase()] {
            assert_eq!(tag(name.as_bytes()), want, "{name}");
            assert_eq!(tag(&name.as_bytes()[1..]), Tag::Other, "{name}");
        }
    }
}
