use super::*;

/// A request as it is written, one field a line.
fn request(text: &str) -> request::Parts {
    let mut lines = text.lines();
    let line: Vec<&str> = lines.next().unwrap().split(' ').collect();
    let version = if line[2] == "HTTP/1.0" { Version::HTTP_10 } else { Version::HTTP_11 };
    let builder = http::Request::builder().method(line[0]).uri(line[1]).version(version);
    let builder = lines.fold(builder, |builder, field| {
        let (name, value) = field.split_once(": ").unwrap_or((field.trim_end_matches(':'), ""));
        builder.header(name, value)
    });
    builder.body(()).unwrap().into_parts().0
}

/// The same way back; fields sorted, names in lower case.
fn text(parts: &request::Parts) -> String {
    format!("{} {} {:?}\n{}", parts.method, parts.uri, parts.version, fields(&parts.headers))
}

fn fields(headers: &HeaderMap) -> String {
    let mut lines: Vec<String> =
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    lines.sort();
    lines.join("\n")
}

const CLIENT: &str = "192.0.2.7:4711";

/// What `sanitize_request` makes of a request, without the four fields that are always added (they have a test).
fn forwarded(text_in: &str) -> String {
    let mut parts = request(text_in);
    check_request(&parts).unwrap();
    let upgrade = is_upgrade(&parts.headers);
    sanitize_request(&mut parts, &Seen::new(CLIENT.parse().unwrap(), 8080), upgrade);
    // What goes out must itself pass every check, or the next proxy may see another message.
    if !parts.headers[HOST].is_empty() {
        assert_eq!(check_request(&parts), Ok(()), "{text_in}");
    }
    for name in [&X_FORWARDED_FOR, &X_FORWARDED_HOST, &X_FORWARDED_PORT, &X_FORWARDED_PROTO] {
        parts.headers.remove(name);
    }
    text(&parts)
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
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 5 ", Err(Length)),
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
        assert_eq!(check_request(&request(text)), expected, "{text}");
    }
}

#[test]
fn a_host_that_is_not_ascii_is_refused() {
    let mut parts = request("GET / HTTP/1.1");
    parts.headers.insert(HOST, HeaderValue::from_bytes(b"caf\xc3\xa9").unwrap());
    assert_eq!(check_request(&parts), Err(BadRequest::Host));
}

#[test]
fn fragments_never_reach_an_origin() {
    assert_eq!(forwarded("GET /a?b#c HTTP/1.1\nHost: h"), "GET /a?b HTTP/1.1\nhost: h");
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
        assert_eq!(is_upgrade(&request(&format!("GET / HTTP/1.1\n{fields}")).headers), expected, "{fields}");
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
        ("Transfer-Encoding: chunked", "host: h"),
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
        let mut parts = request(&format!("GET / HTTP/1.1\nHost: h:80{claims}"));
        sanitize_request(&mut parts, &Seen::new(CLIENT.parse().unwrap(), 8080), false);
        assert_eq!(fields(&parts.headers), format!("host: h:80\n{seen}"), "{claims}");
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
        let mut parts = request("GET / HTTP/1.1\nHost: h");
        sanitize_request(&mut parts, &Seen::new(client.parse().unwrap(), 1), false);
        assert_eq!(parts.headers[&X_FORWARDED_FOR], expected);
    }
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
        let headers = request(&format!("GET / HTTP/1.1\n{given}")).headers;
        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.headers = headers;
        parts.version = Version::HTTP_10;
        sanitize_response(&mut parts, upgrade);
        assert_eq!(fields(&parts.headers), kept, "{given}");
        assert_eq!(parts.version, Version::HTTP_11);
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
