//! One HTTP/2 stream of a client, in the shape in which the engine reads and writes every connection.
//!
//! So everything that holds for a request in HTTP/1.1 holds for one in HTTP/2: the same checks, limits, deadlines,
//! routes and counts. Heads go over as lists of fields and bodies as they are; nothing becomes text.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::{
    body::Medium,
    connection::Client,
    head::{Head, Tag, list},
};
use crate::stream::Stream;

/// Trailers as the engine lets them through.
const TRAILERS_MAX: usize = 64;
/// An answer of our own, as text.
const ANSWER_HEAD_BYTES_MAX: usize = 64 * 1024;

pub(crate) struct StreamIo {
    input: Input,
    output: Output,
    respond: SendResponse<Bytes>,
    is_head: bool,
}

/// The body of a message to be read.
pub(super) struct Input {
    data: Bytes,
    body: RecvStream,
    stage: Reading,
    trailers: Option<HeaderMap>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Body,
    Trailers,
    Done,
}

/// A message to be written.
pub(super) enum Output {
    Head,
    Body(SendStream<Bytes>),
    Done,
}

impl StreamIo {
    pub(super) fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> (StreamIo, request::Parts) {
        let (parts, body) = request.into_parts();
        let is_head = parts.method == Method::HEAD;
        (StreamIo { input: Input::new(body), output: Output::Head, respond, is_head }, parts)
    }

    /// No body follows the head of the request.
    pub(super) fn is_whole(&self) -> bool {
        self.input.stage == Reading::Done
    }

    /// Refuses what is no request (RFC 9113 §8.1.1).
    pub(super) fn refuse(mut self, reason: Reason) {
        self.respond.send_reset(reason);
        self.output = Output::Done;
    }
}

impl Client for StreamIo {
    const IS_FRAMED: bool = true;

    fn reset(&mut self) {
        if !matches!(self.output, Output::Done) {
            self.respond.send_reset(Reason::INTERNAL_ERROR);
            self.output = Output::Done;
        }
    }

    fn into_stream(self) -> Option<Stream> {
        None
    }

    fn send_head(&mut self, head: &Head, is_whole: bool) -> io::Result<()> {
        let mut response = Response::new(());
        let status = http::StatusCode::from_u16(head.status()).map_err(io::Error::other)?;
        *response.status_mut() = status;
        put_fields(head, response.headers_mut(), |_| true)?;
        if status.is_informational() {
            return self.respond.send_informational(response).map_err(broken);
        }
        let is_whole = is_whole || self.is_head || matches!(head.status(), 204 | 304);
        let send = self.respond.send_response(response, is_whole).map_err(broken)?;
        self.output = if is_whole { Output::Done } else { Output::Body(send) };
        Ok(())
    }

    fn send_continue(&mut self) -> io::Result<()> {
        let mut response = Response::new(());
        *response.status_mut() = http::StatusCode::CONTINUE;
        self.respond.send_informational(response).map_err(broken)
    }

    fn answer(&mut self, text: &[u8]) -> io::Result<()> {
        let mut head = Head::default();
        let Ok(Some(used)) = head.parse_response(text, ANSWER_HEAD_BYTES_MAX) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let body = &text[used..];
        self.send_head(&head, body.is_empty())?;
        if let Output::Body(send) = &mut self.output {
            // Short, and our own: it need not wait for room.
            send.send_data(Bytes::copy_from_slice(body), true).map_err(broken)?;
            self.output = Output::Done;
        }
        Ok(())
    }
}

/// What is complete stays so. Where the rest of a request is not wanted, the h2 crate says that behind the response (RFC
/// 9113 §8.1); a reset of ours would overtake what waits to be sent.
impl Drop for StreamIo {
    fn drop(&mut self) {
        self.reset();
    }
}

impl Medium for StreamIo {
    fn is_framed(&self) -> bool {
        true
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        end: Option<&[u8]>,
    ) -> Poll<io::Result<usize>> {
        self.output.poll_frame(cx, bytes, end)
    }

