//! Bodies in transit: the framing they come in is taken off, the framing they go in is put on.
//!
//! Nothing is collected. One lent buffer per direction: the next read waits until everything of the last one is
//! written. Chunks are read strictly and written anew, so no two readers can split them differently.

use std::{
    io::{self, IoSlice},
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use memchr::{memchr, memchr_iter, memmem};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::{head, headers, held::Held, splice};
use crate::{buffers::Buffers, metrics::Count, stream::Stream};

/// A chunk size with its extensions; those we know of have about a hundred bytes.
const CHUNK_LINE_MAX: usize = 1024;
/// All trailers together.
const TRAILER_BYTES_MAX: usize = 8 * 1024;
const TRAILERS_MAX: usize = 32;
/// As much of a body is copied behind its head, so that both leave in one plain write. More goes out as it
/// lies: gathering costs the kernel about as much as copying this.
const COPY_MAX: usize = 4 * 1024;

/// A connection, or a stream of one. What it carries is text, or goes in frames that say where a body ends.
pub(crate) trait Medium: AsyncRead + AsyncWrite + Unpin {
    fn is_framed(&self) -> bool {
        false
    }
    /// Sends some of `bytes`; with an `end` they are the last, and those field lines come behind them. How many went.
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        _: Option<&[u8]>,
    ) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write(cx, bytes)
    }
    /// Writes the field lines that came behind a body in frames.
    fn take_trailers(&mut self, _: &mut Vec<u8>) {}
    /// Ready once nobody waits at the other end of the frames.
    fn poll_gone(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Medium for TcpStream {}
impl Medium for Stream {}

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    /// It ends where the connection does, or with the last of its frames.
    UntilClose,
}

/// Why a body broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyError {
    /// Its sender is gone in the middle of it.
    BrokeOff,
    /// It is not framed as it says.
    Framing,
    TooLarge,
}

/// Where a body comes from, with its framing taken off.
pub(crate) trait Source {
    /// Ready once there are bytes, or there will be none.
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>>;
    fn bytes(&self) -> &[u8];
    fn consume(&mut self, n: usize);
    /// Nothing comes after [`Source::bytes`].
    fn is_end(&self) -> bool;
    /// Nothing is there, and much is to come that is only passed on.
    fn is_long(&self) -> bool {
        false
    }
    /// Field lines behind the body, ready to be written. Complete at its end.
    fn trailers(&self) -> &[u8];
}

/// How far the reading of a body is.
#[derive(Default)]
pub(crate) struct Incoming {
    stage: Stage,
    /// Bytes of the body that lie in the buffer, in front of those that are still framed.
    ready: Range<usize>,
    trailers: Vec<u8>,
    /// Of the body so far, and how many it may have.
    bytes: u64,
    bytes_max: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Done,
    Left(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    UntilClose,
}

impl Incoming {
    /// `bytes_max` 0 = no limit.
    pub(crate) fn begin(&mut self, framing: Framing, bytes_max: u64) {
        self.stage = match framing {
            Framing::Length(0) => Stage::Done,
            Framing::Length(bytes) => Stage::Left(bytes),
            Framing::Chunked => Stage::ChunkSize,
            Framing::UntilClose => Stage::UntilClose,
        };
        self.ready = 0..0;
        self.trailers.clear();
        self.bytes = 0;
        self.bytes_max = if bytes_max == 0 { u64::MAX } else { bytes_max };
    }

    /// Everything was read, though maybe not used.
    pub(crate) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Bytes of the body so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is still to come of a body of known length.
    pub(crate) fn left(&self) -> u64 {
        match self.stage {
            Stage::Left(left) => left,
            Stage::Done
            | Stage::ChunkSize
            | Stage::Chunk(_)
            | Stage::ChunkEnd
            | Stage::Trailers
            | Stage::UntilClose => 0,
        }
    }

    /// So many bytes of it went past.
    pub(crate) fn pass(&mut self, n: u64) {
        if let Stage::Left(left) = self.stage {
            self.stage = if left == n { Stage::Done } else { Stage::Left(left - n) };
            self.bytes += n;
        }
    }

    /// Skips what is there of the body; whether that was all of it.
    pub(crate) fn skip(&mut self, held: &mut Held) -> bool {
        while self.stage != Stage::Done && !held.is_empty() {
            let before = held.start;
            self.ready = 0..0;
            if self.decode(held).is_err() || held.start == before {
                return false;
            }
        }
        self.stage == Stage::Done
    }

