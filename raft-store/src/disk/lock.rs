//! One process per data directory.
//!
//! An advisory lock that the kernel drops with the process, so a crash leaves nothing to clean up.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::Path,
};

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::watch;

use super::OpenError;

#[derive(Debug)]
pub(crate) struct DirLock {
    /// Before `released`: fields are dropped in order, and the signal must come after the fact.
    _file: Flock<File>,
    _released: watch::Sender<()>,
}

impl DirLock {
    /// The receiver's channel closes when the lock has been let go.
    pub(super) fn acquire(dir: &Path) -> Result<(Self, watch::Receiver<()>), OpenError> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join("lock"))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(OpenError::Locked { dir: dir.to_owned(), pid: owner(file) });
            }
            Err((_, errno)) => return Err(OpenError::Io(errno.into())),
        };
        // Only for the message of the process that comes second.
        file.set_len(0)?;
        file.write_all(std::process::id().to_string().as_bytes())?;
        let (released, closed) = watch::channel(());
        Ok((Self { _file: file, _released: released }, closed))
    }
}

/// `None` in the instant between taking the lock and writing the number.
fn owner(mut file: File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
