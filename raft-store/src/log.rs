//! openraft's log storage: entries and vote, over the writer thread and sled.
//!
//! Writes return when they are durable. Reads run on blocking threads, because sled may have to go to
//! the disk. Every error is fatal to Raft, which is what openraft makes of a `StorageError`.

use std::{
    fmt,
    ops::{Bound, Range, RangeBounds},
    sync::Arc,
};

use openraft::{
    AnyError, ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};

use crate::{
    NodeId, codec,
    disk::{
        DirLock,
        engine::{Engine, EngineError},
        writer::{Op, Poisoned, View, Writer},
    },
    types::{Entry, LogId, StorageError, TypeConfig, Vote},
};

/// What one read for replication returns at most, but for a single larger entry: 64 entries of any size
/// would exceed the 4 MiB of a gRPC message, and that append would then fail for ever.
const READ_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Debug)]
pub struct LogStore {
    engine: Engine,
    writer: Writer,
    /// Last: the directory is unlocked after sled was dropped.
    _lock: Arc<DirLock>,
}

impl LogStore {
    pub(crate) fn new(engine: Engine, writer: Writer, lock: Arc<DirLock>) -> Self {
        Self { engine, writer, _lock: lock }
    }

    async fn read(&self, indexes: Range<u64>, bytes_max: usize) -> Result<Vec<Entry>, StorageError> {
        let begin = self.view().purged.map_or(0, |purged| purged.index + 1);
        let indexes = indexes.start.max(begin)..indexes.end;
        if indexes.is_empty() {
            return Ok(Vec::new());
        }
        let engine = self.engine.clone();
        let (start, subject) = (indexes.start, ErrorSubject::LogIndex(indexes.start));
        let entries = tokio::task::spawn_blocking(move || read(&engine, indexes, bytes_max)).await;
        match entries {
            Ok(Ok(entries)) => Ok(entries),
            Ok(Err(err)) => Err(storage_error(subject, ErrorVerb::Read, err)),
            Err(panic) => {
                let poisoned = self.writer.state().poison(&format!("reading log entry {start}: {panic}"));
                Err(storage_error(subject, ErrorVerb::Read, poisoned))
            }
        }
    }

    /// Lets an entry in only where the log goes on.
    async fn wait_for_place(&self, first: u64) -> Result<(), StorageError> {
        let View { purged, last, .. } = self.view();
        if last.is_some_and(|last| last.index + 1 == first) || (last, purged) == (None, None) {
            return Ok(());
        }
        match purged.map(|purged| (purged, purged.index + 1)) {
            // Hidden from its first moment on.
            Some((_, begin)) if first < begin && last.is_none() => Ok(()),
            Some((purged, begin)) if first == begin => {
                self.writer.purge_allowed(&purged).await.map_err(|err| write_error(ErrorSubject::Logs, err))
            }
            Some(_) | None => {
                let why = format!("entry {first} does not follow {last:?}, purged {purged:?}");
                let poisoned = self.writer.state().poison(&why);
                Err(write_error(ErrorSubject::LogIndex(first), poisoned))
            }
        }
    }

    fn view(&self) -> View {
        self.writer.state().view().clone()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.read(half_open(&range), usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.read(start..end, READ_BYTES_MAX).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let View { purged, last, .. } = self.view();
        let last = last.filter(|last| purged.is_none_or(|purged| purged.index < last.index)).or(purged);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let saved = self.writer.write(Op::Vote(*vote)).await;
        saved.map_err(|err| write_error(ErrorSubject::Vote, err))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.view().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.writer.save_committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.view().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        let mut last = None;
        for entry in entries {
            encoded.push((entry.log_id.index, codec::raft::encode_entry(&entry)));
            last = Some(entry.log_id);
        }
        let Some(last) = last else {
            callback.log_io_completed(Ok(()));
            return Ok(());
        };
        self.wait_for_place(encoded[0].0).await?;
        // openraft 0.9 awaits the callback before it does anything else, so waiting here costs nothing.
        let written = self.writer.write(Op::Append { entries: encoded, last }).await;
        callback.log_io_completed(written.map_err(std::io::Error::other));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let truncated = self.writer.write(Op::Truncate { since: log_id.index }).await;
        truncated.map_err(|err| write_error(ErrorSubject::Log(log_id), err))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.writer.purge(log_id);
        Ok(())
    }
}

fn read(engine: &Engine, indexes: Range<u64>, bytes_max: usize) -> Result<Vec<Entry>, EngineError> {
    let mut entries = Vec::new();
    let mut bytes = 0;
    engine.each(indexes, |index, entry| {
        bytes += entry.len();
        // Never empty: openraft would ask for the same range again, for ever.
        if !entries.is_empty() && bytes > bytes_max {
            return Ok(false);
        }
        let entry =
            codec::raft::decode_entry(&entry).map_err(|source| EngineError::Decode { index, source })?;
        entries.push(entry);
        Ok(true)
    })?;
    Ok(entries)
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

fn write_error(subject: ErrorSubject<NodeId>, err: Poisoned) -> StorageError {
    storage_error(subject, ErrorVerb::Write, err)
}

pub(crate) fn storage_error(
    subject: ErrorSubject<NodeId>,
    verb: ErrorVerb,
    err: impl std::error::Error + 'static,
) -> StorageError {
    StorageIOError::new(subject, verb, AnyError::new(&err)).into()
}
