//! One request of a client: checked, routed, sent on by [`ask`], and answered.
//!
//! Both directions of it are driven by the one task of the connection. Nothing is allocated for a request: what it
//! needs is lent by the worker as [`Parts`].

use std::{future::poll_fn, rc::Rc, sync::Arc, task::Poll, time::Duration};

use http::Method;
use tokio::time::Instant;

use super::{
    ask::{Answered, Front, Question, Upload, ask},
    body::{Arriving, Encode, Framing, Incoming, MoveError, Outgoing, Source},
    compress::{self, Coding, Gzip, Squeezed},
    connection::{Client, Close, Connection, Tunnel},
    deadline::Phase,
    head::{Field, Head, Tag},
    headers::{self, Onward, Outward, Seen},
    hedge::hedged,
    layered::Layered,
    mirror::Copy,
    refusal::Refusal,
    reply::Answer,
    route::{Request, To, Treatment},
    splice::{Moved, Splice},
    turn,
};
use crate::{
    clock::Expired,
    config::{HashOn, RateKey},
    generation::{LocalServing, Pin},
    metrics::{AppCells, Count},
    rate::{self, Rates},
    room::Place,
    session::End,
    upstream::key,
};

/// What an unusually large message may leave allocated for the next one.
const KEPT_BYTES_MAX: usize = 16 * 1024;

/// What is needed for one exchange, and only while it lasts.
#[derive(Default)]
pub(crate) struct Parts {
    pub(crate) request: Head,
    pub(super) response: Head,
    /// The body of the request as it comes, and the request as it goes.
    pub(super) upload: Incoming,
    pub(super) up: Outgoing,
    pub(super) download: Incoming,
    down: Outgoing,
}

impl Parts {
    /// Makes them fit to be kept.
    pub(crate) fn shrink(&mut self) {
        self.request.shrink();
        self.response.shrink();
        self.up.shrink(KEPT_BYTES_MAX);
        self.down.shrink(KEPT_BYTES_MAX);
    }
}

/// How it goes on with the connection.
pub(crate) enum Then {
    Next,
    Close(Close),
}

/// A request from its head to the end of its response: counted and pinned.
struct Exchange {
    serving: Rc<LocalServing>,
    pin: Option<Pin>,
    /// Among all requests of the app, where these are counted.
    place: Option<Place>,
    start: Instant,
    /// From the start to the head of the response.
    first_byte: Option<Duration>,
    /// All of it, when that is known without asking for the time once more.
    whole: Option<Duration>,
    route: Option<usize>,
    status: u16,
    /// The connection may carry no further request.
    is_over: bool,
    /// The client says that this is its last request.
    is_last: bool,
    is_head: bool,
    upgrade: bool,
    /// It is a CONNECT that a route takes.
    connect: bool,
    /// The app compresses, and this client takes it.
    takes_gzip: bool,
}

impl Exchange {
    fn new<C: Client>(connection: &mut Connection<C>, serving: Rc<LocalServing>) -> Exchange {
        let local = &serving.local;
        let pin = local.pins.pin();
        local.cells.in_flight.up();
        connection.deadline.timer.uses(pin.generation());
        connection.deadline.bound(connection.worker.clock.after(local.generation.config.timeouts.request));
        let is_over = connection.next_request();
        if is_over {
            connection.worker.limits.requests_per_connection.one();
        }
        Exchange {
            pin: Some(pin),
            place: None,
            start: Instant::now(),
            first_byte: None,
            whole: None,
            route: None,
            // What is counted when the client goes away before it is answered (nginx's 499).
            status: 499,
            is_over,
            is_last: false,
            is_head: false,
            upgrade: false,
            connect: false,
            takes_gzip: false,
            serving,
        }
    }

    fn cells(&self) -> &AppCells {
        &self.serving.local.cells
    }

    fn sets_coding(&self) -> bool {
        self.treatment().is_some_and(|treatment| treatment.response.touches("content-encoding"))
    }

    /// What the route does besides forwarding.
    fn treatment(&self) -> Option<&Treatment> {
        self.route.and_then(|index| self.serving.local.generation.router.treatment(index))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let cells = &self.serving.local.cells;
        cells.in_flight.down();
        let took = self.whole.unwrap_or_else(|| self.start.elapsed());
        cells.request_duration.record(took);
        if let Some(tally) = &self.serving.tally {
            tally.request(self.status, took);
        }
        self.serving.cells.request(self.route, self.status);
    }
}

