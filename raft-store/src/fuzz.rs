//! What must hold of the bytes of the log and of the disk, whatever they are: the targets that `chaos-tests/fuzz` runs
//! for minutes, and the tests here over its corpus. Not compiled otherwise.

use std::sync::LazyLock;

pub use crate::disk::fuzz::stored_records;
use crate::{Batch, Fleet, codec};

/// One command of each kind, as stores out there hold them.
pub(crate) static EVERY_COMMAND: LazyLock<Vec<u8>> =
    LazyLock::new(|| bytes(include_str!("../testdata/batch.hex")));
/// What they make.
pub(crate) static FLEET: LazyLock<Vec<u8>> = LazyLock::new(|| bytes(include_str!("../testdata/fleet.hex")));

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.bytes().filter_map(|digit| char::from(digit).to_digit(16)?.try_into().ok()).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// A batch that can be read reads back, and two replicas that apply it are the same fleet after each command: one that
/// got it from the log, and one that came by way of a snapshot.
pub fn fleet_commands(data: &[u8]) {
    let Ok(batch) = codec::decode_batch(data) else { return };
    let again = codec::decode_batch(&codec::encode_batch(&batch)).expect("what was written");
    assert_eq!(again, batch);
    let grown = codec::decode_fleet(&FLEET).expect("a fleet of our own");
    for fleet in [Fleet::default(), grown] {
        both(fleet, &batch, &again);
    }
}

fn both(mut first: Fleet, batch: &Batch, again: &Batch) {
    let restore = |fleet: &Fleet| codec::decode_fleet(&codec::encode_fleet(fleet)).expect("what was written");
    let mut second = restore(&first);
    let begin = first.index + 1;
    for (number, (command, same)) in (0_u64..).zip(batch.0.iter().zip(&again.0)) {
        // Two commands in one entry share their index.
        let index = begin + number / 2;
        let before = first.clone();
        let answer = first.apply(index, command);
        assert_eq!(answer, second.apply(index, same), "{command:?}");
        assert_eq!(first, second, "{command:?}");
        assert_eq!(first.check(), Ok(()), "after {command:?}");
        if answer.is_err() {
            let (index, requests) = (first.index, first.requests.clone());
            assert_eq!(
                first,
                Fleet { index, requests, ..before },
                "a refusal changed something: {command:?}"
            );
        }
    }
    assert_eq!(codec::encode_fleet(&first), codec::encode_fleet(&second));
    assert_eq!(restore(&first), first);
}

#[cfg(test)]
#[path = "../../chaos-tests/fuzz/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::{replay::replay, *};

    #[test]
    fn any_commands_leave_two_replicas_the_same() {
        replay("fleet_commands", 3_000, fleet_commands);
    }

    #[test]
    fn what_was_changed_on_its_way_is_noticed_or_the_same() {
        replay("stored_records", 3_000, stored_records);
    }
}
