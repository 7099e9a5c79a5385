//! The replicated value: `Fleet::apply(Command) -> Result<Reply, Rejection>`, pure and total.
//!
//! Reads no clock, no randomness and no hash order, and cannot fail the process: a command that
//! makes no sense is answered with a `Rejection` and changes nothing. Maps hold `Arc`s, so
//! publishing a new `Fleet` copies pointers and not ten thousand specs.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use flotilla_spec::{AppName, AppSpec};

mod id;

pub use id::{ClusterId, GenerationId, NodeId, Timestamp};

/// Versions of an app that `history` shows and `rollback --to` can reach.
pub const HISTORY_MAX: usize = 10;
/// Events kept for `events`; the oldest are forgotten.
pub const EVENTS_MAX: usize = 1_000;
/// Clients whose last request is remembered; the one that wrote least recently is forgotten.
pub const CLIENTS_MAX: usize = 1_024;
/// Apps per region (limits of the product, not of the data structure).
pub const APPS_MAX: usize = 10_000;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fleet {
    /// Log index of the last command applied.
    pub index: u64,
    pub cluster: Cluster,
    pub members: BTreeMap<NodeId, Arc<Member>>,
    pub apps: BTreeMap<AppName, Arc<App>>,
    pub generations: BTreeMap<(AppName, GenerationId), Arc<Generation>>,
    /// Which app holds a TCP port of a node. An app keeps a port from the moment a generation is
    /// placed until the last generation that uses it has left the node.
    pub ports: BTreeMap<(NodeId, u16), AppName>,
    pub assignments: BTreeMap<NodeId, BTreeMap<(AppName, GenerationId), Arc<Assignment>>>,
    /// Keyed by the generation a rollout leads to: one rollout per generation, at most one of an app
    /// unfinished. Finished ones stay as long as their generation does.
    pub rollouts: BTreeMap<(AppName, GenerationId), Arc<Rollout>>,
    pub events: VecDeque<Arc<Event>>,
    pub requests: BTreeMap<String, Arc<AnsweredRequest>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    pub id: ClusterId,
    /// The region, for people.
    pub name: String,
    pub schema_version: u32,
    /// Who may advance rollouts. Commands of an older term change nothing.
    pub controller: Controller,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Controller {
    pub term: u64,
    pub node: NodeId,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Unique among members that have not left.
    pub name: String,
    pub region: String,
    pub zone: String,
    /// `host:port` of the gRPC port, as peers reach it.
    pub cluster_address: String,
    /// `host:port` of the admin HTTP port.
    pub admin_address: String,
    pub labels: BTreeMap<String, String>,
    /// Inclusive range from which `port = 0` is served.
    pub port_pool: (u16, u16),
    /// Ports of the node that apps must not use.
    pub reserved_ports: Vec<u16>,
    pub availability: Availability,
    /// Of the binary that runs there.
    pub binary_version: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Availability {
    Active,
    /// Keeps what it has, gets nothing new.
    Cordoned,
    Draining,
    Left,
}

#[derive(Clone, Debug, PartialEq)]
pub struct App {
    /// What the user asked for last, whether it serves yet or not.
    pub spec: Arc<AppSpec>,
    /// Counts the accepted changes of this app, from 1. What `--if-version` compares.
    pub version: u64,
    /// The generation of `spec`.
    pub wanted: GenerationId,
    /// The generation that last completed a rollout.
    pub serving: Option<GenerationId>,
    /// Oldest first, at most `HISTORY_MAX`, the wanted one included.
    pub history: VecDeque<HistoryEntry>,
    /// Set by a delete: the app disappears when its last assignment is gone.
    pub deleted: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HistoryEntry {
    pub version: u64,
    pub generation: GenerationId,
    pub spec: Arc<AppSpec>,
    pub time: Timestamp,
    pub cause: Cause,
    /// How its rollout ended; `None` while it is under way.
    pub outcome: Option<RolloutState>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    Applied,
    RolledBackTo { version: u64 },
}

/// Immutable but for its state: a change of an app makes a new generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    pub spec: Arc<AppSpec>,
    /// SHA-256 of the spec's canonical form. Nodes report it, so "serves generation 7" can be checked.
    pub digest: [u8; 32],
    pub state: GenerationState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GenerationState {
    Staged,
    Serving,
    Draining,
    Retired,
    Failed,
}

/// What one node is asked to do with one generation. Only moves up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Desired {
    Prepare,
    Serve,
    Drain,
    Remove,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub desired: Desired,
    /// The real port of each entry of `spec.listen`, in its order.
    pub ports: Vec<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// What serves until this one does, and what a rollback returns to.
    pub from: Option<GenerationId>,
    pub state: RolloutState,
    pub steps: BTreeMap<NodeId, Step>,
    pub started: Timestamp,
    /// The last time a step moved. `progress_deadline` of the spec counts from here.
    pub progressed: Timestamp,
    /// Why it failed or went back; empty while all is well.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RolloutState {
    Progressing,
    Paused,
    RollingBack,
    RolledBack,
    Completed,
    Failed,
    /// A later change of the app took its place.
    Superseded,
}

impl RolloutState {
    pub fn is_finished(self) -> bool {
        match self {
            Self::Progressing | Self::Paused | Self::RollingBack => false,
            Self::RolledBack | Self::Completed | Self::Failed | Self::Superseded => true,
        }
    }
}

/// How far one node is in a rollout. Only moves up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Preparing { since: Timestamp },
    Ready,
    /// Asked to serve.
    Shifting { since: Timestamp },
    /// Serves; baking until `min_healthy` has passed.
    Monitoring { since: Timestamp },
    Done,
    Failed { reason: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Log index; the number `events --after` takes.
    pub index: u64,
    pub time: Timestamp,
    pub app: Option<AppName>,
    pub node: Option<NodeId>,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct AnsweredRequest {
    pub sequence: u64,
    pub answer: Answer,
    /// Log index of the answer: what "least recently" means for `CLIENTS_MAX`.
    pub index: u64,
}

pub type Answer = Result<crate::Reply, crate::Rejection>;
