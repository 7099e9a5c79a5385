//! A whole fleet as protobuf, for snapshots and digests.
//!
//! Everything of an app is inside its record, so names are written once. What follows from the rest
//! is not written at all: the port table is every port of every assignment, and the spec of a history
//! entry is that of its generation.

use std::{collections::BTreeMap, sync::Arc};

use super::{DecodeError, app_name, app_spec, command, corrupt, known, port};
use crate::{
    Absence, AnsweredRequest, App, Assignment, Cause, Cluster, ClusterId, Controller, Event, Fleet,
    Generation, GenerationId, GenerationState, HistoryEntry, NodeId, Promotion, Rollout, RolloutState, Scale,
    ScaledBy, Timestamp,
};

pub(super) mod wire {
    use prost::{Enumeration, Message};

    use super::super::{answer::wire::Answer, command::wire as command};

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Fleet {
        #[prost(uint64, tag = "1")]
        pub(crate) index: u64,
        #[prost(message, optional, tag = "2")]
        pub(crate) cluster: Option<Cluster>,
        #[prost(message, repeated, tag = "3")]
        pub(crate) members: Vec<Member>,
        #[prost(message, repeated, tag = "4")]
        pub(crate) apps: Vec<App>,
        #[prost(message, repeated, tag = "5")]
        pub(crate) events: Vec<Event>,
        #[prost(message, repeated, tag = "6")]
        pub(crate) requests: Vec<Request>,
        #[prost(message, repeated, tag = "20")]
        pub(crate) balancers: Vec<command::Balancer>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Cluster {
        #[prost(string, tag = "1")]
        pub(crate) id: String,
        #[prost(string, tag = "2")]
        pub(crate) name: String,
        #[prost(uint32, tag = "3")]
        pub(crate) schema_version: u32,
        #[prost(uint64, tag = "4")]
        pub(crate) controller_term: u64,
        #[prost(uint64, tag = "5")]
        pub(crate) controller_node: u64,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Member {
        #[prost(uint64, tag = "1")]
        pub(crate) node: u64,
        #[prost(message, optional, tag = "2")]
        pub(crate) member: Option<command::Member>,
        #[prost(message, optional, tag = "3")]
        pub(crate) absence: Option<Absence>,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    pub(crate) struct Absence {
        #[prost(uint64, tag = "1")]
        pub(crate) since: u64,
        #[prost(bool, tag = "2")]
        pub(crate) planned: bool,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct App {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
        #[prost(uint64, tag = "2")]
        pub(crate) version: u64,
        #[prost(uint64, tag = "3")]
        pub(crate) wanted: u64,
        #[prost(uint64, optional, tag = "4")]
        pub(crate) serving: Option<u64>,
        #[prost(message, repeated, tag = "5")]
        pub(crate) history: Vec<HistoryEntry>,
        #[prost(bool, tag = "6")]
        pub(crate) deleted: bool,
        #[prost(message, repeated, tag = "7")]
        pub(crate) generations: Vec<Generation>,
        #[prost(message, optional, tag = "8")]
        pub(crate) scale: Option<Scale>,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    pub(crate) struct Scale {
        /// 0: on all nodes.
        #[prost(uint32, tag = "1")]
        pub(crate) replicas: u32,
        #[prost(bool, tag = "2")]
        pub(crate) by_user: bool,
        #[prost(uint64, tag = "3")]
        pub(crate) since: u64,
        #[prost(uint32, tag = "4")]
        pub(crate) short: u32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct HistoryEntry {
        #[prost(uint64, tag = "1")]
        pub(crate) version: u64,
        #[prost(uint64, tag = "2")]
        pub(crate) generation: u64,
        #[prost(uint64, tag = "3")]
        pub(crate) time: u64,
        #[prost(uint64, optional, tag = "4")]
        pub(crate) rolled_back_to: Option<u64>,
        #[prost(enumeration = "RolloutState", optional, tag = "5")]
        pub(crate) outcome: Option<i32>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Generation {
        #[prost(uint64, tag = "1")]
        pub(crate) id: u64,
        /// Canonical JSON.
        #[prost(bytes = "vec", tag = "2")]
        pub(crate) spec: Vec<u8>,
        #[prost(bytes = "vec", tag = "3")]
        pub(crate) digest: Vec<u8>,
        #[prost(enumeration = "GenerationState", tag = "4")]
        pub(crate) state: i32,
        #[prost(message, optional, tag = "5")]
        pub(crate) rollout: Option<Rollout>,
        #[prost(message, repeated, tag = "6")]
        pub(crate) assignments: Vec<Assignment>,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
    #[repr(i32)]
    pub(crate) enum GenerationState {
        Unknown = 0,
        Staged = 1,
        Serving = 2,
        Draining = 3,
        Retired = 4,
        Failed = 5,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Rollout {
        #[prost(uint64, optional, tag = "1")]
        pub(crate) from: Option<u64>,
        #[prost(enumeration = "RolloutState", tag = "2")]
        pub(crate) state: i32,
        #[prost(message, repeated, tag = "3")]
        pub(crate) steps: Vec<command::NodeStep>,
        #[prost(uint64, tag = "4")]
        pub(crate) started: u64,
        #[prost(uint64, tag = "5")]
        pub(crate) progressed: u64,
        #[prost(string, tag = "6")]
        pub(crate) reason: String,
        #[prost(enumeration = "Promotion", tag = "7")]
        pub(crate) promotion: i32,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
    #[repr(i32)]
    pub(crate) enum Promotion {
        AsSpecified = 0,
        Promoted = 1,
        Full = 2,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
    #[repr(i32)]
    pub(crate) enum RolloutState {
        Unknown = 0,
        Progressing = 1,
        Paused = 2,
        RollingBack = 3,
        RolledBack = 4,
        Completed = 5,
        Failed = 6,
        Superseded = 7,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Assignment {
        #[prost(uint64, tag = "1")]
        pub(crate) node: u64,
        #[prost(enumeration = "command::Desired", tag = "2")]
        pub(crate) desired: i32,
        #[prost(uint32, repeated, tag = "3")]
        pub(crate) ports: Vec<u32>,
        #[prost(uint64, tag = "4")]
        pub(crate) index: u64,
        #[prost(uint64, tag = "5")]
        pub(crate) since: u64,
        #[prost(uint32, tag = "6")]
        pub(crate) percent: u32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Event {
        #[prost(uint64, tag = "1")]
        pub(crate) index: u64,
        #[prost(uint64, tag = "2")]
        pub(crate) time: u64,
        #[prost(string, optional, tag = "3")]
        pub(crate) app: Option<String>,
        #[prost(uint64, optional, tag = "4")]
        pub(crate) node: Option<u64>,
        #[prost(string, tag = "5")]
        pub(crate) message: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Request {
        #[prost(string, tag = "1")]
        pub(crate) client: String,
        #[prost(uint64, tag = "2")]
        pub(crate) sequence: u64,
        #[prost(message, optional, tag = "3")]
        pub(crate) answer: Option<Answer>,
        #[prost(uint64, tag = "4")]
        pub(crate) index: u64,
    }
}

impl From<&Fleet> for wire::Fleet {
    fn from(fleet: &Fleet) -> Self {
        let members = fleet.members.iter();
        let members = members.map(|(node, member)| wire::Member {
            node: node.0,
            member: Some(member.as_ref().into()),
            absence: fleet
                .absences
                .get(node)
                .map(|absence| wire::Absence { since: absence.since.0, planned: absence.planned }),
        });
        // One pass over the assignments: to ask each node about each generation would take far longer.
        let mut assignments: BTreeMap<_, Vec<wire::Assignment>> = BTreeMap::new();
        for (node, of_node) in &fleet.assignments {
            for (key, assignment) in of_node {
                assignments.entry(key).or_default().push(write_assignment(*node, assignment));
            }
        }
        let mut apps: BTreeMap<_, wire::App> =
            fleet.apps.iter().map(|(name, app)| (name, write_app(name.to_string(), app))).collect();
        for (key, generation) in &fleet.generations {
            if let Some(app) = apps.get_mut(&key.0) {
                app.generations.push(wire::Generation {
                    id: key.1.0,
                    spec: generation.spec.to_json(),
                    digest: generation.digest.to_vec(),
                    state: wire::GenerationState::from(generation.state).into(),
                    rollout: fleet.rollouts.get(key).map(|rollout| rollout.as_ref().into()),
                    assignments: assignments.remove(key).unwrap_or_default(),
                });
            }
        }
        let events = fleet.events.iter().map(|event| wire::Event {
            index: event.index,
            time: event.time.0,
            app: event.app.as_ref().map(ToString::to_string),
            node: event.node.map(|node| node.0),
            message: event.message.clone(),
        });
        let balancers = fleet.balancers.iter();
        let balancers = balancers.map(|(name, balancer)| command::write_balancer(name, balancer));
        let requests = fleet.requests.iter().map(|(client, last)| wire::Request {
            client: client.clone(),
            sequence: last.sequence,
            answer: Some((&last.answer).into()),
            index: last.index,
        });
        Self {
            index: fleet.index,
            cluster: Some(wire::Cluster {
                id: fleet.cluster.id.0.clone(),
                name: fleet.cluster.name.clone(),
                schema_version: fleet.cluster.schema_version,
                controller_term: fleet.cluster.controller.term,
                controller_node: fleet.cluster.controller.node.0,
            }),
            members: members.collect(),
            apps: apps.into_values().collect(),
            events: events.collect(),
            requests: requests.collect(),
            balancers: balancers.collect(),
        }
    }
}

impl TryFrom<wire::Fleet> for Fleet {
    type Error = DecodeError;
    fn try_from(wire: wire::Fleet) -> Result<Self, DecodeError> {
        let cluster = known(wire.cluster, "the cluster")?;
        if cluster.schema_version > crate::SCHEMA_VERSION {
            return Err(super::newer(&format!("schema version {}", cluster.schema_version)));
        }
        let mut fleet = Self {
            index: wire.index,
            cluster: Cluster {
                id: ClusterId(cluster.id),
                name: cluster.name,
                schema_version: cluster.schema_version,
                controller: Controller {
                    term: cluster.controller_term,
                    node: NodeId(cluster.controller_node),
                },
            },
            ..Self::default()
        };
        for member in wire.members {
            let read = known(member.member, "a member")?.try_into()?;
            fleet.members.insert(NodeId(member.node), Arc::new(read));
            if let Some(wire::Absence { since, planned }) = member.absence {
                fleet.absences.insert(NodeId(member.node), Absence { since: Timestamp(since), planned });
            }
        }
        for app in wire.apps {
            read_app(&mut fleet, app)?;
        }
        for event in wire.events {
            fleet.events.push_back(Arc::new(Event {
                index: event.index,
                time: Timestamp(event.time),
                app: event.app.as_deref().map(app_name).transpose()?,
                node: event.node.map(NodeId),
                message: event.message,
            }));
        }
        for balancer in wire.balancers {
            let (name, balancer) = command::read_balancer(balancer)?;
            fleet.balancers.insert(name, Arc::new(balancer));
        }
        for request in wire.requests {
            let answer = known(request.answer, "an answer")?.read()?;
            let answered = AnsweredRequest { sequence: request.sequence, answer, index: request.index };
            fleet.requests.insert(request.client, Arc::new(answered));
        }
        fleet.ports = fleet.held_ports().map_err(|why| corrupt(&why))?;
        Ok(fleet)
    }
}

fn write_app(name: String, app: &App) -> wire::App {
    let history = app.history.iter().map(|entry| wire::HistoryEntry {
        version: entry.version,
        generation: entry.generation.0,
        time: entry.time.0,
        rolled_back_to: match entry.cause {
            Cause::Applied => None,
            Cause::RolledBackTo { version } => Some(version),
        },
        outcome: entry.outcome.map(|outcome| wire::RolloutState::from(outcome).into()),
    });
    wire::App {
        name,
        version: app.version,
        wanted: app.wanted.0,
        serving: app.serving.map(|generation| generation.0),
        history: history.collect(),
        deleted: app.deleted,
        generations: Vec::new(),
        scale: app.scale.map(|scale| wire::Scale {
            replicas: command::replicas_to_wire(scale.replicas),
            by_user: scale.by == ScaledBy::User,
            since: scale.since.0,
            short: scale.short,
        }),
    }
}

fn read_app(fleet: &mut Fleet, app: wire::App) -> Result<(), DecodeError> {
    let name = app_name(&app.name)?;
    for generation in app.generations {
        let key = (name.clone(), GenerationId(generation.id));
        for of_node in generation.assignments {
            let (node, assignment) = read_assignment(of_node)?;
            fleet.assignments.entry(node).or_default().insert(key.clone(), Arc::new(assignment));
        }
        if let Some(rollout) = generation.rollout {
            fleet.rollouts.insert(key.clone(), Arc::new(rollout.try_into()?));
        }
        let digest = generation.digest.try_into().map_err(|_| corrupt("a digest is not 32 bytes"))?;
        let state = generation_state(generation.state)?;
        let spec = Arc::new(app_spec(&generation.spec)?);
        fleet.generations.insert(key, Arc::new(Generation { spec, digest, state }));
    }
    let spec_of = |generation: u64| {
        let record = fleet.generations.get(&(name.clone(), GenerationId(generation)));
        record.map(|record| record.spec.clone()).ok_or_else(|| corrupt("an app without its generation"))
    };
    let history = app.history.into_iter().map(|entry| {
        Ok(HistoryEntry {
            version: entry.version,
            generation: GenerationId(entry.generation),
            spec: spec_of(entry.generation)?,
            time: Timestamp(entry.time),
            cause: entry.rolled_back_to.map_or(Cause::Applied, |version| Cause::RolledBackTo { version }),
            outcome: entry.outcome.map(rollout_state).transpose()?,
        })
    });
    let read = App {
        spec: spec_of(app.wanted)?,
        version: app.version,
        wanted: GenerationId(app.wanted),
        serving: app.serving.map(GenerationId),
        history: history.collect::<Result<_, DecodeError>>()?,
        deleted: app.deleted,
        scale: app.scale.map(|scale| Scale {
            replicas: command::replicas(scale.replicas),
            by: if scale.by_user { ScaledBy::User } else { ScaledBy::Autoscaler },
            since: Timestamp(scale.since),
            short: scale.short,
        }),
    };
    fleet.apps.insert(name, Arc::new(read));
    Ok(())
}

fn write_assignment(node: NodeId, assignment: &Assignment) -> wire::Assignment {
    wire::Assignment {
        node: node.0,
        desired: command::wire::Desired::from(assignment.desired).into(),
        ports: assignment.ports.iter().map(|port| u32::from(*port)).collect(),
        index: assignment.index,
        since: assignment.since.0,
        percent: assignment.percent.into(),
    }
}

fn read_assignment(wire: wire::Assignment) -> Result<(NodeId, Assignment), DecodeError> {
    let assignment = Assignment {
        desired: command::desired(wire.desired)?,
        percent: command::percent(wire.percent)?,
        ports: wire.ports.into_iter().map(port).collect::<Result<_, _>>()?,
        index: wire.index,
        since: Timestamp(wire.since),
    };
    Ok((NodeId(wire.node), assignment))
}

impl From<&Rollout> for wire::Rollout {
    fn from(rollout: &Rollout) -> Self {
        let steps = rollout.steps.iter();
        Self {
            from: rollout.from.map(|generation| generation.0),
            state: wire::RolloutState::from(rollout.state).into(),
            steps: steps.map(|(node, step)| command::node_step(*node, step)).collect(),
            started: rollout.started.0,
            progressed: rollout.progressed.0,
            reason: rollout.reason.clone(),
            promotion: match rollout.promotion {
                Promotion::AsSpecified => wire::Promotion::AsSpecified,
                Promotion::Promoted => wire::Promotion::Promoted,
                Promotion::Full => wire::Promotion::Full,
            }
            .into(),
        }
    }
}

impl TryFrom<wire::Rollout> for Rollout {
    type Error = DecodeError;
    fn try_from(rollout: wire::Rollout) -> Result<Self, DecodeError> {
        Ok(Self {
            from: rollout.from.map(GenerationId),
            state: rollout_state(rollout.state)?,
            steps: rollout.steps.into_iter().map(command::read_node_step).collect::<Result<_, _>>()?,
            started: Timestamp(rollout.started),
            progressed: Timestamp(rollout.progressed),
            reason: rollout.reason,
            promotion: match wire::Promotion::try_from(rollout.promotion) {
                Ok(wire::Promotion::AsSpecified) => Promotion::AsSpecified,
                Ok(wire::Promotion::Promoted) => Promotion::Promoted,
                Ok(wire::Promotion::Full) => Promotion::Full,
                Err(_) => return known(None, "the promotion of a rollout"),
            },
        })
    }
}

impl From<GenerationState> for wire::GenerationState {
    fn from(state: GenerationState) -> Self {
        match state {
            GenerationState::Staged => Self::Staged,
            GenerationState::Serving => Self::Serving,
            GenerationState::Draining => Self::Draining,
            GenerationState::Retired => Self::Retired,
            GenerationState::Failed => Self::Failed,
        }
    }
}

fn generation_state(number: i32) -> Result<GenerationState, DecodeError> {
    use wire::GenerationState as Wire;
    match Wire::try_from(number) {
        Ok(Wire::Staged) => Ok(GenerationState::Staged),
        Ok(Wire::Serving) => Ok(GenerationState::Serving),
        Ok(Wire::Draining) => Ok(GenerationState::Draining),
        Ok(Wire::Retired) => Ok(GenerationState::Retired),
        Ok(Wire::Failed) => Ok(GenerationState::Failed),
        Ok(Wire::Unknown) | Err(_) => known(None, "the state of a generation"),
    }
}

impl From<RolloutState> for wire::RolloutState {
    fn from(state: RolloutState) -> Self {
        match state {
            RolloutState::Progressing => Self::Progressing,
            RolloutState::Paused => Self::Paused,
            RolloutState::RollingBack => Self::RollingBack,
            RolloutState::RolledBack => Self::RolledBack,
            RolloutState::Completed => Self::Completed,
            RolloutState::Failed => Self::Failed,
            RolloutState::Superseded => Self::Superseded,
        }
    }
}

fn rollout_state(number: i32) -> Result<RolloutState, DecodeError> {
    use wire::RolloutState as Wire;
    match Wire::try_from(number) {
        Ok(Wire::Progressing) => Ok(RolloutState::Progressing),
        Ok(Wire::Paused) => Ok(RolloutState::Paused),
        Ok(Wire::RollingBack) => Ok(RolloutState::RollingBack),
        Ok(Wire::RolledBack) => Ok(RolloutState::RolledBack),
        Ok(Wire::Completed) => Ok(RolloutState::Completed),
        Ok(Wire::Failed) => Ok(RolloutState::Failed),
        Ok(Wire::Superseded) => Ok(RolloutState::Superseded),
        Ok(Wire::Unknown) | Err(_) => known(None, "the state of a rollout"),
    }
}
