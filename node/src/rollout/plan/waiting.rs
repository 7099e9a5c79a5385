//! Why nothing happens now, for the person who asks `rollout status`.

use std::{fmt, time::Duration};

use flotilla_raft_store::{Fleet, GenerationId, NodeId};
use flotilla_spec::AppName;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(super) app: AppName,
    pub(super) generation: GenerationId,
    pub(super) node: NodeId,
    pub(super) why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Down,
    /// It went down in mid-shift, and may have been taken down by what it took.
    Gone {
        left: Duration,
    },
    /// The leader is new.
    NotHeard,
    Preparing {
        detail: String,
    },
    /// Another spec than the fleet's was compiled there.
    OtherSpec,
    /// All must be ready before the first one shifts.
    OthersNotReady,
    /// As many as may shift at a time do.
    Turn,
    /// The canaries are not done.
    Canaries,
    /// A node that moves together with others has passed its bake, and they have not.
    Others,
    /// The user has to say that it goes on.
    Promotion,
    /// As many apps as may shift at a time do.
    Budget,
    /// Another app takes a host over, which would be nobody's until then.
    HostMoves {
        host: String,
        to: AppName,
    },
    /// The bake is over, and there were too few requests to judge by.
    Gate {
        sampled: u64,
        of: u64,
        left: Duration,
    },
    /// No other node serves the app well now.
    LastReplica,
    /// It was ready, and is not now.
    NotReady {
        detail: String,
    },
    Shifting {
        detail: String,
    },
    Baking {
        left: Duration,
        of: Duration,
        percent: u8,
    },
    /// The bake begins again when the node is well.
    Unwell {
        detail: String,
    },
    GoingBack {
        detail: String,
    },
    Draining {
        pins: u64,
        left: Duration,
    },
    /// Its successor does not serve there yet.
    StillServing,
    Removing {
        pins: u64,
    },
    /// The node gives the app back as soon as another one serves it.
    LastToServe,
    NoRoom {
        why: String,
    },
}

impl Why {
    /// For a user or another app: that lasts as long as it lasts.
    pub(super) fn is_of_others(&self) -> bool {
        matches!(self, Self::Promotion | Self::HostMoves { .. })
    }
}

impl Waiting {
    pub(crate) fn app(&self) -> &AppName {
        &self.app
    }

    pub(crate) fn display<'a>(&'a self, fleet: &'a Fleet) -> impl fmt::Display + 'a {
        Text { waiting: self, fleet }
    }
}

struct Text<'a> {
    waiting: &'a Waiting,
    fleet: &'a Fleet,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Waiting { generation, node, why, .. } = self.waiting;
        write!(f, "node {}: ", self.fleet.node_name(*node))?;
        match why {
            Why::Down => write!(f, "down; it gets generation {generation} when it returns"),
            Why::Gone { left } => {
                let left = seconds(*left);
                write!(f, "went down while it took generation {generation}, {left} s are left to return")
            }
            Why::NotHeard => write!(f, "not heard of yet by the new leader"),
            Why::Preparing { detail } => write!(f, "generation {generation} prepares{}", because(detail)),
            Why::OtherSpec => write!(f, "generation {generation} was made from another spec"),
            Why::OthersNotReady => {
                write!(f, "generation {generation} ready, waiting for all nodes to be ready")
            }
            Why::Turn => write!(f, "generation {generation} ready, waiting for its turn"),
            Why::LastReplica => {
                write!(f, "generation {generation} ready, but no other node serves the app now")
            }
            Why::NotReady { detail } => {
                write!(f, "generation {generation} is not ready any more{}", because(detail))
            }
            Why::Shifting { detail } => {
                write!(f, "generation {generation} asked to serve{}", because(detail))
            }
            Why::Baking { left, of, percent } => {
                let (left, of) = (seconds(*left), seconds(*of));
                let at = if *percent == 100 { "ready".to_owned() } else { format!("at {percent} %") };
                write!(f, "generation {generation} {at}, waiting for {left} s of {of} s bake")
            }
            Why::Canaries => write!(f, "generation {generation} ready, waiting for the canaries"),
            Why::Others => write!(f, "generation {generation} did well, waiting for the nodes beside it"),
            Why::Promotion => {
                write!(f, "generation {generation} waits to be promoted: `flotilla rollout promote`")
            }
            Why::Budget => write!(f, "generation {generation} ready, waiting until fewer apps shift"),
            Why::HostMoves { host, to } => {
                write!(f, "generation {generation} ready, waiting until app `{to}` serves the host `{host}`")
            }
            Why::Gate { sampled, of, left } => {
                let left = seconds(*left);
                write!(f, "gate: {sampled} of {of} requests sampled, for {left} s more at most")
            }
            Why::Unwell { detail } => {
                write!(f, "generation {generation} serves, and its bake begins again{}", because(detail))
            }
            Why::GoingBack { detail } => {
                write!(f, "generation {generation} asked to serve again{}", because(detail))
            }
            Why::Draining { pins, left } => {
                let left = seconds(*left);
                write!(f, "generation {generation} drains, {pins} in use, for {left} s at most")
            }
            Why::StillServing => {
                write!(f, "generation {generation} serves until its successor does")
            }
            Why::Removing { pins } => write!(f, "generation {generation} goes, {pins} in use"),
            Why::LastToServe => {
                write!(f, "gives generation {generation} back once another node serves the app")
            }
            Why::NoRoom { why } => write!(f, "no room for generation {generation}: {why}"),
        }
    }
}

fn because(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

/// Rounded up: nothing is waited for that has 0 s left.
pub(super) fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
