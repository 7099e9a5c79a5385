//! Everything that can be written to the log, and every answer.

use std::time::Duration;

use flotilla_spec::{AppName, AppSpec, Replicas};

use crate::fleet::{
    Availability, Balancer, ClusterId, Desired, DrainPhase, GenerationId, Member, NodeId, Presence, Steer,
    Step, Timestamp,
};

/// One log entry: commands of several writers, applied in order, each answered on its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch(pub Vec<Command>);

#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// A command seen before under the same id changes nothing and is answered as the first time.
    pub request: Option<RequestId>,
    /// The leader's clock when it proposed the command.
    pub time: Timestamp,
    pub change: Change,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId {
    pub client: String,
    /// Rises with each request of the client.
    pub sequence: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The first command of a cluster; its node gets id 1.
    InitCluster {
        id: ClusterId,
        name: String,
        member: Member,
    },
    AddMember {
        member: Member,
    },
    /// A node came back with another address, version or label.
    UpdateMember {
        node: NodeId,
        member: Member,
    },
    SetAvailability {
        node: NodeId,
        availability: Availability,
    },
    /// The node gives its traffic up, phase by phase, and is cut off after `deadline`.
    DrainNode {
        node: NodeId,
        deadline: Duration,
        /// How long no session may have begun before the node counts as quiet.
        quiet: Duration,
        /// Out of the cluster afterwards.
        leaves: bool,
        /// Straight to the end: the node is gone already.
        cut: bool,
    },
    /// All or nothing.
    ApplyApps {
        apps: Vec<ApplyApp>,
    },
    DeleteApp {
        app: AppName,
        if_version: Option<u64>,
    },
    /// Makes a new generation from the spec of an earlier version (`None`: the one before the wanted).
    Rollback {
        app: AppName,
        to: Option<u64>,
        if_version: Option<u64>,
        placed: Vec<NodeId>,
    },
    /// A user's word to the rollout of an app.
    Steer {
        app: AppName,
        if_version: Option<u64>,
        steer: Steer,
    },
    /// Overrides the number of replicas of the spec; `None`: the spec's again.
    ScaleApp {
        app: AppName,
        replicas: Option<Replicas>,
        if_version: Option<u64>,
    },
    /// A load balancer outside is told where apps serve from now on.
    PutBalancer {
        name: String,
        balancer: Balancer,
        /// Else a balancer of that name must not exist.
        replace: bool,
    },
    RemoveBalancer {
        name: String,
    },
    /// A new leader takes the rollouts over.
    TakeControl {
        term: u64,
        node: NodeId,
    },
    /// What the coordinator of `term` decided; refused when another term has taken control.
    Coordinate {
        term: u64,
        transition: Transition,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct ApplyApp {
    pub spec: AppSpec,
    /// `Some(0)`: the app must not exist yet.
    pub if_version: Option<u64>,
    /// The nodes that the leader's placement chose.
    pub placed: Vec<NodeId>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Transition {
    /// Moves steps of the rollout to `generation`; the desired state of each node follows its step.
    /// All or nothing. `why`: what let those go on that had baked, for the events.
    Advance { app: AppName, generation: GenerationId, steps: Vec<(NodeId, Step)>, why: String },
    /// Every step is done, but for nodes that are down: the generation serves, all others drain, and
    /// a node that was down is asked to serve it when it returns.
    Complete { app: AppName, generation: GenerationId },
    /// Turn back: nodes return to `from`; without a `from` the rollout just fails.
    RollBack { app: AppName, generation: GenerationId, reason: String },
    /// Every node is back at `from`, or `missing` says which are not: they have had their time.
    RolledBack { app: AppName, generation: GenerationId, missing: String },
    /// Stop where it stands: it may not turn back by itself, or cannot get back. The user decides.
    Pause { app: AppName, generation: GenerationId, reason: String },
    /// One node's desired state for one generation, upwards only and never to serve (Drain, Remove):
    /// for what has been withdrawn, or a node that gives an app back.
    Assign { node: NodeId, app: AppName, generation: GenerationId, desired: Desired },
    /// The node reported the generation removed: forget the assignment and free its ports.
    Forget { node: NodeId, app: AppName, generation: GenerationId },
    /// Placement gained a node for the serving generation, or wants it back from one that gives it up.
    Place { app: AppName, generation: GenerationId, node: NodeId },
    /// Something a node reported that is worth an event and changes nothing else.
    Note { app: AppName, node: NodeId, message: String },
    /// Processes of others have these ports of the node: entries of `listen` that let the cluster
    /// choose get other ones.
    ChoosePorts { node: NodeId, app: AppName, generation: GenerationId, taken: Vec<u16> },
    /// The next phase of a drain.
    AdvanceDrain { node: NodeId, phase: DrainPhase, why: String },
    /// A node went away or came back.
    TellPresence { node: NodeId, presence: Presence, why: String },
    /// What the autoscaler decided, and how many replicas no node has room for.
    Scale { app: AppName, replicas: u32, short: u32, reason: String },
}

impl Transition {
    /// `None`: it is about a node.
    pub fn app(&self) -> Option<&AppName> {
        match self {
            Self::Advance { app, .. }
            | Self::Complete { app, .. }
            | Self::RollBack { app, .. }
            | Self::RolledBack { app, .. }
            | Self::Pause { app, .. }
            | Self::Assign { app, .. }
            | Self::Forget { app, .. }
            | Self::Place { app, .. }
            | Self::ChoosePorts { app, .. }
            | Self::Note { app, .. }
            | Self::Scale { app, .. } => Some(app),
            Self::AdvanceDrain { .. } | Self::TellPresence { .. } => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing to say beyond "done".
    Done,
    Member {
        node: NodeId,
    },
    Apps {
        apps: Vec<AppChanged>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppChanged {
    pub app: AppName,
    pub outcome: Outcome,
    pub version: u64,
    pub generation: GenerationId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Created,
    Changed,
    /// The spec equals the wanted one; nothing was done.
    Unchanged,
    /// Its sessions finish, its nodes give it back, then it is gone.
    Deleted,
}

/// A refusal is an answer: the fleet is as it was before the command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("there is no app `{app}`")]
    NoSuchApp { app: AppName },
    #[error("app `{app}` is at version {actual}, not {expected}")]
    VersionConflict { app: AppName, expected: u64, actual: u64 },
    #[error("port {port} is taken on node {node} by app `{owner}`")]
    PortTaken { port: u16, node: String, owner: AppName },
    #[error("port {port} on node {node}: app `{app}` cannot share it with app `{owner}`: {why}")]
    CannotShare { port: u16, node: String, app: AppName, owner: AppName, why: String },
    #[error("port {port} is reserved on node {node}")]
    PortReserved { port: u16, node: String },
    #[error("node {node} has no free port left in its pool {from}-{to}")]
    PortPoolExhausted { node: String, from: u16, to: u16 },
    #[error("app `{app}` would be placed on no node: {why}")]
    NoPlacement { app: AppName, why: String },
    #[error("app `{app}` has no version {version} in its history")]
    NoSuchVersion { app: AppName, version: u64 },
    #[error("node {node} is the last one of the cluster")]
    LastMember { node: String },
    #[error("there is no node {node}")]
    NoSuchNode { node: NodeId },
    #[error("a node named `{name}` is a member already (id {node})")]
    NameTaken { name: String, node: NodeId },
    #[error("the region has {max} apps, which is the limit")]
    TooManyApps { max: usize },
    #[error("the rollout of app `{app}` cannot be told that: {why}")]
    CannotSteer { app: AppName, why: String },
    #[error("the cluster has been initialised already (id {id})")]
    AlreadyInitialised { id: ClusterId },
    #[error("the cluster has not been initialised")]
    NotInitialised,
    #[error("there is no balancer `{name}`")]
    NoSuchBalancer { name: String },
    #[error("there is a balancer `{name}` already")]
    BalancerExists { name: String },
    #[error("{why}")]
    InvalidBalancer { why: String },
    /// The coordinator that proposed this has been succeeded.
    #[error("term {proposed} is over: term {current} is in control")]
    StaleTerm { proposed: u64, current: u64 },
    /// The fleet has moved on since the coordinator looked.
    #[error("stale: {why}")]
    Stale { why: String },
    /// The same client has sent a later request.
    #[error("request {sequence} of client {client} is older than its last one")]
    StaleRequest { client: String, sequence: u64 },
}
