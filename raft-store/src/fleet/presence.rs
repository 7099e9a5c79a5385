//! Nodes that are away, as the coordinator has told it: so that a leader tells each absence once, and the next
//! one does not tell it again.

use super::{At, Fleet, NodeId, Timestamp, assignment::stale};
use crate::Rejection;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absence {
    pub since: Timestamp,
    /// The node was asked to stop, or had given its traffic up: neither this nor its return is an event.
    pub planned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Up,
    /// It went silent.
    Down,
    /// It said that it stops, or had given its traffic up before it went silent.
    Stopped,
}

impl Fleet {
    pub(super) fn tell_presence(
        &mut self,
        at: At,
        node: NodeId,
        presence: Presence,
        why: &str,
    ) -> Result<(), Rejection> {
        let name = self.member(node)?.name.clone();
        let known = self.absences.get(&node).copied();
        let what = match (known, presence) {
            (None, Presence::Up) => return Err(stale("the node is not away")),
            (Some(_), Presence::Down | Presence::Stopped) => return Err(stale("the node is away already")),
            (None, Presence::Down | Presence::Stopped) => {
                let planned = presence == Presence::Stopped;
                self.absences.insert(node, Absence { since: at.time, planned });
                (!planned).then(|| format!("node {name} is down: {why}"))
            }
            (Some(absence), Presence::Up) => {
                self.absences.remove(&node);
                (!absence.planned).then(|| {
                    let seconds = at.time.since(absence.since).as_secs();
                    format!("node {name} is up again after {seconds} s")
                })
            }
        };
        if let Some(what) = what {
            self.record(at, None, Some(node), what);
        }
        Ok(())
    }
}
