//! What comes before the first byte of a protocol: PROXY headers, and the names in TLS hellos.

use std::net::SocketAddr;

use rustls::server::Acceptor;

use crate::{
    client_hello::{HELLO_BYTES_MAX, Peeked, peek},
    proxy_protocol::{About, Parsed, ProxyVersion, V2_BYTES_MAX, parse, write},
};

/// A header is complete at one length and incomplete at all shorter ones, and says the same when it is passed on.
pub fn proxy_header(data: &[u8]) {
    let Ok(Parsed::Complete(header, length)) = parse(data) else { return };
    assert!(length <= data.len(), "it reads beyond the end");
    for n in (0..length).rev().take(300).chain(0..length.min(20)) {
        assert_eq!(parse(&data[..n]), Ok(Parsed::Incomplete), "{n} of {length}");
    }
    assert_eq!(parse(&data[..length]), Ok(Parsed::Complete(header.clone(), length)));
    if data.starts_with(b"PROXY TCP4 ") {
        let line = write(ProxyVersion::V1, header.addresses, &About::default());
        assert_eq!(line, &data[..length], "there is one way to write it");
    }
    let canonical = |(from, to): (SocketAddr, SocketAddr)| {
        [from, to].map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()))
    };
    for (version, received) in [(ProxyVersion::V1, &[][..]), (ProxyVersion::V2, &header.tlvs)] {
        let about = About { alpn: Some(b"h2"), authority: None, unique_id: Some(b"id"), received };
        let sent = write(version, header.addresses, &about);
        let Ok(Parsed::Complete(read, whole)) = parse(&sent) else { panic!("{}", sent.escape_ascii()) };
        assert_eq!((read.addresses.map(canonical), whole), (header.addresses.map(canonical), sent.len()));
        assert!(read.tlvs.len() <= V2_BYTES_MAX);
    }
}

/// More bytes change no answer, and where rustls takes a hello, it sees the same name.
pub fn client_hello(data: &[u8]) {
    let whole = peek(data);
    for n in [1, 5, 6, 9, 43, data.len() / 2, data.len().saturating_sub(1)] {
        let early = peek(&data[..n.min(data.len())]);
        assert!(early == Ok(Peeked::Incomplete) || early == whole, "{early:?} after {n}, then {whole:?}");
    }
    let (mut acceptor, mut rest) = (Acceptor::default(), data);
    let accepted = loop {
        match acceptor.accept() {
            Ok(None) if !rest.is_empty() && acceptor.read_tls(&mut rest).is_ok() => {}
            Ok(accepted) => break accepted,
            Err(_) => break None,
        }
    };
    if let Some(accepted) = accepted
        && data.len() - rest.len() < HELLO_BYTES_MAX
    {
        let theirs = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
        match whole {
            Ok(Peeked::Name(ours)) if theirs.is_some() => {
                assert_eq!(ours.as_deref(), theirs.as_deref().map(|name| name.trim_end_matches('.')));
            }
            // A name that rustls passes over, such as an address.
            Ok(Peeked::Name(_)) => {}
            other => panic!("rustls takes it for {theirs:?} and we for {other:?}"),
        }
    }
}
