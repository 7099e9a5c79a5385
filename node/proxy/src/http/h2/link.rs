//! One request to an endpoint in HTTP/2, in the shape of a connection of its own: the mirror image of `stream`.
//! Several share one connection, which has a task of its own.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::client::{self, ResponseFuture, SendRequest};
use http::{Method, Request, Uri, uri};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    super::{
        body::Medium,
        head::{Head, Tag},
    },
    SEND_BUFFER_BYTES,
    stream::{Input, Output, broken, put_fields},
};
use crate::{metrics::AppCells, stream::Stream, tcp::Active};

/// Of an endpoint that has not said how many streams it takes.
const STREAMS_AT_FIRST: usize = 100;
/// What an endpoint may have on its way to us: of one answer, and of all on a connection.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
const HEADER_TABLE_BYTES: u32 = 4 * 1024;

pub(crate) struct LinkIo {
    send: SendRequest<Bytes>,
    is_secure: bool,
    output: Output,
    input: Incoming,
    is_head: bool,
}

enum Incoming {
    /// The request is not sent yet.
    Nothing,
    Response(ResponseFuture),
    Body(Input),
}

/// Begins HTTP/2 on a connection to an endpoint. It ends when nobody can send on it any more.
pub(crate) async fn open(cells: &Rc<AppCells>, stream: Stream) -> io::Result<SendRequest<Bytes>> {
    let handshake = client::Builder::new()
        .enable_push(false)
        .initial_max_send_streams(STREAMS_AT_FIRST)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .header_table_size(HEADER_TABLE_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .handshake(stream);
    let (send, connection) = handshake.await.map_err(broken)?;
    let active = Active::new(cells);
    tokio::task::spawn_local(async move {
        let _active = active;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "HTTP/2 connection to an endpoint");
        }
    });
    Ok(send)
}

/// Whether the endpoint says that it has not begun with the request: it may be sent again, whatever it is (RFC 9113
/// §8.7). Streams beyond the last one of a GOAWAY are of that kind (§6.8).
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<h2::Error>());
    error.is_some_and(|error| {
        error.is_remote() && (error.reason() == Some(h2::Reason::REFUSED_STREAM) || error.is_go_away())
    })
}

impl LinkIo {
    pub(crate) fn new(send: SendRequest<Bytes>, is_secure: bool) -> LinkIo {
        LinkIo { send, is_secure, output: Output::Head, input: Incoming::Nothing, is_head: false }
    }

    /// Sends the head of a request.
    pub(crate) fn ask(&mut self, head: &Head) -> io::Result<()> {
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
        let method = Method::from_bytes(head.method()).map_err(invalid)?;
        self.is_head = method == Method::HEAD;
        let authority = head.get(Tag::Host).unwrap_or_default();
        let scheme = if self.is_secure { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
        let mut address = Uri::builder().scheme(scheme).path_and_query(head.path_and_query());
        // HTTP/1.0 may go without.
        address = address.authority(if authority.is_empty() { b"localhost" } else { authority });
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() =
            address.build().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        *request.version_mut() = http::Version::HTTP_2;
        put_fields(head, request.headers_mut(), |tag| {
            !matches!(tag, Tag::Host | Tag::Http2Settings | Tag::Expect)
        })?;
        let facts = head.facts();
        let is_empty = !facts.is_framed && !head.has(Tag::TransferEncoding) && facts.length.unwrap_or(0) == 0;
        let (response, send) = self.send.send_request(request, is_empty).map_err(broken)?;
        self.input = Incoming::Response(response);
        self.output = if is_empty { Output::Done } else { Output::Body(send) };
        Ok(())
    }

    /// Waits for the head of the response.
    pub(crate) fn poll_response(&mut self, cx: &mut Context<'_>, head: &mut Head) -> Poll<io::Result<()>> {
        let Incoming::Response(response) = &mut self.input else { return Poll::Pending };
        let (parts, body) = ready!(Pin::new(response).poll(cx)).map_err(broken)?.into_parts();
        let has_none = self.is_head || matches!(parts.status.as_u16(), 204 | 304);
        let taken = head.take_response(&parts, body.is_end_stream() && !has_none);
        self.input = Incoming::Body(Input::new(body));
        Poll::Ready(taken.map_err(|_malformed| io::ErrorKind::InvalidData.into()))
    }
}

impl Medium for LinkIo {
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
        if let Incoming::Body(input) = &mut self.input {
            input.take_trailers(out);
        }
    }
}

impl AsyncRead for LinkIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().input {
            Incoming::Nothing | Incoming::Response(_) => Poll::Pending,
            Incoming::Body(input) => input.poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for LinkIo {
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
