//! A request on its way to an endpoint, up to the head of the response: chosen, connected, sent, and once sent again
//! where that is safe.
//!
//! Who asks is a [`Front`]; everything here is the same for all of them.

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    body::{Arriving, BodyError, Medium, MoveError, Outgoing, Source},
    deadline::{Deadline, Phase},
    h2::link,
    head::Head,
    hedge::Met,
    link::{HeadError, Link},
    refusal::Refusal,
    turn,
};
use crate::{
    clock::Expired,
    config::RetryConfig,
    connect::{Attempts, Outcome, Unreachable},
    generation::{LocalServing, Unchosen},
    metrics::AppCells,
    pool::InFlight,
    retry::{self, Budget, Trouble},
    worker::Worker,
};

/// An endpoint that ignores `Expect: 100-continue` gets the body after this (RFC 9110 §10.1.1).
const EXPECT_WAIT: Duration = Duration::from_secs(1);
/// Answers before the answer (RFC 9110 §15.2); one after the other keeps a client waiting for ever.
const INTERIM_MAX: u32 = 16;

/// Who sent a request and waits for its response.
pub(crate) trait Front: Source {
    /// Ready once nobody waits any more. Asked only while the body is not.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
    /// An interim response has come.
    fn inform(&mut self, response: &mut Head);
    /// The body is wanted now.
    fn go_on(&mut self);
    /// Moves on with what [`Front::inform`] and [`Front::go_on`] have to say.
    fn poll_informed(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// A request ready to be sent.
pub(crate) struct Question<'a> {
    /// Which pool takes it.
    pub(crate) pool: usize,
    /// What a strategy that hashes goes by.
    pub(crate) key: Option<u64>,
    pub(crate) request: &'a Head,
    /// Its head as text is in there.
    pub(crate) up: &'a mut Outgoing,
    /// Where the head of its response goes.
    pub(crate) response: &'a mut Head,
    pub(crate) has_body: bool,
    /// Sending it twice is the same as sending it once, and all of it is in `up`.
    pub(crate) may_repeat: bool,
    pub(crate) is_idempotent: bool,
    /// Its sender waits for a 100 before it sends the body.
    pub(crate) expects: bool,
    /// Whom others ask at the same time, where several do.
    pub(crate) met: Option<&'a Met>,
}

/// An endpoint that has answered: the head is read, the body is next on the link.
pub(crate) struct Answered {
    pub(crate) link: Link,
    pub(crate) in_flight: InFlight,
    pub(crate) upload: Upload,
}

impl Answered {
    /// Lets go of the connection, which is kept if it may carry another request. `goes_on`: all of the response is
    /// read, and it does not end the connection.
    pub(crate) fn release(self, worker: &Worker, goes_on: bool) {
        let Answered { mut link, in_flight, upload } = self;
        // What came behind the response is nobody's.
        if goes_on && upload == Upload::Done && link.held.is_empty() {
            link.held.release(&worker.buffers);
            in_flight.0.put(link, worker.clock.now());
        }
    }
}

/// How far the request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upload {
    /// The client keeps its body until somebody wants it.
    Waiting,
    Going,
    Done,
    /// The endpoint takes no more of it. It may have answered all the same.
    Broken,
}

const BROKE_OFF: &str = "the endpoint broke off\n";

/// Why a sent request has no response.
enum Failure {
    /// The endpoint closed without a byte of a response.
    Stale,
    /// It says that it has done nothing with the request (RFC 9113 §8.7).
    Refused,
    BrokeOff,
    Body(BodyError),
    Gone,
    ResponseTimeout,
    UploadTimeout,
    Cut,
}

impl Failure {
    /// What a retry may be about.
    fn trouble(&self) -> Option<Trouble> {
        match self {
            // Without a byte of a response, and yet it may have acted on the request.
            Failure::Stale | Failure::BrokeOff => Some(Trouble::Reset),
            Failure::Refused => Some(Trouble::Refused),
            Failure::ResponseTimeout => Some(Trouble::Timeout),
            Failure::Body(_) | Failure::Gone | Failure::UploadTimeout | Failure::Cut => None,
        }
    }

