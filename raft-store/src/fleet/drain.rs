//! A node that gives its traffic up: lame duck, quiet, draining, empty.
//!
//! Until the drain is over the node keeps its apps and goes on accepting, so that it can be called off
//! at any moment and a balancer that is slow to notice loses nothing. What a phase waits for, and when
//! the next one begins, is the coordinator's plan; here a phase only moves up.

use std::{fmt, sync::Arc, time::Duration};

use super::{Answer, At, Availability, Fleet, Member, NodeId, Timestamp, assignment::stale};
use crate::{Rejection, Reply};

/// For a drain that was asked for without saying how.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(300);
/// Longer than the interval in which balancers look at their servers.
pub const DRAIN_QUIET: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    pub phase: DrainPhase,
    /// When the phase began.
    pub since: Timestamp,
    pub started: Timestamp,
    /// What is still open then is cut.
    pub deadline: Timestamp,
    /// No session may have begun for this long before the node counts as quiet.
    pub quiet: Duration,
    /// The node is taken out of the cluster when the drain is over.
    pub leaves: bool,
}

/// Only moves up, until the drain is called off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrainPhase {
    /// Balancers are told, other nodes take over; this one serves as before.
    LameDuck,
    /// The balancers have confirmed. New sessions must die down.
    Quiet,
    /// Connections are asked to go, spread out. What comes all the same is served.
    Draining,
    /// The last connection has gone: the apps are given back.
    Empty,
    /// The deadline passed: what was left is cut, the apps are given back.
    Cut,
}

impl DrainPhase {
    pub fn is_over(self) -> bool {
        match self {
            Self::LameDuck | Self::Quiet | Self::Draining => false,
            Self::Empty | Self::Cut => true,
        }
    }
}

impl fmt::Display for DrainPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LameDuck => "lame duck",
            Self::Quiet => "quiet",
            Self::Draining => "draining",
            Self::Empty => "empty",
            Self::Cut => "cut",
        })
    }
}

impl Member {
    /// Balancers shall send new connections there.
    pub fn wants_traffic(&self) -> bool {
        match self.availability {
            Availability::Active | Availability::Cordoned => true,
            Availability::Draining | Availability::Left => false,
        }
    }

    /// The node gives its apps back now, or has left.
    pub fn gives_back(&self) -> bool {
        match self.availability {
            Availability::Active | Availability::Cordoned => false,
            Availability::Draining => self.drain.is_none_or(|drain| drain.phase.is_over()),
            Availability::Left => true,
        }
    }
}

impl Fleet {
    /// Asking again changes the terms and not the phase. `cut`: at once, for a node that is gone.
    pub(super) fn drain_node(
        &mut self,
        at: At,
        node: NodeId,
        (deadline, quiet): (Duration, Duration),
        leaves: bool,
        cut: bool,
    ) -> Answer {
        let current = self.member(node)?.clone();
        let others = self.members.keys().filter(|other| **other != node && self.member(**other).is_ok());
        if leaves && others.count() == 0 {
            return Err(Rejection::LastMember { node: current.name.clone() });
        }
        let before = current.drain;
        let began = DrainPhase::LameDuck;
        let mut drain = Drain {
            phase: before.map_or(began, |drain| drain.phase),
            since: before.map_or(at.time, |drain| drain.since),
            started: before.map_or(at.time, |drain| drain.started),
            deadline: Timestamp(at.time.0.saturating_add(millis(deadline))),
            quiet: Duration::from_millis(millis(quiet)),
            leaves: leaves || before.is_some_and(|drain| drain.leaves),
        };
        if cut && drain.phase < DrainPhase::Cut {
            (drain.phase, drain.since) = (DrainPhase::Cut, at.time);
        }
        if before == Some(drain) {
            return Ok(Reply::Member { node });
        }
        let to = if drain.leaves { "to leave the cluster" } else { "for now" };
        let what = format!("node {} gives its traffic up {to}: {}", current.name, drain.phase);
        let member =
            Member { availability: Availability::Draining, drain: Some(drain), ..Member::clone(&current) };
        self.members.insert(node, Arc::new(member));
        self.record(at, None, Some(node), what);
        Ok(Reply::Member { node })
    }

    pub(super) fn advance_drain(
        &mut self,
        at: At,
        node: NodeId,
        phase: DrainPhase,
        why: &str,
    ) -> Result<(), Rejection> {
        let current = self.member(node)?;
        let Some(drain) = current.drain else { return Err(stale("the node does not drain")) };
        if drain.phase.is_over() || phase <= drain.phase {
            return Err(stale("the drain is that far already"));
        }
        let because = if why.is_empty() { String::new() } else { format!(": {why}") };
        let what = format!("node {}: {phase}{because}", current.name);
        let drain = Some(Drain { phase, since: at.time, ..drain });
        let member = Member { drain, ..Member::clone(current) };
        self.members.insert(node, Arc::new(member));
        self.record(at, None, Some(node), what);
        Ok(())
    }
}

/// What the log stores.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
