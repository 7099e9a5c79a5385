//! One request: choose, forward, answer.

use std::{
    cell::Cell, convert::Infallible, future::poll_fn, pin::pin, rc::Rc, sync::atomic::Ordering::Relaxed,
    task::Poll, time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request, response,
};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{
    body::{BodyError, RequestBody, ResponseBody, Upload},
    connection::{Connection, Phase, Tunnel},
    headers,
    link::{Link, poll_inner},
    refusal::Refusal,
    replay,
};
use crate::{
    clock::Expired,
    connect::Attempts,
    generation::{LocalServing, Pin},
    metrics::AppCells,
    pool::InFlight,
};

/// A request body that stands still for this long ends its request.
const UPLOAD_IDLE: Duration = Duration::from_secs(30);
/// An endpoint that ignores `Expect: 100-continue` gets the body after this (RFC 9110 §10.1.1).
const EXPECT_WAIT: Duration = Duration::from_secs(1);

/// A request from its head to the end of its response: counted, pinned, and its connection busy.
pub(crate) struct Exchange {
    connection: Rc<Connection>,
    serving: Rc<LocalServing>,
    pin: Option<Pin>,
    in_flight: Option<InFlight>,
    upload: Option<Rc<Upload>>,
    /// Forwarded, and the last one its client will send.
    is_last: bool,
    start: Instant,
    /// No part of the request may take longer than until then.
    latest: u64,
    route: Option<usize>,
    status: Cell<StatusCode>,
}

impl Exchange {
    fn new(connection: Rc<Connection>) -> Exchange {
        let serving = connection.choose();
        let local = &serving.local;
        let pin = local.pins.pin();
        local.cells.in_flight.up();
        connection.timer.uses(pin.generation());
        let latest = connection.worker.clock.after(local.generation.config.timeouts.request);
        Exchange {
            connection,
            pin: Some(pin),
            in_flight: None,
            upload: None,
            is_last: false,
            start: Instant::now(),
            latest,
            route: None,
            // What is counted when the client goes away before it is answered (nginx's 499).
            status: Cell::new(StatusCode::from_u16(499).expect("499 is a valid code")),
            serving,
        }
    }

    pub(crate) fn cells(&self) -> &AppCells {
        &self.serving.local.cells
    }

    /// Gives the connection to the endpoint back, if it can carry another request.
    pub(crate) fn release(&self, link: Link) {
        self.connection.upload.take();
        if let (Some(InFlight(endpoint)), true) = (&self.in_flight, link.is_idle()) {
            endpoint.put(link, self.connection.worker.clock.now());
        }
    }

    fn enter(&self, phase: Phase, window: Duration) {
        self.connection.enter(phase, window, self.latest);
    }

    /// Whether everything the client announced has been read.
    fn is_upload_finished(&self) -> bool {
        self.upload.as_ref().is_none_or(|upload| upload.is_finished.get())
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let cells = &self.serving.local.cells;
        cells.in_flight.down();
        cells.request_duration.record(self.start.elapsed());
        if let Some(upload) = &self.upload {
            cells.request_bytes.add(upload.bytes.get());
        }
        self.serving.cells.request(self.route, self.status.get());
        if self.is_last && self.is_upload_finished() {
            self.connection.hear_all();
        }
        self.connection.upload.take();
        self.connection.enter_idle();
    }
}

