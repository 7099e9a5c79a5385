use std::{collections::VecDeque, io::Read};

use flate2::read::GzDecoder;

use super::*;

fn request(fields: &str) -> Head {
    let mut head = Head::default();
    let text = format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    assert_eq!(head.parse_request(text.as_bytes(), 9999), Ok(Some(text.len())));
    head
}

fn response(status: u16, fields: &str) -> Head {
    let mut head = Head::default();
    let text = format!("HTTP/1.1 {status} X\r\n{fields}\r\n");
    assert_eq!(head.parse_response(text.as_bytes(), 9999), Ok(Some(text.len())));
    head
}

#[test]
fn a_client_takes_gzip_where_it_says_so() {
    for (fields, takes) in [
        ("", false),
        ("Accept-Encoding: gzip\r\n", true),
        ("accept-encoding: br, GZIP;q=0.5\r\n", true),
        ("Accept-Encoding: br\r\nAccept-Encoding: gzip\r\n", true),
        ("Accept-Encoding: gzip;q=0\r\n", false),
        ("Accept-Encoding: gzip; q=0.000\r\n", false),
        ("Accept-Encoding: gzip;q=0.001\r\n", true),
        ("Accept-Encoding: *\r\n", true),
        ("Accept-Encoding: *;q=0, gzip\r\n", true),
        ("Accept-Encoding: *, gzip;q=0\r\n", false),
        ("Accept-Encoding: br, identity\r\n", false),
        ("Accept-Encoding: gzipped\r\n", false),
        ("Accept-Encoding:\r\n", false),
    ] {
        assert_eq!(takes_gzip(&request(fields)), takes, "{fields}");
    }
}

#[test]
fn whole_texts_that_are_long_enough_are_compressed() {
    let config = CompressionConfig::default();
    let html = "Content-Type: text/html; charset=utf-8\r\n";
    let long = Framing::Length(100_000);
    for (status, fields, framing, coding) in [
        (200, html, long, Coding::Gzip),
        (200, html, Framing::Chunked, Coding::Gzip),
        (200, html, Framing::UntilClose, Coding::Gzip),
        (404, html, long, Coding::Gzip),
        (200, "content-type: Application/JSON\r\n", long, Coding::Gzip),
        (200, "content-type: image/svg+xml\r\n", long, Coding::Gzip),
        (200, html, Framing::Length(10), Coding::AsItIs),
        (200, html, Framing::Length(0), Coding::AsItIs),
        (204, html, Framing::Length(0), Coding::AsItIs),
        (206, html, long, Coding::AsItIs),
        (304, html, Framing::Length(0), Coding::AsItIs),
        (200, "Content-Type: image/png\r\n", long, Coding::AsItIs),
        (200, "Content-Type: textual/x\r\n", long, Coding::AsItIs),
        (200, "", long, Coding::AsItIs),
        (200, "Content-Type: text/html\r\nContent-Encoding: br\r\n", long, Coding::AsItIs),
        (200, "Content-Type: text/html\r\nContent-Range: bytes 0-1/2\r\n", long, Coding::AsItIs),
        (200, "Content-Type: text/html\r\nRepr-Digest: x\r\n", long, Coding::AsItIs),
        (200, "Content-Type: text/html\r\nCache-Control: private, No-Transform\r\n", long, Coding::AsItIs),
    ] {
        assert_eq!(choose(&config, &response(status, fields), framing, true), coding, "{status} {fields}");
        let without = if coding == Coding::Gzip { Coding::Varies } else { coding };
        assert_eq!(choose(&config, &response(status, fields), framing, false), without, "{status} {fields}");
    }
}

#[test]
fn the_head_says_what_was_done() {
    for (coding, before, after) in [
        (Coding::AsItIs, "ETag: \"x\"\r\n", "ETag: \"x\"\r\n"),
        (Coding::Varies, "ETag: \"x\"\r\n", "ETag: \"x\"\r\nVary: Accept-Encoding\r\n"),
        (
            Coding::Gzip,
            "ETag: \"x\"\r\nContent-Length: 7\r\nAccept-Ranges: bytes\r\n",
            "Vary: Accept-Encoding\r\nETag: W/\"x\"\r\nContent-Encoding: gzip\r\n",
        ),
        (
            Coding::Gzip,
            "etag: W/\"x\"\r\nVary: Origin\r\n",
            "etag: W/\"x\"\r\nVary: Origin\r\nVary: Accept-Encoding\r\nContent-Encoding: gzip\r\n",
        ),
        (
            Coding::Gzip,
            "Vary: Origin, accept-encoding\r\n",
            "Vary: Origin, accept-encoding\r\nContent-Encoding: gzip\r\n",
        ),
        (Coding::Gzip, "Vary: *\r\n", "Vary: *\r\nContent-Encoding: gzip\r\n"),
    ] {
        let mut head = response(200, before);
        announce(coding, &mut head);
        let mut out = Vec::new();
        head.write_fields(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), after);
    }
}

/// Pieces with pauses between them, which last until somebody ends them.
struct Pieces {
    left: VecDeque<Option<Vec<u8>>>,
    now: Vec<u8>,
}

impl Source for Pieces {
    fn poll_bytes(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        if self.now.is_empty() {
            match self.left.front() {
                Some(Some(_)) => self.now = self.left.pop_front().flatten().unwrap(),
                Some(None) => return Poll::Pending,
                None => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    fn bytes(&self) -> &[u8] {
        &self.now
    }

    fn consume(&mut self, n: usize) {
        self.now.drain(..n);
    }

    fn is_end(&self) -> bool {
        self.left.is_empty()
    }

    fn trailers(&self) -> &[u8] {
        b""
    }
}

#[test]
fn what_is_there_goes_out_before_more_is_awaited_and_all_of_it_reads_back() {
    let large: Vec<u8> = (0..200_000_u32).flat_map(|n| (n / 7).to_string().into_bytes()).collect();
    let pieces = [Some(b"event: 1\n\n".to_vec()), None, Some(large.clone()), None, Some(b"end".to_vec())];
    let mut source = Pieces { left: pieces.into(), now: Vec::new() };
    let mut gzip = Gzip::new(&CompressionConfig::default());
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let (mut out, mut pauses) = (Vec::new(), 0);
    loop {
        let mut squeezed = Squeezed { source: &mut source, gzip: &mut gzip };
        match squeezed.poll_bytes(&mut cx) {
            Poll::Ready(result) => {
                result.unwrap();
                let n = squeezed.bytes().len().min(999);
                out.extend_from_slice(&squeezed.bytes()[..n]);
                squeezed.consume(n);
                if squeezed.is_end() && squeezed.bytes().is_empty() {
                    break;
                }
            }
            Poll::Pending => {
                pauses += 1;
                source.left.pop_front();
                if pauses == 1 {
                    let mut text = [0; 10];
                    GzDecoder::new(&out[..]).read_exact(&mut text).unwrap();
                    assert_eq!(&text, b"event: 1\n\n");
                }
            }
        }
    }
    let mut text = Vec::new();
    GzDecoder::new(&out[..]).read_to_end(&mut text).unwrap();
    assert!(text == [b"event: 1\n\n", &large[..], b"end"].concat());
    assert_eq!(pauses, 2);
    assert!(out.len() < large.len() / 3);
}