    fn take_trailers(&mut self, out: &mut Vec<u8>) {
        self.input.take_trailers(out);
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.output {
            Output::Head => self.respond.poll_reset(cx).map(drop),
            Output::Body(send) => send.poll_reset(cx).map(drop),
            Output::Done => Poll::Pending,
        }
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().input.poll_read(cx, buffer)
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().output.poll_frame(cx, bytes, None)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Input {
    pub(super) fn new(body: RecvStream) -> Input {
        let stage = if body.is_end_stream() { Reading::Done } else { Reading::Body };
        Input { data: Bytes::new(), body, stage, trailers: None }
    }

    /// Hands over what there is of the body, and nothing at its end.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.data.is_empty() {
            match self.stage {
                Reading::Body => match ready!(self.body.poll_data(cx)) {
                    Some(Ok(data)) => self.data = data,
                    Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                    None => self.stage = Reading::Trailers,
                },
                Reading::Trailers => {
                    self.trailers = ready!(self.body.poll_trailers(cx)).map_err(broken)?;
                    self.stage = Reading::Done;
                }
                Reading::Done => return Poll::Ready(Ok(())),
            }
        }
        let n = self.data.len().min(buffer.remaining());
        buffer.put_slice(&self.data[..n]);
        self.data.advance(n);
        // The sender may send as much again. It fails only where the stream has ended.
        let _ended = self.body.flow_control().release_capacity(n);
        Poll::Ready(Ok(()))
    }

    pub(super) fn take_trailers(&mut self, out: &mut Vec<u8>) {
        if let Some(trailers) = self.trailers.take() {
            list::write_trailers(&trailers, out);
        }
    }
}

impl Output {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        end: Option<&[u8]>,
    ) -> Poll<io::Result<usize>> {
        let Output::Body(send) = self else { return Poll::Ready(Ok(bytes.len())) };
        let n = if bytes.is_empty() { 0 } else { ready!(poll_capacity(send, cx, bytes.len()))? };
        let end = end.filter(|_| n == bytes.len());
        let is_end = end.is_some_and(<[u8]>::is_empty);
        if n > 0 || is_end {
            send.send_data(Bytes::copy_from_slice(&bytes[..n]), is_end).map_err(broken)?;
        }
        if let Some(lines) = end {
            if !is_end {
                send.send_trailers(trailers(lines)?).map_err(broken)?;
            }
            *self = Output::Done;
        }
        Poll::Ready(Ok(n))
    }
}

/// The fields of a head that HTTP/2 knows and `keep` wants.
pub(super) fn put_fields(head: &Head, fields: &mut HeaderMap, keep: impl Fn(Tag) -> bool) -> io::Result<()> {
    fields.reserve(head.count());
    for field in head.iter() {
        match field.tag {
            // RFC 9113 §8.2.2: HTTP/2 has other means for what these say.
            Tag::TransferEncoding
            | Tag::Connection
            | Tag::KeepAlive
            | Tag::ProxyConnection
            | Tag::Upgrade => {}
            tag => {
                if keep(tag) {
                    fields.append(name(field.name)?, value(field.value)?);
                }
            }
        }
    }
    Ok(())
}

/// Field lines of our own as a list.
fn trailers(lines: &[u8]) -> io::Result<HeaderMap> {
    let mut trailers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n').take(TRAILERS_MAX) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        trailers.append(name(&line[..colon])?, value(line[colon + 1..].trim_ascii())?);
    }
    Ok(trailers)
}

/// How many bytes may be sent now, up to `wanted`.
fn poll_capacity(
    send: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
    wanted: usize,
) -> Poll<io::Result<usize>> {
    send.reserve_capacity(wanted);
    loop {
        match send.capacity() {
            0 => {}
            n => return Poll::Ready(Ok(n.min(wanted))),
        }
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            None => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

pub(crate) fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

fn name(bytes: &[u8]) -> io::Result<HeaderName> {
    HeaderName::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn value(bytes: &[u8]) -> io::Result<HeaderValue> {
    HeaderValue::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
