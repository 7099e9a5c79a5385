//! The name a TLS client asks for, read from its first bytes without taking part in the handshake.
//!
//! Pure, and bounded: a client sends its hello in the clear (RFC 8446 §4.1.2, RFC 6066 §3), possibly over several
//! records. Nothing is checked that routing does not need; the endpoint will check all of it.

/// Bytes looked at before giving up. A hello with the large keys of post-quantum exchanges is below 2 KiB.
pub(crate) const HELLO_BYTES_MAX: usize = 16 * 1024;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// A record of plain text carries at most this much (RFC 8446 §5.1).
const RECORD_BYTES_MAX: usize = 1 << 14;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peeked {
    /// More has to come.
    Incomplete,
    /// Complete, in lower case; `None`: the client names nobody.
    Name(Option<String>),
}

/// These bytes are not the beginning of a TLS session, or are longer than any honest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no TLS client hello")]
pub(crate) struct NoHello;

/// Looks at all bytes a client has sent so far.
pub(crate) fn peek(bytes: &[u8]) -> Result<Peeked, NoHello> {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        // Of each byte that is there, so that a client that speaks something else is not waited for.
        if rest.first().is_some_and(|kind| *kind != HANDSHAKE) || rest.get(1).is_some_and(|major| *major != 3)
        {
            return Err(NoHello);
        }
        let Some((header, body)) = rest.split_at_checked(5) else { return incomplete(bytes) };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > RECORD_BYTES_MAX {
            return Err(NoHello);
        }
        message.extend_from_slice(&body[..length.min(body.len())]);
        match message[..] {
            [kind, ..] if kind != CLIENT_HELLO => return Err(NoHello),
            [_, a, b, c, ..] => {
                let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                if length > HELLO_BYTES_MAX {
                    return Err(NoHello);
                }
                if let Some(hello) = message.get(4..4 + length) {
                    return name(hello).map(Peeked::Name).ok_or(NoHello);
                }
            }
            _ => {}
        }
        let Some(next) = body.get(length..) else { return incomplete(bytes) };
        rest = next;
    }
}

fn incomplete(bytes: &[u8]) -> Result<Peeked, NoHello> {
    if bytes.len() < HELLO_BYTES_MAX { Ok(Peeked::Incomplete) } else { Err(NoHello) }
}

/// `None` when the lengths in there do not fit.
fn name(hello: &[u8]) -> Option<Option<String>> {
    let mut hello = Reader(hello);
    hello.take(2 + 32)?;
    let _session_id = hello.short_vector()?;
    let _ciphers = hello.vector()?;
    let _compression = hello.short_vector()?;
    if hello.0.is_empty() {
        return Some(None);
    }
    let mut extensions = Reader(hello.vector()?);
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let body = extensions.vector()?;
        if kind == SERVER_NAME {
            return server_name(body);
        }
    }
    Some(None)
}

fn server_name(body: &[u8]) -> Option<Option<String>> {
    let mut names = Reader(Reader(body).vector()?);
    while !names.0.is_empty() {
        let kind = names.take(1)?[0];
        let name = names.vector()?;
        if kind == HOST_NAME {
            let is_name = !name.is_empty() && name.len() <= 255 && name.iter().all(|b| b.is_ascii_graphic());
            let text = std::str::from_utf8(name).ok().filter(|_| is_name)?;
            return Some(Some(text.trim_end_matches('.').to_ascii_lowercase()));
        }
    }
    Some(None)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// With a length of two bytes.
    fn vector(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(usize::from(length))
    }

    /// With a length of one byte.
    fn short_vector(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};

    use super::*;

    /// What a real client sends first.
    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same hello in records of at most `n` bytes.
    fn fragmented(hello: &[u8], n: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in hello[5..].chunks(n) {
            bytes.extend_from_slice(&hello[..3]);
            bytes.extend_from_slice(&u16::try_from(part.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }

    #[test]
    fn the_name_of_a_real_hello_is_found_whole_and_in_pieces() {
        let named = Ok(Peeked::Name(Some("www.example.com".to_owned())));
        let hello = hello("WWW.example.com");
        assert_eq!(peek(&hello), named);
        assert_eq!(peek(&[&hello[..], b"more"].concat()), named);
        for n in [1, 7, 100] {
            assert_eq!(peek(&fragmented(&hello, n)), named, "{n}");
        }
        for n in 0..hello.len() {
            assert_eq!(peek(&hello[..n]), Ok(Peeked::Incomplete), "{n}");
        }
    }

    #[test]
    fn a_client_that_asks_for_an_address_names_nobody() {
        assert_eq!(peek(&hello("192.0.2.1")), Ok(Peeked::Name(None)));
    }

    #[test]
    fn other_protocols_and_endless_hellos_are_refused_at_once() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"SSH-2.0-x\r\n",
            b"\x16\x02",
            b"\x16\x03\x01\x00\x00",
            b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
            b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
            b"\x15\x03\x01",
        ] {
            assert_eq!(peek(bytes), Err(NoHello), "{bytes:?}");
        }
        let endless =
            fragmented(&[&b"\x16\x03\x01\0\0\x01\x00\x3f\xff"[..], &[0; HELLO_BYTES_MAX]].concat(), 100);
        assert_eq!(peek(&endless[..HELLO_BYTES_MAX]), Err(NoHello));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            cut in 0usize..600,
            flips in proptest::collection::vec((0usize..600, any::<u8>()), 0..8),
        ) {
            let mut bytes = hello("www.example.com");
            for (at, value) in flips {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes.truncate(cut);
            let _any = peek(&bytes);
        }
    }
}
