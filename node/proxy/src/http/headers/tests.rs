use super::*;

const MAX: usize = 64 * 1024;

/// A request as it is written, one field a line.
fn wire(text: &str) -> String {
    format!("{}\r\n\r\n", text.replace('\n', "\r\n"))
}

fn request(text: &str) -> Head {
    let (text, mut head) = (wire(text), Head::default());
    assert_eq!(head.parse_request(text.as_bytes(), MAX), Ok(Some(text.len())), "{text}");
    head
}

fn check_request(head: &Head) -> Result<Framing, BadRequest> {
    super::check_request(head, &Method::from_bytes(head.method()).unwrap())
}

/// What goes out.
fn written(head: &Head) -> String {
    let mut out = Vec::new();
    head.write_request_line(&mut out);
    head.write_fields(&mut out);
    out.extend_from_slice(b"\r\n");
    String::from_utf8(out).unwrap()
}

/// Fields sorted, names in lower case, without those that a test of its own is for.
fn fields(head: &Head, without: &[Tag]) -> String {
    let mut lines: Vec<String> = head
        .iter()
        .filter(|field| !without.contains(&field.tag))
        .map(|field| {
            let name = String::from_utf8(field.name.to_ascii_lowercase()).unwrap();
            format!("{name}: {}", String::from_utf8(field.value.to_vec()).unwrap())
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

const CLIENT: &str = "192.0.2.7:4711";

/// What `sanitize_request` makes of a request, without the four fields that are always added (they have a test).
fn forwarded(text_in: &str) -> String {
    let mut head = request(text_in);
    let body = check_request(&head).unwrap();
    let upgrade = is_upgrade(&head);
    sanitize_request(&mut head, &Seen::new(CLIENT.parse().unwrap(), 8080, false), Onward { upgrade, body });
    // What goes out must read strictly as the same message, or the next proxy may see another one.
    let out = written(&head);
    let mut again = Head::default();
    assert_eq!(again.parse_request(out.as_bytes(), MAX), Ok(Some(out.len())), "{out}");
    assert_eq!(written(&again), out);
    if again.get(Tag::Host) != Some(b"") {
        assert_eq!(check_request(&again), Ok(body), "{text_in}");
    }
    let line = out.lines().next().unwrap();
    format!("{line}\n{}", fields(&again, &[Tag::XForwarded]))
}

#[test]
fn ambiguous_requests_are_refused_with_the_reason() {
    use BadRequest::*;
    for (text, expected) in [
        ("GET / HTTP/1.1\nHost: a", Ok(())),
        ("GET /p?q HTTP/1.1\nHost: a.b-c_d:80", Ok(())),
        ("GET / HTTP/1.1\nHost: [::1]:80", Ok(())),
        ("GET / HTTP/1.1\nHost: [::ffff:1.2.3.4]", Ok(())),
        ("OPTIONS * HTTP/1.1\nHost: a", Ok(())),
        ("GET http://a/ HTTP/1.1\nHost: b", Ok(())),
        ("GET / HTTP/1.0", Ok(())),
        ("GET / HTTP/1.0\nHost: a", Ok(())),
        ("PURGE / HTTP/1.1\nHost: a", Ok(())),
        // Host.
        ("GET / HTTP/1.1", Err(NoHost)),
        ("GET http://a/ HTTP/1.1", Err(NoHost)),
        ("GET / HTTP/1.1\nHost: a\nHost: a", Err(ManyHosts)),
        ("GET / HTTP/1.1\nHost: a\nhOST: b", Err(ManyHosts)),
        ("GET / HTTP/1.0\nHost: a\nHost: b", Err(ManyHosts)),
        ("GET / HTTP/1.1\nHost:", Err(Host)),
        ("GET / HTTP/1.1\nHost: :80", Err(Host)),
        ("GET / HTTP/1.1\nHost: a, b", Err(Host)),
        ("GET / HTTP/1.1\nHost: a,b", Err(Host)),
        ("GET / HTTP/1.1\nHost: a b", Err(Host)),
        ("GET / HTTP/1.1\nHost: u@a", Err(Host)),
        ("GET / HTTP/1.1\nHost: a/b", Err(Host)),
        ("GET / HTTP/1.1\nHost: http://a", Err(Host)),
        ("GET / HTTP/1.1\nHost: a:b", Err(Host)),
        ("GET / HTTP/1.1\nHost: a:80:80", Err(Host)),
        ("GET / HTTP/1.1\nHost: [::1", Err(Host)),
        ("GET / HTTP/1.1\nHost: []", Err(Host)),
        ("GET / HTTP/1.1\nHost: [::1]x", Err(Host)),
        ("GET / HTTP/1.1\nHost: [::1%25eth0]", Err(Host)),
        // Target.
        ("CONNECT a:80 HTTP/1.1\nHost: a:80", Err(Connect)),
        ("GET a:80 HTTP/1.1\nHost: a", Err(Target)),
        ("GET * HTTP/1.1\nHost: a", Err(Target)),
        ("GET ftp://a/ HTTP/1.1\nHost: a", Err(Target)),
        ("GET http://u:p@a/ HTTP/1.1\nHost: a", Err(Target)),
        // Content-Length.
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 5", Ok(())),
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 18446744073709551615", Ok(())),
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 18446744073709551616", Err(Length)),
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 5\nContent-Length: 5", Err(Length)),
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 5\nContent-Length: 6", Err(Length)),
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 5, 5", Err(Length)),
        ("POST / HTTP/1.1\nHost: a\nContent-Length: +5", Err(Length)),
        ("POST / HTTP/1.1\nHost: a\nContent-Length: -5", Err(Length)),
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 0x5", Err(Length)),
        ("POST / HTTP/1.1\nHost: a\nContent-Length:", Err(Length)),
        // Transfer-Encoding.
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked", Ok(())),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: Chunked", Ok(())),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: gzip, chunked", Err(Encoding)),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked, identity", Err(Encoding)),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: xchunked", Err(Encoding)),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: \"chunked\"", Err(Encoding)),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked;q=1", Err(Encoding)),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: identity", Err(Encoding)),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding:", Err(Encoding)),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked", Err(Encoding)),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nTransfer-Encoding: x", Err(Encoding)),
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 5\nTransfer-Encoding: chunked", Err(LengthAndEncoding)),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: x\nContent-Length: 5", Err(LengthAndEncoding)),
        ("POST / HTTP/1.0\nHost: a\nTransfer-Encoding: chunked", Err(EncodingInHttp10)),
        // TRACE.
        ("TRACE / HTTP/1.1\nHost: a", Ok(())),
        ("TRACE / HTTP/1.1\nHost: a\nContent-Length: 0", Ok(())),
        ("TRACE / HTTP/1.1\nHost: a\nContent-Length: 1", Err(TraceBody)),
        ("TRACE / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked", Err(TraceBody)),
    ] {
        assert_eq!(check_request(&request(text)).map(|_| ()), expected, "{text}");
    }
}

