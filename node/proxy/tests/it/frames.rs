//! HTTP/2 frame by frame, for what no client library would send.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::*;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const PRIORITIZED: u8 = 0x20;

/// A frame as it is on the wire (RFC 9113 §4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header list as literals that are not indexed (RFC 7541 §6.2.2), whatever is in them.
pub(crate) fn list(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| {
        // Lengths of more than seven bits are not needed here.
        assert!(text.len() < 127, "{text}");
        [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
    };
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// The header list of a GET of `path`, and then these.
pub(crate) fn get_list(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let get = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "a")];
    list(&[&get, more].concat())
}

/// The same of a POST.
pub(crate) fn post_list(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let post = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "a")];
    list(&[&post, more].concat())
}

/// What the other side does about something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// GOAWAY with this code, or the end of the connection without one (0 then).
    Connection(u32),
    /// RST_STREAM with this code.
    Stream(u32),
    Answer(u16),
    /// An answered PING, and nothing else before.
    Alive,
    Nothing,
}

/// A connection that has said hello.
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Raw {
        let mut stream = connect(address).await;
        send(&mut stream, [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        Raw(stream)
    }

    /// That nobody reads it any more is found out by reading.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ended = self.0.write_all(bytes).await;
    }

    /// Kind, flags, stream and payload of the next frame; `None` at the end.
    pub(crate) async fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut header = [0; 9];
        let read = timeout(PATIENCE, self.0.read_exact(&mut header)).await.expect("a frame in time");
        read.ok()?;
        let [a, b, c, kind, flags, s, t, u, v] = header;
        let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
        timeout(PATIENCE, self.0.read_exact(&mut payload)).await.expect("a frame in time").ok()?;
        Some((kind, flags, u32::from_be_bytes([s, t, u, v]), payload))
    }

    /// What comes first of an end, a reset, or an answer; with `until_pong` the answer to a PING counts as well.
    pub(crate) async fn outcome(&mut self, until_pong: bool) -> Outcome {
        let all = async {
            loop {
                let Some((kind, flags, _, payload)) = self.frame().await else {
                    return Outcome::Connection(0);
                };
                let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
                match kind {
                    GOAWAY => return Outcome::Connection(code(4)),
                    RST_STREAM => return Outcome::Stream(code(0)),
                    HEADERS => return Outcome::Answer(status_of(&payload)),
                    PING if until_pong && flags & ACK != 0 => return Outcome::Alive,
                    _ => {}
                }
            }
        };
        timeout(PATIENCE - Duration::from_secs(2), all).await.unwrap_or(Outcome::Nothing)
    }
}

/// The status at the head of a header list; a dynamic table that is empty before is assumed (RFC 7541, appendix A).
fn status_of(list: &[u8]) -> u16 {
    // A change of the table size may come first.
    let list = match list {
        [first, rest @ ..] if first & 31 == 31 && first >> 5 == 1 => {
            &rest[rest.iter().position(|byte| byte >> 7 == 0).unwrap() + 1..]
        }
        [first, rest @ ..] if first >> 5 == 1 => rest,
        list => list,
    };
    match list {
        [indexed @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        [_, 3, a, b, c, ..] => std::str::from_utf8(&[*a, *b, *c]).unwrap().parse().unwrap(),
        // Three digits that all have five bits in the Huffman code (RFC 7541, appendix B), or one of six.
        [_, length, coded @ ..] if length & 0x80 != 0 => {
            let coded = &coded[..usize::from(length & 0x7f)];
            let mut bits = coded.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
            let mut take = |n| (0..n).fold(0_u8, |all, _| all << 1 | bits.next().unwrap_or(1));
            (0..3).fold(0, |status, _| {
                let five = take(5);
                let digit = if five < 3 { five } else { (five << 1 | take(1)) - 0x19 + 3 };
                status * 10 + u16::from(digit)
            })
        }
        other => panic!("no status: {other:?}"),
    }
}

#[test]
fn a_status_is_read_in_each_of_its_forms() {
    for (list, want) in [
        (&[0x88][..], 200),
        (&[0x8c], 400),
        (&[0x20, 0x8c], 400),
        (&[0x3f, 0xe1, 0x0f, 0x8c], 400),
        (&[0x48, 3, b'5', b'0', b'1'], 501),
        // `302` in the Huffman code (RFC 7541 §C.6.1).
        (&[0x48, 0x82, 0x64, 0x02], 302),
        (&[0x48, 0x82, 0x64, 0x0e, 0xff], 307),
    ] {
        assert_eq!(status_of(list), want, "{list:x?}");
    }
}
