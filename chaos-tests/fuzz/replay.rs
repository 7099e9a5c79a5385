//! What the fuzzer does for minutes, for a moment and the same each time: the ordinary tests run each target over its
//! corpus and over mutations of it.
//!
//! A part of the tests of each crate that has targets. `MUTATIONS=100000` tries more of them, `SEED=7` others.

use std::{fs, panic, path::Path};

const INPUT_BYTES_MAX: usize = 4_096;
/// Bytes that mean something to one parser or another.
const SHARP: &[u8] = b"\0\t\n\r \"#%*+,-./0159:;=?AZ[]_az{}\x7f\x80\xc3\xff";

/// SplitMix64: the same everywhere and for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Less than `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("below a usize")
    }

    fn part(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start).min(64) + 1)
    }

    fn mutate(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(input.len() + 1);
        let part = self.part(input.len());
        let (kind, byte) = (self.below(8), self.next().to_le_bytes()[0]);
        match (kind, input.get_mut(at)) {
            (0, Some(there)) => *there ^= 1 << (byte % 8),
            (1, Some(there)) => *there = byte,
            (2, Some(there)) => *there = SHARP[self.below(SHARP.len())],
            (3, _) => input.insert(at, SHARP[self.below(SHARP.len())]),
            (4, _) => drop(input.drain(part)),
            (5, _) => {
                let part = input[part].to_vec();
                input.splice(at..at, part);
            }
            (6, _) => {
                let part = other[self.part(other.len())].to_vec();
                input.splice(at..at, part);
            }
            (7, _) if byte < 32 => input.truncate(at),
            (_, _) => input.insert(at, byte),
        }
        input.truncate(INPUT_BYTES_MAX);
    }
}

/// Runs the target over everything in `chaos-tests/fuzz/corpus/TARGET`, and then over that changed here and there, so
/// many times.
pub(crate) fn replay(target: &str, mutations: u64, run: fn(&[u8])) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let (seed, mutations) = (number("SEED").unwrap_or(1), number("MUTATIONS").unwrap_or(mutations));
    let mut ancestors = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let corpus =
        ancestors.find_map(|root| fs::read_dir(root.join("chaos-tests/fuzz/corpus").join(target)).ok());
    let corpus = corpus.unwrap_or_else(|| panic!("no corpus of `{target}`"));
    let mut paths: Vec<_> = corpus.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "nothing in the corpus of `{target}`");
    let files: Vec<_> = paths.iter().map(|path| fs::read(path).expect("a file that can be read")).collect();
    let checked = |input: &[u8], name: &str| {
        if panic::catch_unwind(|| run(input)).is_err() {
            panic!("`{target}` fails on {name}: b\"{}\"", input.escape_ascii());
        }
    };
    for (path, file) in paths.iter().zip(&files) {
        checked(file, &path.display().to_string());
    }
    let mut random = Random(seed);
    for number in 0..mutations {
        let mut input = files[random.below(files.len())].clone();
        let other = &files[random.below(files.len())];
        for _ in 0..=random.below(4) {
            random.mutate(&mut input, other);
        }
        checked(&input, &format!("mutation {number} with SEED={seed}"));
    }
}
