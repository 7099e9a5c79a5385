//! A copy of a request for another pool: sent on its own, and its answer thrown away.
//!
//! Nothing here can delay or change the request itself. A copy is sent once all of the request is there; what does
//! not fit the bounds is not copied, and counted.

use std::{cell::Cell, future::poll_fn, rc::Rc, task::Poll, time::Duration};

use super::{
    ask::{Question, ask},
    body::{Arriving, Encode, Framing, Incoming, Outgoing, Source},
    deadline::{Deadline, Phase},
    head::Head,
    headers,
    own::Own,
};
use crate::{generation::LocalServing, worker::Worker};

/// Copies that are made or sent at the same time, on one worker; no further one is begun.
const COPIES_MAX: u32 = 64;
/// From its being sent to the end of its answer; then it is given up.
const TIME_MAX: Duration = Duration::from_secs(30);
/// What is read of an answer so that its connection can be used again.
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

/// Where copies go.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) pool: usize,
    /// Of the requests.
    pub(crate) percent: u8,
    /// Of a body that is copied.
    pub(crate) body_bytes_max: u64,
}

/// The copies of one worker.
#[derive(Default)]
pub(crate) struct Copies(Rc<Cell<u32>>);

/// One of them.
struct Place(Rc<Cell<u32>>);

impl Copies {
    fn begin(&self) -> Option<Place> {
        let now = self.0.get();
        (now < COPIES_MAX).then(|| {
            self.0.set(now + 1);
            Place(Rc::clone(&self.0))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A copy that is being made.
pub(crate) struct Copy {
    head: Head,
    up: Outgoing,
    body: Vec<u8>,
    pool: usize,
    bytes_max: usize,
    has_body: bool,
    is_head: bool,
    is_too_large: bool,
    worker: Rc<Worker>,
    serving: Rc<LocalServing>,
    place: Place,
}

impl Copy {
    /// Begins a copy of a request whose head is as it goes to its endpoint, if it gets one.
    pub(crate) fn begin(
        mirror: &Mirror,
        worker: &Rc<Worker>,
        serving: &Rc<LocalServing>,
        request: &Head,
        body: Framing,
    ) -> Option<Copy> {
        if crate::upstream::scale_to(worker.random(), 100) >= usize::from(mirror.percent) {
            return None;
        }
        let cells = &serving.local.cells;
        if matches!(body, Framing::Length(bytes) if bytes > mirror.body_bytes_max) {
            cells.mirrored_too_large.one();
            return None;
        }
        let Some(place) = worker.copies.begin() else {
            cells.mirrored_over_limit.one();
            return None;
        };
        let mut up = Outgoing::default();
        let out = up.begin(if matches!(body, Framing::Length(_)) { Encode::Plain } else { Encode::Chunked });
        request.write_request_line(out);
        request.write_fields(out);
        out.extend_from_slice(b"\r\n");
        Some(Copy {
            head: request.clone(),
            up,
            body: Vec::new(),
            pool: mirror.pool,
            bytes_max: usize::try_from(mirror.body_bytes_max).unwrap_or(usize::MAX),
            has_body: body != Framing::Length(0),
            is_head: request.method() == b"HEAD",
            is_too_large: false,
            worker: Rc::clone(worker),
            serving: Rc::clone(serving),
            place,
        })
    }

    /// More of the body.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        if self.is_too_large || self.body.len() + bytes.len() > self.bytes_max {
            self.is_too_large = true;
            self.body = Vec::new();
        } else {
            self.body.extend_from_slice(bytes);
        }
    }

    /// Sends it, unless something of the body is missing.
    pub(crate) fn send(self, is_whole: bool) {
        let cells = &self.serving.local.cells;
        if self.is_too_large {
            cells.mirrored_too_large.one();
        } else if is_whole {
            tokio::task::spawn_local(deliver(self));
        } else {
            cells.mirrored_unfinished.one();
        }
    }
}

async fn deliver(copy: Copy) {
    let serving = Rc::clone(&copy.serving);
    let is_delivered = exchange(copy).await.is_some();
    let cells = &serving.local.cells;
    if is_delivered { cells.mirrored_ok.one() } else { cells.mirrored_failed.one() }
}

/// `None`: nobody took it, or nobody answered properly.
async fn exchange(copy: Copy) -> Option<()> {
    let Copy { head, mut up, body, pool, has_body, is_head, worker, serving, place: _place, .. } = copy;
    let pin = serving.local.pins.pin();
    let mut deadline = Deadline::new(&worker.clock);
    deadline.timer.uses(pin.generation());
    deadline.bound(worker.clock.after(TIME_MAX));
    let mut nobody = Own::new(&body, |_| Poll::Pending);
    let mut response = Head::default();
    let question = Question {
        pool,
        key: None,
        request: &head,
        up: &mut up,
        response: &mut response,
        has_body,
        may_repeat: false,
        is_idempotent: false,
        expects: false,
        met: None,
    };
    let mut answered = ask(&worker, &serving, &mut deadline, question, &mut nobody).await.ok()?;
    let bodiless = is_head || matches!(response.status(), 204 | 304);
    let framing = headers::check_response(&response, bodiless).ok().filter(|_| response.status() != 101)?;
    let mut download = Incoming::default();
    download.begin(framing, ANSWER_BYTES_MAX);
    deadline.enter(&worker.clock, Phase::Body, serving.local.generation.config.timeouts.idle);
    let mut arriving = Arriving {
        from: &mut answered.link.stream,
        held: &mut answered.link.held,
        body: &mut download,
        buffers: &worker.buffers,
        received: &serving.local.cells.received_upstream,
    };
    let is_read = poll_fn(|cx| {
        while let Poll::Ready(read) = arriving.poll_bytes(cx) {
            arriving.consume(arriving.bytes().len());
            if read.is_err() || arriving.is_end() {
                return Poll::Ready(read.is_ok());
            }
            deadline.extend(&worker.clock);
        }
        deadline.poll_expired(&worker.clock, cx).map(|_expired| false)
    });
    let is_read = is_read.await;
    answered.release(&worker, is_read && framing != Framing::UntilClose && !headers::is_last(&response));
    Some(())
}
