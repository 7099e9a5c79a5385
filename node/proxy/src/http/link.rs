//! One HTTP/1.1 connection to an endpoint.
//!
//! It has no task of its own: whoever uses it polls it, inside the task of the client connection it
//! works for. That saves two task switches per request, and an idle connection costs nothing at
//! all; whether it is still open is asked when it is taken from the pool and by the sweep.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    body::Medium,
    h2::link::{self, LinkIo},
    head::{Head, Malformed},
    held::Held,
};
use tokio::net::TcpStream;

use crate::{
    buffers::Buffers,
    metrics::{AppCells, Count},
    stream::Stream,
    tcp::Active,
};

/// Status line and fields of a response together.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// As much is read at once in search of a head: what is left of a large body then never gets here, see `splice`.
const READ_BYTES: usize = 16 * 1024;

pub(crate) struct Link {
    pub(crate) stream: Wire,
    pub(crate) held: Held,
    /// A byte of a response has come since the request was begun.
    has_received: bool,
    /// `None`: counted with the connection it shares.
    active: Option<Active>,
}

/// What a request goes over.
pub(crate) enum Wire {
    Own(Stream),
    /// A stream of a connection that others use as well.
    Shared(Box<LinkIo>),
}

/// Why there is no head of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadError {
    /// The endpoint has closed without a byte.
    Stale,
    /// It says that it has done nothing with the request.
    Refused,
    BrokeOff,
    Malformed(Malformed),
}

impl Link {
    pub(crate) fn new(stream: Stream, cells: &Rc<AppCells>) -> Link {
        let active = Some(Active::new(cells));
        Link { stream: Wire::Own(stream), held: Held::default(), has_received: false, active }
    }

    /// For one request, and to be thrown away behind it.
    pub(crate) fn shared(io: LinkIo) -> Link {
        Link { stream: Wire::Shared(Box::new(io)), held: Held::default(), has_received: false, active: None }
    }

    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.stream, Wire::Shared(_))
    }

    pub(crate) fn begin(&mut self) {
        self.has_received = false;
    }

    /// Sends the head of a request where that goes in frames of its own. `None`: it goes as text, with the rest.
    pub(crate) fn ask(&mut self, request: &Head, sent: &Count) -> Option<io::Result<()>> {
        let Wire::Shared(stream) = &mut self.stream else { return None };
        sent.add(request.len() as u64);
        Some(stream.ask(request))
    }

    /// Whether an idle connection has not been closed and nothing came that nobody asked for. Asks the kernel only
    /// when something has happened since the last read.
    pub(crate) fn is_open(&mut self, cx: &mut Context<'_>) -> bool {
        let stream = match &mut self.stream {
            Wire::Own(Stream::Plain(stream)) => stream,
            // Tickets may come at any time, and are nothing to be read.
            Wire::Own(Stream::Tls(stream)) => {
                return Pin::new(&mut **stream).poll_read(cx, &mut ReadBuf::new(&mut [0])).is_pending();
            }
            Wire::Shared(_) => return false,
        };
        loop {
            match stream.poll_read_ready(cx) {
                Poll::Pending => return true,
                Poll::Ready(Err(_)) => return false,
                Poll::Ready(Ok(())) => match stream.try_read(&mut [0]) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(_) | Err(_) => return false,
                },
            }
        }
    }

    /// Reads until the head of a response is whole.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &Buffers,
        cells: &AppCells,
        head: &mut Head,
    ) -> Poll<Result<(), HeadError>> {
        if let Wire::Shared(stream) = &mut self.stream {
            // Whatever ended it, nothing of a response has come.
            let of = |ended| if link::is_refusal(&ended) { HeadError::Refused } else { HeadError::Stale };
            ready!(stream.poll_response(cx, head)).map_err(of)?;
            cells.received_upstream.add(head.len() as u64);
            return Poll::Ready(Ok(()));
        }
        loop {
            if !self.held.is_empty() {
                match head.parse_response(self.held.bytes(), HEAD_BYTES_MAX) {
                    Ok(Some(used)) => {
                        self.held.consume(used);
                        return Poll::Ready(Ok(()));
                    }
                    Ok(None) if self.held.is_full() && !self.held.grow(HEAD_BYTES_MAX) => {
                        return Poll::Ready(Err(HeadError::Malformed(Malformed::HeaderBytes)));
                    }
                    Ok(None) => {}
                    Err(malformed) => return Poll::Ready(Err(HeadError::Malformed(malformed))),
                }
            }
            match ready!(self.held.poll_fill_some(cx, buffers, &mut self.stream, READ_BYTES)) {
                Ok(n) if n > 0 => {
                    cells.received_upstream.add(n as u64);
                    self.has_received = true;
                }
                Ok(_) | Err(_) if self.has_received => return Poll::Ready(Err(HeadError::BrokeOff)),
                Ok(_) | Err(_) => return Poll::Ready(Err(HeadError::Stale)),
            }
        }
    }

    /// The socket, where bytes may go past everything else.
    pub(crate) fn plain(&self) -> Option<&TcpStream> {
        match &self.stream {
            Wire::Own(Stream::Plain(stream)) => Some(stream),
            Wire::Own(Stream::Tls(_)) | Wire::Shared(_) => None,
        }
    }

    /// The bare connection, for another protocol, and what was read ahead of it.
    /// `None`: others share it.
    pub(crate) fn into_stream(self, buffers: &Buffers) -> Option<(Stream, Bytes, Active)> {
        let Link { stream: Wire::Own(stream), held, active: Some(active), .. } = self else { return None };
        Some((stream, held.into_bytes(buffers), active))
    }
}

impl Medium for Wire {
    fn is_framed(&self) -> bool {
        matches!(self, Wire::Shared(_))
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        end: Option<&[u8]>,
    ) -> Poll<io::Result<usize>> {
        match self {
            Wire::Own(stream) => stream.poll_frame(cx, bytes, end),
            Wire::Shared(stream) => stream.poll_frame(cx, bytes, end),
        }
    }

    fn take_trailers(&mut self, out: &mut Vec<u8>) {
        match self {
            Wire::Own(stream) => stream.take_trailers(out),
            Wire::Shared(stream) => stream.take_trailers(out),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Own(stream) => Pin::new(stream).poll_read(cx, buffer),
            Wire::Shared(stream) => Pin::new(&mut **stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Own(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Shared(stream) => Pin::new(&mut **stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Own(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Wire::Shared(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, Wire::Own(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Own(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Shared(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Own(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Shared(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }
}
