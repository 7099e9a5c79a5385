//! Files of the node that a configuration names: reading one, and noticing that it changed.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

/// A chain of certificates is a few kilobytes, a bundle of authorities or ten thousand passwords less than a megabyte.
const BYTES_MAX: u64 = 4 << 20;

/// What tells one state of a file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Print {
    path: PathBuf,
    /// Device, inode, length, time of change in nanoseconds; `None`: it is not there.
    state: Option<(u64, u64, u64, u128)>,
}

impl Print {
    pub(crate) fn of(path: PathBuf) -> Print {
        let state = fs::metadata(&path).ok().map(|about| {
            let since_epoch = |time: SystemTime| {
                time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos())
            };
            let changed = about.modified().map_or(0, since_epoch);
            (about.dev(), about.ino(), about.len(), changed)
        });
        Print { path, state }
    }
}

/// How files were when they were last looked at: for the first time before they are read, so that a change in between is
/// found by the next look.
pub(crate) struct Known(Mutex<Vec<Print>>);

impl Known {
    pub(crate) fn new(prints: Vec<Print>) -> Known {
        Known(Mutex::new(prints))
    }

    /// Whether they are others now. That is remembered before what is in them is known to be good, so that a bad file is
    /// reported once.
    pub(crate) fn differ(&self, now: Vec<Print>) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let differ = *known != now;
        *known = now;
        differ
    }
}

/// The error names the file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let length = fs::metadata(path).map(|about| about.len());
    match length {
        Ok(length) if length > BYTES_MAX => Err(format!("{}: larger than {BYTES_MAX} bytes", path.display())),
        Ok(_) => fs::read(path).map_err(|error| format!("{}: {error}", path.display())),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}