/// Answers one request. Never fails: what cannot be forwarded is answered here.
pub(crate) async fn forward(
    connection: Rc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let is_last = connection.next_request();
    if is_last {
        connection.worker.limits.requests_per_connection.one();
    }
    let mut exchange = Exchange::new(Rc::clone(&connection));
    let mut response = match answer(&mut exchange, request).await {
        Ok((parts, content)) => {
            exchange.status.set(parts.status);
            exchange.cells().first_byte.record(exchange.start.elapsed());
            Response::from_parts(parts, content.into_body(exchange))
        }
        Err(refusal) => refuse(exchange, &refusal),
    };
    // Asked now and not before: it may have changed while the endpoint took its time.
    let must_close = is_last || connection.is_unwanted();
    if must_close && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// What a forwarded response carries.
enum Answer {
    Empty,
    Stream(Incoming, Link),
}

impl Answer {
    fn into_body(self, exchange: Exchange) -> ResponseBody {
        match self {
            Answer::Empty => ResponseBody::text(Bytes::new(), Some(exchange)),
            Answer::Stream(incoming, link) => ResponseBody::stream(incoming, link, exchange),
        }
    }
}

fn refuse(exchange: Exchange, refusal: &Refusal) -> Response<ResponseBody> {
    let (status, text) = refusal.answer();
    exchange.status.set(status);
    let close = refusal.ends_connection() || !exchange.is_upload_finished();
    let idle = exchange.serving.local.generation.config.timeouts.idle;
    exchange.enter(Phase::Body, idle);
    let mut response = Response::new(ResponseBody::text(text, Some(exchange)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn answer(
    exchange: &mut Exchange,
    request: Request<Incoming>,
) -> Result<(response::Parts, Answer), Refusal> {
    let (mut parts, incoming) = request.into_parts();
    let upgrade = headers::is_upgrade(&parts.headers);
    let holds = parts.headers.contains_key(header::UPGRADE);
    let is_last = headers::is_last(&parts);
    let result = match admit(exchange, &mut parts, &incoming, upgrade) {
        Ok(pool) => exchange_with(exchange, pool, parts, incoming, upgrade).await,
        Err(refusal) => Err(refusal),
    };
    let upgraded = matches!(&result, Ok((parts, _)) if parts.status == StatusCode::SWITCHING_PROTOCOLS);
    exchange.is_last = is_last && result.is_ok();
    if holds && !upgraded {
        exchange.connection.resume();
    }
    result
}

/// Checks a request, finds its pool, and makes its head ready to forward.
fn admit(
    exchange: &mut Exchange,
    parts: &mut request::Parts,
    incoming: &Incoming,
    upgrade: bool,
) -> Result<usize, Refusal> {
    let connection = &exchange.connection;
    let generation = &exchange.serving.local.generation;
    if !incoming.is_end_stream() {
        let expects = expects_continue(&parts.headers);
        exchange.upload = Some(Rc::new(Upload::new(generation.config.limits.max_body_bytes, expects)));
    }
    if let Err(bad) = headers::check_request(parts) {
        connection.worker.limits.framing.one();
        return Err(Refusal::Bad(bad));
    }
    let max = generation.config.limits.max_body_bytes;
    if max != 0 && incoming.size_hint().lower() > max {
        connection.worker.limits.body_bytes.one();
        return Err(Refusal::TooLarge);
    }
    let host = match parts.uri.authority() {
        Some(authority) => authority.as_str(),
        None => parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
    };
    let route = generation.router.route(host, parts.uri.path(), &parts.method).ok_or(Refusal::NoRoute)?;
    let (pool, route) = (route.pool, route.name.and_then(|name| generation.route_index(name)));
    headers::sanitize_request(parts, &connection.seen, upgrade);
    parts.version = Version::HTTP_11;
    if exchange.upload.is_none() {
        parts.headers.remove(header::EXPECT);
    } else if incoming.size_hint().exact().is_none() {
        // Without this hyper takes a GET with a body of unknown length for one without a body.
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    exchange.route = route;
    Ok(pool)
}

fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Finds an endpoint, sends the request there, and returns its response ready to forward.
async fn exchange_with(
    exchange: &mut Exchange,
    pool: usize,
    parts: request::Parts,
    incoming: Incoming,
    upgrade: bool,
) -> Result<(response::Parts, Answer), Refusal> {
    let connection = Rc::clone(&exchange.connection);
    let serving = Rc::clone(&exchange.serving);
    let timeouts = &serving.local.generation.config.timeouts;
    let may_repeat = exchange.upload.is_none() && replay::is_idempotent(&parts.method);
    let is_head = parts.method == Method::HEAD;
    let mut request = Request::from_parts(
        parts,
        match &exchange.upload {
            Some(upload) => RequestBody::new(incoming, upload),
            None => RequestBody::empty(),
        },
    );
    if let Some(wanted) = exchange.upload.as_ref().and_then(|upload| upload.wanted.clone()) {
        hyper::ext::on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                wanted.store(true, Relaxed);
            }
        });
    }

    exchange.enter(Phase::Upstream, timeouts.connect);
    let deadline = connection.timer.deadline();
    let mut attempts = Attempts::new(&connection.worker, &serving.local.pools[pool], deadline);
    let mut chosen = attempts.choose(&connection.worker).ok_or(Refusal::NoTarget)?;
    let mut pooled = poll_fn(|cx| Poll::Ready(chosen.in_flight.0.take(cx))).await;
    let mut is_retry = false;
    let (link, response) = loop {
        let is_reused = pooled.is_some();
        let link = match pooled.take() {
            Some(link) => {
                serving.local.cells.pool_hit.one();
                link
            }
            None => {
                let stream = attempts.connect(&connection.worker, &connection.timer, &mut chosen).await?;
                serving.local.cells.pool_new.one();
                Link::open(stream, &serving.local.cells).await.map_err(|_| Refusal::Upstream(BROKE_OFF))?
            }
        };
        match send(exchange, &link, request, is_reused && may_repeat).await {
            Ok(response) => break (link, response),
            // The endpoint closed an idle connection while we wrote to it. Once, on a fresh one.
            Err(Failure::Stale(again)) if is_reused && !is_retry => {
                is_retry = true;
                request = *again;
            }
            Err(failure) => {
                if is_retry {
                    serving.local.cells.retries_failed.one();
                }
                return Err(failure.into());
            }
        }
    };
    if is_retry {
        serving.local.cells.retries_ok.one();
    }
    exchange.in_flight = Some(chosen.in_flight);
    receive(exchange, link, response, is_head, upgrade).await
}

const BROKE_OFF: &str = "the endpoint broke off\n";

/// Why a sent request has no response.
enum Failure {
    /// Nothing of a response came, and this is the request again, for a fresh connection.
    Stale(Box<Request<RequestBody>>),
    BrokeOff,
    Body(BodyError),
    ResponseTimeout,
    UploadTimeout,
    Cut,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        match failure {
            Failure::Stale(_) | Failure::BrokeOff | Failure::Body(BodyError::Upstream) => {
                Refusal::Upstream(BROKE_OFF)
            }
            Failure::Body(BodyError::TooLarge) => Refusal::TooLarge,
            Failure::Body(BodyError::Client) | Failure::Cut => Refusal::Gone,
            Failure::ResponseTimeout => Refusal::ResponseTimeout,
            Failure::UploadTimeout => Refusal::UploadTimeout,
        }
    }
}

/// Sends a request on `link` and waits for the head of its response.
async fn send(
    exchange: &Exchange,
    link: &Link,
    request: Request<RequestBody>,
    keep: bool,
) -> Result<Response<Incoming>, Failure> {
    let timeouts = &exchange.serving.local.generation.config.timeouts;
    let upload_idle = if timeouts.idle.is_zero() { UPLOAD_IDLE } else { timeouts.idle.min(UPLOAD_IDLE) };
    let upload = exchange.upload.as_deref();
    let mut is_uploading = upload.is_some_and(|upload| !upload.is_finished.get());
    let mut waits = upload.is_some_and(|upload| !upload.is_wanted());
    match upload {
        Some(_) if waits => exchange.enter(Phase::Upstream, EXPECT_WAIT),
        Some(_) => exchange.enter(Phase::Upload, upload_idle),
        None => exchange.enter(Phase::Upstream, timeouts.response_header),
    }
    let mut response = pin!(link.send(request, keep));
    poll_fn(|cx| {
        loop {
            let closed = link.poll_closed(cx);
            match poll_inner(response.as_mut()) {
                Poll::Ready(Ok(response)) => return Poll::Ready(Ok(response)),
                Poll::Ready(Err(mut error)) => {
                    return Poll::Ready(Err(failure(link, upload, error.take_message())));
                }
                Poll::Pending if closed.is_ready() => return Poll::Ready(Err(Failure::BrokeOff)),
                Poll::Pending => {}
            }
            if is_uploading && exchange.is_upload_finished() {
                is_uploading = false;
                exchange.enter(Phase::Upstream, timeouts.response_header);
            } else if waits && upload.is_some_and(Upload::is_wanted) {
                waits = false;
                exchange.enter(Phase::Upload, upload_idle);
            }
            let Poll::Ready(expired) = exchange.connection.poll_expired(cx) else { return Poll::Pending };
            match (expired, upload) {
                (Expired::Cut, _) => return Poll::Ready(Err(Failure::Cut)),
                (Expired::Deadline, Some(upload)) if waits => {
                    waits = false;
                    upload.want();
                    exchange.enter(Phase::Upload, upload_idle);
                }
                (Expired::Deadline, _) if is_uploading => {
                    exchange.connection.worker.limits.body_idle.one();
                    return Poll::Ready(Err(Failure::UploadTimeout));
                }
                (Expired::Deadline, _) => return Poll::Ready(Err(Failure::ResponseTimeout)),
            }
        }
    })
    .await
}

fn failure(link: &Link, upload: Option<&Upload>, unsent: Option<Request<RequestBody>>) -> Failure {
    if let Some(error) = upload.and_then(|upload| upload.error.get()) {
        return Failure::Body(error);
    }
    if link.has_received() {
        return Failure::BrokeOff;
    }
    let again = unsent.or_else(|| replay::read_back(&link.written()?));
    again.map_or(Failure::BrokeOff, |request| Failure::Stale(Box::new(request)))
}

/// Makes the head of a response ready to forward.
async fn receive(
    exchange: &mut Exchange,
    link: Link,
    response: Response<Incoming>,
    is_head: bool,
    upgrade: bool,
) -> Result<(response::Parts, Answer), Refusal> {
    let timeouts = &exchange.serving.local.generation.config.timeouts;
    let (mut parts, incoming) = response.into_parts();
    check_response(&parts.headers, is_head).map_err(Refusal::Upstream)?;
    parts.version = Version::HTTP_11;
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        if !upgrade {
            return Err(Refusal::Upstream("the endpoint changed the protocol unasked\n"));
        }
        let idle = timeouts.tunnel;
        headers::sanitize_response(&mut parts, true);
        open_tunnel(exchange, link, idle).await?;
        return Ok((parts, Answer::Empty));
    }
    headers::sanitize_response(&mut parts, false);
    exchange.enter(Phase::Body, timeouts.idle);
    if !exchange.is_upload_finished() {
        *exchange.connection.upload.borrow_mut() = Some(link.clone());
        if exchange.upload.as_ref().is_some_and(|upload| !upload.is_wanted()) {
            // The client was never asked for its body, so where the next request begins is open.
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    Ok((parts, Answer::Stream(incoming, link)))
}

async fn open_tunnel(exchange: &mut Exchange, link: Link, idle: Duration) -> Result<(), Refusal> {
    // After a 101 the parser has nothing left to do but end.
    poll_fn(|cx| link.poll_closed(cx)).await;
    let (upstream, early, active) = link.into_stream().ok_or(Refusal::Upstream(BROKE_OFF))?;
    let pin = exchange.pin.take().expect("a request is pinned until it is answered");
    let in_flight = exchange.in_flight.take().ok_or(Refusal::Upstream(BROKE_OFF))?;
    *exchange.connection.tunnel.borrow_mut() = Some(Tunnel { upstream, early, idle, pin, in_flight, active });
    Ok(())
}

/// Refuses a response that two readers could take for different ones (RFC 9112 §6.3). hyper reads
/// on where it may; we would have to write what it read with the fields as they came.
fn check_response(headers: &HeaderMap, is_head: bool) -> Result<(), &'static str> {
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (encodings.next(), lengths.next()) {
        (Some(_), Some(_)) if !is_head => Err("the endpoint sent both a length and an encoding\n"),
        (Some(encoding), _)
            if !encoding.as_bytes().eq_ignore_ascii_case(b"chunked") || encodings.next().is_some() =>
        {
            Err("the endpoint sent an unknown transfer encoding\n")
        }
        (_, Some(_)) if lengths.next().is_some() => Err("the endpoint sent two lengths\n"),
        (_, _) => Ok(()),
    }
}
