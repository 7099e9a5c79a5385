use proptest::prelude::*;

use super::*;

fn join(chunks: impl IntoIterator<Item = (Key, Vec<u8>)>) -> Result<Vec<(u64, Vec<u8>)>, Damage> {
    let mut joiner = Joiner::default();
    let mut entries = Vec::new();
    for (key, value) in chunks {
        entries.extend(joiner.feed(&key, &value)?);
    }
    joiner.finish()?;
    Ok(entries)
}

#[test]
fn chunks_of_every_size_around_the_limit_join_to_what_was_split() {
    for len in [0, 1, CHUNK_BYTES_MAX - 1, CHUNK_BYTES_MAX, CHUNK_BYTES_MAX + 1, 3 * CHUNK_BYTES_MAX + 7] {
        let entry: Vec<u8> = (0..=u8::MAX).cycle().take(len).collect();
        let chunks: Vec<_> = split(7, &entry).collect();
        assert_eq!(chunks.len(), len.div_ceil(CHUNK_BYTES_MAX).max(1));
        assert_eq!(join(chunks), Ok(vec![(7, entry)]), "{len} bytes");
    }
}

#[test]
fn keys_sort_like_indexes_and_parts() {
    let sorted = [key(0, 0), key(0, 1), key(0, 256), key(1, 0), key(255, 0), key(256, 0), key(u64::MAX, 0)];
    assert!(sorted.is_sorted());
    assert_eq!(parse_key(&key(256, 3)), Ok((256, 3)));
    assert_eq!(parse_key(b"purged"), Err(Damage::Key));
}

#[test]
fn a_missing_part_is_noticed_wherever_it_was() {
    let entry = vec![5; 3 * CHUNK_BYTES_MAX];
    for missing in 0..3 {
        let mut chunks: Vec<_> = split(4, &entry).chain(split(5, b"next")).collect();
        chunks.remove(missing);
        assert_eq!(join(chunks), Err(Damage::MissingPart { index: 4 }), "part {missing}");
    }
}

#[test]
fn a_chunk_in_anothers_place_is_noticed() {
    let mut chunks: Vec<_> = split(1, b"one").chain(split(2, b"two")).collect();
    chunks[1].1 = chunks[0].1.clone();
    assert_eq!(join(chunks), Err(Damage::Checksum { index: 2, part: 0 }));
}

proptest! {
    #[test]
    fn no_flipped_bit_goes_unnoticed(
        entry in proptest::collection::vec(any::<u8>(), 0..300),
        byte in any::<prop::sample::Index>(),
        bit in 0..8,
    ) {
        let mut chunks: Vec<_> = split(9, &entry).collect();
        let byte = byte.index(chunks[0].1.len());
        chunks[0].1[byte] ^= 1_u8 << bit;
        prop_assert!(join(chunks).is_err());
    }
}
