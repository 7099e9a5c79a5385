//! Notices workers that make no progress: one of them is a thread that serves nobody.
//!
//! Pure: it is shown the heartbeats and the time.

use std::time::Duration;

use tokio::time::Instant;

/// How long a worker may go without a tick, of which it has ten a second.
const STALL: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct Watchdog(Vec<Seen>);

struct Seen {
    beat: u64,
    since: Instant,
    is_reported: bool,
    /// Looks in a row that saw no beat.
    looks: u32,
}

impl Watchdog {
    /// The workers found stalled now; each stall is reported once.
    pub(crate) fn look(&mut self, beats: impl Iterator<Item = u64>, now: Instant) -> Vec<usize> {
        let mut stalled = Vec::new();
        for (worker, beat) in beats.enumerate() {
            if self.0.len() == worker {
                self.0.push(Seen { beat, since: now, is_reported: false, looks: 0 });
            }
            let seen = &mut self.0[worker];
            if seen.beat != beat {
                *seen = Seen { beat, since: now, is_reported: false, looks: 0 };
                continue;
            }
            seen.looks += 1;
            if !seen.is_reported && now.duration_since(seen.since) >= STALL {
                seen.is_reported = true;
                stalled.push(worker);
            }
        }
        stalled
    }

    /// How often in a row the worker that has stood still for longest was seen so. Counted in looks and
    /// not in time: a process that was stopped as a whole has missed no look.
    pub(crate) fn looks(&self) -> u32 {
        self.0.iter().map(|seen| seen.looks).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_reported_once_and_again_after_progress() {
        let mut watchdog = Watchdog::default();
        let start = Instant::now();
        let mut looks = Vec::new();
        for (second, beats) in [(0, [5, 5]), (1, [5, 6]), (2, [5, 7]), (3, [5, 8]), (4, [6, 9]), (6, [6, 10])]
        {
            looks.push(watchdog.look(beats.into_iter(), start + Duration::from_secs(second)));
        }
        assert_eq!(looks, [vec![], vec![], vec![0], vec![], vec![], vec![0]]);
    }
}
