use proptest::prelude::*;

use super::*;

fn request(target: &str, fields: &str) -> Head {
    let mut head = Head::default();
    let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    assert_eq!(head.parse_request(text.as_bytes(), 99_999), Ok(Some(text.len())), "{text}");
    head
}

fn written(head: &Head) -> String {
    let mut out = Vec::new();
    head.write_request_line(&mut out);
    head.write_fields(&mut out);
    out.extend_from_slice(b"\r\n");
    String::from_utf8(out).unwrap()
}

fn rewrite(strip: &str, add: &str) -> Rewrite {
    let some = |text: &str| (text != "-").then(|| text.to_owned());
    Rewrite::compile(&RewriteConfig { strip_prefix: some(strip), add_prefix: some(add) }).unwrap()
}

#[test]
fn a_prefix_comes_off_in_whole_segments_and_another_goes_in_front() {
    for (strip, add, target, expected) in [
        ("/v1", "-", "/v1/x", "/x"),
        ("/v1", "-", "/v1", "/"),
        ("/v1/", "-", "/v1", "/"),
        ("/v1", "-", "/v1/", "/"),
        ("/v1", "-", "/v1?a=/v1/b", "/?a=/v1/b"),
        ("/v1", "-", "/v1/?a", "/?a"),
        ("/v1", "-", "/v10/x", "/v10/x"),
        ("/v1", "-", "/a/v1/x", "/a/v1/x"),
        ("/v1", "-", "/V1/x", "/V1/x"),
        ("/v1", "-", "/%761/x", "/%761/x"),
        ("/v1", "-", "/v1//x", "//x"),
        ("-", "/app", "/", "/app/"),
        ("-", "/app/", "/x?q", "/app/x?q"),
        ("/v1", "/app", "/v1/x", "/app/x"),
        ("/v1", "/app", "/v1", "/app/"),
        ("/v1", "/app", "/v1?q", "/app/?q"),
        ("/v1", "/app", "/other", "/app/other"),
        ("/", "/", "/x", "/x"),
        ("/v1", "/app", "http://h/v1/x", "/app/x"),
        ("/v1", "/app", "http://h?q", "/app/?q"),
    ] {
        let mut head = request(target, "");
        rewrite(strip, add).apply(&mut head);
        assert_eq!(head.path_and_query(), expected, "-{strip} +{add} {target}");
        assert!(written(&head).starts_with(&format!("GET {expected} HTTP/1.1\r\n")));
    }
    let mut head = Head::default();
    head.parse_request(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 999).unwrap();
    rewrite("/v1", "/app").apply(&mut head);
    assert_eq!(head.path_and_query(), "*");
}

fn edits(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> Result<Edits, EditError> {
    let pairs =
        |list: &[(&str, &str)]| list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    Edits::compile(&EditConfig {
        set: pairs(set),
        add: pairs(add),
        remove: remove.iter().map(|name| (*name).to_owned()).collect(),
    })
}

#[test]
fn fields_are_taken_off_then_set_then_added() {
    let edits = edits(&[("X-Set", "new")], &[("X-Add", "more"), ("X-Gone", "back")], &["x-gone"]).unwrap();
    let mut head = request("/", "x-set: 1\r\nX-SET: 2\r\nx-add: first\r\nX-Gone: 1\r\nx-kept: 1\r\n");
    edits.apply(&mut head);
    let expected = "GET / HTTP/1.1\r\nHost: h\r\nx-add: first\r\nx-kept: 1\r\nX-Set: new\r\nX-Add: more\r\n\
        X-Gone: back\r\n\r\n";
    assert_eq!(written(&head), expected);
}

#[test]
fn what_frames_a_message_or_ends_a_line_is_refused() {
    for name in [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "CONNECTION",
        "keep-alive",
        "te",
        "Trailer",
        "upgrade",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "http2-settings",
        "expect",
    ] {
        let framing = EditError::Framing(name.to_owned());
        assert_eq!(edits(&[(name, "x")], &[], &[]).unwrap_err(), framing);
        assert_eq!(edits(&[], &[(name, "x")], &[]).unwrap_err(), framing);
        assert_eq!(edits(&[], &[], &[name]).unwrap_err(), framing);
    }
    for name in ["", "a b", "a:", ":path", "ä", "a\r\nb"] {
        assert_eq!(edits(&[(name, "x")], &[], &[]).unwrap_err(), EditError::Name(name.to_owned()));
        assert_eq!(edits(&[], &[], &[name]).unwrap_err(), EditError::Name(name.to_owned()));
    }
    let long = "x".repeat(5000);
    for value in ["a\r\nb: c", "a\nb", "a\rb", "a\0b", "\x7f", " a", "a ", "\ta", "ä", &long] {
        assert_eq!(
            edits(&[("x", value)], &[], &[]).unwrap_err(),
            EditError::Value("x".to_owned()),
            "{value:?}"
        );
    }
    for value in ["", "a b", "a\tb", "\"q\", w/\"x\""] {
        assert!(edits(&[("x", value)], &[], &[]).is_ok(), "{value:?}");
    }
    let many = vec![("x", "y"); 51];
    assert_eq!(edits(&many, &[], &[]).unwrap_err(), EditError::TooMany(51));
    for prefix in ["", "v1", "/a b", "/a?b", "/a#b", "/ä", "/a\r\nb"] {
        let config = RewriteConfig { strip_prefix: Some(prefix.to_owned()), add_prefix: None };
        assert_eq!(Rewrite::compile(&config).unwrap_err(), EditError::Prefix(prefix.to_owned()));
    }
}

proptest! {
    /// Whatever is accepted as an edit, the head that it makes reads back as the same head.
    #[test]
    fn an_edited_request_reparses_strictly_to_the_same_message(
        target in "/[!-~]{0,20}", name in "[!-~]{1,8}", value in "[ -~\t\u{0}-\u{2}\r\n]{0,12}",
        strip in "/[a-c]{0,2}", add in "/[!-~]{0,8}",
    ) {
        let mut head = Head::default();
        let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        prop_assume!(head.parse_request(text.as_bytes(), 9999).is_ok_and(|used| used == Some(text.len())));
        let config = RewriteConfig { strip_prefix: Some(strip), add_prefix: Some(add) };
        if let Ok(rewrite) = Rewrite::compile(&config) {
            rewrite.apply(&mut head);
        }
        let edits = edits(&[(&name, &value)], &[], &[]);
        let fields = 1 + usize::from(edits.is_ok());
        if let Ok(edits) = &edits {
            edits.apply(&mut head);
        }
        let text = written(&head);
        let mut again = Head::default();
        prop_assert_eq!(again.parse_request(text.as_bytes(), 9999), Ok(Some(text.len())), "{}", text);
        prop_assert_eq!(again.iter().count(), fields, "{}", &text);
        prop_assert_eq!(written(&again), text);
        prop_assert_eq!(again.path_and_query(), head.path_and_query());
        if edits.is_ok() {
            let last = again.iter().last().unwrap();
            prop_assert_eq!((last.name, last.value), (name.as_bytes(), value.as_bytes()));
        }
    }
}