#[test]
fn a_connect_names_one_host_and_port_and_has_no_body() {
    use BadRequest::*;
    for (target, fields, expected) in [
        ("a:443", "Host: a:443", Ok(())),
        ("A.b:443", "Host: a.B:443", Ok(())),
        ("a:443", "Host: a", Ok(())),
        ("a:1", "Host: a:1", Ok(())),
        ("a:65535", "Host: a:65535", Ok(())),
        ("[::1]:443", "Host: [::1]:443", Ok(())),
        ("[::1]:443", "Host: [::1]", Ok(())),
        ("a", "Host: a", Err(ConnectTarget)),
        ("a:", "Host: a:", Err(ConnectTarget)),
        ("a:0", "Host: a:0", Err(ConnectTarget)),
        ("a:65536", "Host: a:65536", Err(ConnectTarget)),
        ("a:000443", "Host: a:000443", Err(ConnectTarget)),
        ("a:+443", "Host: a:443", Err(ConnectTarget)),
        ("a:http", "Host: a", Err(ConnectTarget)),
        (":443", "Host: a", Err(ConnectTarget)),
        ("443", "Host: a", Err(ConnectTarget)),
        ("[::1]", "Host: [::1]", Err(ConnectTarget)),
        ("::1:443", "Host: [::1]", Err(ConnectTarget)),
        ("u@a:443", "Host: a:443", Err(ConnectTarget)),
        ("a:443/", "Host: a:443", Err(ConnectTarget)),
        ("a,b:443", "Host: a", Err(ConnectTarget)),
        ("/", "Host: a", Err(ConnectTarget)),
        ("*", "Host: a", Err(ConnectTarget)),
        ("http://a:443", "Host: a:443", Err(ConnectTarget)),
        ("http://a:443/", "Host: a:443", Err(ConnectTarget)),
        ("a:443", "X: y", Err(NoHost)),
        ("a:443", "Host: a:443\nHost: a:443", Err(ManyHosts)),
        ("a:443", "Host:", Err(Host)),
        ("a:443", "Host: b:443", Err(ConnectHost)),
        ("a:443", "Host: a:80", Err(ConnectHost)),
        ("a:443", "Host: a:", Err(ConnectHost)),
        ("a:443", "Host: a:443\nContent-Length: 0", Err(ConnectBody)),
        ("a:443", "Host: a:443\nContent-Length: 5", Err(ConnectBody)),
        ("a:443", "Host: a:443\nTransfer-Encoding: chunked", Err(ConnectBody)),
        ("a:443", "Host: a:443\nContent-Length: 5\nTransfer-Encoding: chunked", Err(ConnectBody)),
    ] {
        let head = request(&format!("CONNECT {target} HTTP/1.1\n{fields}"));
        assert_eq!(check_connect(&head), expected, "{target} {fields}");
        assert_eq!(check_request(&head), Err(Connect), "never unasked");
    }
    assert_eq!(check_connect(&request("CONNECT a:443 HTTP/1.0\nHost: a:443")), Err(Connect));
}

