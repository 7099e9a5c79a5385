use tokio::io::ReadBuf;

use super::*;

const MAX: u64 = 0;

/// Feeds `wire` to a body in pieces of `piece` bytes: the body, its trailers, and what was left over.
fn read(framing: Framing, wire: &[u8], piece: usize) -> Result<(Vec<u8>, String, Vec<u8>), BodyError> {
    let buffers = Buffers::default();
    let (mut held, mut body, mut out) = (Held::default(), Incoming::default(), Vec::new());
    body.begin(framing, MAX);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut pieces = wire.chunks(piece);
    while !body.is_done() {
        let Some(mut piece) = pieces.next() else { return Err(BodyError::BrokeOff) };
        while !piece.is_empty() {
            assert!(held.poll_fill(&mut cx, &buffers, &mut piece).is_ready());
        }
        body.decode(&mut held)?;
        out.extend_from_slice(&held.buffer.as_ref().unwrap()[body.ready.clone()]);
        body.ready = 0..0;
    }
    let trailers = String::from_utf8(body.trailers).unwrap();
    let left = [held.bytes(), &pieces.flatten().copied().collect::<Vec<u8>>()].concat();
    Ok((out, trailers, left))
}

#[test]
fn a_body_comes_out_of_its_framing_however_the_reads_cut_it() {
    let long = format!("{:x}\r\n{}\r\n0\r\n\r\n", 3000, "y".repeat(3000));
    for (framing, wire, want, trailers) in [
        (Framing::Length(5), "hello", "hello", ""),
        (Framing::Chunked, "5\r\nhello\r\n0\r\n\r\n", "hello", ""),
        (Framing::Chunked, "2\r\nhe\r\n03 ;x=\"y\"\r\nllo\r\n000\r\n\r\n", "hello", ""),
        (Framing::Chunked, "A\r\n0123\r\n\r\n\0\n\r\n0\r\n\r\n", "0123\r\n\r\n\0\n", ""),
        (Framing::Chunked, "0\r\n\r\n", "", ""),
        (Framing::Chunked, "0\r\nx: 1\r\n\r\n", "", "x: 1\r\n"),
        (Framing::Chunked, "1\r\na\r\n0\r\nX-Sum: 1\r\nX-b:2 \r\n\r\n", "a", "X-Sum: 1\r\nX-b: 2\r\n"),
        (
            Framing::Chunked,
            "0\r\nHost: a\r\nContent-Length: 3\r\nConnection: x\r\nX: 1\r\n\r\n",
            "",
            "X: 1\r\n",
        ),
        (Framing::Chunked, &long, &"y".repeat(3000), ""),
    ] {
        for piece in [1, 2, 3, 7, 10_000] {
            let wire = format!("{wire}GET /\n");
            let (body, read_trailers, left) = read(framing, wire.as_bytes(), piece).unwrap();
            assert_eq!((body, read_trailers), (want.into(), trailers.to_owned()), "{wire:?} by {piece}");
            assert_eq!(left, b"GET /\n", "{wire:?} by {piece}");
        }
    }
}

#[test]
fn chunks_that_two_could_read_differently_are_refused() {
    for wire in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "5\r\r\nhello\r\n0\r\n\r\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "5;\r\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "10000000000000000\r\nhello\r\n0\r\n\r\n",
        "0\r\nx y: 1\r\n\r\n",
        "0\r\n x: 1\r\n\r\n",
        "0\r\nx: 1\ny: 2\r\n\r\n\r\n",
    ] {
        for piece in [1, 3, 10_000] {
            assert_eq!(read(Framing::Chunked, wire.as_bytes(), piece), Err(BodyError::Framing), "{wire:?}");
        }
    }
    let endless = [b"5;".to_vec(), vec![b'x'; CHUNK_LINE_MAX]].concat();
    assert_eq!(read(Framing::Chunked, &endless, 100), Err(BodyError::Framing));
    let endless = [b"0\r\nx: ".to_vec(), vec![b'x'; TRAILER_BYTES_MAX]].concat();
    assert_eq!(read(Framing::Chunked, &endless, 100), Err(BodyError::Framing));
}

#[test]
fn a_body_over_its_limit_is_noticed_in_the_read_that_brings_it() {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    for (wire, want) in
        [("3\r\nabc\r\n0\r\n\r\n", Ok(())), ("4\r\nabcd\r\n0\r\n\r\n", Err(BodyError::TooLarge))]
    {
        let (mut held, mut body) = (Held::default(), Incoming::default());
        body.begin(Framing::Chunked, 3);
        assert!(held.poll_fill(&mut cx, &Buffers::default(), &mut wire.as_bytes()).is_ready());
        assert_eq!(body.decode(&mut held), want);
    }
}

/// A body that is all there.
struct Whole<'a>(&'a [u8], &'a [u8]);

impl Source for Whole<'_> {
    fn poll_bytes(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        Poll::Ready(Ok(()))
    }
    fn bytes(&self) -> &[u8] {
        self.0
    }
    fn consume(&mut self, n: usize) {
        self.0 = &self.0[n..];
    }
    fn is_end(&self) -> bool {
        true
    }
    fn trailers(&self) -> &[u8] {
        self.1
    }
}

/// Takes `.1` bytes at a time.
struct Slow(Vec<u8>, usize);

impl Medium for Slow {}

impl AsyncRead for Slow {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Slow {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = bytes.len().min(this.1);
        this.0.extend_from_slice(&bytes[..n]);
        Poll::Ready(Ok(n))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_message_goes_out_whole_however_little_is_taken_at_a_time() {
    let sent = Count::unseen();
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut out = Outgoing::default();
    for bytes in [0, 1, 15, 16, COPY_MAX, COPY_MAX + 1, 3 * COPY_MAX] {
        let body = "z".repeat(bytes);
        for (encode, trailers, want) in [
            (Encode::Plain, "", format!("head\r\n\r\n{body}")),
            (
                Encode::Chunked,
                "",
                match bytes {
                    0 => "head\r\n\r\n0\r\n\r\n".to_owned(),
                    _ => format!("head\r\n\r\n{bytes:x}\r\n{body}\r\n0\r\n\r\n"),
                },
            ),
            (
                Encode::Chunked,
                "t: 1\r\n",
                match bytes {
                    0 => "head\r\n\r\n0\r\nt: 1\r\n\r\n".to_owned(),
                    _ => format!("head\r\n\r\n{bytes:x}\r\n{body}\r\n0\r\nt: 1\r\n\r\n"),
                },
            ),
        ] {
            for piece in [1, 5, 100_000] {
                out.reset();
                out.begin(encode).extend_from_slice(b"head\r\n\r\n");
                let mut to = Slow(Vec::new(), piece);
                let mut source = Whole(body.as_bytes(), trailers.as_bytes());
                let moved = out.poll_move(&mut cx, &mut source, &mut to, &sent);
                assert_eq!(moved, Poll::Ready(Ok(())));
                assert_eq!(String::from_utf8(to.0).unwrap(), want, "{bytes} by {piece}");
                assert_eq!(out.moved(), want.len() as u64);
            }
        }
    }
}