/// What admission found out about a request.
struct Admitted {
    pool: usize,
    key: Option<u64>,
    body: Framing,
    may_repeat: bool,
    is_idempotent: bool,
    expects: bool,
}

/// Answers the request whose head is in `parts`. What cannot be forwarded is answered here.
pub(crate) async fn exchange<C: Client>(connection: &mut Connection<C>, parts: &mut Parts) -> Then {
    let serving = match connection.choose(&parts.request) {
        Ok(serving) => serving,
        Err(close) => return Then::Close(close),
    };
    let mut exchange = Exchange::new(connection, serving);
    parts.down.reset();
    let refusal = match admit(connection, &mut exchange, parts) {
        Ok(admitted) => match go_on(connection, &mut exchange, parts, admitted).await {
            Ok(then) => return then,
            Err(refusal) => refusal,
        },
        Err(refusal) => refusal,
    };
    refuse(connection, &mut exchange, parts, &refusal).await
}

/// Has a request looked at, and sends it on.
async fn go_on<C: Client>(
    connection: &mut Connection<C>,
    exchange: &mut Exchange,
    parts: &mut Parts,
    admitted: Admitted,
) -> Result<Then, Refusal> {
    let serving = Rc::clone(&exchange.serving);
    if let Some(guards) = &serving.local.generation.guards {
        // On the heap: what they wait for is large, and most apps have none.
        Box::pin(guards.pass(connection, &serving, parts)).await?;
    }
    ready(connection, exchange, &mut parts.request, admitted.body);
    forward(connection, exchange, parts, admitted).await
}

/// Checks a request and finds its pool.
fn admit<C: Client>(
    connection: &mut Connection<C>,
    exchange: &mut Exchange,
    parts: &mut Parts,
) -> Result<Admitted, Refusal> {
    let Parts { request, upload, .. } = parts;
    let limits = &connection.worker.limits;
    let generation = &exchange.serving.local.generation;
    let max = generation.config.limits.max_body_bytes;
    let method = Method::from_bytes(request.method()).ok();
    exchange.is_head = method == Some(Method::HEAD);
    exchange.is_last = headers::is_last(request);
    let checked = match &method {
        Some(method) => headers::check_request(request, method),
        None => Err(headers::BadRequest::Method),
    };
    let is_redirected = exchange.serving.serving.redirect.is_some();
    let checked = match checked {
        Err(headers::BadRequest::Connect)
            if !C::IS_FRAMED && !is_redirected && generation.router.takes_connect() =>
        {
            exchange.connect = true;
            headers::check_connect(request).map(|()| {
                request.take_authority_form();
                Framing::Length(0)
            })
        }
        checked => checked,
    };
    let bad = |bad| {
        limits.framing.one();
        Refusal::Bad(bad)
    };
    let body = checked.map_err(|why| {
        // Nothing is known to be left of it; the connection ends anyway.
        upload.begin(Framing::Length(0), 0);
        bad(why)
    })?;
    upload.begin(body, max);
    if max != 0 && matches!(body, Framing::Length(length) if length > max) {
        limits.body_bytes.one();
        return Err(Refusal::TooLarge);
    }
    if generation.visitors.as_ref().is_some_and(|visitors| !visitors.admits(connection.seen.ip)) {
        exchange.cells().rejected_access.one();
        return Err(Refusal::Denied);
    }
    let method = method.unwrap_or_default();
    if let Some(redirect) = &exchange.serving.serving.redirect {
        return Err(answer(redirect.answer(request, &connection.seen).map(Arc::new)));
    }
    let rules_failed = &exchange.serving.local.cells.rules_failed;
    let route = generation.router.route(&Request::new(request, &method, &connection.seen, rules_failed));
    let route = route.ok_or_else(|| match exchange.connect {
        true => bad(headers::BadRequest::Connect),
        false => Refusal::NoRoute,
    })?;
    exchange.route = route.index;
    if let Some(rates) = &generation.rates {
        limit_rate(connection, exchange, rates, request)?;
    }
    let pool = match route.to {
        To::Pool(pool) => pool,
        To::Split(split) => {
            let key = split.sticky.as_ref().and_then(|on| key_of(on, &connection.seen, request));
            split.choose(key, connection.worker.random())
        }
        To::Reply(reply) => return Err(answer(reply.answer(request, &connection.seen))),
    };
    if let Some(timeout) = route.treatment.and_then(|treatment| treatment.timeout) {
        connection.deadline.bound(connection.worker.clock.after(timeout));
    }
    exchange.upgrade = !exchange.connect && headers::is_upgrade(request);
    exchange.takes_gzip =
        generation.config.compression.is_some() && !exchange.connect && compress::takes_gzip(request);
    let hash_on = exchange.serving.local.pools[pool].hash_on();
    let key = hash_on.and_then(|on| key_of(on, &connection.seen, request));
    let has_body = body != Framing::Length(0);
    let expects = has_body && !request.is_http10() && headers::expects_continue(request);
    let is_idempotent = is_idempotent(&method);
    Ok(Admitted { pool, key, body, may_repeat: !has_body && is_idempotent, is_idempotent, expects })
}

