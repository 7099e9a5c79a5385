//! Bodies in transit. Nothing is collected: a frame is asked for when the other side can take it.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{forward::Exchange, link::Link};

type Next = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

/// Why a body broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the client broke off its request body")]
    Client,
    #[error("the request body is larger than the app allows")]
    TooLarge,
    #[error("the endpoint broke off its response")]
    Upstream,
}

/// How far a request body is; shared between the body, which hyper owns, and its request.
pub(crate) struct Upload {
    pub(crate) bytes: Cell<u64>,
    pub(crate) is_finished: Cell<bool>,
    pub(crate) error: Cell<Option<BodyError>>,
    bytes_max: u64,
    /// `Expect: 100-continue`: nothing is asked of the client before the endpoint wants it.
    /// (An atomic because hyper's callback for 1xx responses must be `Sync`.)
    pub(crate) wanted: Option<Arc<AtomicBool>>,
}

impl Upload {
    /// `bytes_max` 0 = no limit.
    pub(crate) fn new(bytes_max: u64, expects_continue: bool) -> Upload {
        Upload {
            bytes: Cell::new(0),
            is_finished: Cell::new(false),
            error: Cell::new(None),
            bytes_max: if bytes_max == 0 { u64::MAX } else { bytes_max },
            wanted: expects_continue.then(Arc::default),
        }
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted.load(Relaxed))
    }

    pub(crate) fn want(&self) {
        if let Some(wanted) = &self.wanted {
            wanted.store(true, Relaxed);
        }
    }
}

/// A request body on its way to an endpoint.
pub(crate) struct RequestBody(Option<(Incoming, Rc<Upload>)>);

impl RequestBody {
    pub(crate) fn empty() -> RequestBody {
        RequestBody(None)
    }

    pub(crate) fn new(incoming: Incoming, upload: &Rc<Upload>) -> RequestBody {
        RequestBody(Some((incoming, Rc::clone(upload))))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Next {
        let Some((incoming, upload)) = &mut self.0 else { return Poll::Ready(None) };
        if !upload.is_wanted() {
            // The endpoint's answer or the deadline polls again.
            return Poll::Pending;
        }
        let next = Pin::new(&mut *incoming).poll_frame(cx);
        if let Poll::Ready(next) = &next {
            upload.is_finished.set(next.is_none() || incoming.is_end_stream());
        }
        let frame = match std::task::ready!(next) {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => return fail(upload, BodyError::Client),
            None => return Poll::Ready(None),
        };
        if let Some(bytes) = frame.data_ref() {
            upload.bytes.set(upload.bytes.get() + bytes.len() as u64);
            if upload.bytes.get() > upload.bytes_max {
                return fail(upload, BodyError::TooLarge);
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|(incoming, _)| incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |(incoming, _)| incoming.size_hint())
    }
}

fn fail(upload: &Upload, error: BodyError) -> Next {
    upload.error.set(Some(error));
    upload.is_finished.set(false);
    Poll::Ready(Some(Err(error)))
}

/// A response body on its way to the client. Holds the request's counts and its pin to the end.
pub(crate) struct ResponseBody {
    content: Content,
    exchange: Option<Exchange>,
}

enum Content {
    /// Made here.
    Text(Bytes),
    Stream {
        incoming: Incoming,
        link: RefCell<Option<Link>>,
    },
}

impl ResponseBody {
    pub(crate) fn text(text: Bytes, exchange: Option<Exchange>) -> ResponseBody {
        ResponseBody { content: Content::Text(text), exchange }
    }

    /// `link` goes back to the pool when the body ends.
    pub(crate) fn stream(incoming: Incoming, link: Link, exchange: Exchange) -> ResponseBody {
        let body = ResponseBody {
            content: Content::Stream { incoming, link: RefCell::new(Some(link)) },
            exchange: Some(exchange),
        };
        if body.is_end_stream() {
            body.release();
        }
        body
    }

    /// Nothing more comes from the endpoint: its connection may serve others.
    fn release(&self) {
        if let (Content::Stream { link, .. }, Some(exchange)) = (&self.content, &self.exchange)
            && let Some(link) = link.borrow_mut().take()
        {
            exchange.release(link);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Next {
        let this = &mut *self;
        let next = match &mut this.content {
            Content::Text(text) if text.is_empty() => return Poll::Ready(None),
            Content::Text(text) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Content::Stream { incoming, link } => poll_stream(incoming, link.get_mut().as_ref(), cx),
        };
        match &next {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(bytes), Some(exchange)) = (frame.data_ref(), &this.exchange) {
                    exchange.cells().response_bytes.add(bytes.len() as u64);
                }
                if this.is_end_stream() {
                    this.release();
                }
            }
            Poll::Ready(None) => this.release(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Text(text) => text.is_empty(),
            Content::Stream { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Text(text) => SizeHint::with_exact(text.len() as u64),
            Content::Stream { incoming, .. } => incoming.size_hint(),
        }
    }
}

fn poll_stream(incoming: &mut Incoming, link: Option<&Link>, cx: &mut Context<'_>) -> Next {
    // Asking says that there is room; moving the connection then brings the frame; asking again
    // takes it. Only the connection's socket needs to wake this task.
    let mut next = poll_now(incoming);
    if let (Poll::Pending, Some(link)) = (&next, link) {
        let closed = link.poll_closed(cx);
        next = poll_now(incoming);
        if closed.is_ready() && next.is_pending() {
            return Poll::Ready(Some(Err(BodyError::Upstream)));
        }
    }
    next
}

fn poll_now(incoming: &mut Incoming) -> Next {
    let mut cx = Context::from_waker(Waker::noop());
    Pin::new(incoming).poll_frame(&mut cx).map_err(|_| BodyError::Upstream)
}
