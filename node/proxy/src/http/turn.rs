//! A request that waits for room: in its app, or at an endpoint.
//!
//! Nobody comes here unless the app bounds what is in flight, and nobody waits for longer than `pending_timeout`, nor
//! once the client has gone.

use std::task::{Context, Poll};

use super::{
    ask::Front,
    deadline::{Deadline, Phase},
    refusal::Refusal,
};
use crate::{
    clock::Expired,
    connect::{Attempts, Chosen, NoRoom, Waiting},
    generation::LocalServing,
    room::{self, Place, Room},
    worker::Worker,
};

/// A place among the requests of the app; `None` where these are not counted.
pub(super) async fn in_app<F: Front>(
    worker: &Worker,
    serving: &LocalServing,
    room: &Room,
    deadline: &mut Deadline,
    front: &mut F,
) -> Result<Option<Place>, Refusal> {
    let limits = &serving.local.generation.config.limits;
    if limits.max_in_flight == 0 {
        return Ok(None);
    }
    let take = || room.requests.take(limits.max_in_flight);
    let line = &room.requests.line;
    if line.is_empty()
        && let Some(place) = take()
    {
        return Ok(Some(place));
    }
    worker.limits.in_flight.one();
    let Some(_waiting) = Waiting::begin(worker, serving) else { return Err(Refusal::Busy) };
    deadline.enter(&worker.clock, Phase::Upstream, limits.pending_timeout);
    room::wait(line, take, |cx| give_up(worker, deadline, front, cx)).await.map(Some)
}

/// The first endpoint that has room.
pub(super) async fn for_target<F: Front>(
    worker: &Worker,
    serving: &LocalServing,
    deadline: &mut Deadline,
    attempts: &mut Attempts<'_>,
    front: &mut F,
) -> Result<Chosen, Refusal> {
    let config = &serving.local.generation.config;
    deadline.enter(&worker.clock, Phase::Upstream, config.limits.pending_timeout);
    let waited = attempts.wait(worker, serving, |cx| give_up(worker, deadline, front, cx)).await;
    deadline.enter(&worker.clock, Phase::Upstream, config.timeouts.connect);
    attempts.until(deadline.timer.deadline());
    waited.map_err(|no_room| match no_room {
        NoRoom::TooMany => Refusal::Busy,
        NoRoom::Nobody => Refusal::NoTarget,
        NoRoom::GaveUp(refusal) => refusal,
    })
}

fn give_up<F: Front>(
    worker: &Worker,
    deadline: &Deadline,
    front: &mut F,
    cx: &mut Context<'_>,
) -> Poll<Refusal> {
    if front.poll_gone(cx).is_ready() {
        return Poll::Ready(Refusal::Gone);
    }
    deadline.poll_expired(&worker.clock, cx).map(|expired| match expired {
        Expired::Cut => Refusal::Cut,
        Expired::Deadline => {
            worker.limits.pending_timeout.one();
            Refusal::Busy
        }
    })
}