    /// Takes the framing off what is there. All of the body in it lies in one piece afterwards.
    fn decode(&mut self, held: &mut Held) -> Result<(), BodyError> {
        debug_assert!(self.ready.is_empty(), "what was read before is still wanted");
        let Held { buffer: Some(buffer), start, end } = held else { return Ok(()) };
        self.ready = *start..*start;
        while start < end {
            match self.stage {
                Stage::Done => break,
                Stage::UntilClose => self.take(buffer, start, *end, u64::MAX),
                Stage::Left(left) => {
                    let left = left - self.take(buffer, start, *end, left);
                    self.stage = if left == 0 { Stage::Done } else { Stage::Left(left) };
                    0
                }
                Stage::Chunk(left) => {
                    let left = left - self.take(buffer, start, *end, left);
                    self.stage = if left == 0 { Stage::ChunkEnd } else { Stage::Chunk(left) };
                    0
                }
                Stage::ChunkEnd => {
                    if !b"\r\n".starts_with(&buffer[*start..(*start + 2).min(*end)]) {
                        return Err(BodyError::Framing);
                    }
                    if *end - *start < 2 {
                        break;
                    }
                    *start += 2;
                    self.stage = Stage::ChunkSize;
                    0
                }
                Stage::ChunkSize => {
                    let Some((size, used)) = chunk_size(&buffer[*start..*end])? else { break };
                    *start += used;
                    self.stage = if size == 0 { Stage::Trailers } else { Stage::Chunk(size) };
                    0
                }
                Stage::Trailers => {
                    let Some(used) = trailers(&buffer[*start..*end], &mut self.trailers)? else { break };
                    *start += used;
                    self.stage = Stage::Done;
                    0
                }
            };
        }
        if self.bytes > self.bytes_max { Err(BodyError::TooLarge) } else { Ok(()) }
    }

    /// Up to `max` bytes are of the body: moved behind those before. How many.
    fn take(&mut self, buffer: &mut [u8], start: &mut usize, end: usize, max: u64) -> u64 {
        let n = usize::try_from(max).map_or(end - *start, |max| max.min(end - *start));
        if self.ready.is_empty() {
            self.ready = *start..*start + n;
        } else {
            buffer.copy_within(*start..*start + n, self.ready.end);
            self.ready.end += n;
        }
        *start += n;
        self.bytes += n as u64;
        n as u64
    }
}

/// A body that arrives on a connection of ours.
pub(crate) struct Arriving<'a, R> {
    pub(crate) from: &'a mut R,
    pub(crate) held: &'a mut Held,
    pub(crate) body: &'a mut Incoming,
    pub(crate) buffers: &'a Buffers,
    pub(crate) received: &'a Count,
}

impl<R: Medium> Source for Arriving<'_, R> {
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        loop {
            if !self.body.ready.is_empty() || self.body.is_done() {
                return Poll::Ready(Ok(()));
            }
            if !self.held.is_empty() {
                self.body.decode(self.held)?;
                if !self.body.ready.is_empty() || self.body.is_done() {
                    return Poll::Ready(Ok(()));
                }
                if self.held.is_full() {
                    // A line that does not end; its own bound is far below this.
                    return Poll::Ready(Err(BodyError::Framing));
                }
            }
            match ready!(self.held.poll_fill(cx, self.buffers, self.from)) {
                Ok(0) if self.body.stage == Stage::UntilClose => {
                    self.body.stage = Stage::Done;
                    self.from.take_trailers(&mut self.body.trailers);
                }
                Ok(0) | Err(_) => return Poll::Ready(Err(BodyError::BrokeOff)),
                Ok(n) => self.received.add(n as u64),
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        self.held.buffer.as_ref().map_or(&[], |buffer| &buffer[self.body.ready.clone()])
    }

    fn consume(&mut self, n: usize) {
        self.body.ready.start += n;
    }

    fn is_end(&self) -> bool {
        self.body.is_done()
    }

    fn is_long(&self) -> bool {
        self.held.is_empty() && self.body.ready.is_empty() && self.body.left() >= splice::BYTES_MIN
    }

    fn trailers(&self) -> &[u8] {
        &self.body.trailers
    }
}

