//! Numbers and times as people read them.

use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};

/// `0:38`, `1:02:09`.
pub(crate) fn clock(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// `1.2s`, for waits that should be short.
pub(crate) fn seconds(elapsed: Duration) -> String {
    format!("{:.1}s", elapsed.as_secs_f64())
}

/// The two largest units: `4d2h`, `3m12s`, `0s`.
pub(crate) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    let units =
        [(seconds / 86400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = units.iter().position(|(count, _)| *count > 0).unwrap_or(units.len() - 1);
    units[first..]
        .iter()
        .take(2)
        .enumerate()
        .filter(|(position, (count, _))| *position == 0 || *count > 0)
        .map(|(_, (count, unit))| format!("{count}{unit}"))
        .collect()
}

/// `11.2MiB`.
#[allow(clippy::cast_precision_loss, reason = "one decimal is shown")]
pub(crate) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for larger in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{bytes}B") } else { format!("{value:.1}{unit}") }
}

/// A moment of the fleet's clock, in the zone of the reader.
pub(crate) fn moment(ms: u64, zone: &TimeZone) -> String {
    timestamp(ms).to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The same for programs: RFC 3339, UTC.
pub(crate) fn rfc3339(ms: u64) -> String {
    format!("{:.3}", timestamp(ms))
}

pub(crate) fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// A clock that is far off (year 10000) must not end the command.
fn timestamp(ms: u64) -> Timestamp {
    i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_read_well() {
        assert_eq!(clock(Duration::from_secs(38)), "0:38");
        assert_eq!(clock(Duration::from_secs(3729)), "1:02:09");
        assert_eq!(seconds(Duration::from_millis(1249)), "1.2s");
        for (ms, text) in [(0, "0s"), (999, "0s"), (192_000, "3m12s"), (180_000, "3m"), (352_800_000, "4d2h")]
        {
            assert_eq!(age(ms), text);
        }
        for (count, text) in [(0, "0B"), (1023, "1023B"), (11_744_051, "11.2MiB"), (1 << 40, "1024.0GiB")] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(moment(0, &TimeZone::UTC), "1970-01-01 00:00:00");
        assert_eq!(rfc3339(1_748_779_200_123), "2025-06-01T12:00:00.123Z");
        assert_eq!(plural(1, "node"), "1 node");
        assert_eq!(plural(3, "node"), "3 nodes");
    }

    #[test]
    fn a_clock_that_is_far_off_is_shown_and_does_not_panic() {
        assert!(rfc3339(u64::MAX).starts_with("9999-12-"));
    }
}