    /// Whether the endpoint is to blame, and not the client.
    fn is_of_endpoint(&self) -> bool {
        match self {
            Failure::Stale | Failure::BrokeOff | Failure::ResponseTimeout => true,
            // It is there, and says when it has enough.
            Failure::Refused => false,
            Failure::Body(_) | Failure::Gone | Failure::UploadTimeout | Failure::Cut => false,
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        match failure {
            Failure::Stale | Failure::BrokeOff => Refusal::Upstream(BROKE_OFF),
            Failure::Refused => Refusal::Refused,
            Failure::Body(BodyError::TooLarge) => Refusal::TooLarge,
            Failure::Body(BodyError::Framing) => Refusal::Framing,
            Failure::Body(BodyError::BrokeOff) | Failure::Gone => Refusal::Gone,
            Failure::ResponseTimeout => Refusal::ResponseTimeout,
            Failure::UploadTimeout => Refusal::UploadTimeout,
            Failure::Cut => Refusal::Cut,
        }
    }
}

/// Finds an endpoint, sends it the request, and reads the head of its response.
pub(crate) async fn ask<F: Front>(
    worker: &Worker,
    serving: &LocalServing,
    deadline: &mut Deadline,
    mut question: Question<'_>,
    front: &mut F,
) -> Result<Answered, Refusal> {
    let local = &serving.local;
    let cells = &local.cells;
    deadline.enter(&worker.clock, Phase::Upstream, local.generation.config.timeouts.connect);
    let mut attempts =
        Attempts::new(worker, &local.pools[question.pool], question.key, deadline.timer.deadline());
    if let Some(met) = question.met {
        attempts.avoid(&met.borrow());
    }
    let mut chosen = match attempts.choose(worker) {
        Ok(chosen) => chosen,
        Err(Unchosen::Nobody) => return Err(Refusal::NoTarget),
        Err(Unchosen::Full) => {
            Box::pin(turn::for_target(worker, serving, deadline, &mut attempts, front)).await?
        }
    };
    if let Some(met) = question.met {
        met.borrow_mut().push(chosen.in_flight.0.address.clone());
    }
    let mut pooled = poll_fn(|cx| Poll::Ready(chosen.in_flight.0.take(cx))).await;
    let mut is_retry = false;
    let config = &local.generation.config;
    let retries = Retries { config: &config.retry, budget: &local.retries, cells };
    let mut made = retries.begin(worker);
    let (link, upload) = loop {
        let is_reused = pooled.is_some();
        let mut link = match pooled.take() {
            Some(link) => {
                cells.pool_hit.one();
                link
            }
            None => {
                // On the heap: it is large, and rare where connections are reused.
                let connected = Box::pin(attempts.connect(worker, &deadline.timer, &mut chosen)).await;
                match connected {
                    Ok(stream) => {
                        cells.pool_new.one();
                        if chosen.in_flight.0.speaks_http2(&stream) {
                            // Others join in from now on.
                            let opened = Box::pin(link::open(cells, stream)).await;
                            let send = opened.map_err(|_| Refusal::Upstream(BROKE_OFF))?;
                            chosen.in_flight.0.share(send)
                        } else {
                            Link::new(stream, cells)
                        }
                    }
                    Err(why) => {
                        let trouble = (why != Unreachable::Cut).then_some(Trouble::Connect);
                        if !retries.allow(worker, &question, made, trouble) {
                            return Err(why.into());
                        }
                        retries.pause(worker, deadline, made).await?;
                        (made, is_retry) = (made + 1, true);
                        deadline.enter(&worker.clock, Phase::Upstream, config.timeouts.connect);
                        let next = attempts.again(worker, &chosen, deadline.timer.deadline());
                        chosen = next.ok_or(Refusal::NoTarget)?;
                        pooled = poll_fn(|cx| Poll::Ready(chosen.in_flight.0.take(cx))).await;
                        continue;
                    }
                }
            }
        };
        if link.is_shared() && question.request.method() == b"CONNECT" {
            return Err(Refusal::Upstream("no CONNECT is sent to an endpoint in HTTP/2\n"));
        }
        match send(worker, serving, deadline, &mut question, front, &mut link).await {
            Ok(upload) => {
                let status = question.response.status();
                let trouble = (status >= 400).then_some(Trouble::Status(status));
                if !retries.allow(worker, &question, made, trouble) {
                    break (link, upload);
                }
                // Nothing of this answer went on; the connection ends with it.
                attempts.report(worker, &chosen, Outcome::of(status));
            }
            // The endpoint closed an idle connection while we wrote to it. Once, on a fresh one.
            // Or it is about to close the connection that others share.
            Err(Failure::Stale | Failure::Refused)
                if is_reused && !is_retry && question.may_be_sent_again() =>
            {
                is_retry = true;
                question.up.rewind();
                continue;
            }
            Err(failure) => {
                if failure.is_of_endpoint() {
                    attempts.report(worker, &chosen, Outcome::Failed);
                }
                if !retries.allow(worker, &question, made, failure.trouble()) {
                    if is_retry {
                        cells.retries_failed.one();
                    }
                    if matches!(failure, Failure::Body(BodyError::TooLarge)) {
                        worker.limits.body_bytes.one();
                    }
                    return Err(failure.into());
                }
            }
        }
        drop(link);
        question.up.rewind();
        retries.pause(worker, deadline, made).await?;
        (made, is_retry) = (made + 1, true);
        deadline.enter(&worker.clock, Phase::Upstream, config.timeouts.connect);
        chosen = attempts.again(worker, &chosen, deadline.timer.deadline()).ok_or(Refusal::NoTarget)?;
        pooled = poll_fn(|cx| Poll::Ready(chosen.in_flight.0.take(cx))).await;
    };
    if is_retry {
        cells.retries_ok.one();
    }
    attempts.report(worker, &chosen, Outcome::of(question.response.status()));
    Ok(Answered { link, in_flight: chosen.in_flight, upload })
}

/// What one request may do about its troubles.
struct Retries<'a> {
    config: &'a RetryConfig,
    budget: &'a Budget,
    cells: &'a AppCells,
}

