//! Commands as protobuf.

use super::{DecodeError, app_name, app_spec, known, port};
use crate::{
    ApplyApp, Availability, Batch, Change, ClusterId, Command, Desired, GenerationId, Member, NodeId,
    RequestId, Step, Timestamp, Transition,
};

#[allow(clippy::enum_variant_names, reason = "the names of prost's oneofs follow the commands")]
pub(super) mod wire {
    use std::collections::BTreeMap;

    use prost::{Enumeration, Message, Oneof};

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Batch {
        #[prost(message, repeated, tag = "1")]
        pub(crate) commands: Vec<Command>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Command {
        #[prost(message, optional, tag = "1")]
        pub(crate) request: Option<RequestId>,
        #[prost(uint64, tag = "2")]
        pub(crate) time: u64,
        #[prost(oneof = "Change", tags = "3, 4, 5, 6, 7, 8, 9, 10, 11")]
        pub(crate) change: Option<Change>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct RequestId {
        #[prost(string, tag = "1")]
        pub(crate) client: String,
        #[prost(uint64, tag = "2")]
        pub(crate) sequence: u64,
    }

    #[derive(Clone, PartialEq, Oneof)]
    pub(crate) enum Change {
        #[prost(message, tag = "3")]
        InitCluster(InitCluster),
        #[prost(message, tag = "4")]
        AddMember(Member),
        #[prost(message, tag = "5")]
        UpdateMember(UpdateMember),
        #[prost(message, tag = "6")]
        SetAvailability(SetAvailability),
        #[prost(message, tag = "7")]
        ApplyApps(ApplyApps),
        #[prost(message, tag = "8")]
        DeleteApp(DeleteApp),
        #[prost(message, tag = "9")]
        Rollback(Rollback),
        #[prost(message, tag = "10")]
        TakeControl(TakeControl),
        #[prost(message, tag = "11")]
        Coordinate(Coordinate),
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct InitCluster {
        #[prost(string, tag = "1")]
        pub(crate) id: String,
        #[prost(string, tag = "2")]
        pub(crate) name: String,
        #[prost(message, optional, tag = "3")]
        pub(crate) member: Option<Member>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Member {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
        #[prost(string, tag = "2")]
        pub(crate) region: String,
        #[prost(string, tag = "3")]
        pub(crate) zone: String,
        #[prost(string, tag = "4")]
        pub(crate) cluster_address: String,
        #[prost(string, tag = "5")]
        pub(crate) admin_address: String,
        #[prost(btree_map = "string, string", tag = "6")]
        pub(crate) labels: BTreeMap<String, String>,
        #[prost(uint32, tag = "7")]
        pub(crate) port_pool_from: u32,
        #[prost(uint32, tag = "8")]
        pub(crate) port_pool_to: u32,
        #[prost(uint32, repeated, tag = "9")]
        pub(crate) reserved_ports: Vec<u32>,
        #[prost(enumeration = "Availability", tag = "10")]
        pub(crate) availability: i32,
        #[prost(string, tag = "11")]
        pub(crate) binary_version: String,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
    #[repr(i32)]
    pub(crate) enum Availability {
        Unknown = 0,
        Active = 1,
        Cordoned = 2,
        Draining = 3,
        Left = 4,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct UpdateMember {
        #[prost(uint64, tag = "1")]
        pub(crate) node: u64,
        #[prost(message, optional, tag = "2")]
        pub(crate) member: Option<Member>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct SetAvailability {
        #[prost(uint64, tag = "1")]
        pub(crate) node: u64,
        #[prost(enumeration = "Availability", tag = "2")]
        pub(crate) availability: i32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct ApplyApps {
        #[prost(message, repeated, tag = "1")]
        pub(crate) apps: Vec<ApplyApp>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct ApplyApp {
        /// Canonical JSON.
        #[prost(bytes = "vec", tag = "1")]
        pub(crate) spec: Vec<u8>,
        #[prost(uint64, optional, tag = "2")]
        pub(crate) if_version: Option<u64>,
        #[prost(uint64, repeated, tag = "3")]
        pub(crate) placed: Vec<u64>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct DeleteApp {
        #[prost(string, tag = "1")]
        pub(crate) app: String,
        #[prost(uint64, optional, tag = "2")]
        pub(crate) if_version: Option<u64>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Rollback {
        #[prost(string, tag = "1")]
        pub(crate) app: String,
        #[prost(uint64, optional, tag = "2")]
        pub(crate) to: Option<u64>,
        #[prost(uint64, optional, tag = "3")]
        pub(crate) if_version: Option<u64>,
        #[prost(uint64, repeated, tag = "4")]
        pub(crate) placed: Vec<u64>,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    pub(crate) struct TakeControl {
        #[prost(uint64, tag = "1")]
        pub(crate) term: u64,
        #[prost(uint64, tag = "2")]
        pub(crate) node: u64,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Coordinate {
        #[prost(uint64, tag = "1")]
        pub(crate) term: u64,
        #[prost(string, tag = "2")]
        pub(crate) app: String,
        #[prost(uint64, tag = "3")]
        pub(crate) generation: u64,
        #[prost(oneof = "Transition", tags = "4, 5, 6, 7, 8, 9, 10, 11")]
        pub(crate) transition: Option<Transition>,
    }

    #[derive(Clone, PartialEq, Oneof)]
    pub(crate) enum Transition {
        #[prost(message, tag = "4")]
        Advance(Advance),
        #[prost(message, tag = "5")]
        Complete(Empty),
        #[prost(message, tag = "6")]
        RollBack(Reason),
        #[prost(message, tag = "7")]
        RolledBack(Empty),
        #[prost(message, tag = "8")]
        Assign(Assign),
        #[prost(message, tag = "9")]
        Forget(Node),
        #[prost(message, tag = "10")]
        Place(Node),
        #[prost(message, tag = "11")]
        Pause(Reason),
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Advance {
        #[prost(message, repeated, tag = "1")]
        pub(crate) steps: Vec<NodeStep>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct NodeStep {
        #[prost(uint64, tag = "1")]
        pub(crate) node: u64,
        #[prost(oneof = "Step", tags = "2, 3, 4, 5, 6, 7")]
        pub(crate) step: Option<Step>,
    }

    #[derive(Clone, PartialEq, Oneof)]
    pub(crate) enum Step {
        #[prost(uint64, tag = "2")]
        Preparing(u64),
        #[prost(message, tag = "3")]
        Ready(Empty),
        #[prost(uint64, tag = "4")]
        Shifting(u64),
        #[prost(uint64, tag = "5")]
        Monitoring(u64),
        #[prost(message, tag = "6")]
        Done(Empty),
        #[prost(string, tag = "7")]
        Failed(String),
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Reason {
        #[prost(string, tag = "1")]
        pub(crate) reason: String,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    pub(crate) struct Assign {
        #[prost(uint64, tag = "1")]
        pub(crate) node: u64,
        #[prost(enumeration = "Desired", tag = "2")]
        pub(crate) desired: i32,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
    #[repr(i32)]
    pub(crate) enum Desired {
        Unknown = 0,
        Prepare = 1,
        Serve = 2,
        Drain = 3,
        Remove = 4,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    pub(crate) struct Node {
        #[prost(uint64, tag = "1")]
        pub(crate) node: u64,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    pub(crate) struct Empty {}
}

impl From<&Batch> for wire::Batch {
    fn from(batch: &Batch) -> Self {
        Self { commands: batch.0.iter().map(Into::into).collect() }
    }
}

impl TryFrom<wire::Batch> for Batch {
    type Error = DecodeError;
    fn try_from(batch: wire::Batch) -> Result<Self, DecodeError> {
        batch.commands.into_iter().map(TryInto::try_into).collect::<Result<_, _>>().map(Self)
    }
}

impl From<&Command> for wire::Command {
    fn from(command: &Command) -> Self {
        Self {
            request: command.request.as_ref().map(|request| wire::RequestId {
                client: request.client.clone(),
                sequence: request.sequence,
            }),
            time: command.time.0,
            change: Some((&command.change).into()),
        }
    }
}

impl TryFrom<wire::Command> for Command {
    type Error = DecodeError;
    fn try_from(command: wire::Command) -> Result<Self, DecodeError> {
        let request = command.request.map(|id| RequestId { client: id.client, sequence: id.sequence });
        let change = known(command.change, "a command")?.try_into()?;
        Ok(Self { request, time: Timestamp(command.time), change })
    }
}

impl From<&Change> for wire::Change {
    fn from(change: &Change) -> Self {
        match change {
            Change::InitCluster { id, name, member } => Self::InitCluster(wire::InitCluster {
                id: id.0.clone(),
                name: name.clone(),
                member: Some(member.into()),
            }),
            Change::AddMember { member } => Self::AddMember(member.into()),
            Change::UpdateMember { node, member } => {
                Self::UpdateMember(wire::UpdateMember { node: node.0, member: Some(member.into()) })
            }
            Change::SetAvailability { node, availability } => Self::SetAvailability(wire::SetAvailability {
                node: node.0,
                availability: wire::Availability::from(*availability).into(),
            }),
            Change::ApplyApps { apps } => {
                Self::ApplyApps(wire::ApplyApps { apps: apps.iter().map(Into::into).collect() })
            }
            Change::DeleteApp { app, if_version } => {
                Self::DeleteApp(wire::DeleteApp { app: app.to_string(), if_version: *if_version })
            }
            Change::Rollback { app, to, if_version, placed } => Self::Rollback(wire::Rollback {
                app: app.to_string(),
                to: *to,
                if_version: *if_version,
                placed: placed.iter().map(|node| node.0).collect(),
            }),
            Change::TakeControl { term, node } => {
                Self::TakeControl(wire::TakeControl { term: *term, node: node.0 })
            }
            Change::Coordinate { term, transition } => Self::Coordinate(coordinate(*term, transition)),
        }
    }
}

impl TryFrom<wire::Change> for Change {
    type Error = DecodeError;
    fn try_from(change: wire::Change) -> Result<Self, DecodeError> {
        Ok(match change {
            wire::Change::InitCluster(init) => Self::InitCluster {
                id: ClusterId(init.id),
                name: init.name,
                member: known(init.member, "a member")?.try_into()?,
            },
            wire::Change::AddMember(member) => Self::AddMember { member: member.try_into()? },
            wire::Change::UpdateMember(update) => Self::UpdateMember {
                node: NodeId(update.node),
                member: known(update.member, "a member")?.try_into()?,
            },
            wire::Change::SetAvailability(set) => Self::SetAvailability {
                node: NodeId(set.node),
                availability: availability(set.availability)?,
            },
            wire::Change::ApplyApps(apply) => {
                let apps = apply.apps.into_iter().map(TryInto::try_into);
                Self::ApplyApps { apps: apps.collect::<Result<_, _>>()? }
            }
            wire::Change::DeleteApp(delete) => {
                Self::DeleteApp { app: app_name(&delete.app)?, if_version: delete.if_version }
            }
            wire::Change::Rollback(rollback) => Self::Rollback {
                app: app_name(&rollback.app)?,
                to: rollback.to,
                if_version: rollback.if_version,
                placed: rollback.placed.into_iter().map(NodeId).collect(),
            },
            wire::Change::TakeControl(take) => Self::TakeControl { term: take.term, node: NodeId(take.node) },
            wire::Change::Coordinate(coordinate) => {
                Self::Coordinate { term: coordinate.term, transition: transition(coordinate)? }
            }
        })
    }
}

impl From<&ApplyApp> for wire::ApplyApp {
    fn from(app: &ApplyApp) -> Self {
        let placed = app.placed.iter().map(|node| node.0).collect();
        Self { spec: app.spec.to_json(), if_version: app.if_version, placed }
    }
}

impl TryFrom<wire::ApplyApp> for ApplyApp {
    type Error = DecodeError;
    fn try_from(app: wire::ApplyApp) -> Result<Self, DecodeError> {
        let placed = app.placed.into_iter().map(NodeId).collect();
        Ok(Self { spec: app_spec(&app.spec)?, if_version: app.if_version, placed })
    }
}

impl From<&Member> for wire::Member {
    fn from(member: &Member) -> Self {
        Self {
            name: member.name.clone(),
            region: member.region.clone(),
            zone: member.zone.clone(),
            cluster_address: member.cluster_address.clone(),
            admin_address: member.admin_address.clone(),
            labels: member.labels.clone(),
            port_pool_from: member.port_pool.0.into(),
            port_pool_to: member.port_pool.1.into(),
            reserved_ports: member.reserved_ports.iter().map(|port| u32::from(*port)).collect(),
            availability: wire::Availability::from(member.availability).into(),
            binary_version: member.binary_version.clone(),
        }
    }
}

impl TryFrom<wire::Member> for Member {
    type Error = DecodeError;
    fn try_from(member: wire::Member) -> Result<Self, DecodeError> {
        Ok(Self {
            name: member.name,
            region: member.region,
            zone: member.zone,
            cluster_address: member.cluster_address,
            admin_address: member.admin_address,
            labels: member.labels,
            port_pool: (port(member.port_pool_from)?, port(member.port_pool_to)?),
            reserved_ports: member.reserved_ports.into_iter().map(port).collect::<Result<_, _>>()?,
            availability: availability(member.availability)?,
            binary_version: member.binary_version,
        })
    }
}

impl From<Availability> for wire::Availability {
    fn from(availability: Availability) -> Self {
        match availability {
            Availability::Active => Self::Active,
            Availability::Cordoned => Self::Cordoned,
            Availability::Draining => Self::Draining,
            Availability::Left => Self::Left,
        }
    }
}

fn availability(number: i32) -> Result<Availability, DecodeError> {
    match wire::Availability::try_from(number) {
        Ok(wire::Availability::Active) => Ok(Availability::Active),
        Ok(wire::Availability::Cordoned) => Ok(Availability::Cordoned),
        Ok(wire::Availability::Draining) => Ok(Availability::Draining),
        Ok(wire::Availability::Left) => Ok(Availability::Left),
        Ok(wire::Availability::Unknown) | Err(_) => known(None, "the availability of a member"),
    }
}

impl From<Desired> for wire::Desired {
    fn from(desired: Desired) -> Self {
        match desired {
            Desired::Prepare => Self::Prepare,
            Desired::Serve => Self::Serve,
            Desired::Drain => Self::Drain,
            Desired::Remove => Self::Remove,
        }
    }
}

pub(super) fn desired(number: i32) -> Result<Desired, DecodeError> {
    match wire::Desired::try_from(number) {
        Ok(wire::Desired::Prepare) => Ok(Desired::Prepare),
        Ok(wire::Desired::Serve) => Ok(Desired::Serve),
        Ok(wire::Desired::Drain) => Ok(Desired::Drain),
        Ok(wire::Desired::Remove) => Ok(Desired::Remove),
        Ok(wire::Desired::Unknown) | Err(_) => known(None, "what a node is asked to do"),
    }
}

/// Every transition is about a generation of an app.
fn coordinate(term: u64, transition: &Transition) -> wire::Coordinate {
    use wire::Transition as Wire;
    let empty = wire::Empty {};
    let (app, generation, transition) = match transition {
        Transition::Advance { app, generation, steps } => (
            app,
            generation,
            Wire::Advance(wire::Advance {
                steps: steps.iter().map(|(node, step)| node_step(*node, step)).collect(),
            }),
        ),
        Transition::Complete { app, generation } => (app, generation, Wire::Complete(empty)),
        Transition::RollBack { app, generation, reason } => {
            (app, generation, Wire::RollBack(wire::Reason { reason: reason.clone() }))
        }
        Transition::RolledBack { app, generation } => (app, generation, Wire::RolledBack(empty)),
        Transition::Pause { app, generation, reason } => {
            (app, generation, Wire::Pause(wire::Reason { reason: reason.clone() }))
        }
        Transition::Assign { node, app, generation, desired } => {
            let desired = wire::Desired::from(*desired).into();
            (app, generation, Wire::Assign(wire::Assign { node: node.0, desired }))
        }
        Transition::Forget { node, app, generation } => {
            (app, generation, Wire::Forget(wire::Node { node: node.0 }))
        }
        Transition::Place { app, generation, node } => {
            (app, generation, Wire::Place(wire::Node { node: node.0 }))
        }
    };
    let (app, generation) = (app.to_string(), generation.0);
    wire::Coordinate { term, app, generation, transition: Some(transition) }
}

fn transition(coordinate: wire::Coordinate) -> Result<Transition, DecodeError> {
    let app = app_name(&coordinate.app)?;
    let generation = GenerationId(coordinate.generation);
    Ok(match known(coordinate.transition, "a transition")? {
        wire::Transition::Advance(advance) => {
            let steps = advance.steps.into_iter().map(read_node_step).collect::<Result<_, _>>()?;
            Transition::Advance { app, generation, steps }
        }
        wire::Transition::Complete(_) => Transition::Complete { app, generation },
        wire::Transition::RollBack(why) => Transition::RollBack { app, generation, reason: why.reason },
        wire::Transition::RolledBack(_) => Transition::RolledBack { app, generation },
        wire::Transition::Pause(why) => Transition::Pause { app, generation, reason: why.reason },
        wire::Transition::Assign(assign) => {
            let node = NodeId(assign.node);
            Transition::Assign { node, app, generation, desired: desired(assign.desired)? }
        }
        wire::Transition::Forget(on) => Transition::Forget { node: NodeId(on.node), app, generation },
        wire::Transition::Place(on) => Transition::Place { app, generation, node: NodeId(on.node) },
    })
}

pub(super) fn node_step(node: NodeId, step: &Step) -> wire::NodeStep {
    let step = match step {
        Step::Preparing { since } => wire::Step::Preparing(since.0),
        Step::Ready => wire::Step::Ready(wire::Empty {}),
        Step::Shifting { since } => wire::Step::Shifting(since.0),
        Step::Monitoring { since } => wire::Step::Monitoring(since.0),
        Step::Done => wire::Step::Done(wire::Empty {}),
        Step::Failed { reason } => wire::Step::Failed(reason.clone()),
    };
    wire::NodeStep { node: node.0, step: Some(step) }
}

pub(super) fn read_node_step(step: wire::NodeStep) -> Result<(NodeId, Step), DecodeError> {
    let read = match known(step.step, "a step")? {
        wire::Step::Preparing(since) => Step::Preparing { since: Timestamp(since) },
        wire::Step::Ready(_) => Step::Ready,
        wire::Step::Shifting(since) => Step::Shifting { since: Timestamp(since) },
        wire::Step::Monitoring(since) => Step::Monitoring { since: Timestamp(since) },
        wire::Step::Done(_) => Step::Done,
        wire::Step::Failed(reason) => Step::Failed { reason },
    };
    Ok((NodeId(step.node), read))
}