/// RFC 9112 §7.1. Extensions are for this hop alone and dropped. The size, and the bytes of the whole line.
fn chunk_size(bytes: &[u8]) -> Result<Option<(u64, usize)>, BodyError> {
    let Some(end) = memchr(b'\n', &bytes[..bytes.len().min(CHUNK_LINE_MAX)]) else {
        return if bytes.len() < CHUNK_LINE_MAX { Ok(None) } else { Err(BodyError::Framing) };
    };
    let line = bytes[..end].strip_suffix(b"\r").ok_or(BodyError::Framing)?;
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let (size, extensions) = line.split_at(digits);
    let is_extension = |rest: &[u8]| rest.is_empty() || rest[0] == b';';
    let is_text = |byte: &u8| *byte >= b' ' && *byte != 0x7f || *byte == b'\t';
    // Sixteen digits are all that fit 64 bits.
    if size.is_empty()
        || size.len() > 16
        || !is_extension(extensions.trim_ascii_start())
        || !extensions.iter().all(is_text)
    {
        return Err(BodyError::Framing);
    }
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map_or(0, u64::from);
    Ok(Some((size.iter().fold(0, |size, byte| size << 4 | digit(byte)), end + 1)))
}

/// Reads the trailer section and writes what may be passed on of it. Its length, once all of it is there.
fn trailers(bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>, BodyError> {
    if bytes.starts_with(b"\r\n") {
        return Ok(Some(2));
    }
    if bytes == b"\r" {
        return Ok(None);
    }
    let end = memmem::find(&bytes[..bytes.len().min(TRAILER_BYTES_MAX)], b"\r\n\r\n");
    let section = &bytes[..end.map_or(bytes.len(), |end| end + 4)];
    let is_bare = |at: usize| at == 0 || section[at - 1] != b'\r';
    if memchr_iter(b'\n', section).any(is_bare) || end.is_none() && bytes.len() >= TRAILER_BYTES_MAX {
        return Err(BodyError::Framing);
    }
    if end.is_none() {
        return Ok(None);
    }
    let mut fields = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    match httparse::parse_headers(section, &mut fields) {
        Ok(httparse::Status::Complete((used, fields))) if used == section.len() => {
            for field in fields.iter().filter(|field| headers::is_trailer(head::tag(field.name.as_bytes()))) {
                for part in [field.name.as_bytes(), b": ", field.value, b"\r\n"] {
                    out.extend_from_slice(part);
                }
            }
            Ok(Some(section.len()))
        }
        Ok(_) | Err(_) => Err(BodyError::Framing),
    }
}

/// How a body goes out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Encode {
    /// As it is: its length was announced, or the connection ends with it.
    #[default]
    Plain,
    Chunked,
}

/// A message on its way out.
#[derive(Default)]
pub(crate) struct Outgoing {
    /// To be written first: a head, the size of a chunk, a small body.
    front: Vec<u8>,
    front_sent: usize,
    /// Then so many bytes of the source, as they lie there,
    body: usize,
    /// and then these.
    back: Vec<u8>,
    back_sent: usize,
    encode: Encode,
    /// Only a head is in front so far: what there is of the body leaves with it.
    is_fresh: bool,
    is_complete: bool,
    /// Stop where so much comes that must not be looked at; see `splice`.
    hands_over: bool,
    moved: u64,
}

/// Which side ended a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MoveError {
    Source(BodyError),
    Target,
}

impl Outgoing {
    /// What is to be written first.
    pub(crate) fn front(&self) -> &[u8] {
        &self.front
    }

    /// Forgets whatever was left of the message before.
    pub(crate) fn reset(&mut self) {
        self.front.clear();
        self.back.clear();
        (self.front_sent, self.body, self.back_sent) = (0, 0, 0);
        self.moved = 0;
    }

    /// Begins a message behind those without a body that are not written yet; its head is to be written into what
    /// is returned.
    pub(crate) fn begin(&mut self, encode: Encode) -> &mut Vec<u8> {
        self.encode = encode;
        self.is_fresh = true;
        self.is_complete = false;
        self.hands_over = false;
        &mut self.front
    }

    /// What was begun and is not written yet.
    pub(crate) fn text(&self) -> &[u8] {
        &self.front
    }

    /// Bytes written so far.
    pub(crate) fn moved(&self) -> u64 {
        self.moved
    }

