//! The meter of HTTP/2 frames, which sees them in the pieces in which they arrive.

use super::Choices;
use crate::{
    config::Http2Limits,
    http::h2::meter::{Breach, Meter, PREFACE_BYTES, WINDOW_MILLIS},
};

/// Pieces of any size at any time, against a look at whole frames.
pub fn h2_meter(data: &[u8]) {
    let mut choices = Choices(data);
    let (piece, pace) = (1 + choices.below(64), u64::from(choices.byte()) * 4);
    let bytes = choices.0;
    let limits = Http2Limits { resets: 5, pings: 7, settings: 9, ..Http2Limits::default() };
    let mut meter = Meter::new(&limits);
    let got =
        (0_u64..).zip(bytes.chunks(piece)).find_map(|(number, piece)| meter.see(piece, number * pace).err());
    assert_eq!(got, whole(bytes, |at| (at / piece) as u64 * pace), "in pieces of {piece}");
}

/// `time` of the byte at that place, in milliseconds.
fn whole(bytes: &[u8], time: impl Fn(usize) -> u64) -> Option<Breach> {
    let mut at = PREFACE_BYTES;
    let (mut since, mut counts) = (None, [0; 3]);
    while let Some([a, b, c, kind, flags, ..]) = bytes.get(at..at + 9) {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let asks = flags & 1 == 0;
        if at == PREFACE_BYTES && !(*kind == 4 && asks) {
            return Some(Breach::NoSettings);
        }
        let fits = match (kind, asks) {
            (2, _) => length == 5,
            (3 | 8, _) => length == 4,
            (6, _) => length == 8,
            (4, true) => length % 6 == 0,
            (4, false) => length == 0,
            _ => true,
        };
        if !fits {
            return Some(Breach::FrameSize);
        }
        let counted = match (kind, asks) {
            (3, _) => Some((0, Breach::Resets)),
            (6, true) => Some((1, Breach::Pings)),
            (4, true) => Some((2, Breach::Settings)),
            _ => None,
        };
        if let Some((place, breach)) = counted {
            let now = time(at + 8);
            if since.is_none_or(|since| now - since >= WINDOW_MILLIS) {
                (since, counts) = (Some(now), [0; 3]);
            }
            counts[place] += 1;
            if counts[place] > [5, 7, 9][place] {
                return Some(breach);
            }
        }
        at += 9 + length;
    }
    None
}
