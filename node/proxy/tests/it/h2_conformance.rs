//! HTTP/2 as RFC 9113 has it: frames over a raw socket, each with what the section asks for.
//!
//! Where the RFC leaves the choice between the end of a stream and that of the connection (§5.4.2), the table says
//! what ours does. Pseudo fields that the h2 crate drops before anybody could refuse them are named where they are.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use flotilla_proxy::config::Protocol;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    frames::{Outcome::*, *},
    support::*,
};

const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Where the h2 crate ends the connection as it should, with a code that is not the one of the section. Nothing of what
/// was wrong goes on, so all that is lost is a clue for whoever wrote that client.
const COMPRESSION_ERROR: Outcome = Connection(PROTOCOL_ERROR);
const STREAM_CLOSED: Outcome = Connection(PROTOCOL_ERROR);
const WINDOW_SETTING: Outcome = Connection(PROTOCOL_ERROR);

/// Answers `/` and holds back everything else; counts what it sees of `/`.
async fn origin() -> (Origin, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let origin = Origin::new(move |mut stream| {
        let count = Arc::clone(&count);
        Box::pin(async move {
            while let Ok(head) = head(&mut stream).await {
                if !head.starts_with("GET / ") {
                    return hold(stream).await;
                }
                count.fetch_add(1, SeqCst);
                send(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        })
    })
    .await;
    (origin, seen)
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

fn whole(stream: u32, list: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, list)
}

/// A request that waits for its answer, complete or with its body still to come.
fn held(stream: u32, is_whole: bool) -> Vec<u8> {
    let flags = if is_whole { END_HEADERS | END_STREAM } else { END_HEADERS };
    frame(HEADERS, flags, stream, &post_list("/hold", &[]))
}

#[tokio::test]
async fn every_frame_that_breaks_a_rule_gets_the_error_the_rfc_asks_for() {
    let get = get_list("/", &[]);
    let ping = frame(PING, 0, 0, b"abcdefgh");
    let with = |name: &str, value: &str| whole(1, &get_list("/", &[(name, value)]));
    let big = vec![0; 16_385];
    let one = &1_u32.to_be_bytes()[..];
    let max = &0x7fff_ffff_u32.to_be_bytes()[..];
    let cases = [
        ("nothing wrong", whole(1, &get), Answer(200)),
        // §4.1: what is unknown is ignored, and so is the reserved bit.
        ("§4.1 an unknown type on a stream that is idle", frame(0xee, 0, 7, b"x"), Alive),
        (
            "§4.1 unknown flags of HEADERS",
            frame(HEADERS, END_HEADERS | END_STREAM | 0x82, 1, &get),
            Answer(200),
        ),
        ("§4.1 a frame of an unknown type", frame(0xee, 0xff, 0, b"x"), Alive),
        ("§4.1 unknown flags", frame(PING, 0xfe, 0, b"abcdefgh"), Alive),
        ("§4.1 the reserved bit", frame(PING, 0, 0x8000_0000, b"abcdefgh"), Alive),
        (
            "§4.2 DATA beyond the frame size",
            [held(1, false), frame(DATA, 0, 1, &big)].concat(),
            Connection(FRAME_SIZE_ERROR),
        ),
        (
            "§4.2 HEADERS beyond the frame size",
            frame(HEADERS, END_HEADERS, 1, &big),
            Connection(FRAME_SIZE_ERROR),
        ),
        ("§4.2 an unknown type beyond the frame size", frame(0xee, 0, 0, &big), Connection(FRAME_SIZE_ERROR)),
        (
            "§4.2 CONTINUATION beyond the frame size",
            [frame(HEADERS, END_STREAM, 1, &get), frame(CONTINUATION, END_HEADERS, 1, &big)].concat(),
            Connection(FRAME_SIZE_ERROR),
        ),
        ("§4.3 an index of nothing", whole(1, &[0x80]), COMPRESSION_ERROR),
        ("§4.3 an index beyond the table", whole(1, &[0xff, 0xff, 0x01]), COMPRESSION_ERROR),
        (
            "§4.3 a table beyond its limit",
            whole(1, &[&[0x3f, 0xe2, 0xff, 0x03], &get[..]].concat()),
            COMPRESSION_ERROR,
        ),
        // RFC 7541 §4.2, §6.3: a size within the limit, at the beginning of a block and nowhere else.
        ("§4.3 a table of another size", whole(1, &[&[0x3f, 0xe1, 0x0f], &get[..]].concat()), Answer(200)),
        ("§4.3 two sizes in a row", whole(1, &[&[0x20, 0x3f, 0xe1, 0x1f], &get[..]].concat()), Answer(200)),
        ("§4.3 a size behind a field", whole(1, &[&get[..], &[0x20]].concat()), COMPRESSION_ERROR),
        (
            "§4.3 a name by an index of nothing",
            whole(1, &[&get[..], &[0x0f, 0x70, 1, b'x']].concat()),
            COMPRESSION_ERROR,
        ),
        // RFC 7541 §5.1, §5.2: numbers and Huffman codes.
        (
            "§4.3 a number without end",
            whole(1, &[&[0xff], &[0x80; 20][..], &[0]].concat()),
            COMPRESSION_ERROR,
        ),
        (
            "§4.3 a code with padding of zeros",
            whole(1, &[&get[..], &[0, 0x81, 0x00, 0]].concat()),
            COMPRESSION_ERROR,
        ),
        (
            "§4.3 a code with a byte of padding",
            whole(1, &[&get[..], &[0, 0x82, 0xf3, 0xff, 0]].concat()),
            COMPRESSION_ERROR,
        ),
        (
            "§4.3 a code with the end of strings in it",
            whole(1, &[&get[..], &[0, 0x84, 0xff, 0xff, 0xff, 0xff, 0]].concat()),
            COMPRESSION_ERROR,
        ),
        ("§4.3 a literal that is cut off", whole(1, &[0x00, 0x05, b'x']), COMPRESSION_ERROR),
        // §5.1: idle streams.
        ("§5.1 DATA on an idle stream", frame(DATA, 0, 1, b"x"), Connection(PROTOCOL_ERROR)),
        ("§5.1 RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, one), Connection(PROTOCOL_ERROR)),
        ("§5.1 WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 1, one), Connection(PROTOCOL_ERROR)),
        (
            "§5.1 CONTINUATION on an idle stream",
            frame(CONTINUATION, END_HEADERS, 1, &get),
            Connection(PROTOCOL_ERROR),
        ),
        ("§5.1 PRIORITY on an idle stream", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 15]), Alive),
        // Half closed.
        ("§5.1 PRIORITY behind the end", [held(1, true), frame(PRIORITY, 0, 1, &[0; 5])].concat(), Alive),
        ("§5.1 RST_STREAM behind the end", [held(1, true), frame(RST_STREAM, 0, 1, one)].concat(), Alive),
        ("§5.1 DATA behind the end", [held(1, true), frame(DATA, 0, 1, b"x")].concat(), STREAM_CLOSED),
        ("§5.1 HEADERS behind the end", [held(1, true), whole(1, &get)].concat(), STREAM_CLOSED),
        (
            "§5.1 WINDOW_UPDATE behind the end",
            [held(1, true), frame(WINDOW_UPDATE, 0, 1, one)].concat(),
            Alive,
        ),
        // Closed.
        (
            "§5.1 HEADERS behind a reset",
            [held(1, false), frame(RST_STREAM, 0, 1, one), whole(1, &get)].concat(),
            STREAM_CLOSED,
        ),
        (
            "§5.1 DATA behind a reset",
            [held(1, false), frame(RST_STREAM, 0, 1, one), frame(DATA, 0, 1, b"x")].concat(),
            Stream(CLOSED),
        ),
        (
            "§5.1 RST_STREAM behind a reset",
            [held(1, false), frame(RST_STREAM, 0, 1, one), frame(RST_STREAM, 0, 1, one)].concat(),
            Alive,
        ),
        (
            "§5.1 WINDOW_UPDATE behind a reset",
            [held(1, false), frame(RST_STREAM, 0, 1, one), frame(WINDOW_UPDATE, 0, 1, one)].concat(),
            Alive,
        ),
        (
            "§5.1 PRIORITY behind a reset",
            [held(1, false), frame(RST_STREAM, 0, 1, one), frame(PRIORITY, 0, 1, &[0; 5])].concat(),
            Alive,
        ),
        ("§5.1.1 an even stream", whole(2, &get), Connection(PROTOCOL_ERROR)),
        (
            "§5.1.1 a stream below the last one",
            [whole(5, &get), whole(3, &get)].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        (
            "§5.1.2 a stream too many",
            (0..101).flat_map(|n| held(2 * n + 1, true)).collect(),
            Stream(REFUSED_STREAM),
        ),
        // RFC 7540 §5.3.1; since RFC 9113 §5.3.2 priorities may be ignored, and the h2 crate has kept this.
        (
            "§5.3 a priority that depends on itself",
            [held(1, false), frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 15])].concat(),
            Stream(PROTOCOL_ERROR),
        ),
        (
            "§5.3 HEADERS with a priority",
            frame(
                HEADERS,
                END_HEADERS | END_STREAM | PRIORITIZED,
                1,
                &[&[0x80, 0, 0, 3, 255], &get[..]].concat(),
            ),
            Answer(200),
        ),
        (
            "§5.5 an unknown frame inside a header block",
            [frame(HEADERS, END_STREAM, 1, &get), frame(0xee, 0, 0, b"x")].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        // §6: one frame after the other.
        ("§6.1 DATA on no stream", frame(DATA, 0, 0, b"x"), Connection(PROTOCOL_ERROR)),
        (
            "§6.1 more padding than DATA",
            [held(1, false), frame(DATA, PADDED, 1, &[3, 0, 0])].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        (
            "§6.1 DATA with padding",
            [held(1, false), frame(DATA, PADDED, 1, &[2, b'x', 0, 0])].concat(),
            Alive,
        ),
        (
            "§6.1 DATA that is all padding",
            [held(1, false), frame(DATA, PADDED, 1, &[&[255], &[0; 255][..]].concat())].concat(),
            Alive,
        ),
        (
            "§6.1 DATA with padding and no length of it",
            [held(1, false), frame(DATA, PADDED, 1, &[])].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        (
            "§6.2 HEADERS with padding",
            frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, &[&[2], &get[..], &[0, 0]].concat()),
            Answer(200),
        ),
        ("§6.2 HEADERS on no stream", whole(0, &get), Connection(PROTOCOL_ERROR)),
        (
            "§6.2 more padding than HEADERS",
            frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, &[200, 0x82]),
            Connection(PROTOCOL_ERROR),
        ),
        ("§6.3 PRIORITY on no stream", frame(PRIORITY, 0, 0, &[0; 5]), Connection(PROTOCOL_ERROR)),
        ("§6.3 PRIORITY of four bytes", frame(PRIORITY, 0, 1, &[0; 4]), Connection(FRAME_SIZE_ERROR)),
        ("§6.4 RST_STREAM on no stream", frame(RST_STREAM, 0, 0, one), Connection(PROTOCOL_ERROR)),
        (
            "§6.4 RST_STREAM of three bytes",
            [held(1, false), frame(RST_STREAM, 0, 1, &[0; 3])].concat(),
            Connection(FRAME_SIZE_ERROR),
        ),
        (
            "§6.4 RST_STREAM with an unknown code",
            [held(1, false), frame(RST_STREAM, 0, 1, &[0xff; 4])].concat(),
            Alive,
        ),
        (
            "§6.4 RST_STREAM of five bytes",
            [held(1, false), frame(RST_STREAM, 0, 1, &[0; 5])].concat(),
            Connection(FRAME_SIZE_ERROR),
        ),
        (
            "§6.5 an acknowledgement with a body",
            frame(SETTINGS, ACK, 0, &[0; 6]),
            Connection(FRAME_SIZE_ERROR),
        ),
        ("§6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), Connection(PROTOCOL_ERROR)),
        ("§6.5 SETTINGS of five bytes", frame(SETTINGS, 0, 0, &[0; 5]), Connection(FRAME_SIZE_ERROR)),
        ("§6.5.2 ENABLE_PUSH of two", setting(2, 2), Connection(PROTOCOL_ERROR)),
        ("§6.5.2 a window beyond its end", setting(4, 0x8000_0000), WINDOW_SETTING),
        ("§6.5.2 a frame size below the least", setting(5, 16_383), Connection(PROTOCOL_ERROR)),
        ("§6.5.2 a frame size beyond the most", setting(5, 0x100_0000), Connection(PROTOCOL_ERROR)),
        ("§6.5.2 ENABLE_PUSH of one", setting(2, 1), Alive),
        ("§6.5.2 no streams for us", setting(3, 0), Alive),
        ("§6.5.2 the largest window", setting(4, 0x7fff_ffff), Alive),
        ("§6.5.2 the least frame size", setting(5, 16_384), Alive),
        ("§6.5.2 the largest frame size", setting(5, 0xff_ffff), Alive),
        ("§6.5.2 a table of nothing", [setting(1, 0), whole(1, &get)].concat(), Answer(200)),
        (
            "§6.5.3 the same setting twice, of which the last one counts",
            [
                frame(SETTINGS, 0, 0, &[&setting(5, 0xff_ffff)[9..], &setting(5, 16_384)[9..]].concat()),
                whole(1, &get),
            ]
            .concat(),
            Answer(200),
        ),
        ("§6.5.2 an unknown setting", setting(0xeeee, 1), Alive),
        (
            "§6.6 a push of a client",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82]),
            Connection(PROTOCOL_ERROR),
        ),
        ("§6.7 a PING that nobody asked for is acknowledged", frame(PING, ACK, 0, b"abcdefgh"), Alive),
        ("§6.7 a PING on a stream", frame(PING, 0, 1, b"abcdefgh"), Connection(PROTOCOL_ERROR)),
        ("§6.7 a PING of seven bytes", frame(PING, 0, 0, b"abcdefg"), Connection(FRAME_SIZE_ERROR)),
        ("§6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), Connection(PROTOCOL_ERROR)),
        ("§6.8 GOAWAY that is cut off", frame(GOAWAY, 0, 0, &[0; 7]), Connection(PROTOCOL_ERROR)),
        (
            "§6.8 what was asked before GOAWAY is answered",
            [whole(1, &get), frame(GOAWAY, 0, 0, &[0; 8])].concat(),
            Answer(200),
        ),
        (
            "§6.9 the reserved bit of a window",
            frame(WINDOW_UPDATE, 0, 0, &0x8000_0001_u32.to_be_bytes()),
            Alive,
        ),
        (
            "§6.9 a window that grows by nothing",
            frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
            Connection(PROTOCOL_ERROR),
        ),
        (
            "§6.9 the same of a stream",
            [held(1, false), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        (
            "§6.9 WINDOW_UPDATE of three bytes",
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            Connection(FRAME_SIZE_ERROR),
        ),
        ("§6.9.1 a window beyond its end", frame(WINDOW_UPDATE, 0, 0, max), Connection(FLOW_CONTROL_ERROR)),
        (
            "§6.9.1 the same of a stream",
            [held(1, false), frame(WINDOW_UPDATE, 0, 1, max)].concat(),
            Stream(FLOW_CONTROL_ERROR),
        ),
        (
            "§6.9.2 a window beyond its end by a setting",
            [
                held(1, false),
                frame(WINDOW_UPDATE, 0, 1, &0x7fff_0000_u32.to_be_bytes()),
                setting(4, 0x7fff_ffff),
            ]
            .concat(),
            Connection(FLOW_CONTROL_ERROR),
        ),
        (
            "§6.10 CONTINUATION of what has ended",
            [held(1, false), frame(CONTINUATION, END_HEADERS, 1, &get)].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        (
            "§6.10 CONTINUATION on another stream",
            [frame(HEADERS, END_STREAM, 1, &get), frame(CONTINUATION, END_HEADERS, 3, &[])].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        (
            "§6.10 CONTINUATION on no stream",
            [frame(HEADERS, END_STREAM, 1, &get), frame(CONTINUATION, END_HEADERS, 0, &[])].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        (
            "§6.10 PING inside a header block",
            [frame(HEADERS, END_STREAM, 1, &get), ping.clone()].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        (
            "§6.10 HEADERS inside a header block",
            [frame(HEADERS, END_STREAM, 1, &get), whole(3, &get)].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        (
            "§6.10 a header block in pieces",
            [
                frame(HEADERS, END_STREAM, 1, &get[..3]),
                frame(CONTINUATION, 0, 1, &get[3..9]),
                frame(CONTINUATION, END_HEADERS, 1, &get[9..]),
            ]
            .concat(),
            Answer(200),
        ),
        (
            "§6.10 nothing but CONTINUATION",
            [frame(HEADERS, END_STREAM, 1, &[]), frame(CONTINUATION, END_HEADERS, 1, &get)].concat(),
            Answer(200),
        ),
        (
            "§6.10 DATA inside a header block",
            [held(1, false), frame(HEADERS, END_STREAM, 3, &get), frame(DATA, 0, 1, b"x")].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        // §8: messages.
        (
            "§8.1 HEADERS in the middle of a body",
            [held(1, false), frame(HEADERS, END_HEADERS, 1, &list(&[("x", "y")]))].concat(),
            Stream(PROTOCOL_ERROR),
        ),
        // Should be malformed; the h2 crate drops it, and it goes nowhere.
        (
            "§8.1 a pseudo field among trailers",
            [held(1, false), whole(1, &list(&[(":method", "GET")]))].concat(),
            Alive,
        ),
        (
            "§8.1.1 more body than announced",
            [
                frame(HEADERS, END_HEADERS, 1, &post_list("/hold", &[("content-length", "1")])),
                frame(DATA, END_STREAM, 1, b"xy"),
            ]
            .concat(),
            Stream(PROTOCOL_ERROR),
        ),
        (
            "§8.1.1 less body than announced",
            [
                frame(HEADERS, END_HEADERS, 1, &post_list("/hold", &[("content-length", "2")])),
                frame(DATA, END_STREAM, 1, b"x"),
            ]
            .concat(),
            Stream(PROTOCOL_ERROR),
        ),
        ("§8.1.1 no body where one was announced", with("content-length", "3"), Stream(PROTOCOL_ERROR)),
        ("§8.1.1 a length that is no number", with("content-length", "x"), Stream(PROTOCOL_ERROR)),
        ("§8.2.1 an upper case name", with("X-A", "b"), Connection(PROTOCOL_ERROR)),
        (
            "§8.2.1 an upper case name among trailers",
            [held(1, false), whole(1, &list(&[("X-A", "b")]))].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        ("§8.2.1 a name with a space", with("x a", "b"), Connection(PROTOCOL_ERROR)),
        ("§8.2.1 a name with a colon in it", with("x:a", "b"), Connection(PROTOCOL_ERROR)),
        ("§8.2.1 no name", with("", "b"), Connection(PROTOCOL_ERROR)),
        ("§8.2.1 a value with CR and LF", with("x", "a\r\nevil: b"), Connection(PROTOCOL_ERROR)),
        ("§8.2.1 a value with NUL", with("x", "a\0b"), Connection(PROTOCOL_ERROR)),
        ("§8.2.1 a value that begins with a space", with("x", " a"), Stream(PROTOCOL_ERROR)),
        ("§8.2.1 a value that ends with a tab", with("x", "a\t"), Stream(PROTOCOL_ERROR)),
        ("§8.2.2 Connection", with("connection", "x"), Stream(PROTOCOL_ERROR)),
        ("§8.2.2 Keep-Alive", with("keep-alive", "1"), Stream(PROTOCOL_ERROR)),
        ("§8.2.2 Proxy-Connection", with("proxy-connection", "x"), Stream(PROTOCOL_ERROR)),
        ("§8.2.2 Transfer-Encoding", with("transfer-encoding", "chunked"), Stream(PROTOCOL_ERROR)),
        ("§8.2.2 Upgrade", with("upgrade", "websocket"), Stream(PROTOCOL_ERROR)),
        ("§8.2.2 TE other than trailers", with("te", "gzip"), Stream(PROTOCOL_ERROR)),
        ("§8.2.2 TE with more than trailers", with("te", "trailers, gzip"), Stream(PROTOCOL_ERROR)),
        ("§8.2.2 TE", with("te", "trailers"), Answer(200)),
        ("§8.3 an unknown pseudo field", with(":x", "y"), Connection(PROTOCOL_ERROR)),
        ("§8.3 one of responses", with(":status", "200"), Stream(PROTOCOL_ERROR)),
        (
            "§8.3 one behind a field",
            whole(
                1,
                &list(&[
                    (":method", "GET"),
                    (":scheme", "http"),
                    ("x", "y"),
                    (":path", "/"),
                    (":authority", "a"),
                ]),
            ),
            Stream(PROTOCOL_ERROR),
        ),
        ("§8.3.1 two paths", with(":path", "/"), Stream(PROTOCOL_ERROR)),
        ("§8.3.1 two methods", with(":method", "GET"), Stream(PROTOCOL_ERROR)),
        ("§8.3.1 two schemes", with(":scheme", "http"), Stream(PROTOCOL_ERROR)),
        ("§8.3.1 two authorities", with(":authority", "a"), Stream(PROTOCOL_ERROR)),
        (
            "§8.3.1 a path behind a field, and one before",
            whole(1, &[&get[..], &list(&[("x", "y"), (":path", "/evil")])].concat()),
            Stream(PROTOCOL_ERROR),
        ),
        (
            "§8.3.1 no method",
            whole(1, &list(&[(":scheme", "http"), (":path", "/"), (":authority", "a")])),
            Stream(PROTOCOL_ERROR),
        ),
        (
            "§8.3.1 no scheme",
            whole(1, &list(&[(":method", "GET"), (":path", "/"), (":authority", "a")])),
            Stream(PROTOCOL_ERROR),
        ),
        (
            "§8.3.1 no path",
            whole(1, &list(&[(":method", "GET"), (":scheme", "http"), (":authority", "a")])),
            Stream(PROTOCOL_ERROR),
        ),
        // Should be malformed; comes out of the h2 crate as `/`.
        (
            "§8.3.1 no path, and a Host",
            whole(1, &list(&[(":method", "GET"), (":scheme", "http"), ("host", "a")])),
            Answer(200),
        ),
        ("§8.3.1 an empty path", whole(1, &get_list("", &[])), Stream(PROTOCOL_ERROR)),
        ("§8.3.1 an authority and another Host", with("host", "b"), Stream(PROTOCOL_ERROR)),
        (
            "§8.5 CONNECT with a path",
            whole(
                1,
                &list(&[(":method", "CONNECT"), (":scheme", "http"), (":path", "/"), (":authority", "a")]),
            ),
            Stream(PROTOCOL_ERROR),
        ),
        // Should be malformed; it is refused all the same.
        ("§8.5 CONNECT to nobody", whole(1, &list(&[(":method", "CONNECT")])), Answer(501)),
        ("§8.5 CONNECT", whole(1, &list(&[(":method", "CONNECT"), (":authority", "a:1")])), Answer(501)),
        // §10.5: too much of what costs its sender nothing. One PING comes behind each case.
        ("§10.5 a hundred PINGs", ping.repeat(99), Alive),
        ("§10.5 a PING more", ping.repeat(101), Connection(ENHANCE_YOUR_CALM)),
        ("§10.5 SETTINGS without end", frame(SETTINGS, 0, 0, &[]).repeat(101), Connection(ENHANCE_YOUR_CALM)),
        (
            "§10.5 resets without end",
            (0..101)
                .flat_map(|n| [held(2 * n + 1, true), frame(RST_STREAM, 0, 2 * n + 1, one)].concat())
                .collect(),
            Connection(ENHANCE_YOUR_CALM),
        ),
        (
            "§10.5 CONTINUATION without end",
            [
                frame(HEADERS, END_STREAM, 1, &get),
                frame(CONTINUATION, 0, 1, &list(&[("x", &"y".repeat(120))]).repeat(100)).repeat(100),
            ]
            .concat(),
            Connection(ENHANCE_YOUR_CALM),
        ),
        (
            "§10.5 empty CONTINUATION without end",
            [frame(HEADERS, END_STREAM, 1, &get), frame(CONTINUATION, 0, 1, &[]).repeat(10_000)].concat(),
            Connection(ENHANCE_YOUR_CALM),
        ),
        (
            "§10.5 empty DATA without end",
            [held(1, false), frame(DATA, 0, 1, &[]).repeat(10_000)].concat(),
            Connection(ENHANCE_YOUR_CALM),
        ),
    ];
    let (origin, _) = origin().await;
    let proxy = proxy();
    let (mut app, listen) = app(Protocol::Http, &[origin.address]);
    // It makes no difference here.
    app.routes = vec![crate::connect::tunnels()];
    serve(&proxy, &app).await;
    let mut checks = JoinSet::new();
    for (what, frames, want) in cases {
        checks.spawn(async move {
            let mut raw = Raw::connect(listen).await;
            raw.send(&[&frames[..], &frame(PING, 0, 0, b"the last")].concat()).await;
            let got = raw.outcome(want == Alive).await;
            (got != want).then(|| format!("{what}: {got:?}, not {want:?}"))
        });
    }
    let wrong: Vec<String> = checks.join_all().await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // None of it has done more than end what it was about.
    let mut raw = Raw::connect(listen).await;
    raw.send(&whole(1, &get)).await;
    assert_eq!(raw.outcome(false).await, Answer(200));
    drop(raw);
    eventually("no connection is left", || proxy.connections() == 0).await;
}

#[tokio::test]
async fn what_does_not_begin_as_http_2_does_is_no_http_2() {
    let (origin, seen) = origin().await;
    let (_proxy, listen) = serving(Protocol::Http, &[origin.address]).await;
    let get = whole(1, &get_list("/", &[]));
    for (what, bytes) in [
        // RFC 9113 §3.4.
        (
            "another second half",
            [b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", &frame(SETTINGS, 0, 0, &[])[..], &get].concat(),
        ),
        (
            "another version",
            [b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, &[])[..], &get].concat(),
        ),
        ("no settings first", [PREFACE, &get].concat()),
        ("an acknowledgement first", [PREFACE, &frame(SETTINGS, ACK, 0, &[])[..], &get].concat()),
    ] {
        let mut raw = Raw(connect(listen).await);
        raw.send(&bytes).await;
        let all = rest(&mut raw.0).await.unwrap_or_default();
        // Frames or text: no answer of the origin is among them.
        assert!(!all.windows(4).any(|bytes| bytes == b"200 "), "{what}: {all:?}");
        assert_eq!(seen.load(SeqCst), 0, "{what}");
    }
}

#[tokio::test]
async fn a_port_that_drains_says_so_twice_and_loses_no_stream_in_between() {
    let (answers, origin) = held_answers().await;
    let (proxy, listen) = serving(Protocol::Http, &[origin.address]).await;
    let mut raw = Raw::connect(listen).await;
    raw.send(&whole(1, &get_list("/one", &[]))).await;
    eventually("the request is there", || origin.accepted() == 1).await;
    let mut shutdown = JoinSet::new();
    shutdown.spawn(async move { proxy.shutdown(PATIENCE).await });
    // RFC 9113 §6.8: the first says that this is about to end, and takes everything.
    let (last, code) = goaway(&mut raw).await;
    assert_eq!((last, code), (0x7fff_ffff, NO_ERROR));
    // One more was on its way.
    raw.send(&whole(3, &get_list("/two", &[]))).await;
    eventually("the second is there", || origin.accepted() == 2).await;
    // The answer to the PING between the two.
    let ping = loop {
        if let (PING, 0, 0, payload) = raw.frame().await.expect("a PING") {
            break payload;
        }
    };
    raw.send(&frame(PING, ACK, 0, &ping)).await;
    assert_eq!(goaway(&mut raw).await, (3, NO_ERROR));
    answers.add_permits(2);
    let mut answered = Vec::new();
    while let Some((kind, _, stream, payload)) = raw.frame().await {
        assert!(kind != RST_STREAM && (kind != GOAWAY || payload[4..8] == [0; 4]), "{kind} {payload:?}");
        if kind == HEADERS {
            answered.push(stream);
        }
    }
    answered.sort_unstable();
    assert_eq!(answered, [1, 3]);
    shutdown.join_next().await.unwrap().unwrap();
}

/// An origin that answers once it is told to.
async fn held_answers() -> (Arc<Semaphore>, Origin) {
    let go = Arc::new(Semaphore::new(0));
    let answers = Arc::clone(&go);
    let origin = Origin::new(move |mut stream| {
        let go = Arc::clone(&go);
        Box::pin(async move {
            if head(&mut stream).await.is_ok() {
                go.acquire().await.unwrap().forget();
                send(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
            hold(stream).await;
        })
    })
    .await;
    (answers, origin)
}

/// The last stream and the code of the next GOAWAY. A PING that comes before it stays to be read.
async fn goaway(raw: &mut Raw) -> (u32, u32) {
    loop {
        let (kind, _, _, payload) = raw.frame().await.expect("a GOAWAY");
        if kind == GOAWAY {
            let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            return (number(0), number(4));
        }
    }
}
