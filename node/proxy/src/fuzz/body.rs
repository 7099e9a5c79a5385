//! Bodies in chunks.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    buffers::Buffers,
    http::{
        body::{Arriving, Framing, Incoming, Medium, Source},
        held::Held,
    },
    metrics::Count,
};

/// All that comes of a connection, in pieces.
struct Pieces<'a>(std::slice::Chunks<'a, u8>);

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        buffer.put_slice(self.get_mut().0.next().unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(0))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Medium for Pieces<'_> {}

/// The body and the trailers behind it, as they are read when `bytes` arrive in pieces of so many; `None`: they are
/// no body of that framing.
pub(crate) fn read_body(bytes: &[u8], framing: Framing, piece: usize) -> Option<(Vec<u8>, Vec<u8>)> {
    let (mut incoming, mut held, buffers) = (Incoming::default(), Held::default(), Buffers::default());
    incoming.begin(framing, 0);
    let mut arriving = Arriving {
        from: &mut Pieces(bytes.chunks(piece)),
        held: &mut held,
        body: &mut incoming,
        buffers: &buffers,
        received: &Count::unseen(),
    };
    let mut body = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        match arriving.poll_bytes(&mut cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return None,
            Poll::Pending => unreachable!("everything is there"),
        }
        body.extend_from_slice(arriving.bytes());
        arriving.consume(arriving.bytes().len());
        if arriving.is_end() {
            let trailers = arriving.trailers().to_vec();
            return Some((body, trailers));
        }
    }
}

/// In any pieces it is the body that a reader of RFC 9112 §7.1 finds who looks at all of it.
pub fn chunked_body(data: &[u8]) {
    let whole = read_body(data, Framing::Chunked, 4096);
    for piece in [1, 2, 7] {
        assert_eq!(read_body(data, Framing::Chunked, piece), whole, "in pieces of {piece}");
    }
    if let Some((body, _)) = whole {
        assert_eq!(unchunked(data).as_deref(), Some(&body[..]));
    }
}

fn unchunked(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
        let size = bytes[..end].split(|byte| *byte == b';').next()?.trim_ascii_end();
        if size.is_empty() || !size.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes[size..].strip_prefix(b"\r\n")?;
    }
}
