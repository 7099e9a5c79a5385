//! The way into the log: many writers, one entry.
//!
//! openraft 0.9 syncs the disk once per entry and does nothing else meanwhile. What arrives during that time
//! goes into the next entry together, so the rate of commands grows with their number and the
//! rate of syncs does not.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use flotilla_spec::AppName;
use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{mpsc, oneshot};

use crate::{
    Answer, Batch, Change, Command, NodeId, codec,
    types::{Answers, Raft},
};

/// Commands of one entry.
const COMMANDS_MAX: usize = 256;
/// Bytes of one entry, but for a single larger command.
const ENTRY_BYTES_MAX: usize = 1 << 20;
/// A single command: with everything around it, it must fit into a gRPC message of 4 MiB.
const COMMAND_BYTES_MAX: usize = 3 << 20;
/// Commands that wait for their entry; the next one is refused as `Busy`.
const WAITING_MAX: usize = 1_024;

#[derive(Clone, Copy, Debug)]
pub struct ProposeOptions {
    /// For one entry, from proposing it to its answers. openraft 0.9 may never answer a leader that was deposed.
    pub write_timeout: Duration,
    /// A leader that no quorum has answered for so long proposes nothing.
    pub quorum_timeout: Duration,
}

impl Default for ProposeOptions {
    fn default() -> Self {
        Self { write_timeout: Duration::from_secs(10), quorum_timeout: Duration::from_secs(3) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was proposed.
    #[error("this node is not the leader")]
    NotLeader { leader: Option<NodeId> },
    /// Nothing was proposed: most voters do not answer.
    #[error("the leader has no quorum")]
    NoQuorum,
    /// Nothing was proposed: too many commands wait already.
    #[error("too many changes are waiting")]
    Busy,
    /// Nothing was proposed.
    #[error("a change of {bytes} bytes exceeds the {max} an entry may have")]
    TooLarge { bytes: usize, max: usize },
    /// It may or may not have happened. Look, or send it again under the same request id.
    #[error("the outcome of the change is unknown")]
    Unknown,
    /// Raft has stopped on this node; the process has to exit.
    #[error("raft has stopped: {0}")]
    Fatal(String),
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Proposer {
    waiting: mpsc::Sender<Waiting>,
}

/// Proposes what the `Proposer`s hand over, until the last of them is dropped.
pub struct ProposerTask {
    raft: Raft,
    options: ProposeOptions,
    incoming: mpsc::Receiver<Waiting>,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    command: Command,
    bytes: usize,
    answer: oneshot::Sender<Result<Answer, ProposeError>>,
}

impl Proposer {
    /// The caller runs the task; nothing is proposed without it.
    pub fn new(raft: Raft, options: ProposeOptions) -> (Self, ProposerTask) {
        let (waiting, incoming) = mpsc::channel(WAITING_MAX);
        (Self { waiting }, ProposerTask { raft, options, incoming, waiting: VecDeque::new() })
    }

    /// Returns when the command was applied on this node. Dropping the future before its turn has come
    /// withdraws the command.
    pub async fn propose(&self, command: Command) -> Result<Answer, ProposeError> {
        let (command, bytes) = measure(command);
        if bytes > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes, max: COMMAND_BYTES_MAX });
        }
        let (answer, answered) = oneshot::channel();
        self.waiting.try_send(Waiting { command, bytes, answer }).map_err(|err| match err {
            mpsc::error::TrySendError::Full(_) => ProposeError::Busy,
            mpsc::error::TrySendError::Closed(_) => {
                ProposeError::Fatal("the proposer has stopped".to_owned())
            }
        })?;
        // A task that ends without an answer may have proposed the command.
        answered.await.unwrap_or(Err(ProposeError::Unknown))
    }
}

impl ProposerTask {
    pub async fn run(mut self) {
        loop {
            if self.waiting.is_empty() {
                let Some(first) = self.incoming.recv().await else { return };
                self.waiting.push_back(first);
            }
            while self.waiting.len() < WAITING_MAX {
                let Ok(next) = self.incoming.try_recv() else { break };
                self.waiting.push_back(next);
            }
            self.waiting.retain(|waiting| !waiting.answer.is_closed());
            let batch = take_batch(&mut self.waiting);
            if !batch.is_empty() {
                self.propose(batch).await;
            }
        }
    }