impl Retries<'_> {
    fn is_off(&self) -> bool {
        self.config.attempts <= 1
    }

    /// The number of the first attempt.
    fn begin(&self, worker: &Worker) -> u32 {
        if !self.is_off() {
            self.budget.request(worker.clock.now());
        }
        1
    }

    /// Whether to try again, which is then taken out of the budget.
    fn allow(
        &self,
        worker: &Worker,
        question: &Question<'_>,
        attempts: u32,
        trouble: Option<Trouble>,
    ) -> bool {
        let Some(trouble) = trouble.filter(|_| !self.is_off()) else { return false };
        let is_whole = !question.has_body || question.up.moved() == 0;
        let request = retry::Request { is_idempotent: question.is_idempotent, is_whole, attempts };
        if !retry::may_retry(self.config, trouble, request) {
            return false;
        }
        let is_affordable = self.budget.retry(worker.clock.now(), self.config.budget_percent);
        if !is_affordable {
            self.cells.retries_over_budget.one();
        }
        is_affordable
    }

    async fn pause(&self, worker: &Worker, deadline: &mut Deadline, attempts: u32) -> Result<(), Refusal> {
        let pause = retry::backoff(self.config, attempts, worker.random());
        deadline.enter(&worker.clock, Phase::Upstream, Duration::ZERO);
        let until = deadline.timer.deadline();
        match worker.clock.within(&deadline.timer, until, tokio::time::sleep(pause)).await {
            Ok(()) => Ok(()),
            Err(Expired::Deadline) => Err(Refusal::ResponseTimeout),
            Err(Expired::Cut) => Err(Refusal::Cut),
        }
    }
}

impl Question<'_> {
    /// Nothing of it was seen, or seeing it twice does no harm.
    fn may_be_sent_again(&self) -> bool {
        self.may_repeat || self.up.moved() == 0
    }
}

/// Zero = off.
fn shorter(one: Duration, other: Duration) -> Duration {
    match (one, other) {
        (one, Duration::ZERO) => one,
        (Duration::ZERO, other) => other,
        (one, other) => one.min(other),
    }
}

