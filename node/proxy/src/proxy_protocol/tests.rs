use proptest::prelude::*;

use super::*;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend_from_slice(&[command, family]);
    bytes.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x30, 0x39, 0x01, 0xbb];

#[test]
fn a_line_of_version_1_is_taken_or_refused_as_the_specification_says() {
    let v4 = Some((at("192.0.2.1:12345"), at("198.51.100.2:443")));
    let v6 = Some((at("[2001:db8::1]:1"), at("[::1]:65535")));
    for (line, want) in [
        ("PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\r\n", Ok(v4)),
        ("PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", Ok(v6)),
        ("PROXY UNKNOWN\r\n", Ok(None)),
        ("PROXY UNKNOWN ffff::1 whatever 1 2\r\n", Ok(None)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 012345 443\r\n", Err(Malformed::Line)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n", Err(Malformed::Line)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 12345 70000\r\n", Err(Malformed::Line)),
        ("PROXY TCP4 192.0.2.1  198.51.100.2 12345 443\r\n", Err(Malformed::Line)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 12345 443 \r\n", Err(Malformed::Line)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 12345\r\n", Err(Malformed::Line)),
        ("PROXY TCP4 192.0.2.1 ::1 12345 443\r\n", Err(Malformed::Line)),
        ("PROXY TCP4 192.0.2.01 198.51.100.2 12345 443\r\n", Err(Malformed::Line)),
        ("PROXY UDP4 192.0.2.1 198.51.100.2 12345 443\r\n", Err(Malformed::Line)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\n", Err(Malformed::Line)),
        ("PROXY\r\n", Err(Malformed::NotOne)),
        ("proxy TCP4 192.0.2.1 198.51.100.2 12345 443\r\n", Err(Malformed::NotOne)),
        ("GET / HTTP/1.1\r\n", Err(Malformed::NotOne)),
        ("\r\n\r\n\0\r\nQUIX\n", Err(Malformed::NotOne)),
    ] {
        let with_rest = format!("{line}GET / HTTP/1.1\r\n\r\n");
        let want =
            want.map(|addresses| Parsed::Complete(Header { addresses, tlvs: Bytes::new() }, line.len()));
        assert_eq!(parse(with_rest.as_bytes()), want, "{line:?}");
    }
    let endless = format!("PROXY UNKNOWN {}", "x".repeat(200));
    assert_eq!(parse(endless.as_bytes()), Err(Malformed::Line));
}

#[test]
fn a_header_of_version_2_is_taken_or_refused_as_the_specification_says() {
    let v4 = Some((at("192.0.2.1:12345"), at("198.51.100.2:443")));
    let mut v6 = Vec::new();
    v6.extend_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
    v6.extend_from_slice(&"::1".parse::<Ipv6Addr>().unwrap().octets());
    v6.extend_from_slice(&[0, 1, 0xff, 0xff]);
    let with = |tlvs: &[u8]| [&V4[..], tlvs].concat();
    let unix = [0; 216];
    for (name, bytes, want) in [
        ("tcp4", v2(0x21, 0x11, &V4), Ok((v4, &b""[..]))),
        ("tcp6", v2(0x21, 0x21, &v6), Ok((Some((at("[2001:db8::1]:1"), at("[::1]:65535"))), b""))),
        ("local", v2(0x20, 0x00, b""), Ok((None, b""))),
        ("local with addresses", v2(0x20, 0x11, &V4), Ok((None, b""))),
        ("unspecified", v2(0x21, 0x00, b""), Ok((None, b""))),
        ("unix", v2(0x21, 0x31, &unix), Ok((None, b""))),
        ("datagram", v2(0x21, 0x12, &V4), Ok((None, b""))),
        ("tlv", v2(0x21, 0x11, &with(b"\x02\x00\x03a.b")), Ok((v4, b"\x02\x00\x03a.b"))),
        ("unspecified with tlv", v2(0x21, 0x00, b"\xe0\x00\x00"), Ok((None, b"\xe0\x00\x00"))),
        ("version 1", v2(0x11, 0x11, &V4), Err(Malformed::Version)),
        ("command 2", v2(0x22, 0x11, &V4), Err(Malformed::Version)),
        ("family 4", v2(0x21, 0x41, &V4), Err(Malformed::Version)),
        ("protocol 3", v2(0x21, 0x13, &V4), Err(Malformed::Version)),
        ("short", v2(0x21, 0x11, &V4[..11]), Err(Malformed::TooShort)),
        ("long", v2(0x21, 0x00, &[4; V2_BYTES_MAX + 1]), Err(Malformed::TooLong)),
        ("tlv beyond the end", v2(0x21, 0x11, &with(b"\x02\x00\x04a.b")), Err(Malformed::Tlv)),
        ("tlv cut short", v2(0x21, 0x11, &with(b"\x02\x00")), Err(Malformed::Tlv)),
        ("checksum", v2(0x21, 0x11, &with(b"\x03\x00\x04\x00\x00\x00\x00")), Err(Malformed::Checksum)),
        ("checksum length", v2(0x21, 0x11, &with(b"\x03\x00\x01\x00")), Err(Malformed::Tlv)),
    ] {
        let want = want.map(|(addresses, tlvs)| {
            Parsed::Complete(Header { addresses, tlvs: Bytes::copy_from_slice(tlvs) }, bytes.len())
        });
        assert_eq!(parse(&bytes), want, "{name}");
    }
}

#[test]
fn a_right_checksum_passes() {
    // RFC 3720 appendix B.4: 32 bytes of zeroes.
    assert_eq!(crc32c([&[0; 32]]), 0x8A91_36AA);
    let mut bytes = v2(0x21, 0x11, &[&V4[..], b"\x03\x00\x04\x00\x00\x00\x00", b"\x04\x00\x01x"].concat());
    let crc = crc32c([&bytes]);
    let from = V2_PREFIX + V4.len() + 3;
    bytes[from..from + 4].copy_from_slice(&crc.to_be_bytes());
    assert!(matches!(parse(&bytes), Ok(Parsed::Complete(..))));
}

#[test]
fn every_beginning_of_a_header_is_incomplete() {
    for bytes in [
        b"PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\r\n".to_vec(),
        v2(0x21, 0x11, &[&V4[..], b"\x02\x00\x03a.b"].concat()),
    ] {
        for n in 0..bytes.len() {
            assert_eq!(parse(&bytes[..n]), Ok(Parsed::Incomplete), "{n} of {bytes:?}");
        }
    }
}

#[test]
fn what_is_written_says_whom_we_speak_for_and_what_is_known() {
    let (from, to) = (at("192.0.2.1:12345"), at("[::ffff:198.51.100.2]:443"));
    assert_eq!(
        write(ProxyVersion::V1, Some((from, to)), &About::default()),
        b"PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\r\n"
    );
    assert_eq!(
        write(ProxyVersion::V1, Some((from, at("[2001:db8::1]:443"))), &About::default()),
        b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 12345 443\r\n"
    );
    assert_eq!(write(ProxyVersion::V1, None, &About::default()), b"PROXY UNKNOWN\r\n");
    assert_eq!(write(ProxyVersion::V2, None, &About::default()), v2(0x20, 0, b""));
    let about = About {
        alpn: Some(b"h2"),
        authority: None,
        unique_id: Some(b"ours"),
        received: b"\x01\x00\x03old\x02\x00\x03a.b\x04\x00\x00\x05\x00\x05their\xe1\x00\x01v",
    };
    let sent = write(ProxyVersion::V2, Some((from, to)), &about);
    let Ok(Parsed::Complete(header, length)) = parse(&sent) else { panic!("{sent:?}") };
    assert_eq!((length, header.addresses), (sent.len(), Some((from, at("198.51.100.2:443")))));
    assert_eq!(&header.tlvs[..], b"\x01\x00\x02h2\x02\x00\x03a.b\x05\x00\x05their\xe1\x00\x01v");
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic_and_never_beyond_their_end(
        start in prop_oneof![Just(&b""[..]), Just(&SIGNATURE[..]), Just(&b"PROXY "[..]), Just(&b"PROXY TCP4 "[..])],
        rest in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let bytes = [start, &rest].concat();
        if let Ok(Parsed::Complete(_, length)) = parse(&bytes) {
            prop_assert!(length <= bytes.len());
            for n in 0..length {
                prop_assert_eq!(parse(&bytes[..n]), Ok(Parsed::Incomplete));
            }
        }
    }

    #[test]
    fn what_is_written_reads_back(from in address(), to in address(), authority in "[a-z.]{0,40}") {
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            let about = About { authority: Some(&authority), ..About::default() };
            let bytes = write(version, Some((from, to)), &about);
            let Ok(Parsed::Complete(header, length)) = parse(&bytes) else {
                return Err(TestCaseError::fail(format!("{bytes:?}")));
            };
            prop_assert_eq!(length, bytes.len());
            let (seen_from, seen_to) = header.addresses.expect("addresses were written");
            prop_assert_eq!(seen_from.ip().to_canonical(), from.ip().to_canonical());
            prop_assert_eq!(seen_to.ip().to_canonical(), to.ip().to_canonical());
            prop_assert_eq!((seen_from.port(), seen_to.port()), (from.port(), to.port()));
        }
    }
}