    async fn propose(&self, batch: Vec<Waiting>) {
        let (commands, answers): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|waiting| (waiting.command, waiting.answer)).unzip();
        match self.write(Batch(commands)).await {
            Ok(Answers(results)) => {
                debug_assert_eq!(answers.len(), results.len(), "one answer per command");
                for (answer, result) in answers.into_iter().zip(results) {
                    let _gone = answer.send(Ok(result));
                }
            }
            Err(err) => {
                for answer in answers {
                    let _gone = answer.send(Err(err.clone()));
                }
            }
        }
    }

    async fn write(&self, batch: Batch) -> Result<Answers, ProposeError> {
        self.require_leadership()?;
        let written = tokio::time::timeout(self.options.write_timeout, self.raft.client_write(batch)).await;
        match written {
            Ok(Ok(response)) => Ok(response.data),
            // The same error for "was not the leader" and for "was, and the entry has been cut off since",
            // and a third node may still bring that entry to a quorum.
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Err(ProposeError::Unknown),
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(err)))) => {
                unreachable!("not a membership change: {err}")
            }
            Ok(Err(RaftError::Fatal(fatal))) => Err(ProposeError::Fatal(fatal.to_string())),
            Err(_elapsed) => Err(ProposeError::Unknown),
        }
    }

    /// Asked beforehand, because here it is certain that nothing was proposed.
    fn require_leadership(&self) -> Result<(), ProposeError> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        if let Err(fatal) = &metrics.running_state {
            return Err(ProposeError::Fatal(fatal.to_string()));
        }
        if metrics.current_leader != Some(metrics.id) {
            return Err(ProposeError::NotLeader { leader: metrics.current_leader });
        }
        let silence = metrics.millis_since_quorum_ack.map(Duration::from_millis);
        match silence.is_some_and(|silence| silence > self.options.quorum_timeout) {
            true => Err(ProposeError::NoQuorum),
            false => Ok(()),
        }
    }
}

/// Takes the next entry's commands out of `waiting`, in order, as many as fit.
///
/// Ids come from the log index, so two changes that could make the same kind of id, of one app or of the
/// members, never share an entry. The later one waits, and with it everything of that app behind it. What
/// the coordinator decides makes no ids: all of one round may share an entry.
fn take_batch(waiting: &mut VecDeque<Waiting>) -> Vec<Waiting> {
    let mut batch: Vec<Waiting> = Vec::new();
    let mut bytes = 0;
    let mut seen: BTreeMap<Subject, Sharing> = BTreeMap::new();
    let mut left = VecDeque::new();
    for next in waiting.drain(..) {
        let (sharing, subjects) = subjects(&next.command.change);
        let fits = batch.is_empty() || (batch.len() < COMMANDS_MAX && bytes + next.bytes <= ENTRY_BYTES_MAX);
        let is_free = subjects.iter().all(|subject| match (seen.get(subject), sharing) {
            (None, _) | (Some(Sharing::Yes), Sharing::Yes) => true,
            (Some(Sharing::Yes | Sharing::No), _) => false,
        });
        let joins = fits && is_free;
        let from_here = if joins { sharing } else { Sharing::No };
        seen.extend(subjects.into_iter().map(|subject| (subject, from_here)));
        match joins {
            true => {
                bytes += next.bytes;
                batch.push(next);
            }
            false => left.push_back(next),
        }
    }
    *waiting = left;
    batch
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Members,
    App(AppName),
}

/// Whether changes of the same subject may be in one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    Yes,
    No,
}

fn subjects(change: &Change) -> (Sharing, Vec<Subject>) {
    let subjects = match change {
        Change::InitCluster { .. }
        | Change::AddMember { .. }
        | Change::UpdateMember { .. }
        | Change::SetAvailability { .. }
        | Change::DrainNode { .. } => vec![Subject::Members],
        Change::ApplyApps { apps } => apps.iter().map(|app| Subject::App(app.spec.name.clone())).collect(),
        Change::DeleteApp { app, .. }
        | Change::Rollback { app, .. }
        | Change::Steer { app, .. }
        | Change::ScaleApp { app, .. } => {
            vec![Subject::App(app.clone())]
        }
        Change::PutBalancer { .. } | Change::RemoveBalancer { .. } | Change::TakeControl { .. } => Vec::new(),
        Change::Coordinate { transition, .. } => {
            let subject = transition.app().map_or(Subject::Members, |app| Subject::App(app.clone()));
            return (Sharing::Yes, vec![subject]);
        }
    };
    (Sharing::No, subjects)
}

fn measure(command: Command) -> (Command, usize) {
    let mut batch = Batch(vec![command]);
    let bytes = codec::encode_batch(&batch).len();
    (batch.0.pop().expect("just put there"), bytes)
}

#[cfg(test)]
mod tests;
