//! From the log to the `Fleet`: decode, `Fleet::apply`, publish. Snapshots as files.
//!
//! The fleet is in memory only; the newest snapshot and the log behind it bring it back. A reader
//! of the published value keeps the fleet it got, and the next entry is applied to a copy that shares what it does not change.
//!
//! A snapshot is sent as the bytes of its file: the sender's `RaftNetwork::full_snapshot` gets it open at its
//! beginning, the receiver writes them, in any chunks, to what `Raft::begin_receiving_snapshot` gives it, and
//! hands that to `Raft::install_full_snapshot`. The digest is part of the file, so it covers the way as
//! well, and it is checked before anything is replaced.

use std::{fs::File, io, sync::Arc};

use openraft::{
    EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, storage::RaftStateMachine,
};
use tokio::sync::watch;

use crate::{
    Batch, Fleet,
    codec::{self, DecodeError},
    disk::{
        DirLock,
        snapshot::{self, Contents, SnapshotError, Snapshots},
        writer::{Op, Poisoned, View, Writer},
    },
    log::storage_error,
    types::{Answers, Entry, LogId, Snapshot, SnapshotMeta, StorageError, StoredMembership, TypeConfig},
};

#[derive(Debug)]
pub struct StateMachine {
    state: State,
    publish: watch::Sender<Arc<Fleet>>,
    disk: Disk,
}

/// Writes what the state was when it was made, while the state machine goes on.
#[derive(Debug)]
pub struct SnapshotBuilder {
    state: State,
    disk: Disk,
}

/// All that a snapshot has to bring back.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    fleet: Arc<Fleet>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

#[derive(Clone, Debug)]
struct Disk {
    snapshots: Arc<Snapshots>,
    writer: Writer,
    /// Last: the directory is unlocked after everything else was dropped.
    _lock: Arc<DirLock>,
}

#[derive(Debug, thiserror::Error)]
enum StateError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the fleet in the snapshot cannot be decoded: {0}")]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

impl StateMachine {
    pub(crate) fn new(
        state: State,
        snapshots: Snapshots,
        writer: Writer,
        lock: Arc<DirLock>,
    ) -> (Self, watch::Receiver<Arc<Fleet>>) {
        let (publish, fleet) = watch::channel(state.fleet.clone());
        let disk = Disk { snapshots: Arc::new(snapshots), writer, _lock: lock };
        (Self { state, publish, disk }, fleet)
    }
}

impl State {
    pub(crate) fn restore(contents: Option<Contents>) -> Result<Self, DecodeError> {
        let Some(Contents { meta, body }) = contents else { return Ok(Self::default()) };
        Ok(Self {
            fleet: Arc::new(codec::decode_fleet(&body)?),
            applied: meta.last_log_id,
            membership: meta.last_membership,
        })
    }

    fn apply(&mut self, entry: Entry) -> Answers {
        self.applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Answers::default(),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Answers::default()
            }
            EntryPayload::Normal(Batch(commands)) => {
                let fleet = Arc::make_mut(&mut self.fleet);
                Answers(commands.iter().map(|command| fleet.apply(entry.log_id.index, command)).collect())
            }
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.state.applied, self.state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answers>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let answers = entries.into_iter().map(|entry| self.state.apply(entry)).collect();
        self.publish.send_replace(self.state.fleet.clone());
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { state: self.state.clone(), disk: self.disk.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<tokio::fs::File>, StorageError> {
        let file = self.disk.blocking(ErrorVerb::Write, |disk| Ok(disk.snapshots.receive()?)).await?;
        Ok(Box::new(tokio::fs::File::from_std(file)))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<tokio::fs::File>,
    ) -> Result<(), StorageError> {
        let (meta, file) = (meta.clone(), snapshot.into_std().await);
        let last = meta.last_log_id;
        self.state =
            self.disk.blocking(ErrorVerb::Write, move |disk| install(&disk.snapshots, &meta, file)).await?;
        if let Some(last) = last {
            let raised = self.disk.writer.write(Op::Installed { index: last.index }).await;
            raised.map_err(|err| self.disk.fail(ErrorVerb::Write, err.into()))?;
            self.disk.writer.raise_floor(last.index + 1);
        }
        self.publish.send_replace(self.state.fleet.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let Some(current) = self.disk.snapshots.current() else { return Ok(None) };
        let file = self.disk.blocking(ErrorVerb::Read, move |_| Ok(File::open(current.path)?)).await?;
        Ok(Some(Snapshot { meta: current.meta, snapshot: Box::new(tokio::fs::File::from_std(file)) }))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let state = self.state.clone();
        let (meta, file) = self.disk.blocking(ErrorVerb::Write, move |disk| build(disk, &state)).await?;
        Ok(Snapshot { meta, snapshot: Box::new(tokio::fs::File::from_std(file)) })
    }
}

fn build(disk: &Disk, state: &State) -> Result<(SnapshotMeta, File), StateError> {
    let covered = disk.writer.state().status.log_bytes();
    let body = codec::encode_fleet(&state.fleet);
    let mut meta = SnapshotMeta {
        last_log_id: state.applied,
        last_membership: state.membership.clone(),
        snapshot_id: String::new(),
    };
    meta.snapshot_id = snapshot::id(&meta, &body);
    let file = disk.snapshots.write(&meta, &body)?;
    disk.snapshots.retire_old()?;
    let View { deleted, last, .. } = disk.writer.state().view().clone();
    disk.writer.raise_floor(disk.snapshots.floor(deleted.as_ref(), last.as_ref()));
    disk.writer.state().status.log_covered(covered);
    Ok((meta, file))
}

/// Everything is checked before anything is replaced.
fn install(snapshots: &Snapshots, announced: &SnapshotMeta, file: File) -> Result<State, StateError> {
    let Contents { meta, body } = snapshot::read(file)?;
    if meta != *announced {
        return Err(SnapshotError::Other { expected: announced.to_string(), found: meta.to_string() }.into());
    }
    let state = State::restore(Some(Contents { meta: meta.clone(), body: body.clone() }))?;
    snapshots.write(&meta, &body)?;
    snapshots.retire_all_but_current()?;
    Ok(state)
}

impl Disk {
    /// Runs on a blocking thread. Any failure stops Raft, so it stops the rest of the store with it.
    async fn blocking<T: Send + 'static>(
        &self,
        verb: ErrorVerb,
        work: impl FnOnce(&Self) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let disk = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&disk)).await;
        let done = done.unwrap_or_else(|panic| Err(io::Error::other(panic).into()));
        done.map_err(|err| self.fail(verb, err))
    }

    fn fail(&self, verb: ErrorVerb, err: StateError) -> StorageError {
        self.writer.state().poison(&err);
        storage_error(ErrorSubject::Snapshot(None), verb, err)
    }
}
