//! One HTTP/1.1 connection to an endpoint.
//!
//! It has no task of its own: whoever uses it polls it, inside the task of the client connection it
//! works for. That saves two task switches per request, and an idle connection costs nothing at
//! all; whether it is still open is asked when it is taken from the pool and by the sweep.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as _;
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use tokio::net::TcpStream;

use super::{body::RequestBody, io::UpstreamIo};
use crate::{metrics::AppCells, tcp::Active};

/// What the parser and its buffers may hold of one response head, and of a body in transit.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

#[derive(Clone)]
pub(crate) struct Link(Rc<RefCell<Inner>>);

struct Inner {
    connection: http1::Connection<UpstreamIo, RequestBody>,
    /// The connection must not be polled once it has ended.
    is_closed: bool,
    send: http1::SendRequest<RequestBody>,
    /// The body of the request is still to come, from another part of the same task.
    has_upload: bool,
    yielded: Arc<Yielded>,
    /// Sets `yielded`.
    waker: Waker,
    wire: Rc<Wire>,
    active: Active,
}

/// hyper gave up its turn with work left to do.
#[derive(Default)]
struct Yielded(AtomicBool);

impl Wake for Yielded {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// What was seen on the socket during the exchange that runs now.
pub(crate) struct Wire {
    /// The task to wake when the socket is ready.
    pub(crate) waker: RefCell<Waker>,
    /// A byte of a response came in.
    pub(crate) has_received: Cell<bool>,
    /// The bytes of the request as written, kept while a retry may need them.
    pub(crate) written: RefCell<Option<Vec<u8>>>,
}

impl Link {
    pub(crate) async fn open(stream: TcpStream, cells: &Rc<AppCells>) -> hyper::Result<Link> {
        let wire = Rc::new(Wire {
            waker: RefCell::new(Waker::noop().clone()),
            has_received: Cell::new(false),
            written: RefCell::new(None),
        });
        let io = UpstreamIo::new(stream, Rc::clone(&wire), Rc::clone(cells));
        let (send, connection) = http1::Builder::new().max_buf_size(BUFFER_BYTES_MAX).handshake(io).await?;
        let yielded = Arc::<Yielded>::default();
        let waker = Waker::from(Arc::clone(&yielded));
        let active = Active::new(cells);
        let inner =
            Inner { connection, is_closed: false, send, has_upload: false, yielded, waker, wire, active };
        Ok(Link(Rc::new(RefCell::new(inner))))
    }

    /// Moves the connection on. Ready once it has ended, for whatever reason.
    ///
    /// Only the socket wakes the task again. hyper would wake it for everything we do at the other
    /// end of its channels, a request sent or a frame asked for, and whoever does that polls the
    /// connection right after; each such wake costs the whole task another turn.
    pub(crate) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.0.borrow_mut();
        let inner = &mut *inner;
        if inner.is_closed {
            return Poll::Ready(());
        }
        inner.wire.waker.borrow_mut().clone_from(cx.waker());
        // The reason is also told to the request or body it concerns.
        let ended = if inner.has_upload {
            inner.connection.poll_without_shutdown(cx).is_ready()
        } else {
            inner.yielded.0.store(false, Relaxed);
            let mut quiet = Context::from_waker(&inner.waker);
            let ended = inner.connection.poll_without_shutdown(&mut quiet).is_ready();
            if inner.yielded.0.load(Relaxed) {
                cx.waker().wake_by_ref();
            }
            ended
        };
        inner.is_closed = ended;
        if ended { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready for the next request: the last one and its response are complete on the wire.
    pub(crate) fn is_idle(&self) -> bool {
        let inner = self.0.borrow();
        !inner.is_closed && inner.send.is_ready()
    }

    /// Starts an exchange. `keep`: keep what is written, for [`Link::written`].
    pub(crate) fn send(
        &self,
        request: Request<RequestBody>,
        keep: bool,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<> {
        let mut inner = self.0.borrow_mut();
        inner.wire.has_received.set(false);
        let mut written = inner.wire.written.borrow_mut();
        if keep {
            written.get_or_insert_default().clear();
        } else {
            *written = None;
        }
        drop(written);
        inner.has_upload = !request.body().is_end_stream();
        inner.send.try_send_request(request)
    }

    pub(crate) fn has_received(&self) -> bool {
        self.0.borrow().wire.has_received.get()
    }

    pub(crate) fn written(&self) -> Option<Vec<u8>> {
        self.0.borrow().wire.written.borrow_mut().take()
    }

    /// The bare connection after it has ended with an upgrade, and what the parser had read ahead.
    pub(crate) fn into_stream(self) -> Option<(TcpStream, Bytes, Active)> {
        let inner = Rc::into_inner(self.0)?.into_inner();
        let parts = inner.connection.into_parts();
        Some((parts.io.into_stream(), parts.read_buf, inner.active))
    }
}

/// Polls what only moves when the link is polled, so nobody needs to be woken by it.
pub(crate) fn poll_inner<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(std::task::Waker::noop()))
}