    /// Starts over with the same bytes. Only for a message without a body.
    pub(crate) fn rewind(&mut self) {
        self.front_sent = 0;
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Whether the next large stretch is left to somebody else.
    pub(crate) fn hand_over(&mut self, hands_over: bool) {
        self.hands_over = hands_over;
    }

    /// So many bytes went past.
    pub(crate) fn passed(&mut self, n: u64) {
        self.moved += n;
    }

    /// Moves on as far as possible. Ready once everything is written, or what comes is to be handed over.
    pub(crate) fn poll_move<S: Source, W: Medium>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        to: &mut W,
        sent: &Count,
    ) -> Poll<Result<(), MoveError>> {
        if to.is_framed() {
            return self.poll_frames(cx, source, to, sent);
        }
        loop {
            if self.hands_over && !self.is_fresh && !self.has_bytes() && source.is_long() {
                return Poll::Ready(Ok(()));
            }
            if !self.is_complete && (self.is_fresh || !self.has_bytes()) {
                match source.poll_bytes(cx) {
                    Poll::Ready(Ok(())) => self.stage(source),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(MoveError::Source(error))),
                    Poll::Pending if self.has_bytes() => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
            while self.has_bytes() {
                let n = match ready!(self.poll_write(cx, source.bytes(), to)) {
                    Ok(0) | Err(_) => return Poll::Ready(Err(MoveError::Target)),
                    Ok(n) => n,
                };
                sent.add(n as u64);
                source.consume(self.advance(n));
            }
            if self.is_complete {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// The body alone, as it lies there: the head has gone its own way.
    fn poll_frames<S: Source, W: Medium>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        to: &mut W,
        sent: &Count,
    ) -> Poll<Result<(), MoveError>> {
        while !self.is_complete {
            ready!(source.poll_bytes(cx)).map_err(MoveError::Source)?;
            let bytes = source.bytes();
            let end = source.is_end().then(|| source.trailers());
            let Ok(n) = ready!(to.poll_frame(cx, bytes, end)) else {
                return Poll::Ready(Err(MoveError::Target));
            };
            self.is_complete = n == bytes.len() && end.is_some();
            self.moved += n as u64;
            sent.add(n as u64);
            source.consume(n);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what is there of the head, and nothing of the body.
    pub(crate) fn poll_head<W: Medium>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
        sent: &Count,
    ) -> Poll<Result<(), MoveError>> {
        while self.front_sent < self.front.len() && !to.is_framed() {
            let n = match ready!(Pin::new(&mut *to).poll_write(cx, &self.front[self.front_sent..])) {
                Ok(0) | Err(_) => return Poll::Ready(Err(MoveError::Target)),
                Ok(n) => n,
            };
            sent.add(n as u64);
            self.front_sent += n;
            self.moved += n as u64;
        }
        Poll::Ready(Ok(()))
    }

    /// Lets go of what an unusually large message needed.
    pub(crate) fn shrink(&mut self, max: usize) {
        if self.front.capacity() > max {
            self.front = Vec::new();
        }
    }

    fn has_bytes(&self) -> bool {
        self.front_sent < self.front.len() || self.body > 0 || self.back_sent < self.back.len()
    }

    /// Lays out the next piece.
    fn stage<S: Source>(&mut self, source: &mut S) {
        if !std::mem::take(&mut self.is_fresh) {
            self.front.clear();
            self.front_sent = 0;
        }
        self.back.clear();
        self.back_sent = 0;
        let n = source.bytes().len();
        self.is_complete = source.is_end();
        if self.encode == Encode::Chunked {
            if n > 0 {
                write_hex(n, &mut self.front);
                self.back.extend_from_slice(b"\r\n");
            }
            if self.is_complete {
                self.back.extend_from_slice(b"0\r\n");
                self.back.extend_from_slice(source.trailers());
                self.back.extend_from_slice(b"\r\n");
            }
        }
        if n <= COPY_MAX {
            self.front.extend_from_slice(source.bytes());
            source.consume(n);
            self.front.extend_from_slice(&self.back);
            self.back.clear();
        } else {
            self.body = n;
        }
    }

    fn poll_write<W: AsyncWrite + Unpin>(
        &self,
        cx: &mut Context<'_>,
        body: &[u8],
        to: &mut W,
    ) -> Poll<io::Result<usize>> {
        let front = &self.front[self.front_sent..];
        let (body, back) = (&body[..self.body], &self.back[self.back_sent..]);
        let to = Pin::new(to);
        match (front.is_empty(), body.is_empty(), back.is_empty()) {
            (false, true, true) => to.poll_write(cx, front),
            (true, false, true) => to.poll_write(cx, body),
            (true, true, _) => to.poll_write(cx, back),
            (_, _, _) => to.poll_write_vectored(cx, &[front, body, back].map(IoSlice::new)),
        }
    }

    /// Takes note of `n` written bytes; how many of them were the source's.
    fn advance(&mut self, n: usize) -> usize {
        self.moved += n as u64;
        let front = n.min(self.front.len() - self.front_sent);
        let body = (n - front).min(self.body);
        self.front_sent += front;
        self.body -= body;
        self.back_sent += n - front - body;
        body
    }
}

/// The line before a chunk.
fn write_hex(n: usize, out: &mut Vec<u8>) {
    let digits = (usize::BITS - n.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[n >> (4 * digit) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
