//! The replicated value: `Fleet::apply(index, &Command) -> Answer`, pure and total.
//!
//! Reads no clock, no randomness and no hash order, and cannot fail the process: a command that
//! makes no sense is answered with a `Rejection` and changes nothing. All that is large is persistent: a
//! copy shares all with its original, a change copies the few tree nodes on its way, and `OrdMap::diff`
//! of two versions of a fleet passes over what they share. So a change costs the same among 10,000 apps.
//!
//! What each part means, and which commands change it, is in the file of that part: `app` (apps and
//! their generations), `assignment` (what a node is asked), `rollout`, `scale`, `member`, `presence`, `drain`, `port`,
//! `balancer`.

use std::{collections::BTreeMap, sync::Arc};

use flotilla_spec::AppName;
use imbl::{OrdMap, Vector};
use sha2::{Digest as _, Sha256};

use crate::{Change, Command, Rejection, Reply, RequestId, Transition};

mod app;
mod assignment;
mod balancer;
mod check;
mod difference;
mod drain;
mod id;
mod member;
mod port;
mod presence;
mod rollout;
mod scale;

pub use app::{App, Cause, Generation, GenerationState, HistoryEntry, spec_digest};
pub use assignment::{Assignment, Desired, Traffic, traffic};
pub use balancer::{BALANCERS_MAX, Balancer, BalancerKind, Haproxy};
pub use drain::{DRAIN_DEADLINE, DRAIN_QUIET, Drain, DrainPhase};
pub use id::{ClusterId, GenerationId, NodeId, Timestamp};
pub use member::{Availability, Member};
pub use port::Holders;
pub use presence::{Absence, Presence};
pub use rollout::{Promotion, Rollout, RolloutState, Steer, Step};
pub use scale::{Scale, ScaledBy};

