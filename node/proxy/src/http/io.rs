//! The sockets as hyper sees them: counted, watched by the guard, and closed by us alone.
//!
//! The only `unsafe` of the crate is here: hyper lends uninitialised memory to read into, and there is
//! no safe way to say how much of it was filled without copying.
#![allow(unsafe_code, reason = "hyper's read buffers can only be filled in place through unsafe methods")]

use std::{
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{connection::Connection, guard::Guard, link::Wire};
use crate::metrics::AppCells;

/// What may be held of the bytes that follow the head of an upgrade until it is decided.
const HELD_MAX: usize = 64 * 1024;

/// The client side of a connection.
pub(crate) struct ClientIo {
    stream: TcpStream,
    connection: Rc<Connection>,
    guard: Guard,
    held: Vec<u8>,
}

impl ClientIo {
    pub(crate) fn new(stream: TcpStream, connection: Rc<Connection>, header_bytes_max: usize) -> ClientIo {
        ClientIo { stream, connection, guard: Guard::new(header_bytes_max), held: Vec::new() }
    }

    /// The socket, and the bytes that were read and kept from the parser.
    pub(crate) fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.held)
    }

    /// Shows `bytes` to the guard; how many of them the parser may see. The rest is held, or
    /// dropped behind a violation.
    fn watch(guard: &mut Guard, held: &mut Vec<u8>, connection: &Connection, bytes: &[u8]) -> usize {
        let fed = guard.feed(bytes);
        match fed.violation {
            Some(violation) => connection.violate(violation),
            None => held.extend_from_slice(&bytes[fed.pass..]),
        }
        fed.pass
    }

    /// Hands over what was held, now that it is known to be HTTP.
    fn release(&mut self, cursor: &mut ReadBufCursor<'_>) -> usize {
        let held = std::mem::take(&mut self.held);
        let (now, later) = held.split_at(held.len().min(cursor.remaining()));
        let pass = Self::watch(&mut self.guard, &mut self.held, &self.connection, now);
        cursor.put_slice(&now[..pass]);
        self.held.extend_from_slice(later);
        pass
    }
}

impl Read for ClientIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.connection.take_resume() {
            this.guard.resume();
        }
        if !this.held.is_empty() && !this.guard.is_holding() && this.release(&mut cursor) > 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.connection.has_violation() {
                // The answers before it are still owed; the parser asks again after the last.
                if this.connection.is_busy() {
                    return Poll::Pending;
                }
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            if this.held.len() > HELD_MAX {
                return Poll::Pending;
            }
            let ClientIo { stream, connection, guard, held } = this;
            let (read, passed) =
                ready!(fill(stream, cx, &mut cursor, |bytes| Self::watch(guard, held, connection, bytes)))?;
            connection.received(read, guard.is_mid_head());
            if passed > 0 || read == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl Write for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.connection.sent(n);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, slices))?;
        this.connection.sent(n);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// How a connection is closed is decided in `http`, by its end.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The upstream side. It wakes whom its [`Wire`] names, whatever hyper is polled with.
pub(crate) struct UpstreamIo {
    stream: TcpStream,
    wire: Rc<Wire>,
    cells: Rc<AppCells>,
}

impl UpstreamIo {
    pub(crate) fn new(stream: TcpStream, wire: Rc<Wire>, cells: Rc<AppCells>) -> UpstreamIo {
        UpstreamIo { stream, wire, cells }
    }

    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    fn with_waker<T>(&mut self, poll: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> T) -> T {
        let waker = self.wire.waker.borrow();
        poll(Pin::new(&mut self.stream), &mut Context::from_waker(&waker))
    }

    fn wrote<'a>(&self, n: usize, slices: impl Iterator<Item = &'a [u8]>) {
        self.cells.sent_upstream.add(n as u64);
        if let Some(written) = self.wire.written.borrow_mut().as_mut() {
            let mut left = n;
            for slice in slices {
                let part = &slice[..slice.len().min(left)];
                written.extend_from_slice(part);
                left -= part.len();
            }
        }
    }
}

impl Read for UpstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (read, _) =
            ready!(this.with_waker(|stream, cx| fill(stream.get_mut(), cx, &mut cursor, <[u8]>::len)))?;
        this.cells.received_upstream.add(read as u64);
        if read > 0 {
            this.wire.has_received.set(true);
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for UpstreamIo {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(this.with_waker(|stream, cx| stream.poll_write(cx, bytes)))?;
        this.wrote(n, std::iter::once(bytes));
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(this.with_waker(|stream, cx| stream.poll_write_vectored(cx, slices)))?;
        this.wrote(n, slices.iter().map(|slice| &**slice));
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().with_waker(AsyncWrite::poll_shutdown)
    }
}

/// Reads into `cursor` and gives its owner as many of the bytes as `pass` says. Both counts.
fn fill(
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    cursor: &mut ReadBufCursor<'_>,
    pass: impl FnOnce(&[u8]) -> usize,
) -> Poll<io::Result<(usize, usize)>> {
    // SAFETY: the slice is only given to a ReadBuf, which never writes uninitialised bytes into it.
    let mut buffer = ReadBuf::uninit(unsafe { cursor.as_mut() });
    ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
    let read = buffer.filled().len();
    let passed = pass(buffer.filled()).min(read);
    // SAFETY: the first `read` bytes were just filled, and `passed` is not more than that.
    unsafe { cursor.advance(passed) };
    Poll::Ready(Ok((read, passed)))
}