#[test]
fn a_connect_goes_on_with_its_target_as_the_host() {
    let mut head = request(
        "CONNECT a:443 HTTP/1.1\nHost: A\nConnection: x-a\nX-A: 1\nProxy-Connection: keep-alive\nX-Forwarded-For: z",
    );
    check_connect(&head).unwrap();
    head.take_authority_form();
    assert_eq!(host_of(&head), "a:443");
    let onward = Onward { upgrade: false, body: Framing::Length(0) };
    sanitize_request(&mut head, &Seen::new(CLIENT.parse().unwrap(), 8080, false), onward);
    let want = "CONNECT a:443 HTTP/1.1\nHost: a:443\nX-Forwarded-Host: a:443\nX-Forwarded-For: 192.0.2.7\n\
        X-Forwarded-Proto: http\nX-Forwarded-Port: 8080";
    assert_eq!(written(&head), wire(want));
}

#[test]
fn a_host_that_is_not_ascii_is_refused() {
    assert_eq!(check_request(&request("GET / HTTP/1.1\nHost: caf\u{e9}")), Err(BadRequest::Host));
}

#[test]
fn an_upgrade_needs_both_fields_and_a_protocol_we_let_through() {
    for (fields, expected) in [
        ("Connection: upgrade\nUpgrade: websocket", true),
        ("Connection: keep-alive, Upgrade\nUpgrade: WebSocket", true),
        ("Connection: keep-alive\nConnection: upgrade\nUpgrade: x", true),
        ("Connection: upgrade\nUpgrade: h2c, websocket", true),
        ("Connection: upgrade\nUpgrade: h2c", false),
        ("Connection: upgrade\nUpgrade: H2C", false),
        ("Connection: upgrade\nUpgrade: h2c\nUpgrade: h2c", false),
        ("Connection: upgrade\nUpgrade:", false),
        ("Connection: upgrade", false),
        ("Connection: xupgrade\nUpgrade: websocket", false),
        ("Upgrade: websocket", false),
    ] {
        assert_eq!(is_upgrade(&request(&format!("GET / HTTP/1.1\n{fields}"))), expected, "{fields}");
    }
}

#[test]
fn fields_about_this_connection_stay_here() {
    for (fields, kept) in [
        ("Accept: x", "accept: x\nhost: h"),
        ("Connection: close", "host: h"),
        ("Connection: keep-alive\nKeep-Alive: timeout=5\nProxy-Connection: keep-alive", "host: h"),
        (
            "Connection: x-a, X-B ,\nConnection: x-c\nX-A: 1\nX-A: 2\nX-B: 3\nX-C: 4\nX-D: 5",
            "host: h\nx-d: 5",
        ),
        ("Connection: host, content-length\nContent-Length: 3", "content-length: 3\nhost: h"),
        ("Connection: not a name\nX-A: 1", "host: h\nx-a: 1"),
        ("Transfer-Encoding: CHUNKED", "host: h\ntransfer-encoding: chunked"),
        ("Expect: 100-continue", "host: h"),
        ("Expect: 100-continue\nContent-Length: 1", "content-length: 1\nexpect: 100-continue\nhost: h"),
        ("Proxy-Authorization: secret\nAuthorization: kept", "authorization: kept\nhost: h"),
        ("Trailer: x-checksum", "host: h\ntrailer: x-checksum"),
        ("TE: trailers", "connection: te\nhost: h\nte: trailers"),
        ("TE: gzip;q=0.5, Trailers\nConnection: TE", "connection: te\nhost: h\nte: trailers"),
        ("TE: gzip", "host: h"),
        ("Connection: upgrade, http2-settings\nUpgrade: h2c\nHTTP2-Settings: AA", "host: h"),
        ("HTTP2-Settings: AA", "host: h"),
        ("Upgrade: websocket", "host: h"),
        ("Connection: upgrade\nUpgrade: websocket", "connection: upgrade\nhost: h\nupgrade: websocket"),
        (
            "Connection: upgrade, x-a\nX-A: 1\nUpgrade: h2c, websocket\nUpgrade: h2c, other/1",
            "connection: upgrade\nhost: h\nupgrade: websocket, other/1",
        ),
        (
            "Connection: upgrade, te\nUpgrade: websocket\nTE: trailers",
            "connection: upgrade, te\nhost: h\nte: trailers\nupgrade: websocket",
        ),
    ] {
        let text = format!("GET / HTTP/1.1\nHost: h\n{fields}");
        assert_eq!(forwarded(&text), format!("GET / HTTP/1.1\n{kept}"), "{text}");
    }
}