/// What a route answers; `None`: it would have to know a host.
fn answer(answer: Option<Arc<Answer>>) -> Refusal {
    answer.map_or(Refusal::Bad(headers::BadRequest::NoHost), Refusal::Answer)
}

/// Makes the head of a request one that goes on to an endpoint.
fn ready<C: Client>(connection: &Connection<C>, exchange: &Exchange, request: &mut Head, body: Framing) {
    headers::sanitize_request(request, &connection.seen, Onward { upgrade: exchange.upgrade, body });
    if let Some(treatment) = exchange.treatment() {
        // The target of a CONNECT is no path.
        if !exchange.connect {
            treatment.rewrite.apply(request);
        }
        treatment.request.apply(request);
    }
}

/// Refuses a request whose client asks too often.
fn limit_rate<C: Client>(
    connection: &Connection<C>,
    exchange: &Exchange,
    rates: &Rates,
    request: &Head,
) -> Result<(), Refusal> {
    let client = rate::Key::Client(connection.seen.ip);
    let router = &exchange.serving.local.generation.router;
    let key = match &rates.config.key {
        RateKey::ClientIp => client,
        RateKey::Header(name) => fields(request, name).next().map_or(client, rate::Key::Field),
        RateKey::Route => rate::Key::Route(exchange.route.map_or("", |route| router.name(route))),
    };
    match rates.take(key, exchange.start) {
        Ok(false) => Ok(()),
        Ok(true) => {
            connection.worker.limits.rate_keys.one();
            Ok(())
        }
        Err(too_often) => {
            exchange.cells().rate_limited.one();
            Err(Refusal::TooOften(too_often))
        }
    }
}

/// What a request is known by to strategies that hash.
fn key_of(on: &HashOn, seen: &Seen, request: &Head) -> Option<u64> {
    match on {
        HashOn::ClientIp => seen.client_address().map(key::of_client),
        HashOn::Header(name) => fields(request, name).next().map(key::hash),
        HashOn::Cookie(name) => key::cookie(fields(request, "cookie"), name).map(key::hash),
        HashOn::Path => Some(key::hash(request.path().as_bytes())),
    }
}

fn fields<'a>(head: &'a Head, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let named = head.iter().filter(|field: &Field<'_>| field.name.eq_ignore_ascii_case(name.as_bytes()));
    named.map(|field| field.value)
}

/// Whether repeating a request does no more than sending it once (RFC 9110 §9.2.2).
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}

