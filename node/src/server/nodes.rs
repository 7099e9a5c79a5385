//! Which change of the fleet a user's word about a node is. PURE.

use std::time::Duration;

use flotilla_api::v1::{self, set_node_request::Action};
use flotilla_raft_store::{Availability, Change, DRAIN_DEADLINE, DRAIN_QUIET, Fleet, Member, NodeId};
use tonic::Status;

use super::error::Refusal;

pub(super) fn change(fleet: &Fleet, request: &v1::SetNodeRequest) -> Result<(NodeId, Change), Status> {
    let (node, member) = find(fleet, &request.node)?;
    let set = |availability| Ok((node, Change::SetAvailability { node, availability }));
    let refuse = |why: String| Err(Refusal::WrongAvailability(why).into());
    let name = &member.name;
    match (request.action(), member.availability) {
        (Action::Cordon, Availability::Active | Availability::Cordoned) => set(Availability::Cordoned),
        (Action::Uncordon, Availability::Active | Availability::Cordoned) => set(Availability::Active),
        (Action::Cordon | Action::Uncordon, _) => refuse(format!("node {name} gives its traffic up now")),
        (Action::Undrain, Availability::Draining | Availability::Active) => set(Availability::Active),
        (Action::Undrain, _) => refuse(format!("node {name} does not give its traffic up")),
        (Action::Drain | Action::Remove, _) => {
            let millis = |ms: Option<u64>, otherwise| ms.map_or(otherwise, Duration::from_millis);
            Ok((
                node,
                Change::DrainNode {
                    node,
                    deadline: millis(request.deadline_ms, DRAIN_DEADLINE),
                    quiet: millis(request.quiet_ms, DRAIN_QUIET),
                    leaves: request.action() == Action::Remove,
                    cut: request.force,
                },
            ))
        }
        (Action::Unspecified, _) => Err(Status::invalid_argument("it is not said what to do with the node")),
    }
}

/// By name, by id, or by the beginning of a name that no other node has.
fn find<'a>(fleet: &'a Fleet, wanted: &str) -> Result<(NodeId, &'a Member), Status> {
    let present = || {
        let members = fleet.members.iter().map(|(node, member)| (*node, member.as_ref()));
        members.filter(|(_, member)| member.availability != Availability::Left)
    };
    if let Some(found) = present().find(|(_, member)| member.name == wanted) {
        return Ok(found);
    }
    if let Some(found) = present().find(|(node, _)| node.to_string() == wanted) {
        return Ok(found);
    }
    let mut alike = present().filter(|(_, member)| !wanted.is_empty() && member.name.starts_with(wanted));
    match (alike.next(), alike.next()) {
        (Some(found), None) => Ok(found),
        (_, _) => Err(Refusal::NoSuchNode(wanted.to_owned()).into()),
    }
}
