//! Counts the frames of a client that cost us more than they cost it, and refuses those whose header is wrong already.
//! And counts the streams that were refused because too many were open, which the h2 crate does by itself.
//!
//! Looks at frame headers as they pass (RFC 9113 §4.1), at the codes of our resets, and at nothing else. Pure.

use crate::config::Http2Limits;

pub(crate) const WINDOW_MILLIS: u64 = 10_000;
pub(crate) const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;

const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const REFUSED_STREAM: u32 = 7;

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breach {
    /// Too many requests begun and given up at once (CVE-2023-44487).
    Resets,
    /// Too many frames that want an answer (CVE-2019-9512, CVE-2019-9515).
    Pings,
    Settings,
    /// A frame of another size than all of its kind have (RFC 9113 §6.3-§6.9).
    FrameSize,
    /// It does not begin with its settings (RFC 9113 §3.4).
    NoSettings,
}

/// Where the frames are in bytes that come in pieces.
struct Frames {
    header: [u8; HEADER_BYTES],
    have: usize,
    /// Bytes before the next header: the preface of a client, then payloads.
    skip: usize,
}

impl Frames {
    fn after(preface: usize) -> Frames {
        Frames { header: [0; HEADER_BYTES], have: 0, skip: preface }
    }

    /// Takes what is there of a payload.
    fn payload<'a>(&mut self, bytes: &mut &'a [u8]) -> &'a [u8] {
        let (payload, rest) = bytes.split_at(self.skip.min(bytes.len()));
        self.skip -= payload.len();
        *bytes = rest;
        payload
    }

    /// Takes what is there of a header, and returns kind and flags when it is whole. `skip` is then the frame's size.
    fn header(&mut self, bytes: &mut &[u8]) -> Option<(u8, u8)> {
        let (taken, rest) = bytes.split_at((HEADER_BYTES - self.have).min(bytes.len()));
        self.header[self.have..self.have + taken.len()].copy_from_slice(taken);
        self.have += taken.len();
        *bytes = rest;
        if self.have < HEADER_BYTES {
            return None;
        }
        self.have = 0;
        let [a, b, c, kind, flags, ..] = self.header;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        Some((kind, flags))
    }
}

pub(crate) struct Meter {
    frames: Frames,
    has_begun: bool,
    /// When the window began, in milliseconds.
    since: Option<u64>,
    /// Resets, pings and settings in it, and how many of each there may be.
    counts: [u32; 3],
    max: [u32; 3],
}

impl Meter {
    /// Of the bytes after a TLS handshake or a TCP one, the preface included.
    pub(crate) fn new(limits: &Http2Limits) -> Meter {
        Meter {
            frames: Frames::after(PREFACE_BYTES),
            has_begun: false,
            since: None,
            counts: [0; 3],
            max: [limits.resets, limits.pings, limits.settings],
        }
    }

    /// `now` in milliseconds.
    pub(crate) fn see(&mut self, mut bytes: &[u8], now: u64) -> Result<(), Breach> {
        while !bytes.is_empty() {
            self.frames.payload(&mut bytes);
            if let Some((kind, flags)) = self.frames.header(&mut bytes) {
                self.check(kind, flags)?;
                self.count(kind, flags, now)?;
            }
        }
        Ok(())
    }

    fn check(&mut self, kind: u8, flags: u8) -> Result<(), Breach> {
        let is_settings = kind == SETTINGS && flags & ACK == 0;
        if !std::mem::replace(&mut self.has_begun, true) && !is_settings {
            return Err(Breach::NoSettings);
        }
        let size = self.frames.skip;
        let fits = match kind {
            PRIORITY => size == 5,
            RST_STREAM | WINDOW_UPDATE => size == 4,
            PING => size == 8,
            SETTINGS if is_settings => size.is_multiple_of(6),
            SETTINGS => size == 0,
            _ => true,
        };
        if fits { Ok(()) } else { Err(Breach::FrameSize) }
    }

    fn count(&mut self, kind: u8, flags: u8, now: u64) -> Result<(), Breach> {
        let (at, breach) = match (kind, flags & ACK) {
            (RST_STREAM, _) => (0, Breach::Resets),
            (PING, 0) => (1, Breach::Pings),
            (SETTINGS, 0) => (2, Breach::Settings),
            _ => return Ok(()),
        };
        if self.since.is_none_or(|since| now.saturating_sub(since) >= WINDOW_MILLIS) {
            (self.since, self.counts) = (Some(now), [0; 3]);
        }
        self.counts[at] += 1;
        if self.counts[at] <= self.max[at] { Ok(()) } else { Err(breach) }
    }
}

/// Of the bytes to a client, from the first on.
pub(crate) struct Refusals {
    frames: Frames,
    is_reset: bool,
    /// Of a reset, as far as it is there.
    code: u32,
}

impl Refusals {
    pub(crate) fn new() -> Refusals {
        Refusals { frames: Frames::after(0), is_reset: false, code: 0 }
    }