/// Sends a request to an endpoint and its response to the client.
async fn forward<C: Client>(
    connection: &mut Connection<C>,
    exchange: &mut Exchange,
    parts: &mut Parts,
    admitted: Admitted,
) -> Result<Then, Refusal> {
    let serving = Rc::clone(&exchange.serving);
    let worker = Rc::clone(&connection.worker);
    let Connection { io, held, deadline, seen, .. } = connection;
    let Parts { request, response, upload, up, down, .. } = parts;
    let has_body = admitted.body != Framing::Length(0);
    let layered = match &serving.local.layers {
        None => None,
        Some(stack) => {
            deadline.enter(
                &worker.clock,
                Phase::Upstream,
                serving.local.generation.config.timeouts.response_header,
            );
            Some(Box::pin(Layered::begin(stack, request, seen, deadline, &worker.clock)).await?)
        }
    };
    if let Some(guards) = &serving.local.generation.guards {
        guards.sign(seen, request)?;
    }
    let has_length = matches!(admitted.body, Framing::Length(_));
    up.reset();
    let out = up.begin(if has_length { Encode::Plain } else { Encode::Chunked });
    request.write_request_line(out);
    request.write_fields(out);
    out.extend_from_slice(b"\r\n");
    let mirror = exchange.treatment().and_then(|treatment| treatment.mirror.as_ref());
    let mut copy = mirror
        .filter(|_| !exchange.upgrade)
        .and_then(|mirror| Copy::begin(mirror, &worker, &serving, request, admitted.body));
    if !has_body && let Some(copy) = copy.take() {
        copy.send(true);
    }
    let mut front = Asking {
        body: Arriving {
            from: io,
            held,
            body: upload,
            buffers: &worker.buffers,
            received: &serving.local.cells.received_client,
        },
        down,
        sent: &serving.local.cells.sent_client,
        is_http10: request.is_http10(),
        copy: copy.as_mut(),
    };
    if let Some(room) = &serving.local.generation.room {
        exchange.place = turn::in_app(&worker, &serving, room, deadline, &mut front).await?;
    }
    let question = Question {
        pool: admitted.pool,
        key: admitted.key,
        request,
        up,
        response,
        has_body,
        may_repeat: admitted.may_repeat,
        is_idempotent: admitted.is_idempotent,
        expects: admitted.expects,
        met: None,
    };
    let hedge = serving.local.generation.config.retry.hedge.as_ref().filter(|_| question.may_repeat);
    let result = match hedge.filter(|_| !exchange.upgrade) {
        None => ask(&worker, &serving, deadline, question, &mut front).await,
        Some(hedge) => Box::pin(hedged(&worker, &serving, deadline, question, hedge, &mut front)).await,
    };
    serving.local.cells.request_bytes.add(upload.bytes());
    if let Some(copy) = copy {
        copy.send(upload.is_done());
    }
    let answered = result?;
    let is_tunnel = exchange.connect && matches!(response.status(), 200..300);
    if is_tunnel || response.status() == 101 {
        return switch(connection, exchange, parts, answered).await;
    }
    if let Some(layered) = layered {
        Box::pin(layered.end(response, deadline, &worker.clock)).await?;
    }
    let reused = write_head(connection, exchange, parts, &answered)?;
    if C::IS_FRAMED && connection.io.send_head(&parts.response, reused.is_whole).is_err() {
        return Err(Refusal::Gone);
    }
    Ok(stream(connection, exchange, parts, answered, reused).await)
}

/// What of a message outlives it.
#[derive(Clone, Copy, Debug)]
struct Reused {
    /// The connection to the endpoint, as far as its response says.
    link: bool,
    client: bool,
    coding: Coding,
    /// The response has no body.
    is_whole: bool,
}

/// Makes the head of a response ready for the client. What becomes of both connections afterwards.
fn write_head<C: Client>(
    connection: &Connection<C>,
    exchange: &mut Exchange,
    parts: &mut Parts,
    answered: &Answered,
) -> Result<Reused, Refusal> {
    let Parts { request, response, download, down, .. } = parts;
    let bodiless = exchange.is_head || matches!(response.status(), 204 | 304);
    let framing = headers::check_response(response, bodiless).map_err(Refusal::Upstream)?;
    let is_http10 = request.is_http10();
    let coding = match &exchange.serving.local.generation.config.compression {
        // A route that says in what coding it answers knows better.
        Some(config) if !is_http10 && !exchange.is_head && !exchange.sets_coding() => {
            compress::choose(config, response, framing, exchange.takes_gzip)
        }
        Some(_) | None => Coding::AsItIs,
    };
    let has_length = matches!(framing, Framing::Length(_)) && coding != Coding::Gzip;
    // Asked now and not before: it may have changed while the endpoint took its time. A client that was never asked
    // for its body leaves open where the next request begins.
    let closes = C::IS_FRAMED
        || exchange.is_over
        || exchange.is_last
        || connection.is_unwanted()
        || answered.upload == Upload::Waiting
        || exchange.connect && !connection.held.is_empty()
        || is_http10 && !has_length;
    let chunked = !has_length && !is_http10 && !C::IS_FRAMED;
    let link = !headers::is_last(response) && framing != Framing::UntilClose;
    let date = connection.worker.date.at(connection.worker.clock.now());
    let outward = Outward {
        upgrade: false,
        chunked,
        connection: match (closes, is_http10) {
            (true, _) if C::IS_FRAMED => None,
            (true, _) => Some("close"),
            (false, true) => Some("keep-alive"),
            (false, false) => None,
        },
        date: &date,
    };
    headers::sanitize_response(response, &outward);
    if let Some(treatment) = exchange.treatment() {
        treatment.response.apply(response);
    }
    compress::announce(coding, response);
    let out = down.begin(if chunked { Encode::Chunked } else { Encode::Plain });
    if !C::IS_FRAMED {
        response.write_status_line(is_http10, out);
        response.write_fields(out);
        out.extend_from_slice(b"\r\n");
    }
    download.begin(framing, 0);
    exchange.status = response.status();
    let first_byte = exchange.start.elapsed();
    exchange.cells().first_byte.record(first_byte);
    exchange.first_byte = Some(first_byte);
    let is_whole = framing == Framing::Length(0);
    Ok(Reused { link, client: !closes, coding, is_whole })
}

