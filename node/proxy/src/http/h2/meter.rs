//! Counts the frames of a client that cost us more than they cost it.
//!
//! Looks at frame headers as they pass (RFC 9113 §4.1) and at nothing else. Pure.

/// Frames of one kind in one window of time.
const FRAMES_MAX: u32 = 100;
const WINDOW_MILLIS: u64 = 10_000;
const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;

const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;

/// What there was too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flood {
    /// Requests begun and given up at once (CVE-2023-44487).
    Resets,
    /// Frames that want an answer (CVE-2019-9512, CVE-2019-9515).
    Pings,
    Settings,
}

pub(crate) struct Meter {
    header: [u8; HEADER_BYTES],
    have: usize,
    /// Bytes to pass over: the preface, then payloads.
    skip: usize,
    since: u64,
    resets: u32,
    pings: u32,
    settings: u32,
}

impl Meter {
    /// Of the bytes after a TLS handshake or a TCP one, the preface included.
    pub(crate) fn new() -> Meter {
        Meter {
            header: [0; HEADER_BYTES],
            have: 0,
            skip: PREFACE_BYTES,
            since: 0,
            resets: 0,
            pings: 0,
            settings: 0,
        }
    }

    /// `now` in milliseconds.
    pub(crate) fn see(&mut self, mut bytes: &[u8], now: u64) -> Result<(), Flood> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEADER_BYTES - self.have).min(bytes.len());
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEADER_BYTES {
                self.have = 0;
                let [a, b, c, kind, flags, ..] = self.header;
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.count(kind, flags, now)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, kind: u8, flags: u8, now: u64) -> Result<(), Flood> {
        let (count, flood) = match (kind, flags & ACK) {
            (RST_STREAM, _) => (&mut self.resets, Flood::Resets),
            (PING, 0) => (&mut self.pings, Flood::Pings),
            (SETTINGS, 0) => (&mut self.settings, Flood::Settings),
            _ => return Ok(()),
        };
        *count += 1;
        if *count <= FRAMES_MAX {
            return Ok(());
        }
        if now.saturating_sub(self.since) < WINDOW_MILLIS {
            return Err(flood);
        }
        (self.since, self.resets, self.pings, self.settings) = (now, 0, 0, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![0, 0, u8::try_from(length).unwrap(), kind, flags, 0, 0, 0, 1];
        // A payload that looks like frames is none.
        bytes.extend(std::iter::repeat_n(RST_STREAM, length));
        bytes
    }

    fn check(frames: &[(u8, u8, usize, usize)], want: Result<(), Flood>) {
        let mut bytes = vec![0; PREFACE_BYTES];
        for &(kind, flags, length, count) in frames {
            for _ in 0..count {
                bytes.extend(frame(kind, flags, length));
            }
        }
        for piece in [1, 2, 9, 10, bytes.len()] {
            let mut meter = Meter::new();
            let got = bytes.chunks(piece).try_for_each(|piece| meter.see(piece, 1));
            assert_eq!(got, want, "{frames:?} in pieces of {piece}");
        }
    }

    #[test]
    fn a_hundred_of_a_kind_are_fine_and_one_more_is_a_flood() {
        check(&[(RST_STREAM, 0, 4, 100), (PING, 0, 8, 100), (SETTINGS, 0, 0, 100)], Ok(()));
        check(&[(RST_STREAM, 0, 4, 101)], Err(Flood::Resets));
        check(&[(PING, 0, 8, 101)], Err(Flood::Pings));
        check(&[(SETTINGS, 0, 6, 101)], Err(Flood::Settings));
        check(&[(PING, ACK, 8, 500), (SETTINGS, ACK, 0, 500), (0, 0, 200, 500), (1, 4, 30, 500)], Ok(()));
    }

    #[test]
    fn time_forgives() {
        let mut meter = Meter::new();
        meter.see(&[0; PREFACE_BYTES], 0).unwrap();
        for second in 0..100 {
            for _ in 0..9 {
                meter.see(&frame(PING, 0, 8), second * 1000).unwrap();
            }
        }
    }
}
