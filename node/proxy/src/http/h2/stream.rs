//! One HTTP/2 stream of a client, in the shape in which the engine reads and writes every connection: a request
//! head and body to be read, a response to be written.
//!
//! So everything that holds for a request in HTTP/1.1 holds for one in HTTP/2: the same checks, limits, deadlines,
//! routes and counts. What is read was put together here and is whole; what is written comes from our own engine.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header, request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    super::{
        connection::Client,
        head::{Head, Malformed, Tag},
    },
    chunks::{Chunks, Part},
};
use crate::stream::Stream;

/// Start line and fields of a message as the engine writes it.
const HEAD_BYTES_MAX: usize = 128 * 1024;

pub(crate) struct StreamIo {
    input: Input,
    output: Output,
    respond: SendResponse<Bytes>,
    is_head: bool,
    /// Nothing is read any more, and what is missing of the response will never come.
    is_closed: bool,
}

/// A message to be read: its head, then its body.
pub(super) struct Input {
    /// To be read next, in this order.
    front: Bytes,
    data: Bytes,
    back: &'static [u8],
    body: RecvStream,
    pub(super) stage: Reading,
    is_chunked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    Body,
    Trailers,
    Done,
}

/// A message to be written.
pub(super) enum Output {
    /// What is there of its head so far.
    Head(Vec<u8>),
    Length(SendStream<Bytes>, u64),
    Chunked(SendStream<Bytes>, Chunks),
    Done,
}

impl StreamIo {
    /// The sender back: the request cannot be said in HTTP/1.1, and so is malformed in HTTP/2 as well.
    pub(crate) fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> Result<StreamIo, SendResponse<Bytes>> {
        let (parts, body) = request.into_parts();
        let has_body = !body.is_end_stream();
        let is_chunked = has_body && !parts.headers.contains_key(header::CONTENT_LENGTH);
        let Some(front) = write_head(&parts, is_chunked) else { return Err(respond) };
        let input = Input::new(front, body, is_chunked);
        let is_head = parts.method == Method::HEAD;
        Ok(StreamIo { input, output: Output::Head(Vec::new()), respond, is_head, is_closed: false })
    }

    /// Passes on a response head. What follows it.
    fn respond(&mut self, head: &Head) -> io::Result<Output> {
        let status = head.status();
        let mut response = Response::new(());
        *response.status_mut() = http::StatusCode::from_u16(status).map_err(io::Error::other)?;
        let mut length = None;
        let mut is_chunked = false;
        let headers = response.headers_mut();
        for field in head.iter() {
            match field.tag {
                Tag::TransferEncoding => is_chunked = true,
                // RFC 9113 §8.2.2: HTTP/2 has other means for what these say.
                Tag::Connection | Tag::KeepAlive | Tag::ProxyConnection | Tag::Upgrade | Tag::Te => {}
                tag => {
                    if tag == Tag::ContentLength {
                        length = std::str::from_utf8(field.value).ok().and_then(|text| text.parse().ok());
                    }
                    headers.append(name(field.name)?, value(field.value)?);
                }
            }
        }
        if (100..200).contains(&status) {
            self.respond.send_informational(response).map_err(broken)?;
            return Ok(Output::Head(Vec::new()));
        }
        let is_empty = self.is_head || matches!(status, 204 | 304) || (length == Some(0) && !is_chunked);
        let send = self.respond.send_response(response, is_empty).map_err(broken)?;
        Ok(match (is_empty, is_chunked, length) {
            (true, _, _) => Output::Done,
            (false, false, Some(length)) => Output::Length(send, length),
            (false, true, _) => Output::Chunked(send, Chunks::default()),
            // Its end would be the end of the connection, which the engine never lets an HTTP/1.1 client see.
            (false, false, None) => return Err(io::ErrorKind::InvalidData.into()),
        })
    }
}

impl Client for StreamIo {
    fn reset(&mut self) {
        if !matches!(self.output, Output::Done) {
            self.respond.send_reset(Reason::INTERNAL_ERROR);
        }
        self.is_closed = true;
    }

    fn into_stream(self) -> Option<Stream> {
        None
    }
}

impl Drop for StreamIo {
    fn drop(&mut self) {
        self.reset();
    }
}

