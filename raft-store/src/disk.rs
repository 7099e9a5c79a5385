//! The durable half: everything that has to be true of the disk before Raft may be told so.
//!
//! ```text
//! <dir>/lock              one process at a time
//! <dir>/node.a node.b     who this node is, and its vote      (slots)
//! <dir>/mark.a mark.b     how far the log reached, committed  (slots)
//! <dir>/log/              sled                                (engine, chunk)
//! <dir>/snapshots/*.snap  the last two                        (snapshot)
//! ```
//! One thread writes (`writer`). The rules and where they come from stand with the code that keeps them.
//! Nothing here knows what a command means.

mod chunk;
pub(crate) mod engine;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod lock;
mod open;
mod record;
mod slots;
pub(crate) mod snapshot;
mod status;
pub(crate) mod writer;

use std::{fs::File, io, path::Path, sync::Arc};

use tokio::sync::watch;

pub(crate) use self::lock::DirLock;
pub use self::{
    open::{OpenError, Store, StoreOptions},
    record::Identity,
    status::{FsyncObserver, StoreStatus},
};
use crate::{Fleet, log::LogStore, state_machine::StateMachine};

/// A store that was opened, checked, and may take part in Raft.
#[derive(Debug)]
pub struct Opened {
    pub identity: Identity,
    pub log: LogStore,
    pub state_machine: StateMachine,
    /// The applied state. `openraft::Raft::new` replays the log up to what was committed before it
    /// looks for a leader, and every step of that is published here.
    pub fleet: watch::Receiver<Arc<Fleet>>,
    pub status: StoreStatus,
}

/// Makes created, renamed and removed names durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