/// Versions of an app that `history` shows and `rollback --to` can reach.
pub const HISTORY_MAX: usize = 10;
/// Events kept for `events`; the oldest are forgotten.
pub const EVENTS_MAX: usize = 1_000;
/// Of the text of one event; the rest of a longer one is cut off.
pub const EVENT_BYTES_MAX: usize = 1 << 10;
/// Clients whose last request is remembered; the one that wrote least recently is forgotten.
pub const CLIENTS_MAX: usize = 1_024;
/// Apps per region (limits of the product, not of the data structure).
pub const APPS_MAX: usize = 10_000;
/// What the fields of a fleet mean. A node refuses a fleet of another version.
pub const SCHEMA_VERSION: u32 = 1;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fleet {
    /// Log index of the last command applied.
    pub index: u64,
    pub cluster: Cluster,
    pub members: OrdMap<NodeId, Arc<Member>>,
    /// Members that are away.
    pub absences: BTreeMap<NodeId, Absence>,
    pub apps: OrdMap<AppName, Arc<App>>,
    pub generations: OrdMap<(AppName, GenerationId), Arc<Generation>>,
    /// Which apps hold a TCP port of a node. An app keeps a port, and a name there, from the moment a
    /// generation is placed until the last generation that uses it has left the node; what its wanted generation does not
    /// ask for another one may have as well by then.
    pub ports: OrdMap<(NodeId, u16), Arc<Holders>>,
    pub assignments: OrdMap<NodeId, OrdMap<(AppName, GenerationId), Arc<Assignment>>>,
    /// Keyed by the generation a rollout leads to: one rollout per generation, and only the one to an
    /// app's wanted generation may be unfinished. Finished ones stay as long as their generation does.
    pub rollouts: OrdMap<(AppName, GenerationId), Arc<Rollout>>,
    /// By their names.
    pub balancers: BTreeMap<String, Arc<Balancer>>,
    /// Oldest first.
    pub events: Vector<Arc<Event>>,
    pub requests: OrdMap<String, Arc<AnsweredRequest>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Empty until the cluster is initialised.
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
pub struct Event {
    /// Log index. Several events may have the same.
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

pub type Answer = Result<Reply, Rejection>;

/// When a change happens: the only clock that `apply` knows.
#[derive(Clone, Copy)]
struct At {
    index: u64,
    time: Timestamp,
}

impl Fleet {
    pub fn apply(&mut self, index: u64, command: &Command) -> Answer {
        self.index = index;
        if let Some(answer) = command.request.as_ref().and_then(|request| self.answered(request)) {
            return answer;
        }
        let answer = self.change(At { index, time: command.time }, &command.change);
        if let Some(request) = &command.request {
            self.remember(index, request, &answer);
        }
        answer
    }

    /// SHA-256 of the encoded fleet: two replicas at the same index have the same digest.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(crate::codec::encode_fleet(self)).into()
    }

    fn change(&mut self, at: At, change: &Change) -> Answer {
        let initialised = !self.cluster.id.0.is_empty();
        if !initialised && !matches!(change, Change::InitCluster { .. }) {
            return Err(Rejection::NotInitialised);
        }
        match change {
            Change::InitCluster { id, name, member } => self.init_cluster(at, id, name, member),
            Change::AddMember { member } => self.add_member(at, NodeId(at.index), member),
            Change::UpdateMember { node, member } => self.update_member(at, *node, member),
            Change::SetAvailability { node, availability } => self.set_availability(at, *node, *availability),
            Change::DrainNode { node, deadline, quiet, leaves, cut } => {
                self.drain_node(at, *node, (*deadline, *quiet), *leaves, *cut)
            }
            Change::ApplyApps { apps } => self.apply_apps(at, apps),
            Change::DeleteApp { app, if_version } => self.delete_app(at, app, *if_version),
            Change::Rollback { app, to, if_version, placed } => {
                self.roll_back_app(at, app, *to, *if_version, placed)
            }
            Change::Steer { app, if_version, steer } => {
                self.steer(at, app, *if_version, *steer)?;
                Ok(Reply::Done)
            }
            Change::ScaleApp { app, replicas, if_version } => self.scale_app(at, app, *replicas, *if_version),
            Change::PutBalancer { name, balancer, replace } => {
                self.put_balancer(at, name, balancer, *replace)
            }
            Change::RemoveBalancer { name } => self.remove_balancer(at, name),
            Change::TakeControl { term, node } => self.take_control(at, *term, *node),
            Change::Coordinate { term, transition } => {
                let current = self.cluster.controller.term;
                if *term != current {
                    return Err(Rejection::StaleTerm { proposed: *term, current });
                }
                self.coordinate(at, transition)
            }
        }
    }

    fn coordinate(&mut self, at: At, transition: &Transition) -> Answer {
        match transition {
            Transition::Advance { app, generation, steps, why } => {
                self.advance(at, app, *generation, steps, why)
            }
            Transition::Complete { app, generation } => self.complete(at, app, *generation),
            Transition::RollBack { app, generation, reason } => self.turn_back(at, app, *generation, reason),
            Transition::RolledBack { app, generation, missing } => {
                self.rolled_back(at, app, *generation, missing)
            }
            Transition::Pause { app, generation, reason } => self.pause(at, app, *generation, reason),
            Transition::Assign { node, app, generation, desired } => {
                self.assign(at, *node, app, *generation, *desired)
            }
            Transition::Forget { node, app, generation } => self.forget(at, *node, app, *generation),
            Transition::Place { app, generation, node } => self.place(at, app, *generation, *node),
            Transition::Note { app, node, message } => self.note(at, app, *node, message),
            Transition::ChoosePorts { node, app, generation, taken } => {
                self.choose_other_ports(at, *node, app, *generation, taken)
            }
            Transition::AdvanceDrain { node, phase, why } => self.advance_drain(at, *node, *phase, why),
            Transition::TellPresence { node, presence, why } => self.tell_presence(at, *node, *presence, why),
            Transition::Scale { app, replicas, short, reason } => {
                self.autoscale(at, app, *replicas, *short, reason)
            }
        }?;
        Ok(Reply::Done)
    }

    fn note(&mut self, at: At, app: &AppName, node: NodeId, message: &str) -> Result<(), Rejection> {
        if !self.apps.contains_key(app) {
            return Err(Rejection::NoSuchApp { app: app.clone() });
        }
        let what = format!("node {}: {message}", self.node_name(node));
        self.record(at, Some(app), Some(node), what);
        Ok(())
    }

    fn answered(&self, request: &RequestId) -> Option<Answer> {
        let last = self.requests.get(&request.client)?;
        match request.sequence.cmp(&last.sequence) {
            std::cmp::Ordering::Equal => Some(last.answer.clone()),
            std::cmp::Ordering::Less => Some(Err(Rejection::StaleRequest {
                client: request.client.clone(),
                sequence: request.sequence,
            })),
            std::cmp::Ordering::Greater => None,
        }
    }

    fn remember(&mut self, index: u64, request: &RequestId, answer: &Answer) {
        if !self.requests.contains_key(&request.client)
            && self.requests.len() >= CLIENTS_MAX
            && let Some(oldest) = self.requests.iter().min_by_key(|(_, last)| last.index)
        {
            let client = oldest.0.clone();
            self.requests.remove(&client);
        }
        let answered = AnsweredRequest { sequence: request.sequence, answer: answer.clone(), index };
        self.requests.insert(request.client.clone(), Arc::new(answered));
    }

    fn record(&mut self, at: At, app: Option<&AppName>, node: Option<NodeId>, mut message: String) {
        if message.len() > EVENT_BYTES_MAX {
            let end = (0..=EVENT_BYTES_MAX - '…'.len_utf8()).rev().find(|end| message.is_char_boundary(*end));
            message.truncate(end.unwrap_or(0));
            message.push('…');
        }
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        let event = Event { index: at.index, time: at.time, app: app.cloned(), node, message };
        self.events.push_back(Arc::new(event));
    }
}