/// Carries the response to the client, and what is left of the request to the endpoint.
async fn stream<C: Client>(
    connection: &mut Connection<C>,
    exchange: &mut Exchange,
    parts: &mut Parts,
    mut answered: Answered,
    reused: Reused,
) -> Then {
    let serving = Rc::clone(&exchange.serving);
    let cells = &serving.local.cells;
    let Connection { io, held, worker, deadline, .. } = connection;
    let Parts { upload, up, download, down, .. } = parts;
    deadline.enter(&worker.clock, Phase::Body, serving.local.generation.config.timeouts.idle);
    let uploaded = upload.bytes();
    let mut is_first = true;
    let mut pipe = None;
    let mut gzip = match &serving.local.generation.config.compression {
        Some(config) if reused.coding == Coding::Gzip => Some(Box::new(Gzip::new(config))),
        Some(_) | None => None,
    };
    let may_splice = gzip.is_none() && io.plain().is_some() && answered.link.plain().is_some();
    down.hand_over(may_splice);
    // A response that broke off must not look complete; otherwise the client has gone.
    let broke = |error| {
        if let (MoveError::Source(_), Some(tally)) = (error, &serving.tally) {
            tally.reset();
        }
        End::Reset
    };
    let broken = poll_fn(|cx| {
        let before = up.moved() + down.moved();
        let mut arriving = Arriving {
            from: &mut *io,
            held: &mut *held,
            body: &mut *upload,
            buffers: &worker.buffers,
            received: &cells.received_client,
        };
        if answered.upload == Upload::Going {
            match up.poll_move(cx, &mut arriving, &mut answered.link.stream, &cells.sent_upstream) {
                Poll::Ready(Ok(())) => answered.upload = Upload::Done,
                Poll::Ready(Err(MoveError::Target)) => answered.upload = Upload::Broken,
                Poll::Ready(Err(MoveError::Source(_))) => return Poll::Ready(Some(End::Reset)),
                Poll::Pending => {}
            }
        }
        loop {
            // What is in a pipe comes before what is still to be read.
            if pipe.is_none() {
                let mut response = Arriving {
                    from: &mut answered.link.stream,
                    held: &mut answered.link.held,
                    body: &mut *download,
                    buffers: &worker.buffers,
                    received: &cells.received_upstream,
                };
                let moved = match &mut gzip {
                    None => down.poll_move(cx, &mut response, &mut *io, &cells.sent_client),
                    Some(gzip) => {
                        let mut squeezed = Squeezed { source: &mut response, gzip };
                        down.poll_move(cx, &mut squeezed, &mut *io, &cells.sent_client)
                    }
                };
                match moved {
                    Poll::Ready(Ok(())) if down.is_complete() => return Poll::Ready(None),
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Some(broke(error))),
                    Poll::Pending => {
                        down.hand_over(may_splice);
                        break;
                    }
                }
            }
            let (Some(from), Some(to)) = (answered.link.plain(), io.plain()) else { break };
            let splice = Splice {
                pipes: &worker.pipes,
                from,
                to,
                received: &cells.received_upstream,
                sent: &cells.sent_client,
            };
            match splice.poll(cx, &mut pipe, download, down) {
                Poll::Ready(Ok(Moved::All)) => return Poll::Ready(None),
                Poll::Ready(Ok(Moved::Some)) => down.hand_over(false),
                Poll::Ready(Err(error)) => return Poll::Ready(Some(broke(error))),
                Poll::Pending => break,
            }
        }
        is_first = false;
        if answered.upload != Upload::Going {
            let mut arriving = Arriving {
                from: &mut *io,
                held: &mut *held,
                body: &mut *upload,
                buffers: &worker.buffers,
                received: &cells.received_client,
            };
            if arriving.poll_gone(cx).is_ready() {
                return Poll::Ready(Some(End::Reset));
            }
        }
        if up.moved() + down.moved() != before {
            deadline.extend(&worker.clock);
        }
        deadline.poll_expired(&worker.clock, cx).map(|expired| {
            if expired == Expired::Deadline {
                worker.limits.body_idle.one();
            }
            Some(expired.into())
        })
    })
    .await;
    cells.request_bytes.add(upload.bytes() - uploaded);
    cells.response_bytes.add(download.bytes());
    if gzip.is_some() {
        cells.compressed.one();
        cells.compressed_bytes.add(download.bytes());
    }
    if is_first {
        exchange.whole = exchange.first_byte;
    }
    if let Some(end) = broken {
        return Then::Close(Close::Reset(end));
    }
    let state = answered.upload;
    let has_heard_all = (state == Upload::Done || state != Upload::Waiting && upload.skip(held))
        // Those bytes were for the other end of the tunnel that there is not, and are no request.
        && (!exchange.connect || held.is_empty());
    answered.release(worker, reused.link);
    match (reused.client && has_heard_all, exchange.is_last && has_heard_all) {
        (true, _) => Then::Next,
        (false, true) => Then::Close(Close::Done),
        (false, false) => Then::Close(Close::Politely),
    }
}

