//! Commands as protobuf.

use std::time::Duration;

use flotilla_spec::Replicas;

use super::{DecodeError, app_name, app_spec, corrupt, known, port};
use crate::{
    ApplyApp, Availability, Balancer, BalancerKind, Batch, Change, ClusterId, Command, Desired, Drain,
    DrainPhase, GenerationId, Haproxy, Member, NodeId, Presence, RequestId, Steer, Step, Timestamp,
    Transition,
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
        #[prost(oneof = "Change", tags = "3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 20, 21")]
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
        #[prost(message, tag = "12")]
        Steer(Steer),
        #[prost(message, tag = "13")]
        DrainNode(DrainNode),
        #[prost(message, tag = "14")]
        ScaleApp(ScaleApp),
        #[prost(message, tag = "20")]
        PutBalancer(PutBalancer),
        #[prost(string, tag = "21")]
        RemoveBalancer(String),
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
        #[prost(message, optional, tag = "12")]
        pub(crate) drain: Option<Drain>,
        #[prost(uint32, tag = "13")]
        pub(crate) weight: u32,
        #[prost(string, tag = "20")]
        pub(crate) traffic_address: String,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    pub(crate) struct Drain {
        #[prost(enumeration = "DrainPhase", tag = "1")]
        pub(crate) phase: i32,
        #[prost(uint64, tag = "2")]
        pub(crate) since: u64,
        #[prost(uint64, tag = "3")]
        pub(crate) started: u64,
        #[prost(uint64, tag = "4")]
        pub(crate) deadline: u64,
        #[prost(uint64, tag = "5")]
        pub(crate) quiet_ms: u64,
        #[prost(bool, tag = "6")]
        pub(crate) leaves: bool,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
    #[repr(i32)]
    pub(crate) enum DrainPhase {
        Unknown = 0,
        LameDuck = 1,
        Quiet = 2,
        Draining = 3,
        Empty = 4,
        Cut = 5,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    pub(crate) struct DrainNode {
        #[prost(uint64, tag = "1")]
        pub(crate) node: u64,
        #[prost(uint64, tag = "2")]
        pub(crate) deadline_ms: u64,
        #[prost(uint64, tag = "3")]
        pub(crate) quiet_ms: u64,
        #[prost(bool, tag = "4")]
        pub(crate) leaves: bool,
        #[prost(bool, tag = "5")]
        pub(crate) cut: bool,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct ScaleApp {
        #[prost(string, tag = "1")]
        pub(crate) app: String,
        /// 0: on all nodes; absent: as the spec says.
        #[prost(uint32, optional, tag = "2")]
        pub(crate) replicas: Option<u32>,
        #[prost(uint64, optional, tag = "3")]
        pub(crate) if_version: Option<u64>,
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

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct PutBalancer {
        #[prost(message, optional, tag = "1")]
        pub(crate) balancer: Option<Balancer>,
        #[prost(bool, tag = "2")]
        pub(crate) replace: bool,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Balancer {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
        #[prost(string, repeated, tag = "2")]
        pub(crate) apps: Vec<String>,
        #[prost(uint64, tag = "3")]
        pub(crate) min_interval_ms: u64,
        #[prost(oneof = "BalancerKind", tags = "4, 5, 6, 7, 8")]
        pub(crate) kind: Option<BalancerKind>,
    }

    #[derive(Clone, PartialEq, Oneof)]
    pub(crate) enum BalancerKind {
        #[prost(message, tag = "4")]
        Haproxy(Haproxy),
        #[prost(message, tag = "5")]
        AgentCheck(CheckPort),
        #[prost(message, tag = "6")]
        TcpCheck(CheckPort),
        #[prost(message, tag = "7")]
        Envoy(Envoy),
        #[prost(message, tag = "8")]
        Nginx(Node),
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Haproxy {
        #[prost(string, tag = "1")]
        pub(crate) address: String,
        #[prost(uint64, optional, tag = "2")]
        pub(crate) node: Option<u64>,
        #[prost(string, tag = "3")]
        pub(crate) backend: String,
        #[prost(string, tag = "4")]
        pub(crate) prefix: String,
        #[prost(string, tag = "5")]
        pub(crate) options: String,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    pub(crate) struct CheckPort {
        #[prost(uint32, tag = "1")]
        pub(crate) port: u32,
        #[prost(bool, tag = "2")]
        pub(crate) closes_on_drain: bool,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Envoy {
        #[prost(uint32, tag = "1")]
        pub(crate) port: u32,
        #[prost(string, repeated, tag = "2")]
        pub(crate) admin: Vec<String>,
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
        #[prost(oneof = "Transition", tags = "4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16")]
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
        RolledBack(Reason),
        #[prost(message, tag = "8")]
        Assign(Assign),
        #[prost(message, tag = "9")]
        Forget(Node),
        #[prost(message, tag = "10")]
        Place(Node),
        #[prost(message, tag = "11")]
        Pause(Reason),
        #[prost(message, tag = "12")]
        ChoosePorts(ChoosePorts),
        #[prost(message, tag = "13")]
        AdvanceDrain(AdvanceDrain),
        #[prost(message, tag = "14")]
        Scale(Scale),
        #[prost(message, tag = "15")]
        Note(Note),
        #[prost(message, tag = "16")]
        TellPresence(TellPresence),
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Note {
        #[prost(uint64, tag = "1")]
        pub(crate) node: u64,
        #[prost(string, tag = "2")]
        pub(crate) message: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct TellPresence {
        #[prost(uint64, tag = "1")]
        pub(crate) node: u64,
        #[prost(enumeration = "Presence", tag = "2")]
        pub(crate) presence: i32,
        #[prost(string, tag = "3")]
        pub(crate) why: String,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
    #[repr(i32)]
    pub(crate) enum Presence {
        Unknown = 0,
        Up = 1,
        Down = 2,
        Stopped = 3,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct ChoosePorts {
        #[prost(uint64, tag = "1")]
        pub(crate) node: u64,
        #[prost(uint32, repeated, tag = "2")]
        pub(crate) taken: Vec<u32>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct AdvanceDrain {
        #[prost(uint64, tag = "1")]
        pub(crate) node: u64,
        #[prost(enumeration = "DrainPhase", tag = "2")]
        pub(crate) phase: i32,
        #[prost(string, tag = "3")]
        pub(crate) why: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Scale {
        #[prost(uint32, tag = "1")]
        pub(crate) replicas: u32,
        #[prost(uint32, tag = "2")]
        pub(crate) short: u32,
        #[prost(string, tag = "3")]
        pub(crate) reason: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Advance {
        #[prost(message, repeated, tag = "1")]
        pub(crate) steps: Vec<NodeStep>,
        #[prost(string, tag = "2")]
        pub(crate) why: String,
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
        #[prost(message, tag = "4")]
        Shifting(Share),
        #[prost(message, tag = "5")]
        Monitoring(Share),
        #[prost(message, tag = "6")]
        Done(Empty),
        #[prost(string, tag = "7")]
        Failed(String),
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    pub(crate) struct Share {
        #[prost(uint64, tag = "1")]
        pub(crate) since: u64,
        #[prost(uint32, tag = "2")]
        pub(crate) percent: u32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Steer {
        #[prost(string, tag = "1")]
        pub(crate) app: String,
        #[prost(uint64, optional, tag = "2")]
        pub(crate) if_version: Option<u64>,
        #[prost(enumeration = "Word", tag = "3")]
        pub(crate) word: i32,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
    #[repr(i32)]
    pub(crate) enum Word {
        Unknown = 0,
        Pause = 1,
        Resume = 2,
        Promote = 3,
        PromoteInFull = 4,
        Abort = 5,
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
            Change::DrainNode { node, deadline, quiet, leaves, cut } => Self::DrainNode(wire::DrainNode {
                node: node.0,
                deadline_ms: millis(*deadline),
                quiet_ms: millis(*quiet),
                leaves: *leaves,
                cut: *cut,
            }),
            Change::ScaleApp { app, replicas, if_version } => Self::ScaleApp(wire::ScaleApp {
                app: app.to_string(),
                replicas: replicas.map(replicas_to_wire),
                if_version: *if_version,
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
            Change::Steer { app, if_version, steer } => Self::Steer(wire::Steer {
                app: app.to_string(),
                if_version: *if_version,
                word: word(*steer).into(),
            }),
            Change::PutBalancer { name, balancer, replace } => Self::PutBalancer(wire::PutBalancer {
                balancer: Some(write_balancer(name, balancer)),
                replace: *replace,
            }),
            Change::RemoveBalancer { name } => Self::RemoveBalancer(name.clone()),
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
            wire::Change::Steer(steer) => Self::Steer {
                app: app_name(&steer.app)?,
                if_version: steer.if_version,
                steer: read_word(steer.word)?,
            },
            wire::Change::DrainNode(drain) => Self::DrainNode {
                node: NodeId(drain.node),
                deadline: Duration::from_millis(drain.deadline_ms),
                quiet: Duration::from_millis(drain.quiet_ms),
                leaves: drain.leaves,
                cut: drain.cut,
            },
            wire::Change::ScaleApp(scale) => Self::ScaleApp {
                app: app_name(&scale.app)?,
                replicas: scale.replicas.map(replicas),
                if_version: scale.if_version,
            },
            wire::Change::PutBalancer(put) => {
                let (name, balancer) = read_balancer(known(put.balancer, "a balancer")?)?;
                Self::PutBalancer { name, balancer, replace: put.replace }
            }
            wire::Change::RemoveBalancer(name) => Self::RemoveBalancer { name },
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
            drain: member.drain.map(|drain| wire::Drain {
                phase: wire::DrainPhase::from(drain.phase).into(),
                since: drain.since.0,
                started: drain.started.0,
                deadline: drain.deadline.0,
                quiet_ms: millis(drain.quiet),
                leaves: drain.leaves,
            }),
            weight: member.weight,
            traffic_address: member.traffic_address.clone(),
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
            drain: member.drain.map(drain).transpose()?,
            weight: member.weight,
            traffic_address: member.traffic_address,
        })
    }
}

pub(super) fn write_balancer(name: &str, balancer: &Balancer) -> wire::Balancer {
    let check = |port: u16, closes_on_drain| wire::CheckPort { port: port.into(), closes_on_drain };
    let kind = match &balancer.kind {
        BalancerKind::Haproxy(haproxy) => wire::BalancerKind::Haproxy(wire::Haproxy {
            address: haproxy.address.clone(),
            node: haproxy.node.map(|node| node.0),
            backend: haproxy.backend.clone(),
            prefix: haproxy.prefix.clone(),
            options: haproxy.options.clone(),
        }),
        BalancerKind::AgentCheck { port } => wire::BalancerKind::AgentCheck(check(*port, false)),
        BalancerKind::TcpCheck { port, closes_on_drain } => {
            wire::BalancerKind::TcpCheck(check(*port, *closes_on_drain))
        }
        BalancerKind::Envoy { port, admin } => {
            wire::BalancerKind::Envoy(wire::Envoy { port: (*port).into(), admin: admin.clone() })
        }
        BalancerKind::Nginx { node } => wire::BalancerKind::Nginx(wire::Node { node: node.0 }),
    };
    wire::Balancer {
        name: name.to_owned(),
        apps: balancer.apps.iter().map(ToString::to_string).collect(),
        min_interval_ms: u64::try_from(balancer.min_interval.as_millis()).unwrap_or(u64::MAX),
        kind: Some(kind),
    }
}

pub(super) fn read_balancer(wire: wire::Balancer) -> Result<(String, Balancer), DecodeError> {
    let kind = match known(wire.kind, "the kind of a balancer")? {
        wire::BalancerKind::Haproxy(haproxy) => BalancerKind::Haproxy(Haproxy {
            address: haproxy.address,
            node: haproxy.node.map(NodeId),
            backend: haproxy.backend,
            prefix: haproxy.prefix,
            options: haproxy.options,
        }),
        wire::BalancerKind::AgentCheck(check) => BalancerKind::AgentCheck { port: port(check.port)? },
        wire::BalancerKind::TcpCheck(check) => {
            BalancerKind::TcpCheck { port: port(check.port)?, closes_on_drain: check.closes_on_drain }
        }
        wire::BalancerKind::Envoy(envoy) => {
            BalancerKind::Envoy { port: port(envoy.port)?, admin: envoy.admin }
        }
        wire::BalancerKind::Nginx(node) => BalancerKind::Nginx { node: NodeId(node.node) },
    };
    let apps = wire.apps.iter().map(|app| app_name(app)).collect::<Result<_, _>>()?;
    let min_interval = Duration::from_millis(wire.min_interval_ms);
    Ok((wire.name, Balancer { apps, min_interval, kind }))
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

fn drain(wire: wire::Drain) -> Result<Drain, DecodeError> {
    Ok(Drain {
        phase: drain_phase(wire.phase)?,
        since: Timestamp(wire.since),
        started: Timestamp(wire.started),
        deadline: Timestamp(wire.deadline),
        quiet: Duration::from_millis(wire.quiet_ms),
        leaves: wire.leaves,
    })
}

impl From<DrainPhase> for wire::DrainPhase {
    fn from(phase: DrainPhase) -> Self {
        match phase {
            DrainPhase::LameDuck => Self::LameDuck,
            DrainPhase::Quiet => Self::Quiet,
            DrainPhase::Draining => Self::Draining,
            DrainPhase::Empty => Self::Empty,
            DrainPhase::Cut => Self::Cut,
        }
    }
}

fn drain_phase(number: i32) -> Result<DrainPhase, DecodeError> {
    match wire::DrainPhase::try_from(number) {
        Ok(wire::DrainPhase::LameDuck) => Ok(DrainPhase::LameDuck),
        Ok(wire::DrainPhase::Quiet) => Ok(DrainPhase::Quiet),
        Ok(wire::DrainPhase::Draining) => Ok(DrainPhase::Draining),
        Ok(wire::DrainPhase::Empty) => Ok(DrainPhase::Empty),
        Ok(wire::DrainPhase::Cut) => Ok(DrainPhase::Cut),
        Ok(wire::DrainPhase::Unknown) | Err(_) => known(None, "the phase of a drain"),
    }
}

impl From<Presence> for wire::Presence {
    fn from(presence: Presence) -> Self {
        match presence {
            Presence::Up => Self::Up,
            Presence::Down => Self::Down,
            Presence::Stopped => Self::Stopped,
        }
    }
}

fn presence(number: i32) -> Result<Presence, DecodeError> {
    match wire::Presence::try_from(number) {
        Ok(wire::Presence::Up) => Ok(Presence::Up),
        Ok(wire::Presence::Down) => Ok(Presence::Down),
        Ok(wire::Presence::Stopped) => Ok(Presence::Stopped),
        Ok(wire::Presence::Unknown) | Err(_) => known(None, "whether a node is there"),
    }
}

/// No app has 0 replicas, so 0 can say "all".
pub(super) fn replicas_to_wire(replicas: Replicas) -> u32 {
    match replicas {
        Replicas::All => 0,
        Replicas::Count(count) => count,
    }
}

pub(super) fn replicas(wire: u32) -> Replicas {
    match wire {
        0 => Replicas::All,
        count => Replicas::Count(count),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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

/// A transition that is not about an app, or not about a generation, leaves those empty.
fn coordinate(term: u64, transition: &Transition) -> wire::Coordinate {
    use wire::Transition as Wire;
    let empty = wire::Empty {};
    // Not every one is about an app, or about a generation of it.
    let none = GenerationId(0);
    let (app, generation, transition) = match transition {
        Transition::Note { app, node, message } => {
            let note = wire::Note { node: node.0, message: message.clone() };
            (Some(app), none, Wire::Note(note))
        }
        Transition::AdvanceDrain { node, phase, why } => {
            let phase = wire::DrainPhase::from(*phase).into();
            let drain = wire::AdvanceDrain { node: node.0, phase, why: why.clone() };
            (None, none, Wire::AdvanceDrain(drain))
        }
        Transition::TellPresence { node, presence, why } => {
            let presence = wire::Presence::from(*presence).into();
            let told = wire::TellPresence { node: node.0, presence, why: why.clone() };
            (None, none, Wire::TellPresence(told))
        }
        Transition::Scale { app, replicas, short, reason } => {
            let scale = wire::Scale { replicas: *replicas, short: *short, reason: reason.clone() };
            (Some(app), none, Wire::Scale(scale))
        }
        Transition::ChoosePorts { node, app, generation, taken } => {
            let taken = taken.iter().map(|port| u32::from(*port)).collect();
            (Some(app), *generation, Wire::ChoosePorts(wire::ChoosePorts { node: node.0, taken }))
        }
        Transition::Advance { app, generation, steps, why } => (
            Some(app),
            *generation,
            Wire::Advance(wire::Advance {
                steps: steps.iter().map(|(node, step)| node_step(*node, step)).collect(),
                why: why.clone(),
            }),
        ),
        Transition::Complete { app, generation } => (Some(app), *generation, Wire::Complete(empty)),
        Transition::RollBack { app, generation, reason } => {
            (Some(app), *generation, Wire::RollBack(wire::Reason { reason: reason.clone() }))
        }
        Transition::RolledBack { app, generation, missing } => {
            (Some(app), *generation, Wire::RolledBack(wire::Reason { reason: missing.clone() }))
        }
        Transition::Pause { app, generation, reason } => {
            (Some(app), *generation, Wire::Pause(wire::Reason { reason: reason.clone() }))
        }
        Transition::Assign { node, app, generation, desired } => {
            let desired = wire::Desired::from(*desired).into();
            (Some(app), *generation, Wire::Assign(wire::Assign { node: node.0, desired }))
        }
        Transition::Forget { node, app, generation } => {
            (Some(app), *generation, Wire::Forget(wire::Node { node: node.0 }))
        }
        Transition::Place { app, generation, node } => {
            (Some(app), *generation, Wire::Place(wire::Node { node: node.0 }))
        }
    };
    let app = app.map_or_else(String::new, ToString::to_string);
    wire::Coordinate { term, app, generation: generation.0, transition: Some(transition) }
}

fn transition(coordinate: wire::Coordinate) -> Result<Transition, DecodeError> {
    let generation = GenerationId(coordinate.generation);
    // Of no interest to a transition that is about a node.
    let app = app_name(&coordinate.app);
    Ok(match known(coordinate.transition, "a transition")? {
        wire::Transition::Advance(advance) => {
            let steps = advance.steps.into_iter().map(read_node_step).collect::<Result<_, _>>()?;
            Transition::Advance { app: app?, generation, steps, why: advance.why }
        }
        wire::Transition::Complete(_) => Transition::Complete { app: app?, generation },
        wire::Transition::RollBack(why) => Transition::RollBack { app: app?, generation, reason: why.reason },
        wire::Transition::RolledBack(why) => {
            Transition::RolledBack { app: app?, generation, missing: why.reason }
        }
        wire::Transition::Pause(why) => Transition::Pause { app: app?, generation, reason: why.reason },
        wire::Transition::Assign(assign) => {
            let node = NodeId(assign.node);
            Transition::Assign { node, app: app?, generation, desired: desired(assign.desired)? }
        }
        wire::Transition::Forget(on) => Transition::Forget { node: NodeId(on.node), app: app?, generation },
        wire::Transition::Place(on) => Transition::Place { app: app?, generation, node: NodeId(on.node) },
        wire::Transition::Note(wire::Note { node, message }) => {
            Transition::Note { app: app?, node: NodeId(node), message }
        }
        wire::Transition::ChoosePorts(wire::ChoosePorts { node, taken }) => {
            let taken = taken.into_iter().map(port).collect::<Result<_, _>>()?;
            Transition::ChoosePorts { node: NodeId(node), app: app?, generation, taken }
        }
        wire::Transition::AdvanceDrain(wire::AdvanceDrain { node, phase, why }) => {
            Transition::AdvanceDrain { node: NodeId(node), phase: drain_phase(phase)?, why }
        }
        wire::Transition::TellPresence(wire::TellPresence { node, presence: said, why }) => {
            Transition::TellPresence { node: NodeId(node), presence: presence(said)?, why }
        }
        wire::Transition::Scale(wire::Scale { replicas, short, reason }) => {
            Transition::Scale { app: app?, replicas, short, reason }
        }
    })
}

pub(super) fn node_step(node: NodeId, step: &Step) -> wire::NodeStep {
    let step = match step {
        Step::Preparing { since } => wire::Step::Preparing(since.0),
        Step::Ready => wire::Step::Ready(wire::Empty {}),
        Step::Shifting { since, percent } => wire::Step::Shifting(share(*since, *percent)),
        Step::Monitoring { since, percent } => wire::Step::Monitoring(share(*since, *percent)),
        Step::Done => wire::Step::Done(wire::Empty {}),
        Step::Failed { reason } => wire::Step::Failed(reason.clone()),
    };
    wire::NodeStep { node: node.0, step: Some(step) }
}

pub(super) fn read_node_step(step: wire::NodeStep) -> Result<(NodeId, Step), DecodeError> {
    let read = match known(step.step, "a step")? {
        wire::Step::Preparing(since) => Step::Preparing { since: Timestamp(since) },
        wire::Step::Ready(_) => Step::Ready,
        wire::Step::Shifting(wire::Share { since, percent: of }) => {
            Step::Shifting { since: Timestamp(since), percent: percent(of)? }
        }
        wire::Step::Monitoring(wire::Share { since, percent: of }) => {
            Step::Monitoring { since: Timestamp(since), percent: percent(of)? }
        }
        wire::Step::Done(_) => Step::Done,
        wire::Step::Failed(reason) => Step::Failed { reason },
    };
    Ok((NodeId(step.node), read))
}

fn share(since: Timestamp, percent: u8) -> wire::Share {
    wire::Share { since: since.0, percent: percent.into() }
}

pub(super) fn percent(number: u32) -> Result<u8, DecodeError> {
    u8::try_from(number).map_err(|_| corrupt(&format!("{number} is no share")))
}

fn word(steer: Steer) -> wire::Word {
    match steer {
        Steer::Pause => wire::Word::Pause,
        Steer::Resume => wire::Word::Resume,
        Steer::Promote { full: false } => wire::Word::Promote,
        Steer::Promote { full: true } => wire::Word::PromoteInFull,
        Steer::Abort => wire::Word::Abort,
    }
}

fn read_word(number: i32) -> Result<Steer, DecodeError> {
    match wire::Word::try_from(number) {
        Ok(wire::Word::Pause) => Ok(Steer::Pause),
        Ok(wire::Word::Resume) => Ok(Steer::Resume),
        Ok(wire::Word::Promote) => Ok(Steer::Promote { full: false }),
        Ok(wire::Word::PromoteInFull) => Ok(Steer::Promote { full: true }),
        Ok(wire::Word::Abort) => Ok(Steer::Abort),
        Ok(wire::Word::Unknown) | Err(_) => known(None, "what a user tells a rollout"),
    }
}
