//! A request on its way through the layers of its app, and its response back.
//!
//! The layers run inside the task of the request: up to the point where the request leaves the innermost one, and
//! from there again once its response is there.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tower::{BoxError, Service};

use super::{
    deadline::Deadline,
    edit::{is_editable, is_path},
    head::Head,
    headers::{BadRequest, Seen},
    refusal::Refusal,
    reply::{Answer, is_bodiless},
};
use crate::{
    clock::{Clock, Expired},
    layers::{Content, Gate, Next},
};

type Making = Pin<Box<dyn Future<Output = Result<Response<Content>, BoxError>>>>;

/// Layers that wait for the response.
pub(crate) struct Layered {
    making: Making,
    gate: Gate,
}

impl Layered {
    /// Lets the layers see a request that is ready to go on, and change it.
    pub(crate) async fn begin(
        stack: &Next,
        request: &mut Head,
        seen: &Seen,
        deadline: &Deadline,
        clock: &Clock,
    ) -> Result<Layered, Refusal> {
        let gate = Gate::default();
        let mut shown = show_request(request).ok_or(Refusal::Bad(BadRequest::Target))?;
        shown.extensions_mut().insert(seen.ip);
        shown.extensions_mut().insert(gate.clone());
        let mut stack = stack.clone();
        until(deadline, clock, |cx| stack.poll_ready(cx)).await?.map_err(failed)?;
        let mut making = stack.call(shown);
        let passed = until(deadline, clock, |cx| match making.as_mut().poll(cx) {
            Poll::Ready(made) => Poll::Ready(Err(made)),
            Poll::Pending => gate.take_request().map_or(Poll::Pending, |request| Poll::Ready(Ok(request))),
        });
        match passed.await? {
            Ok(changed) => {
                let target = changed.uri().path_and_query().map_or("", |target| target.as_str());
                if target != request.path_and_query() && request.path_and_query().starts_with('/') {
                    if !is_path(target) {
                        return Err(failed("a layer has made a path that is none".into()));
                    }
                    request.set_path(target);
                }
                take_fields(request, changed.headers());
                Ok(Layered { making, gate })
            }
            Err(made) => Err(answer(made.map_err(failed)?)),
        }
    }

    /// Lets the layers see the response, and change it.
    pub(crate) async fn end(
        mut self,
        response: &mut Head,
        deadline: &Deadline,
        clock: &Clock,
    ) -> Result<(), Refusal> {
        let mut shown = Response::new(Content::Passing);
        *shown.status_mut() = http::StatusCode::from_u16(response.status())
            .map_err(|_| Refusal::Upstream("the endpoint sent an unknown status\n"))?;
        show_fields(response, shown.headers_mut());
        self.gate.give_response(shown);
        let made = until(deadline, clock, |cx| self.making.as_mut().poll(cx)).await?.map_err(failed)?;
        if matches!(made.body(), Content::Own(_)) {
            return Err(answer(made));
        }
        let status = made.status().as_u16();
        if status != response.status() {
            // Whether there is a body was settled by the endpoint.
            if [status, response.status()].into_iter().any(|status| status < 200 || is_bodiless(status)) {
                return Err(failed("a layer has changed the status to one with another framing".into()));
            }
            response.set_status(status);
        }
        take_fields(response, made.headers());
        Ok(())
    }
}

/// Waits for a layer, but not longer than for an endpoint.
async fn until<T>(
    deadline: &Deadline,
    clock: &Clock,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Result<T, Refusal> {
    poll_fn(|cx| match poll(cx) {
        Poll::Ready(done) => Poll::Ready(Ok(done)),
        Poll::Pending => deadline.poll_expired(clock, cx).map(|expired| match expired {
            Expired::Deadline => Err(Refusal::ResponseTimeout),
            Expired::Cut => Err(Refusal::Cut),
        }),
    })
    .await
}

fn failed(error: BoxError) -> Refusal {
    tracing::debug!(%error, "a layer failed");
    Refusal::Layer
}

/// What a layer says itself.
fn answer(made: Response<Content>) -> Refusal {
    let (parts, content) = made.into_parts();
    let status = parts.status.as_u16();
    let body = match content {
        Content::Own(body) if !is_bodiless(status) => body,
        Content::Own(_) | Content::Passing => bytes::Bytes::new(),
    };
    if status < 200 {
        return failed("a layer has answered with an interim status".into());
    }
    let mut fields = Vec::new();
    for (name, value) in
        parts.headers.iter().filter(|(name, _)| is_editable(name) && *name != http::header::DATE)
    {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes().trim_ascii(), b"\r\n"] {
            fields.extend_from_slice(part);
        }
    }
    Refusal::Answer(Arc::new(Answer { status, fields, body }))
}

/// `None`: its target cannot be said in a `Uri`.
fn show_request(head: &Head) -> Option<Request<()>> {
    let mut request = Request::builder().method(head.method()).uri(head.path_and_query()).body(()).ok()?;
    show_fields(head, request.headers_mut());
    Some(request)
}

fn show_fields(head: &Head, fields: &mut HeaderMap) {
    for field in head.iter() {
        let name = HeaderName::from_bytes(field.name).ok().filter(is_editable);
        if let (Some(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) {
            fields.append(name, value);
        }
    }
}

/// Puts the fields in place of those that were shown.
fn take_fields(head: &mut Head, fields: &HeaderMap) {
    head.retain(|field| HeaderName::from_bytes(field.name).is_ok_and(|name| !is_editable(&name)));
    for (name, value) in fields.iter().filter(|(name, _)| is_editable(name)) {
        head.add(name.as_str(), &[value.as_bytes().trim_ascii()]);
    }
}
