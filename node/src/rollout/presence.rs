//! Who went away and who came back, for the log of events. PURE.
//!
//! A node is away when it has been silent for as long as it takes to count as down, and back when it has
//! reported for as long without a gap: one that comes and goes is told seldom.

use std::time::Duration;

use flotilla_raft_store::{Availability, Fleet, Member, NodeId, Presence, Transition};

use super::observed::Observed;

/// `since`: the log index at which this leader took control. A younger member that has not reported yet
/// is still on its way.
pub(super) fn told(fleet: &Fleet, observed: &Observed, since: u64) -> Vec<Transition> {
    if !observed.may_blame() {
        return Vec::new();
    }
    let present = fleet.members.iter().filter(|(_, member)| member.availability != Availability::Left);
    let told = present.filter_map(|(&node, member)| {
        let (presence, why) = tell(fleet, observed, since, (node, member))?;
        Some(Transition::TellPresence { node, presence, why })
    });
    told.collect()
}

fn tell(
    fleet: &Fleet,
    observed: &Observed,
    since: u64,
    (node, member): (NodeId, &Member),
) -> Option<(Presence, String)> {
    let absence = fleet.absences.get(&node);
    let stops = observed.reports.get(&node).is_some_and(|report| report.stopping);
    match (observed.live(node), absence) {
        (Some(_), None) if stops => Some((Presence::Stopped, String::new())),
        (Some(_), None) => None,
        (Some(_), Some(absence)) if stops && absence.planned => None,
        (Some(report), Some(_)) => {
            (report.live_for >= observed.silence_max).then(|| (Presence::Up, String::new()))
        }
        (None, Some(_)) => None,
        (None, None) if stops || member.gives_back() => Some((Presence::Stopped, String::new())),
        (None, None) => {
            let heard = observed.reports.get(&node);
            let why = match heard {
                Some(report) => format!("it has not reported for {} s", tenths(report.age)),
                None if node.0 > since => return None,
                None => {
                    let leader = fleet.node_name(fleet.cluster.controller.node);
                    format!("it has not reported since node {leader} leads")
                }
            };
            Some((Presence::Down, why))
        }
    }
}

fn tenths(age: Duration) -> f64 {
    (age.as_secs_f64() * 10.0).floor() / 10.0
}

#[cfg(test)]
mod tests {
    use flotilla_raft_store::{Change, DRAIN_QUIET};

    use super::*;
    use crate::rollout::{
        observed::ObservedNode,
        plan::testing::{Log, member},
    };

    const SILENCE_MAX: Duration = Duration::from_millis(1_500);
    /// The id of a member is the index of the entry that added it.
    const N2: NodeId = NodeId(2);
    const SINCE: u64 = 3;

    #[derive(Clone, Copy)]
    struct Seen {
        age: u64,
        live_for: u64,
        stopping: bool,
    }

    const FINE: Seen = Seen { age: 100, live_for: 9_000, stopping: false };

    fn observed(seen: Option<Seen>) -> Observed {
        let report = |seen: Seen| ObservedNode {
            age: Duration::from_millis(seen.age),
            live_for: Duration::from_millis(seen.live_for),
            stopping: seen.stopping,
            ..ObservedNode::default()
        };
        Observed {
            reports: [(NodeId(1), Some(FINE)), (N2, seen)]
                .into_iter()
                .filter_map(|(node, seen)| Some((node, report(seen?))))
                .collect(),
            leader_for: SILENCE_MAX,
            silence_max: SILENCE_MAX,
            ..Observed::default()
        }
    }

    fn fleet() -> Log {
        let mut log = Log::new();
        log.apply(Change::AddMember { member: member("n2") }).unwrap();
        log.take_control(NodeId(1));
        log
    }

    /// What is told of n2 that looks like this, and stays told.
    #[track_caller]
    fn check(log: &mut Log, seen: Option<Seen>, expected: Option<(Presence, &str)>) {
        let said = told(&log.fleet, &observed(seen), SINCE);
        let transition = expected.map(|(presence, why)| Transition::TellPresence {
            node: N2,
            presence,
            why: why.to_owned(),
        });
        assert_eq!(said, transition.into_iter().collect::<Vec<_>>());
        let term = log.fleet.cluster.controller.term;
        for transition in said {
            log.apply(Change::Coordinate { term, transition }).unwrap();
            let again = told(&log.fleet, &observed(seen), SINCE);
            assert_eq!(again, [], "told once");
        }
    }

    #[test]
    fn a_node_that_falls_silent_is_down_and_is_up_when_it_has_reported_for_a_while() {
        let mut log = fleet();
        check(&mut log, Some(FINE), None);
        let silent = Seen { age: 1_690, ..FINE };
        check(&mut log, Some(silent), Some((Presence::Down, "it has not reported for 1.6 s")));
        check(&mut log, Some(Seen { live_for: 1_400, ..FINE }), None);
        check(&mut log, Some(FINE), Some((Presence::Up, "")));
    }

    #[test]
    fn a_node_that_stops_by_itself_or_has_given_its_traffic_up_is_no_event() {
        let mut log = fleet();
        let events = log.fleet.events.len();
        let stopping = Seen { stopping: true, ..FINE };
        check(&mut log, Some(stopping), Some((Presence::Stopped, "")));
        check(&mut log, Some(Seen { age: 60_000, ..stopping }), None);
        // The next leader has never heard of it.
        check(&mut log, None, None);
        check(&mut log, Some(FINE), Some((Presence::Up, "")));
        assert_eq!(log.fleet.events.len(), events);

        let (deadline, quiet) = (Duration::ZERO, DRAIN_QUIET);
        log.apply(Change::DrainNode { node: N2, deadline, quiet, leaves: false, cut: true }).unwrap();
        let events = log.fleet.events.len();
        check(&mut log, Some(Seen { age: 60_000, ..FINE }), Some((Presence::Stopped, "")));
        assert_eq!(log.fleet.events.len(), events);
    }

    #[test]
    fn a_new_leader_blames_nobody_at_once_and_no_member_that_is_on_its_way() {
        let mut log = fleet();
        let early = Observed { leader_for: SILENCE_MAX / 2, ..observed(None) };
        assert_eq!(told(&log.fleet, &early, SINCE), []);
        assert_eq!(told(&log.fleet, &observed(None), N2.0 - 1), []);
        check(&mut log, None, Some((Presence::Down, "it has not reported since node n1 leads")));
    }
}
