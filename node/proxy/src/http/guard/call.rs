//! A question to a service of the user's, asked on the way: over a pool of the app, with everything that pools do.

use std::{future::poll_fn, task::Poll};

use super::super::{
    ask::{Question, ask},
    body::{Arriving, Encode, Framing, Source},
    connection::{Client, Connection},
    forward::Parts,
    head::Head,
    headers,
    own::Own,
    refusal::Refusal,
};
use crate::{clock::Expired, generation::LocalServing};

/// An answer that is longer is none.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What is asked: everything that goes over the wire.
pub(super) struct Call<'a> {
    pub(super) pool: usize,
    pub(super) head: &'a [u8],
    pub(super) body: &'a [u8],
    /// Asking twice does no more than asking once.
    pub(super) is_idempotent: bool,
}

/// What came back, beside the head in [`Parts::response`].
pub(super) struct Called {
    pub(super) body: Vec<u8>,
    /// Field lines behind the body.
    pub(super) trailers: Vec<u8>,
}

/// Asks, within the deadline that the connection has.
pub(super) async fn call<C: Client>(
    connection: &mut Connection<C>,
    serving: &LocalServing,
    parts: &mut Parts,
    call: Call<'_>,
) -> Result<Called, Refusal> {
    let Connection { io, held, worker, deadline, .. } = connection;
    let Parts { response, upload, download, up, .. } = parts;
    let cells = &serving.local.cells;
    up.reset();
    up.begin(Encode::Plain).extend_from_slice(call.head);
    let mut asked = Head::default();
    let is_read = asked.parse_request(call.head, usize::MAX).is_ok_and(|used| used == Some(call.head.len()));
    debug_assert!(is_read, "a question is a whole head");
    let mut client =
        Arriving { from: io, held, body: upload, buffers: &worker.buffers, received: &cells.received_client };
    let mut caller = Own::new(call.body, |cx| client.poll_gone(cx));
    let question = Question {
        pool: call.pool,
        key: None,
        request: &asked,
        up,
        response,
        has_body: !call.body.is_empty(),
        may_repeat: call.is_idempotent && call.body.is_empty(),
        is_idempotent: call.is_idempotent,
        expects: false,
        met: None,
    };
    let mut answered = ask(worker, serving, deadline, question, &mut caller).await?;
    let is_bodiless = matches!(response.status(), 204 | 304);
    let framing = headers::check_response(response, is_bodiless).map_err(Refusal::Upstream)?;
    download.begin(framing, ANSWER_BYTES_MAX as u64);
    let mut body = Vec::new();
    let mut arriving = Arriving {
        from: &mut answered.link.stream,
        held: &mut answered.link.held,
        body: download,
        buffers: &worker.buffers,
        received: &cells.received_upstream,
    };
    poll_fn(|cx| {
        loop {
            match arriving.poll_bytes(cx) {
                Poll::Ready(Ok(())) => {
                    let n = arriving.bytes().len();
                    body.extend_from_slice(arriving.bytes());
                    arriving.consume(n);
                    if arriving.is_end() {
                        return Poll::Ready(Ok(()));
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Refusal::Upstream("no whole answer\n"))),
                Poll::Pending => break,
            }
        }
        deadline.poll_expired(&worker.clock, cx).map(|expired| match expired {
            Expired::Cut => Err(Refusal::Cut),
            Expired::Deadline => Err(Refusal::ResponseTimeout),
        })
    })
    .await?;
    let trailers = arriving.trailers().to_vec();
    answered.release(worker, framing != Framing::UntilClose && !headers::is_last(response));
    Ok(Called { body, trailers })
}

/// Whether what a request begins with may be said to others: it is about the request, not about the connection.
pub(super) fn is_about_request(head: &Head, name: &[u8]) -> bool {
    use super::super::head::{Tag, tag};
    let is_named = || {
        let mut options = head.tokens(Tag::Connection);
        options.any(|option| option.eq_ignore_ascii_case(name))
    };
    tag(name) == Tag::Other && !(head.facts().options.names && is_named())
}
