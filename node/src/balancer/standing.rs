//! How an app is on this node, for those that ask: agent checks, check ports, `/readyz`. PURE.
//!
//! Decided from what runs here and what the fleet has agreed on, so it needs neither a leader nor a quorum.

use flotilla_proxy::{GenerationStatus, Phase};
use flotilla_raft_store::{Availability, Fleet, NodeId};
use flotilla_spec::AppName;
use imbl::OrdMap;

/// From the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Serves, and takes new sessions.
    Ready,
    /// Serves on, but should be sent nothing new.
    Drain,
    /// Serves, and none of its targets is available.
    Down,
}

/// An app without an entry does not serve here.
pub(crate) type Standings = OrdMap<AppName, Standing>;

pub(crate) fn standings(
    fleet: &Fleet,
    me: NodeId,
    running: &[GenerationStatus],
    stopping: bool,
) -> Standings {
    let leaving = stopping || is_leaving(fleet, me);
    let mut standings = Standings::new();
    for generation in running {
        let Ok(app) = AppName::parse(&generation.app) else { continue };
        let standing = match generation.phase {
            Phase::Serving if !has_target(generation) => Standing::Down,
            // The fleet may have taken it back, and this node not have acted on it yet.
            Phase::Serving if leaving || fleet.takes_traffic(me, &app).is_none() => Standing::Drain,
            Phase::Serving => Standing::Ready,
            Phase::Draining => Standing::Drain,
            Phase::Prepared | Phase::Removing => continue,
        };
        let best = standings.entry(app).or_insert(standing);
        *best = standing.min(*best);
    }
    standings
}

fn is_leaving(fleet: &Fleet, node: NodeId) -> bool {
    fleet.members.get(&node).is_some_and(|member| match member.availability {
        Availability::Active | Availability::Cordoned => false,
        Availability::Draining | Availability::Left => true,
    })
}

/// Targets are known, and none of them answers. Before the first check is back a target counts as one.
fn has_target(generation: &GenerationStatus) -> bool {
    let mut endpoints = generation.targets.iter().flat_map(|target| &target.endpoints).peekable();
    endpoints.peek().is_none() || endpoints.any(|endpoint| endpoint.available != Some(false))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flotilla_proxy::{EndpointStatus, TargetStatus};
    use flotilla_raft_store::{Assignment, Change, Desired, GenerationId, Timestamp};

    use super::*;
    use crate::rollout::plan::testing::{Log, app};

    const ME: NodeId = NodeId(1);

    fn running(phase: Phase, available: Option<bool>) -> GenerationStatus {
        let address = std::net::SocketAddr::from(([10, 0, 0, 1], 80)).into();
        let endpoint = EndpointStatus { address, available, last_error: None, ejected: false };
        GenerationStatus {
            app: Arc::from("web"),
            generation: 7,
            phase,
            percent: 100,
            digest: [0; 32],
            ports: Vec::new(),
            targets: vec![TargetStatus {
                pool: "default".to_owned(),
                target: Arc::from("10.0.0.1:80"),
                resolution: flotilla_proxy::Resolution::Resolved,
                endpoints: vec![endpoint],
            }],
            pins: 0,
            tally: Default::default(),
        }
    }

    #[test]
    fn the_best_generation_speaks_for_the_app_and_the_node_for_all() {
        let mut fleet = Log::new().fleet;
        let asked = Assignment {
            desired: Desired::Serve,
            percent: 100,
            ports: vec![],
            index: 1,
            since: Timestamp(0),
        };
        fleet.assignments.entry(ME).or_default().insert((app("web"), GenerationId(7)), Arc::new(asked));
        let check = |fleet: &Fleet, running: &[GenerationStatus], stopping, expected| {
            let standings = standings(fleet, ME, running, stopping);
            assert_eq!(standings.get(&app("web")).copied(), expected, "{running:?}");
        };
        let serving = running(Phase::Serving, Some(true));
        let old = running(Phase::Draining, Some(true));
        check(&fleet, &[], false, None);
        check(&fleet, &[running(Phase::Prepared, Some(true))], false, None);
        check(&fleet, std::slice::from_ref(&serving), false, Some(Standing::Ready));
        check(&fleet, &[running(Phase::Serving, None)], false, Some(Standing::Ready));
        check(&fleet, &[running(Phase::Serving, Some(false))], false, Some(Standing::Down));
        check(&fleet, std::slice::from_ref(&serving), true, Some(Standing::Drain));
        check(&fleet, std::slice::from_ref(&old), false, Some(Standing::Drain));
        check(&fleet, &[old, serving.clone()], false, Some(Standing::Ready));
        let mut log = Log::new();
        log.apply(Change::SetAvailability { node: ME, availability: Availability::Draining }).unwrap();
        log.fleet.assignments.clone_from(&fleet.assignments);
        check(&log.fleet, std::slice::from_ref(&serving), false, Some(Standing::Drain));
        fleet.assignments.clear();
        check(&fleet, &[serving], false, Some(Standing::Drain));
    }
}
