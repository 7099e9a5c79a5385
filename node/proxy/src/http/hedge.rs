//! A request that is asked once more, somewhere else, when its answer takes longer than usual; the first answer is the
//! client's (Dean and Barroso, "The Tail at Scale", 2013).
//!
//! Only what may be asked twice and has no body, only until there is a head of a response, of which nothing has gone to
//! the client then, and only as far as the budget of retries goes.

use std::{cell::RefCell, future::poll_fn, pin::Pin, task::Poll, time::Duration};

use super::{
    ask::{Answered, Front, Question, ask},
    body::{Encode, Outgoing},
    deadline::{Deadline, Phase},
    head::Head,
    own::Own,
    refusal::Refusal,
};
use crate::{
    address::Address, clock::Expired, config::HedgeConfig, generation::LocalServing, worker::Worker,
};

/// Who was asked already, by all legs of a request.
pub(crate) type Met = RefCell<Vec<Address>>;

type Leg<'a> = Pin<Box<dyn Future<Output = (Result<Answered, Refusal>, Head)> + 'a>>;

/// The same as [`ask`], of several endpoints one after the other, as long as none has answered.
pub(super) async fn hedged<F: Front>(
    worker: &Worker,
    serving: &LocalServing,
    deadline: &mut Deadline,
    question: Question<'_>,
    config: &HedgeConfig,
    front: &mut F,
) -> Result<Answered, Refusal> {
    let local = &serving.local;
    let (met, head) = (Met::default(), question.up.front().to_vec());
    if local.generation.config.retry.attempts <= 1 {
        // Otherwise the first leg says so.
        local.retries.request(worker.clock.now());
    }
    let latest = deadline.latest();
    let leg = || -> Leg<'_> { Box::pin(leg(worker, serving, latest, &question, &head, &met)) };
    let mut legs = vec![leg()];
    let mut pause = Box::pin(tokio::time::sleep(config.after));
    let mut extra = 0;
    // Every leg has deadlines of its own; this one is about the request as a whole.
    deadline.enter(&worker.clock, Phase::Upstream, Duration::ZERO);
    let (result, response) = poll_fn(|cx| {
        loop {
            let mut at = 0;
            while at < legs.len() {
                match legs[at].as_mut().poll(cx) {
                    Poll::Ready((result, _)) if result.is_err() && legs.len() > 1 => {
                        // The others may still do better.
                        drop(legs.swap_remove(at));
                    }
                    Poll::Ready(ended) => return Poll::Ready(ended),
                    Poll::Pending => at += 1,
                }
            }
            if extra < config.max && pause.as_mut().poll(cx).is_ready() {
                let percent = local.generation.config.retry.budget_percent;
                if local.retries.retry(worker.clock.now(), percent) {
                    local.cells.hedged.one();
                    extra += 1;
                    legs.push(leg());
                    pause.set(tokio::time::sleep(config.after));
                    continue;
                }
                local.cells.retries_over_budget.one();
                extra = config.max;
            }
            if front.poll_gone(cx).is_ready() {
                return Poll::Ready((Err(Refusal::Gone), Head::default()));
            }
            return deadline.poll_expired(&worker.clock, cx).map(|expired| {
                let refusal = match expired {
                    Expired::Cut => Refusal::Cut,
                    Expired::Deadline => Refusal::ResponseTimeout,
                };
                (Err(refusal), Head::default())
            });
        }
    })
    .await;
    // The legs that lost end here, and their connections with them.
    drop(legs);
    *question.response = response;
    result
}

/// One of them, from the choice of its endpoint to the head of the response.
async fn leg(
    worker: &Worker,
    serving: &LocalServing,
    latest: u64,
    question: &Question<'_>,
    head: &[u8],
    met: &Met,
) -> (Result<Answered, Refusal>, Head) {
    let mut deadline = Deadline::new(&worker.clock);
    deadline.bound(latest);
    deadline.timer.uses(serving.local.pins.generation);
    let (mut up, mut response) = (Outgoing::default(), Head::default());
    up.begin(Encode::Plain).extend_from_slice(head);
    let question = Question {
        pool: question.pool,
        key: question.key,
        request: question.request,
        up: &mut up,
        response: &mut response,
        has_body: false,
        may_repeat: true,
        is_idempotent: true,
        expects: false,
        met: Some(met),
    };
    // Whoever goes away is noticed by the one who waits for all legs.
    let mut nobody = Own::new(&[], |_| Poll::Pending);
    let result = Box::pin(ask(worker, serving, &mut deadline, question, &mut nobody)).await;
    (result, response)
}
