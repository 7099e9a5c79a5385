//! Small records in two files each, `name.a` and `name.b`, outside of sled.
//!
//! A slot is a file of one block that is overwritten in place: its size never changes, so
//! `fdatasync` writes one block and no metadata. Each record carries a sequence number and a CRC; the
//! valid record with the highest number counts. Two ways of writing, for two needs:
//!
//! - `save_both` (identity and vote): first one slot durably, then the other. Whichever *single* slot is
//!   damaged later, the other one holds the last record that anybody was told of. One bad slot therefore never
//!   brings an older vote back, which simple alternation would.
//! - `put` + `sync` (the mark): writes to one slot as often as it likes without waiting, and changes slots only
//!   once that one is durable. The record last synced is never overwritten.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    marker::PhantomData,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use prost::Message;

const SLOT_BYTES: usize = 4_096;
const MAGIC: &[u8; 4] = b"flot";
/// Magic, format, CRC, length, sequence.
const HEADER_BYTES: usize = 4 + 1 + 4 + 4 + 8;

#[derive(Debug)]
pub(super) struct Slots<R> {
    files: [File; 2],
    sequence: u64,
    /// The slot that `put` writes to.
    turn: usize,
    format: u8,
    record: PhantomData<R>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SlotError {
    /// Neither file exists.
    #[error("{0} and its twin do not exist")]
    Absent(PathBuf),
    #[error("neither {0} nor its twin holds a valid record")]
    Damaged(PathBuf),
    #[error("{path} has format {format}")]
    Newer { path: PathBuf, format: u8 },
    #[error("record of {bytes} bytes does not fit into a slot")]
    TooLarge { bytes: usize },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl<R: Message + Default> Slots<R> {
    /// Makes both files durably, each with `record`. The caller syncs the directory.
    pub(super) fn create(dir: &Path, name: &str, format: u8, record: &R) -> Result<Self, SlotError> {
        let make =
            |path: PathBuf| OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
        let files = paths(dir, name).map(make);
        let [a, b] = files;
        let mut slots = Self { files: [a?, b?], sequence: 0, turn: 0, format, record: PhantomData };
        slots.save_both(record)?;
        for file in &slots.files {
            file.sync_all()?;
        }
        Ok(slots)
    }

    /// Reads without changing anything, so that it needs no lock.
    pub(super) fn read(dir: &Path, name: &str, format: u8) -> Result<R, SlotError> {
        let (_, _, record) = newest(&paths(dir, name), format)?;
        Ok(record)
    }

    /// Opens for writing and makes a damaged or missing slot good again.
    pub(super) fn open(dir: &Path, name: &str, format: u8) -> Result<(Self, R), SlotError> {
        let paths = paths(dir, name);
        let (slot, sequence, record) = newest(&paths, format)?;
        let open = |path: &PathBuf| {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
        };
        let files = [open(&paths[0])?, open(&paths[1])?];
        // What was read may be in the page cache alone. With the other slot durable, this one may be
        // overwritten next.
        let slots = Self { files, sequence, turn: slot, format, record: PhantomData };
        slots.write(1 - slot, &record)?;
        slots.files[1 - slot].sync_all()?;
        Ok((slots, record))
    }

    /// Durable in both slots when it returns.
    pub(super) fn save_both(&mut self, record: &R) -> Result<(), SlotError> {
        self.sequence += 1;
        for slot in [self.turn, 1 - self.turn] {
            self.write(slot, record)?;
            self.files[slot].sync_data()?;
        }
        Ok(())
    }

    /// In the page cache when it returns: survives the process, not the machine.
    pub(super) fn put(&mut self, record: &R) -> Result<(), SlotError> {
        self.sequence += 1;
        self.write(self.turn, record)
    }

    /// Makes the last `put` durable.
    pub(super) fn sync(&mut self) -> Result<(), SlotError> {
        self.files[self.turn].sync_data()?;
        self.turn = 1 - self.turn;
        Ok(())
    }

    fn write(&self, slot: usize, record: &R) -> Result<(), SlotError> {
        let bytes = encode(self.format, self.sequence, &record.encode_to_vec())?;
        self.files[slot].write_all_at(&bytes, 0)?;
        Ok(())
    }
}

fn paths(dir: &Path, name: &str) -> [PathBuf; 2] {
    ["a", "b"].map(|slot| dir.join(format!("{name}.{slot}")))
}

fn newest<R: Message + Default>(paths: &[PathBuf; 2], format: u8) -> Result<(usize, u64, R), SlotError> {
    let mut best: Option<(usize, u64, R)> = None;
    let mut present = false;
    for (slot, path) in paths.iter().enumerate() {
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(file) => file.take(SLOT_BYTES as u64).read_to_end(&mut bytes)?,
            Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
            Err(err) => return Err(err.into()),
        };
        present = true;
        let Some((found, sequence, body)) = decode(&bytes) else { continue };
        if found > format {
            return Err(SlotError::Newer { path: path.clone(), format: found });
        }
        let Ok(record) = R::decode(body) else { continue };
        if best.as_ref().is_none_or(|(_, newest, _)| *newest < sequence) {
            best = Some((slot, sequence, record));
        }
    }
    best.ok_or_else(|| match present {
        true => SlotError::Damaged(paths[0].clone()),
        false => SlotError::Absent(paths[0].clone()),
    })
}

fn encode(format: u8, sequence: u64, body: &[u8]) -> Result<Vec<u8>, SlotError> {
    let too_large = || SlotError::TooLarge { bytes: body.len() };
    let len = u32::try_from(body.len()).map_err(|_| too_large())?;
    if body.len() > SLOT_BYTES - HEADER_BYTES {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(SLOT_BYTES);
    bytes.extend(MAGIC);
    bytes.push(format);
    bytes.extend([0; 4]);
    bytes.extend(len.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(body);
    bytes.resize(SLOT_BYTES, 0);
    let checksum = checksum(&bytes);
    bytes[5..9].copy_from_slice(&checksum.to_be_bytes());
    Ok(bytes)
}

/// Format, sequence and body. The framing is the same for all formats, so an older binary can tell
/// "newer" from "damaged".
fn decode(bytes: &[u8]) -> Option<(u8, u64, &[u8])> {
    if bytes.len() != SLOT_BYTES || &bytes[..4] != MAGIC {
        return None;
    }
    let stored = u32::from_be_bytes(bytes[5..9].try_into().ok()?);
    let len = usize::try_from(u32::from_be_bytes(bytes[9..13].try_into().ok()?)).ok()?;
    let sequence = u64::from_be_bytes(bytes[13..21].try_into().ok()?);
    let body = bytes.get(HEADER_BYTES..HEADER_BYTES.checked_add(len)?)?;
    (stored == checksum(bytes)).then_some((bytes[4], sequence, body))
}

/// Over the whole slot but for the checksum itself.
fn checksum(slot: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&slot[..5]);
    hasher.update(&slot[9..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests;
