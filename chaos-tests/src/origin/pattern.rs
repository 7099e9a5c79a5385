//! Bytes of which each tells its own position, so that a lost, doubled or moved piece is found.

/// A prime, so that no power-of-two buffer lies on the same bytes twice in a row.
const PERIOD: usize = 65_521;

/// Yields a stream of any length piece by piece, or compares one with what it should be.
#[derive(Debug)]
pub struct Pattern {
    period: Vec<u8>,
    position: u64,
}

impl Default for Pattern {
    fn default() -> Self {
        // A linear congruential generator with Knuth's constants; its high bits look random.
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        Self { period: (0..PERIOD).map(|_| next()).collect(), position: 0 }
    }
}

impl Pattern {
    /// How many bytes were yielded or found to be right.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes, at most `max` of them; never empty unless `max` is 0.
    pub fn next(&mut self, max: u64) -> &[u8] {
        let piece = self.peek(usize::try_from(max).unwrap_or(usize::MAX));
        self.position += (piece.end - piece.start) as u64;
        &self.period[piece]
    }

    /// `Err`: the position of the first byte that is wrong.
    pub fn check(&mut self, mut bytes: &[u8]) -> Result<(), u64> {
        while !bytes.is_empty() {
            let expected = &self.period[self.peek(bytes.len())];
            let (received, rest) = bytes.split_at(expected.len());
            if received != expected {
                let wrong = received.iter().zip(expected).position(|(a, b)| a != b).expect("they differ");
                return Err(self.position + wrong as u64);
            }
            self.position += received.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    fn peek(&self, max: usize) -> std::ops::Range<usize> {
        let start = usize::try_from(self.position % PERIOD as u64).expect("below PERIOD");
        start..PERIOD.min(start.saturating_add(max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(count: u64) -> Vec<u8> {
        let mut pattern = Pattern::default();
        let mut bytes = Vec::new();
        while pattern.position() < count {
            bytes.extend_from_slice(pattern.next(count - pattern.position()));
        }
        bytes
    }

    #[test]
    fn what_was_yielded_is_right_however_it_is_cut() {
        let bytes = bytes(200_000);
        for size in [1, 1_000, 65_521, 65_536, 200_000] {
            let mut pattern = Pattern::default();
            for piece in bytes.chunks(size) {
                assert_eq!(pattern.check(piece), Ok(()));
            }
            assert_eq!(pattern.position(), 200_000);
        }
    }

    #[test]
    fn a_missing_doubled_or_changed_piece_is_found_where_it_is() {
        let right = bytes(200_000);
        let cases = [
            [&right[..70_000], &right[86_384..]].concat(),
            [&right[..70_000], &right[53_616..70_000], &right[70_000..]].concat(),
            [&right[..70_000], &[!right[70_000]], &right[70_001..]].concat(),
        ];
        for wrong in cases {
            let found = Pattern::default().check(&wrong).unwrap_err();
            assert!((70_000..70_004).contains(&found), "{found}");
        }
    }
}