#[test]
fn the_absolute_form_wins_over_host_and_becomes_a_path() {
    for (target, expected) in [
        ("http://b/p?q", "GET /p?q HTTP/1.1\nhost: b"),
        ("http://b:81/p", "GET /p HTTP/1.1\nhost: b:81"),
        ("http://b", "GET / HTTP/1.1\nhost: b"),
        ("http://b?q", "GET /?q HTTP/1.1\nhost: b"),
        ("https://B/", "GET / HTTP/1.1\nhost: B"),
        ("/p//../%2e?x=%00", "GET /p//../%2e?x=%00 HTTP/1.1\nhost: a"),
    ] {
        assert_eq!(forwarded(&format!("GET {target} HTTP/1.1\nHost: a")), expected);
    }
}

#[test]
fn an_http_1_0_request_goes_on_as_http_1_1() {
    assert_eq!(forwarded("GET / HTTP/1.0\nHost: a"), "GET / HTTP/1.1\nhost: a");
    assert_eq!(forwarded("GET / HTTP/1.0"), "GET / HTTP/1.1\nhost: ");
}

#[test]
fn what_a_client_claims_about_itself_is_replaced_by_what_we_saw() {
    let seen =
        "x-forwarded-for: 192.0.2.7\nx-forwarded-host: h:80\nx-forwarded-port: 8080\nx-forwarded-proto: http";
    for claims in [
        "",
        "\nX-Forwarded-For: 1.2.3.4\nX-Forwarded-For: 5.6.7.8\nX-Forwarded-Proto: https",
        "\nX-Forwarded-Host: evil\nX-Forwarded-Port: 1\nX-Forwarded-User: root\nX-Forwarded-Prefix: /x",
        "\nForwarded: for=1.2.3.4\nForwarded: for=5.6.7.8\nX-Real-IP: 1.2.3.4",
        "\nConnection: x-forwarded-for, X-Forwarded-Host",
    ] {
        let mut head = request(&format!("GET / HTTP/1.1\nHost: h:80{claims}"));
        let onward = Onward { upgrade: false, body: Framing::Length(0) };
        sanitize_request(&mut head, &Seen::new(CLIENT.parse().unwrap(), 8080, false), onward);
        assert_eq!(fields(&head, &[]), format!("host: h:80\n{seen}"), "{claims}");
    }
}