    /// How many resets with REFUSED_STREAM end in these bytes.
    pub(crate) fn see(&mut self, mut bytes: &[u8]) -> u64 {
        let mut refused = 0;
        while !bytes.is_empty() {
            let payload = self.frames.payload(&mut bytes);
            if self.is_reset {
                self.code = payload.iter().fold(self.code, |code, byte| code << 8 | u32::from(*byte));
                if self.frames.skip == 0 {
                    refused += u64::from(self.code == REFUSED_STREAM);
                    self.is_reset = false;
                }
            }
            if let Some((kind, _)) = self.frames.header(&mut bytes) {
                (self.is_reset, self.code) = (kind == RST_STREAM, 0);
            }
        }
        refused
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

    fn check(frames: &[(u8, u8, usize, usize)], want: Result<(), Breach>) {
        let mut bytes = vec![0; PREFACE_BYTES];
        bytes.extend(frame(SETTINGS, 0, 0));
        for &(kind, flags, length, count) in frames {
            for _ in 0..count {
                bytes.extend(frame(kind, flags, length));
            }
        }
        for piece in [1, 2, 9, 10, bytes.len()] {
            let mut meter = Meter::new(&Http2Limits::default());
            let got = bytes.chunks(piece).try_for_each(|piece| meter.see(piece, 1));
            assert_eq!(got, want, "{frames:?} in pieces of {piece}");
        }
    }

    #[test]
    fn of_our_resets_those_are_counted_that_refuse_a_stream() {
        let reset = |code: u8| [&[0, 0, 4, RST_STREAM, 0, 0, 0, 0, 1][..], &[0, 0, 0, code]].concat();
        // A payload that looks like one is none.
        let data = [&[0, 0, 26, 0, 0, 0, 0, 0, 1][..], &reset(7), &reset(7)].concat();
        let frames = [&frame(SETTINGS, 0, 0), &reset(7), &data, &reset(8), &reset(7), &reset(0)];
        let bytes: Vec<u8> = frames.into_iter().flatten().copied().collect();
        for piece in 1..=bytes.len() {
            let mut refusals = Refusals::new();
            let seen: u64 = bytes.chunks(piece).map(|piece| refusals.see(piece)).sum();
            assert_eq!(seen, 2, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_hundred_of_a_kind_are_fine_and_one_more_is_a_flood() {
        check(&[(RST_STREAM, 0, 4, 100), (PING, 0, 8, 100), (SETTINGS, 0, 0, 99)], Ok(()));
        check(&[(RST_STREAM, 0, 4, 101)], Err(Breach::Resets));
        check(&[(PING, 0, 8, 101)], Err(Breach::Pings));
        check(&[(SETTINGS, 0, 6, 101)], Err(Breach::Settings));
        check(&[(PING, ACK, 8, 500), (SETTINGS, ACK, 0, 500), (0, 0, 200, 500), (1, 4, 30, 500)], Ok(()));
    }

    #[test]
    fn a_frame_of_another_size_than_its_kind_has_is_wrong() {
        for (kind, flags, fits) in
            [(PRIORITY, 0, 5), (RST_STREAM, 0, 4), (WINDOW_UPDATE, 0, 4), (PING, 0, 8), (PING, ACK, 8)]
        {
            check(&[(kind, flags, fits, 1)], Ok(()));
            check(&[(kind, flags, fits - 1, 1)], Err(Breach::FrameSize));
            check(&[(kind, flags, fits + 1, 1)], Err(Breach::FrameSize));
        }
        check(&[(SETTINGS, 0, 12, 1), (SETTINGS, ACK, 0, 1), (0xee, 0, 77, 1)], Ok(()));
        check(&[(SETTINGS, 0, 5, 1)], Err(Breach::FrameSize));
        check(&[(SETTINGS, ACK, 6, 1)], Err(Breach::FrameSize));
    }

    #[test]
    fn it_begins_with_settings() {
        for first in [frame(PING, 0, 8), frame(SETTINGS, ACK, 0), frame(1, 5, 20)] {
            let mut meter = Meter::new(&Http2Limits::default());
            meter.see(&[0; PREFACE_BYTES], 0).unwrap();
            assert_eq!(meter.see(&first, 0), Err(Breach::NoSettings));
        }
    }

    #[test]
    fn a_connection_that_comes_late_has_no_more_of_them_than_the_first() {
        let mut meter = Meter::new(&Http2Limits::default());
        meter.see(&[0; PREFACE_BYTES], 3_600_000).unwrap();
        meter.see(&frame(SETTINGS, 0, 0), 3_600_000).unwrap();
        for n in 0..100 {
            assert_eq!(meter.see(&frame(RST_STREAM, 0, 4), 3_600_000 + n), Ok(()));
        }
        assert_eq!(meter.see(&frame(RST_STREAM, 0, 4), 3_609_999), Err(Breach::Resets));
    }

    #[test]
    fn time_forgives() {
        let mut meter = Meter::new(&Http2Limits::default());
        meter.see(&[0; PREFACE_BYTES], 0).unwrap();
        meter.see(&frame(SETTINGS, 0, 0), 0).unwrap();
        for second in 0..100 {
            for _ in 0..9 {
                meter.see(&frame(PING, 0, 8), second * 1000).unwrap();
            }
        }
    }
}