/// The head of the request as HTTP/1.1 has it.
fn write_head(parts: &request::Parts, is_chunked: bool) -> Option<Vec<u8>> {
    let request::Parts { method, uri, headers, .. } = parts;
    let mut head = Vec::with_capacity(512);
    let mut put = |pieces: &[&[u8]]| pieces.iter().for_each(|piece| head.extend_from_slice(piece));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    put(&[method.as_str().as_bytes(), b" ", path.as_bytes(), b" HTTP/1.1\r\n"]);
    // RFC 9113 §8.3.1: `:authority` is the host; a Host beside it must say the same.
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return None;
    }
    match (uri.authority(), host) {
        (Some(authority), Some(host)) if host.as_bytes() != authority.as_str().as_bytes() => return None,
        (Some(authority), _) => put(&[b"Host: ", authority.as_str().as_bytes(), b"\r\n"]),
        (None, Some(host)) => put(&[b"Host: ", host.as_bytes(), b"\r\n"]),
        (None, None) => {}
    }
    for (name, value) in headers {
        if *name != header::HOST && *name != header::COOKIE {
            put(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
    }
    // RFC 9113 §8.2.3: it may come in pieces, which HTTP/1.1 does not know.
    let mut cookies = headers.get_all(header::COOKIE).iter();
    if let Some(first) = cookies.next() {
        put(&[b"Cookie: ", first.as_bytes()]);
        cookies.for_each(|next| put(&[b"; ", next.as_bytes()]));
        put(&[b"\r\n"]);
    }
    put(&[if is_chunked { b"Transfer-Encoding: chunked\r\n\r\n" } else { b"\r\n" }]);
    Some(head)
}

impl AsyncRead for StreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.input.copy(buffer) || this.is_closed {
            return Poll::Ready(Ok(()));
        }
        if ready!(this.input.poll_fill(cx))? {
            this.input.copy(buffer);
            return Poll::Ready(Ok(()));
        }
        // Nothing more to read: only whether somebody still waits.
        let reset = match &mut this.output {
            Output::Head(_) => this.respond.poll_reset(cx),
            Output::Length(send, _) | Output::Chunked(send, _) => send.poll_reset(cx),
            // One stream is one request.
            Output::Done => return Poll::Ready(Ok(())),
        };
        reset.map(|_| Err(io::ErrorKind::ConnectionReset.into()))
    }
}

impl Input {
    pub(super) fn new(head: Vec<u8>, body: RecvStream, is_chunked: bool) -> Input {
        let stage = if body.is_end_stream() { Reading::Done } else { Reading::Body };
        Input { front: head.into(), data: Bytes::new(), back: b"", body, stage, is_chunked }
    }

    /// Waits for something to hand over; false once there will be nothing.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            if !self.front.is_empty() || !self.data.is_empty() {
                return Poll::Ready(Ok(true));
            }
            match self.stage {
                Reading::Body => match ready!(self.body.poll_data(cx)) {
                    Some(Ok(data)) => self.take(data),
                    Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                    None => self.stage = Reading::Trailers,
                },
                Reading::Trailers => {
                    let trailers = ready!(self.body.poll_trailers(cx)).map_err(broken)?;
                    self.end(trailers.as_ref());
                }
                Reading::Done => return Poll::Ready(Ok(false)),
            }
        }
    }

    /// Hands over what is there; whether anything was.
    pub(super) fn copy(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let before = buffer.filled().len();
        let n = self.front.len().min(buffer.remaining());
        buffer.put_slice(&self.front[..n]);
        self.front.advance(n);
        let n = self.data.len().min(buffer.remaining());
        buffer.put_slice(&self.data[..n]);
        self.data.advance(n);
        if n > 0 {
            // The client may send as much again. It fails only where the stream has ended.
            let _ended = self.body.flow_control().release_capacity(n);
        }
        if self.data.is_empty() {
            let n = self.back.len().min(buffer.remaining());
            buffer.put_slice(&self.back[..n]);
            self.back = &self.back[n..];
        }
        buffer.filled().len() > before
    }

    fn take(&mut self, data: Bytes) {
        if self.is_chunked && !data.is_empty() {
            self.front = format!("{:x}\r\n", data.len()).into();
            self.back = b"\r\n";
        }
        self.data = data;
    }

    fn end(&mut self, trailers: Option<&HeaderMap>) {
        self.stage = Reading::Done;
        if !self.is_chunked {
            return;
        }
        let mut end = b"0\r\n".to_vec();
        for (name, value) in trailers.into_iter().flatten() {
            for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                end.extend_from_slice(piece);
            }
        }
        end.extend_from_slice(b"\r\n");
        self.front = end.into();
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Output::Head(partial) = &mut this.output else { return this.output.poll_body(cx, bytes) };
        let Some((head, used)) = gather(partial, bytes, Head::parse_response)? else {
            return Poll::Ready(Ok(bytes.len()));
        };
        this.output = this.respond(&head)?;
        Poll::Ready(Ok(used))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match (&this.output, this.input.stage) {
            // RFC 9113 §8.1: complete, and the rest of the request is not wanted.
            (Output::Done, Reading::Body | Reading::Trailers) => this.respond.send_reset(Reason::NO_ERROR),
            (Output::Done, Reading::Done) => {}
            (_, _) => this.respond.send_reset(Reason::INTERNAL_ERROR),
        }
        this.is_closed = true;
        Poll::Ready(Ok(()))
    }
}