#[test]
fn addresses_are_written_as_people_know_them() {
    for (client, expected) in [
        ("[::ffff:192.0.2.7]:1", "192.0.2.7"),
        ("[2001:db8::1]:1", "2001:db8::1"),
        ("[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:1", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("255.255.255.255:1", "255.255.255.255"),
    ] {
        assert_eq!(Seen::new(client.parse().unwrap(), 1, false).client(), expected);
    }
}

fn response(text: &str) -> Head {
    let (text, mut head) = (wire(text), Head::default());
    assert_eq!(head.parse_response(text.as_bytes(), MAX), Ok(Some(text.len())), "{text}");
    head
}

#[test]
fn responses_lose_what_concerns_the_upstream_connection() {
    for (given, upgrade, kept) in [
        ("Content-Length: 3\nServer: s", false, "content-length: 3\nserver: s"),
        ("Connection: close, x-a\nX-A: 1\nKeep-Alive: timeout=1\nX-B: 2", false, "x-b: 2"),
        ("Connection: content-length\nContent-Length: 3", false, "content-length: 3"),
        ("Transfer-Encoding: chunked\nContent-Length: 3", false, ""),
        ("Transfer-Encoding: chunked\nTrailer: t", false, "trailer: t"),
        ("Connection: upgrade\nUpgrade: websocket", true, "connection: upgrade\nupgrade: websocket"),
        ("Connection: upgrade\nUpgrade: websocket", false, ""),
        ("Upgrade: h2c", false, ""),
        ("Proxy-Authenticate: Basic\nWWW-Authenticate: Basic", false, "www-authenticate: Basic"),
        ("X-Forwarded-For: the origin's own business", false, "x-forwarded-for: the origin's own business"),
        ("Set-Cookie: a=1\nSet-Cookie: b=2", false, "set-cookie: a=1\nset-cookie: b=2"),
    ] {
        let mut head = response(&format!("HTTP/1.0 200 OK\n{given}"));
        let outward = Outward { upgrade, chunked: false, connection: None, date: b"now" };
        sanitize_response(&mut head, &outward);
        assert_eq!(fields(&head, &[Tag::Date]), kept, "{given}");
    }
}

#[test]
fn the_last_request_of_a_client_is_known_by_its_connection_field_or_its_version() {
    for (text, want) in [
        ("GET / HTTP/1.1\nHost: a", false),
        ("GET / HTTP/1.1\nHost: a\nConnection: close", true),
        ("GET / HTTP/1.1\nHost: a\nConnection: te, Close", true),
        ("GET / HTTP/1.1\nHost: a\nConnection: closed", false),
        ("GET / HTTP/1.0", true),
        ("GET / HTTP/1.0\nConnection: keep-alive", false),
        ("GET / HTTP/1.0\nConnection: keep-alive, close", true),
    ] {
        assert_eq!(is_last(&request(text)), want, "{text}");
    }
}

#[test]
fn fields_keep_their_order_their_case_and_their_bytes() {
    let mut head = request(
        "GET /A%2e?b HTTP/1.1\nX-Zed:1\nAccept:  a , b \t\nhOsT: h\nKeep-Alive: x\nx-zed: \u{e9}\"\nEMPTY:",
    );
    let onward = Onward { upgrade: false, body: Framing::Length(0) };
    sanitize_request(&mut head, &Seen::new(CLIENT.parse().unwrap(), 8080, false), onward);
    let want = "GET /A%2e?b HTTP/1.1\nX-Zed: 1\nAccept: a , b\nhOsT: h\nx-zed: \u{e9}\"\nEMPTY: \n\
        X-Forwarded-Host: h\nX-Forwarded-For: 192.0.2.7\nX-Forwarded-Proto: http\nX-Forwarded-Port: 8080";
    assert_eq!(written(&head), wire(want));
}

#[test]
fn a_response_says_one_thing_about_its_length_or_is_refused() {
    for (fields, bodiless, want) in [
        ("", false, Ok(Framing::UntilClose)),
        ("", true, Ok(Framing::Length(0))),
        ("Content-Length: 3", false, Ok(Framing::Length(3))),
        ("Content-Length: 3", true, Ok(Framing::Length(0))),
        ("Transfer-Encoding: chunked", false, Ok(Framing::Chunked)),
        ("Transfer-Encoding: chunked\nContent-Length: 3", true, Ok(Framing::Length(0))),
        ("Transfer-Encoding: chunked\nContent-Length: 3", false, Err(())),
        ("Transfer-Encoding: gzip", false, Err(())),
        ("Transfer-Encoding: chunked\nTransfer-Encoding: chunked", false, Err(())),
        ("Content-Length: 3\nContent-Length: 3", false, Err(())),
        ("Content-Length: x", false, Err(())),
        ("Content-Length: x", true, Err(())),
    ] {
        let head = response(format!("HTTP/1.1 200 OK\n{fields}").trim_end());
        assert_eq!(check_response(&head, bodiless).map_err(drop), want, "{fields}");
    }
}

#[test]
fn a_response_without_a_date_gets_one_and_others_keep_theirs() {
    for (given, want) in [("", "date: now"), ("Date: then", "date: then")] {
        let mut head = response(format!("HTTP/1.1 200 OK\n{given}").trim_end());
        let outward = Outward { upgrade: false, chunked: false, connection: None, date: b"now" };
        sanitize_response(&mut head, &outward);
        assert_eq!(fields(&head, &[]), want);
    }
}