/// Passes on the 101, or the 2xx to a CONNECT, and leaves both connections to carry bytes.
async fn switch<C: Client>(
    connection: &mut Connection<C>,
    exchange: &mut Exchange,
    parts: &mut Parts,
    answered: Answered,
) -> Result<Then, Refusal> {
    if !exchange.upgrade && parts.response.status() == 101 {
        return Err(Refusal::Upstream("the endpoint changed the protocol unasked\n"));
    }
    let serving = Rc::clone(&exchange.serving);
    let Parts { response, download, down, .. } = parts;
    let date = connection.worker.date.at(connection.worker.clock.now());
    if exchange.connect {
        // RFC 9110 §9.3.6: neither a length nor an encoding means anything here. The latter goes anyway.
        response.retain(|field| field.tag != Tag::ContentLength);
    }
    let outward = Outward { upgrade: exchange.upgrade, chunked: false, connection: None, date: &date };
    headers::sanitize_response(response, &outward);
    let out = down.begin(Encode::Plain);
    response.write_status_line(false, out);
    response.write_fields(out);
    out.extend_from_slice(b"\r\n");
    download.begin(Framing::Length(0), 0);
    exchange.status = response.status();
    exchange.cells().first_byte.record(exchange.start.elapsed());
    if let Some(end) = write_out(connection, &serving, down).await {
        return Ok(Then::Close(Close::Reset(end)));
    }
    let Some((upstream, early, active)) = answered.link.into_stream(&connection.worker.buffers) else {
        return Ok(Then::Close(Close::Reset(End::Reset)));
    };
    let idle = serving.local.generation.config.timeouts.tunnel;
    let pin = exchange.pin.take().expect("a request is pinned until it is answered");
    let tunnel = Tunnel { upstream, early, idle, pin, in_flight: answered.in_flight, active };
    Ok(Then::Close(Close::Tunnel(Box::new(tunnel))))
}

