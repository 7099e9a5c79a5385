//! One request to an endpoint in HTTP/2, in the shape of a connection that carries it in HTTP/1.1: the mirror image of
//! `stream`. Several share one connection, which has a task of its own.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{
    RecvStream,
    client::{self, ResponseFuture, SendRequest},
};
use http::{Method, Request, Response, Uri, header, uri};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    super::head::{Head, Tag},
    CONNECTION_WINDOW_BYTES, HEADER_LIST_BYTES_MAX, HEADER_TABLE_BYTES, SEND_BUFFER_BYTES,
    STREAM_WINDOW_BYTES,
    chunks::Chunks,
    stream::{Input, Output, broken, gather, name, value},
};
use crate::{metrics::AppCells, stream::Stream, tcp::Active};

/// Of an endpoint that has not said how many streams it takes.
const STREAMS_AT_FIRST: usize = 100;

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
        LinkIo { send, is_secure, output: Output::Head(Vec::new()), input: Incoming::Nothing, is_head: false }
    }

    fn ask(&mut self, head: &Head) -> io::Result<Output> {
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
        let (mut length, mut is_chunked) = (None, false);
        let headers = request.headers_mut();
        for field in head.iter() {
            match field.tag {
                Tag::TransferEncoding => is_chunked = true,
                Tag::Host
                | Tag::Connection
                | Tag::KeepAlive
                | Tag::ProxyConnection
                | Tag::Upgrade
                | Tag::Http2Settings
                | Tag::Expect => {}
                tag => {
                    if tag == Tag::ContentLength {
                        length = std::str::from_utf8(field.value).ok().and_then(|text| text.parse().ok());
                    }
                    headers.append(name(field.name)?, value(field.value)?);
                }
            }
        }
        let is_empty = !is_chunked && length.unwrap_or(0) == 0;
        let (response, send) = self.send.send_request(request, is_empty).map_err(broken)?;
        self.input = Incoming::Response(response);
        Ok(match (is_empty, is_chunked) {
            (true, _) => Output::Done,
            (false, true) => Output::Chunked(send, Chunks::default()),
            (false, false) => Output::Length(send, length.unwrap_or(0)),
        })
    }

    fn answer(&self, response: Response<RecvStream>) -> Input {
        let (parts, body) = response.into_parts();
        let mut head = format!("HTTP/1.1 {:03} \r\n", parts.status.as_u16()).into_bytes();
        let mut put = |pieces: &[&[u8]]| pieces.iter().for_each(|piece| head.extend_from_slice(piece));
        for (name, value) in &parts.headers {
            put(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
        let has_length = parts.headers.contains_key(header::CONTENT_LENGTH);
        let has_none = self.is_head || matches!(parts.status.as_u16(), 204 | 304);
        let is_chunked = !has_length && !has_none && !body.is_end_stream();
        if is_chunked {
            put(&[b"Transfer-Encoding: chunked\r\n"]);
        } else if !has_length && !has_none {
            put(&[b"Content-Length: 0\r\n"]);
        }
        put(&[b"\r\n"]);
        Input::new(head, body, is_chunked)
    }
}

impl AsyncRead for LinkIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.input {
                // Nothing is asked yet; the request that will be is polled by the same task.
                Incoming::Nothing => return Poll::Pending,
                Incoming::Response(response) => {
                    let response = ready!(Pin::new(response).poll(cx)).map_err(broken)?;
                    this.input = Incoming::Body(this.answer(response));
                }
                Incoming::Body(input) => {
                    if !input.copy(buffer) && ready!(input.poll_fill(cx))? {
                        input.copy(buffer);
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for LinkIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Output::Head(partial) = &mut this.output else { return this.output.poll_body(cx, bytes) };
        ready!(this.send.poll_ready(cx)).map_err(broken)?;
        let Some((head, used)) = gather(partial, bytes, Head::parse_request)? else {
            return Poll::Ready(Ok(bytes.len()));
        };
        this.output = this.ask(&head)?;
        Poll::Ready(Ok(used))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