/// Takes `bytes` as more of the head that is written. The head once it is whole, and how many of them belonged
/// to it; until then all of them are kept in `partial`.
pub(super) fn gather(
    partial: &mut Vec<u8>,
    bytes: &[u8],
    parse: impl FnOnce(&mut Head, &[u8], usize) -> Result<Option<usize>, Malformed>,
) -> io::Result<Option<(Head, usize)>> {
    let mut head = Head::default();
    let before = partial.len();
    // Nearly always all of it comes at once.
    let parsed = if before == 0 {
        parse(&mut head, bytes, HEAD_BYTES_MAX)
    } else {
        partial.extend_from_slice(bytes);
        parse(&mut head, partial, HEAD_BYTES_MAX)
    };
    let used = parsed.map_err(|_malformed| io::ErrorKind::InvalidData)?;
    if used.is_none() && before == 0 {
        partial.extend_from_slice(bytes);
    }
    Ok(used.map(|used| (head, used - before)))
}

impl Output {
    /// Writes what comes behind the head.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Output::Head(_) => unreachable!("the head is written first"),
            Output::Length(send, left) => {
                let wanted = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                let n = ready!(poll_capacity(send, cx, wanted))?;
                *left -= n as u64;
                let is_end = *left == 0;
                send.send_data(Bytes::copy_from_slice(&bytes[..n]), is_end).map_err(broken)?;
                if is_end {
                    *self = Output::Done;
                }
                Poll::Ready(Ok(n))
            }
            Output::Chunked(send, chunks) => {
                let written = poll_chunks(send, chunks, cx, bytes);
                if chunks.is_done() {
                    *self = Output::Done;
                }
                written
            }
            Output::Done => Poll::Ready(Ok(bytes.len())),
        }
    }
}

fn poll_chunks(
    send: &mut SendStream<Bytes>,
    chunks: &mut Chunks,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    let mut used = 0;
    while used < bytes.len() && !chunks.is_done() {
        match chunks.next(&bytes[used..])? {
            Part::Framing(n) => used += n,
            Part::Data(wanted) => match poll_capacity(send, cx, wanted)? {
                Poll::Ready(n) => {
                    let data = Bytes::copy_from_slice(&bytes[used..used + n]);
                    send.send_data(data, false).map_err(broken)?;
                    chunks.took(n);
                    used += n;
                }
                Poll::Pending if used == 0 => return Poll::Pending,
                Poll::Pending => return Poll::Ready(Ok(used)),
            },
            Part::End(n, trailers) => {
                match trailers {
                    None => send.send_data(Bytes::new(), true).map_err(broken)?,
                    Some(trailers) => send.send_trailers(trailers).map_err(broken)?,
                }
                used += n;
            }
        }
    }
    Poll::Ready(Ok(used))
}

/// How many bytes may be sent now, up to `wanted`.
pub(crate) fn poll_capacity(
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

pub(crate) fn name(bytes: &[u8]) -> io::Result<HeaderName> {
    HeaderName::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

pub(crate) fn value(bytes: &[u8]) -> io::Result<HeaderValue> {
    HeaderValue::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
