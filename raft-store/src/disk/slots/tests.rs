use super::*;

#[derive(Clone, PartialEq, Message)]
struct Number {
    #[prost(uint64, tag = "1")]
    value: u64,
}

fn number(value: u64) -> Number {
    Number { value }
}

fn read(dir: &Path) -> Result<u64, SlotError> {
    Slots::<Number>::read(dir, "n", 1).map(|number| number.value)
}

fn flip(path: &Path, byte: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[byte] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn one_damaged_slot_never_brings_an_older_record_back() {
    for slot in ["n.a", "n.b"] {
        // Every byte of the header, some of the body, one of the padding.
        for byte in (0..HEADER_BYTES + 2).chain([SLOT_BYTES - 1]) {
            let dir = tempfile::tempdir().unwrap();
            let mut slots = Slots::create(dir.path(), "n", 1, &number(1)).unwrap();
            slots.save_both(&number(2)).unwrap();
            slots.save_both(&number(3)).unwrap();
            flip(&dir.path().join(slot), byte);
            assert_eq!(read(dir.path()).unwrap(), 3, "{slot}, byte {byte}");
        }
    }
}

#[test]
fn opening_repairs_a_damaged_or_missing_slot() {
    for slot in ["n.a", "n.b"] {
        let dir = tempfile::tempdir().unwrap();
        Slots::create(dir.path(), "n", 1, &number(8)).unwrap();
        std::fs::remove_file(dir.path().join(slot)).unwrap();
        assert_eq!(Slots::<Number>::open(dir.path(), "n", 1).unwrap().1, number(8));
        let other = if slot == "n.a" { "n.b" } else { "n.a" };
        flip(&dir.path().join(other), 30);
        assert_eq!(read(dir.path()).unwrap(), 8, "{slot} was repaired");
    }
}

#[test]
fn both_slots_damaged_is_an_error_and_not_an_empty_record() {
    let dir = tempfile::tempdir().unwrap();
    Slots::create(dir.path(), "n", 1, &number(1)).unwrap();
    flip(&dir.path().join("n.a"), 20);
    flip(&dir.path().join("n.b"), 0);
    assert!(matches!(read(dir.path()), Err(SlotError::Damaged(_))));
    std::fs::write(dir.path().join("n.a"), []).unwrap();
    std::fs::remove_file(dir.path().join("n.b")).unwrap();
    assert!(matches!(read(dir.path()), Err(SlotError::Damaged(_))));
}

#[test]
fn absent_is_not_damaged() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(read(dir.path()), Err(SlotError::Absent(_))));
}

#[test]
fn a_record_that_was_synced_is_never_overwritten_by_those_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut slots = Slots::create(dir.path(), "n", 1, &number(0)).unwrap();
    for round in 0..4 {
        slots.put(&number(10 * round + 1)).unwrap();
        slots.put(&number(10 * round + 2)).unwrap();
        slots.sync().unwrap();
        let torn = ["n.a", "n.b"][slots.turn];
        slots.put(&number(10 * round + 3)).unwrap();
        assert_eq!(read(dir.path()).unwrap(), 10 * round + 3);
        // As if the power went while the unsynced slot was being written.
        let kept = std::fs::read(dir.path().join(torn)).unwrap();
        flip(&dir.path().join(torn), 25);
        assert_eq!(read(dir.path()).unwrap(), 10 * round + 2);
        std::fs::write(dir.path().join(torn), kept).unwrap();
    }
}

#[test]
fn a_newer_format_is_told_apart_from_damage() {
    let dir = tempfile::tempdir().unwrap();
    Slots::create(dir.path(), "n", 2, &number(1)).unwrap();
    assert!(matches!(read(dir.path()), Err(SlotError::Newer { format: 2, .. })));
}

#[test]
fn a_record_larger_than_a_slot_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let large = vec![1_u8; SLOT_BYTES];
    let result = Slots::create(dir.path(), "n", 1, &large);
    assert!(matches!(result, Err(SlotError::TooLarge { .. })));
}