/// Writes all of a message without a body. Why it could not, if it could not.
async fn write_out<C: Client>(
    connection: &mut Connection<C>,
    serving: &LocalServing,
    down: &mut Outgoing,
) -> Option<End> {
    let Connection { io, worker, deadline, .. } = connection;
    if C::IS_FRAMED {
        return io.answer(down.text()).err().map(|_gone| End::Reset);
    }
    deadline.enter(&worker.clock, Phase::Body, serving.local.generation.config.timeouts.idle);
    poll_fn(|cx| match down.poll_head(cx, io, &serving.local.cells.sent_client) {
        Poll::Ready(Ok(())) => Poll::Ready(None),
        Poll::Ready(Err(_)) => Poll::Ready(Some(End::Reset)),
        Poll::Pending => deadline.poll_expired(&worker.clock, cx).map(|expired| Some(expired.into())),
    })
    .await
}

/// Answers without an endpoint.
async fn refuse<C: Client>(
    connection: &mut Connection<C>,
    exchange: &mut Exchange,
    parts: &mut Parts,
    refusal: &Refusal,
) -> Then {
    match refusal {
        Refusal::Gone => return Then::Close(Close::Reset(End::Reset)),
        Refusal::Cut => return Then::Close(Close::Reset(End::Cut)),
        _ => {}
    }
    let serving = Rc::clone(&exchange.serving);
    let Parts { request, upload, down, .. } = parts;
    // What comes behind a CONNECT may be meant for the tunnel: none of it is read as a request.
    let has_heard_all = !refusal.ends_connection() && !exchange.connect && upload.skip(&mut connection.held);
    let goes_on = has_heard_all && !exchange.is_over && !exchange.is_last && !connection.is_unwanted();
    let out = down.begin(Encode::Plain);
    let again = refusal.retry_after();
    let (status, head) = match refusal {
        Refusal::Answer(answer) => {
            let date = connection.worker.date.at(connection.worker.clock.now());
            let says = Refusal::connection(request.is_http10(), goes_on);
            (answer.status, answer.write(&date, says, out))
        }
        refusal => {
            let (status, text) = refusal.answer();
            (status, Refusal::write(status, request.is_http10(), goes_on, again, &text, out))
        }
    };
    out.truncate(if exchange.is_head { head } else { out.len() });
    exchange.status = status;
    if let Some(end) = write_out(connection, &serving, down).await {
        return Then::Close(Close::Reset(end));
    }
    if goes_on { Then::Next } else { Then::Close(Close::Politely) }
}

/// The client of an HTTP/1.1 connection, while its request is asked on.
struct Asking<'a, C> {
    body: Arriving<'a, C>,
    down: &'a mut Outgoing,
    sent: &'a Count,
    is_http10: bool,
    copy: Option<&'a mut Copy>,
}

impl<C: Client> Source for Asking<'_, C> {
    fn poll_bytes(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), super::body::BodyError>> {
        self.body.poll_bytes(cx)
    }

    fn bytes(&self) -> &[u8] {
        self.body.bytes()
    }

    fn consume(&mut self, n: usize) {
        if let Some(copy) = &mut self.copy {
            copy.take(&self.body.bytes()[..n]);
        }
        self.body.consume(n);
    }

    fn is_end(&self) -> bool {
        self.body.is_end()
    }

    fn trailers(&self) -> &[u8] {
        self.body.trailers()
    }
}

impl<C: Client> Front for Asking<'_, C> {
    fn poll_gone(&mut self, cx: &mut std::task::Context<'_>) -> Poll<()> {
        self.body.poll_gone(cx)
    }

    fn inform(&mut self, response: &mut Head) {
        // RFC 9110 §15.2: HTTP/1.0 knows no such answers.
        if !self.is_http10 {
            let outward = Outward { upgrade: false, chunked: false, connection: None, date: &[] };
            headers::sanitize_response(response, &outward);
            if C::IS_FRAMED {
                // That it cannot be sent is noticed by whoever reads.
                let _unheard = self.body.from.send_head(response, false);
                return;
            }
            let out = self.down.begin(Encode::Plain);
            response.write_status_line(false, out);
            response.write_fields(out);
            out.extend_from_slice(b"\r\n");
        }
    }

    fn go_on(&mut self) {
        if C::IS_FRAMED {
            let _unheard = self.body.from.send_continue();
            return;
        }
        self.down.begin(Encode::Plain).extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
    }

    fn poll_informed(&mut self, cx: &mut std::task::Context<'_>) -> Poll<()> {
        // That it cannot be written is noticed by whoever reads.
        self.down.poll_head(cx, self.body.from, self.sent).map(drop)
    }
}
