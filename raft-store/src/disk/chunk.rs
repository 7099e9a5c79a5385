//! How a log entry lies in sled: as chunks of at most 4 KiB, each with a format byte and a CRC.
//!
//! sled moves values, and leaf pages that grew by them, out of its log into files of their own that
//! it never syncs. That starts at values of 16 KiB; at 4 KiB no such file was ever seen.

use std::ops::Range;

pub(super) const CHUNK_BYTES_MAX: usize = 4_096;

/// Keys of entries begin with this byte and everything else in the tree does not.
const ENTRY: u8 = b'e';
const FORMAT: u8 = 1;
/// Format byte, CRC, number of parts.
const HEADER_BYTES: usize = 1 + 4 + 2;
const KEY_BYTES: usize = 1 + 8 + 2;

type Key = [u8; KEY_BYTES];

/// Why a chunk, or an entry made of chunks, cannot be what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    #[error("the key of a log chunk is malformed")]
    Key,
    #[error("log entry {index} part {part} is shorter than its header")]
    Short { index: u64, part: u16 },
    #[error("log entry {index} part {part} has the unknown format {format}")]
    Format { index: u64, part: u16, format: u8 },
    #[error("log entry {index} part {part} has a wrong checksum")]
    Checksum { index: u64, part: u16 },
    #[error("log entry {index} lacks a part")]
    MissingPart { index: u64 },
}

/// Big-endian, so that sled's order of bytes is the order of the log.
pub(super) fn key(index: u64, part: u16) -> Key {
    let mut key = [ENTRY; KEY_BYTES];
    key[1..9].copy_from_slice(&index.to_be_bytes());
    key[9..].copy_from_slice(&part.to_be_bytes());
    key
}

/// The keys of all parts of the entries `indexes`.
pub(super) fn keys(indexes: Range<u64>) -> Range<Key> {
    key(indexes.start, 0)..key(indexes.end, 0)
}

pub(super) fn parse_key(key: &[u8]) -> Result<(u64, u16), Damage> {
    match key {
        &[ENTRY, a, b, c, d, e, f, g, h, x, y] => {
            Ok((u64::from_be_bytes([a, b, c, d, e, f, g, h]), u16::from_be_bytes([x, y])))
        }
        _ => Err(Damage::Key),
    }
}

/// The key and value of each part. An entry of no bytes still has one part.
///
/// Panics above 256 MiB, a hundred times what an entry may have.
pub(super) fn split(index: u64, entry: &[u8]) -> impl Iterator<Item = (Key, Vec<u8>)> {
    let parts = entry.len().div_ceil(CHUNK_BYTES_MAX).max(1);
    let parts = u16::try_from(parts).expect("an entry is far smaller than 65,535 chunks");
    (0..parts).map(move |part| {
        let from = usize::from(part) * CHUNK_BYTES_MAX;
        let bytes = &entry[from..entry.len().min(from + CHUNK_BYTES_MAX)];
        let key = key(index, part);
        let mut value = Vec::with_capacity(HEADER_BYTES + bytes.len());
        value.push(FORMAT);
        value.extend(checksum(&key, parts, bytes).to_be_bytes());
        value.extend(parts.to_be_bytes());
        value.extend(bytes);
        (key, value)
    })
}

/// Puts chunks, fed in the order of their keys, together again.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    index: u64,
    parts: u16,
    parts_seen: u16,
    bytes: Vec<u8>,
}

impl Joiner {
    /// Returns an entry's index and bytes with its last chunk.
    pub(super) fn feed(&mut self, key: &[u8], value: &[u8]) -> Result<Option<(u64, Vec<u8>)>, Damage> {
        let (index, part) = parse_key(key)?;
        let (parts, bytes) = open(index, part, key, value)?;
        let mut partial = match self.partial.take() {
            None if part == 0 => Partial { index, parts, parts_seen: 0, bytes: Vec::new() },
            Some(partial) if (partial.index, partial.parts_seen, partial.parts) == (index, part, parts) => {
                partial
            }
            Some(Partial { index, .. }) => return Err(Damage::MissingPart { index }),
            None => return Err(Damage::MissingPart { index }),
        };
        partial.bytes.extend_from_slice(bytes);
        partial.parts_seen += 1;
        if partial.parts_seen == partial.parts {
            return Ok(Some((index, partial.bytes)));
        }
        self.partial = Some(partial);
        Ok(None)
    }

    /// After the last chunk: nothing may be left over.
    pub(super) fn finish(self) -> Result<(), Damage> {
        match self.partial {
            None => Ok(()),
            Some(Partial { index, .. }) => Err(Damage::MissingPart { index }),
        }
    }
}

fn open<'a>(index: u64, part: u16, key: &[u8], value: &'a [u8]) -> Result<(u16, &'a [u8]), Damage> {
    let [format, a, b, c, d, x, y, bytes @ ..] = value else {
        return Err(Damage::Short { index, part });
    };
    if *format != FORMAT {
        return Err(Damage::Format { index, part, format: *format });
    }
    let parts = u16::from_be_bytes([*x, *y]);
    if u32::from_be_bytes([*a, *b, *c, *d]) != checksum(key, parts, bytes) {
        return Err(Damage::Checksum { index, part });
    }
    Ok((parts, bytes))
}

/// Over the key as well, so that a chunk that turns up in another's place is noticed.
fn checksum(key: &[u8], parts: u16, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&parts.to_be_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

#[cfg(test)]
mod tests;
