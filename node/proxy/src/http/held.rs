//! What was read from a connection and not used yet, in a buffer that is lent only while there is something.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

use crate::buffers::Buffers;

#[derive(Default)]
pub(crate) struct Held {
    pub(super) buffer: Option<Box<[u8]>>,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Held {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[self.start..self.end])
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn consume(&mut self, n: usize) {
        self.start += n;
    }

    /// Whether there is no room to read into.
    pub(crate) fn is_full(&self) -> bool {
        self.buffer.as_ref().is_some_and(|buffer| self.end - self.start == buffer.len())
    }

    /// Reads once; 0 is the end. Must not be full.
    pub(crate) fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &Buffers,
        from: &mut R,
    ) -> Poll<io::Result<usize>> {
        self.poll_fill_some(cx, buffers, from, usize::MAX)
    }

    /// The same, of at most `max` bytes.
    pub(crate) fn poll_fill_some<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &Buffers,
        from: &mut R,
        max: usize,
    ) -> Poll<io::Result<usize>> {
        let buffer = self.buffer.get_or_insert_with(|| buffers.take());
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == buffer.len() {
            buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        debug_assert!(self.end < buffer.len(), "a read into nothing looks like the end");
        let until = buffer.len().min(self.end.saturating_add(max));
        let mut room = ReadBuf::new(&mut buffer[self.end..until]);
        let read = Pin::new(from).poll_read(cx, &mut room);
        let n = room.filled().len();
        if read.is_pending() {
            self.release(buffers);
        }
        ready!(read)?;
        self.end += n;
        Poll::Ready(Ok(n))
    }

    /// Makes room for something that does not fit a lent buffer. False at `max`.
    pub(crate) fn grow(&mut self, max: usize) -> bool {
        let bytes = self.bytes();
        if bytes.len() >= max {
            return false;
        }
        let mut larger = vec![0; (2 * bytes.len()).min(max)].into_boxed_slice();
        larger[..bytes.len()].copy_from_slice(bytes);
        (self.start, self.end) = (0, bytes.len());
        self.buffer = Some(larger);
        true
    }

    /// All of it, for somebody else.
    pub(crate) fn into_bytes(mut self, buffers: &Buffers) -> Bytes {
        let bytes = Bytes::copy_from_slice(self.bytes());
        self.consume(bytes.len());
        self.release(buffers);
        bytes
    }

    /// Gives the buffer back, whatever is left in it.
    pub(crate) fn give_back(mut self, buffers: &Buffers) {
        self.start = self.end;
        self.release(buffers);
    }

    /// Gives an empty buffer back.
    pub(crate) fn release(&mut self, buffers: &Buffers) {
        if self.is_empty()
            && let Some(buffer) = self.buffer.take()
        {
            (self.start, self.end) = (0, 0);
            buffers.give(buffer);
        }
    }
}
