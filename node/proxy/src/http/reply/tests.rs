use super::*;

fn location(config: RedirectConfig, request: &str, is_secure: bool) -> Option<String> {
    let (target, host) = request.split_once(' ').unwrap();
    let mut head = Head::default();
    let host = if host == "-" { String::new() } else { format!("Host: {host}\r\n") };
    let version = if host.is_empty() { "1.0" } else { "1.1" };
    let text = format!("GET {target} HTTP/{version}\r\n{host}\r\n");
    assert_eq!(head.parse_request(text.as_bytes(), 9999), Ok(Some(text.len())));
    let seen = Seen::new("192.0.2.1:1".parse().unwrap(), 80, is_secure);
    let reply = Reply::redirect(&config).unwrap();
    let answer = reply.answer(&head, &seen)?;
    let text = String::from_utf8(answer.fields.clone()).unwrap();
    Some(text.strip_prefix("Location: ").unwrap().strip_suffix("\r\n").unwrap().to_owned())
}

#[test]
fn a_redirect_keeps_what_it_does_not_change() {
    let some = |text: &str| (text != "-").then(|| text.to_owned());
    for (scheme, host, port, path, request, expected) in [
        ("https", "-", None, "-", "/a?b=c a.example", "https://a.example/a?b=c"),
        ("https", "-", None, "-", "/ a.example:8080", "https://a.example/"),
        ("https", "-", Some(8443), "-", "/ a.example:8080", "https://a.example:8443/"),
        ("https", "-", Some(443), "-", "/ a.example:8080", "https://a.example/"),
        ("https", "-", None, "-", "/ [::1]:80", "https://[::1]/"),
        ("https", "-", Some(8443), "-", "/ [::1]", "https://[::1]:8443/"),
        ("-", "b.example", None, "-", "/a a.example:8080", "http://b.example/a"),
        ("-", "b.example", Some(8080), "-", "/a a.example", "http://b.example:8080/a"),
        ("-", "-", None, "/new", "/old?q a.example:8080", "http://a.example:8080/new?q"),
        ("-", "-", None, "/new?x", "/old?q a.example", "http://a.example/new?x"),
        ("-", "-", None, "/new", "//evil.example/ a.example", "http://a.example/new"),
        (
            "https",
            "-",
            None,
            "-",
            "//evil.example/%0d%0a a.example",
            "https://a.example//evil.example/%0d%0a",
        ),
        ("https", "-", None, "-", "http://b.example/x a.example", "https://b.example/x"),
        ("http", "-", None, "-", "/x a.example:81", "http://a.example:81/x"),
    ] {
        let config = RedirectConfig {
            scheme: some(scheme),
            host: some(host),
            port,
            path: some(path),
            ..Default::default()
        };
        assert_eq!(location(config, request, false).as_deref(), Some(expected), "{request}");
    }
    let path = || RedirectConfig { path: Some("/new".to_owned()), ..Default::default() };
    assert_eq!(location(path(), "/ a", true).as_deref(), Some("https://a/new"));
    assert_eq!(location(path(), "/ -", true), None, "HTTP/1.0 may not say where it is");
}

#[test]
fn what_cannot_be_answered_is_refused() {
    let redirect = |change: fn(&mut RedirectConfig)| {
        let mut config = RedirectConfig { path: Some("/x".to_owned()), ..Default::default() };
        change(&mut config);
        Reply::redirect(&config).map(drop)
    };
    assert_eq!(redirect(|_| ()), Ok(()));
    assert_eq!(redirect(|to| to.status = 200), Err(EditError::Status(200, "redirect")));
    assert_eq!(redirect(|to| to.path = None), Err(EditError::Loop));
    assert_eq!(redirect(|to| to.scheme = Some("ftp".into())), Err(EditError::Scheme("ftp".into())));
    for host in ["", "a:80", "a b", "a/b", "a\r\nb", "u@h"] {
        let config = RedirectConfig { host: Some(host.to_owned()), ..Default::default() };
        assert_eq!(Reply::redirect(&config).map(drop), Err(EditError::Host(host.to_owned())));
    }
    for path in ["", "x", "/a b", "/\r\nx", "/ä", "/a#b"] {
        let config = RedirectConfig { path: Some(path.to_owned()), ..Default::default() };
        assert_eq!(Reply::redirect(&config).map(drop), Err(EditError::Path(path.to_owned())));
    }
    let respond = |status, body: &str, headers: &[(&str, &str)]| {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Reply::fixed(&RespondConfig { status, headers, body: body.to_owned() }).map(drop)
    };
    assert_eq!(respond(418, "short and stout\n", &[]), Ok(()));
    assert_eq!(respond(204, "", &[("x", "y")]), Ok(()));
    assert_eq!(respond(204, "x", &[]), Err(EditError::Body(204)));
    assert_eq!(respond(101, "", &[]), Err(EditError::Status(101, "response")));
    assert_eq!(respond(600, "", &[]), Err(EditError::Status(600, "response")));
    assert_eq!(
        respond(200, "", &[("content-length", "7")]),
        Err(EditError::Framing("content-length".into()))
    );
    assert_eq!(respond(200, "", &[("x", "a\r\nb")]), Err(EditError::Value("x".into())));
}

#[test]
fn an_answer_is_whole_and_without_a_length_where_there_may_be_none() {
    let write = |status, headers: &[(String, String)], body: &str, connection| {
        let config = RespondConfig { status, headers: headers.to_vec(), body: body.to_owned() };
        let Reply::Fixed(answer) = Reply::fixed(&config).unwrap() else { panic!("it is fixed") };
        let mut out = Vec::new();
        let head = answer.write(b"now", connection, &mut out);
        assert!(out[..head].ends_with(b"\r\n\r\n"));
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        write(418, &[], "stout\n", Some("close")),
        "HTTP/1.1 418 I'm a teapot\r\nContent-Type: text/plain\r\nDate: now\r\nContent-Length: 6\r\n\
            Connection: close\r\n\r\nstout\n"
    );
    let html = [("content-type".to_owned(), "text/html".to_owned())];
    assert_eq!(
        write(299, &html, "<p>", None),
        "HTTP/1.1 299 \r\ncontent-type: text/html\r\nDate: now\r\nContent-Length: 3\r\n\r\n<p>"
    );
    assert_eq!(write(204, &[], "", None), "HTTP/1.1 204 No Content\r\nDate: now\r\n\r\n");
    assert_eq!(write(200, &[], "", None), "HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 0\r\n\r\n");
}
