//! What this node does with its connections while it gives its traffic up. PURE but for `follow`.

use std::time::Duration;

use flotilla_proxy::Proxy;
use flotilla_raft_store::{DrainPhase, Member, Timestamp};

/// Connections that are asked to go do so one after the other over this time, or over a quarter of the
/// time there is: the nodes that they go to next shall not meet them all at once.
const SPREAD_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Leaving {
    #[default]
    No,
    /// Clients are asked to go with their next response.
    Politely { over: Duration },
    /// Of this drain: what is open ends now.
    Cut { since: Timestamp },
}

pub(super) fn leaving(member: Option<&Member>) -> Leaving {
    let Some(drain) = member.and_then(|member| member.drain) else { return Leaving::No };
    match drain.phase {
        DrainPhase::LameDuck | DrainPhase::Quiet => Leaving::No,
        DrainPhase::Draining | DrainPhase::Empty => {
            Leaving::Politely { over: (drain.deadline.since(drain.started) / 8).min(SPREAD_MAX) }
        }
        DrainPhase::Cut => Leaving::Cut { since: drain.since },
    }
}

/// Level-triggered: acts when what is wanted is not what was done last.
pub(super) fn follow(proxy: &Proxy, wanted: Leaving, done: &mut Leaving) {
    if wanted == *done {
        return;
    }
    match wanted {
        Leaving::No => proxy.leave(None),
        Leaving::Politely { over } => proxy.leave(Some(over)),
        Leaving::Cut { .. } => {
            proxy.leave(Some(Duration::ZERO));
            proxy.cut();
        }
    }
    *done = wanted;
}