/// Sends a request on `link` and waits for the head of its response.
async fn send<F: Front>(
    worker: &Worker,
    serving: &LocalServing,
    deadline: &mut Deadline,
    question: &mut Question<'_>,
    front: &mut F,
    link: &mut Link,
) -> Result<Upload, Failure> {
    let timeouts = &serving.local.generation.config.timeouts;
    let retry = &serving.local.generation.config.retry;
    let answer = shorter(timeouts.response_header, retry.per_try_timeout);
    let cells = &serving.local.cells;
    let clock = &worker.clock;
    let idle = shorter(timeouts.request_body, timeouts.idle);
    let Question { request, up, response, has_body, expects, .. } = question;
    let mut has_body = *has_body;
    let mut upload = if *expects { Upload::Waiting } else { Upload::Going };
    if let Some(sent) = link.ask(request, &cells.sent_upstream) {
        sent.map_err(|_gone| Failure::Stale)?;
        if upload == Upload::Waiting {
            // In HTTP/2 a body that is not wanted costs one stream and no connection: there is no waiting.
            upload = Upload::Going;
            front.go_on();
        }
    }
    let mut interim = 0;
    match (has_body, upload) {
        (true, Upload::Waiting) => deadline.enter(clock, Phase::Upstream, EXPECT_WAIT),
        (true, _) => deadline.enter(clock, Phase::Upstream, idle),
        (false, _) => deadline.enter(clock, Phase::Upstream, answer),
    }
    link.begin();
    poll_fn(|cx| {
        loop {
            let before = up.moved();
            match upload {
                Upload::Waiting => {
                    if let Poll::Ready(Err(_)) = up.poll_head(cx, &mut link.stream, &cells.sent_upstream) {
                        upload = Upload::Broken;
                    }
                }
                Upload::Going => match up.poll_move(cx, front, &mut link.stream, &cells.sent_upstream) {
                    Poll::Ready(Ok(())) => upload = Upload::Done,
                    Poll::Ready(Err(MoveError::Target)) => upload = Upload::Broken,
                    Poll::Ready(Err(MoveError::Source(error))) => {
                        return Poll::Ready(Err(Failure::Body(error)));
                    }
                    Poll::Pending => {}
                },
                Upload::Done | Upload::Broken => {}
            }
            if has_body {
                match upload {
                    Upload::Done | Upload::Broken => {
                        has_body = false;
                        deadline.enter(clock, Phase::Upstream, answer);
                    }
                    Upload::Going if up.moved() != before => deadline.extend(clock),
                    Upload::Going | Upload::Waiting => {}
                }
            }
            match link.poll_head(cx, &worker.buffers, cells, response) {
                Poll::Ready(Ok(())) => match response.status() {
                    100 if upload == Upload::Waiting => {
                        upload = Upload::Going;
                        front.go_on();
                        deadline.enter(clock, Phase::Upstream, idle);
                        continue;
                    }
                    101 | 200.. => return Poll::Ready(Ok(upload)),
                    status => {
                        interim += 1;
                        if interim > INTERIM_MAX {
                            return Poll::Ready(Err(Failure::BrokeOff));
                        }
                        if status > 101 {
                            front.inform(response);
                        }
                        continue;
                    }
                },
                Poll::Ready(Err(HeadError::Stale)) => return Poll::Ready(Err(Failure::Stale)),
                Poll::Ready(Err(HeadError::Refused)) => return Poll::Ready(Err(Failure::Refused)),
                Poll::Ready(Err(HeadError::BrokeOff | HeadError::Malformed(_))) => {
                    return Poll::Ready(Err(Failure::BrokeOff));
                }
                Poll::Pending => {}
            }
            if upload != Upload::Going && front.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Failure::Gone));
            }
            let _later: Poll<()> = front.poll_informed(cx);
            let Poll::Ready(expired) = deadline.poll_expired(clock, cx) else { return Poll::Pending };
            match (expired, upload) {
                (Expired::Cut, _) => return Poll::Ready(Err(Failure::Cut)),
                (Expired::Deadline, Upload::Waiting) => {
                    upload = Upload::Going;
                    front.go_on();
                    deadline.enter(clock, Phase::Upstream, idle);
                }
                (Expired::Deadline, Upload::Going) if has_body => {
                    worker.limits.body_idle.one();
                    return Poll::Ready(Err(Failure::UploadTimeout));
                }
                (Expired::Deadline, Upload::Going | Upload::Done | Upload::Broken) => {
                    return Poll::Ready(Err(Failure::ResponseTimeout));
                }
            }
        }
    })
    .await
}

impl<R: Medium> Arriving<'_, R> {
    /// Ready once the other side is gone. What it says meanwhile is kept, as much as fits.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.from.is_framed() {
            return self.from.poll_gone(cx);
        }
        while !self.held.is_full() {
            match self.held.poll_fill(cx, self.buffers, self.from) {
                Poll::Ready(Ok(n)) if n > 0 => self.received.add(n as u64),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Pending
    }
}
