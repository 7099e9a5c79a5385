//! What else ran on the machine meanwhile.

use std::{fs, time::Instant};

/// Ticks per second in `/proc`, the same on every Linux a program can see (proc(5)).
const TICKS: f64 = 100.0;

pub(crate) struct Others {
    since: Instant,
    busy: f64,
    own: f64,
}

impl Others {
    pub(crate) fn watch() -> Others {
        Others { since: Instant::now(), busy: busy_seconds(), own: own_seconds() }
    }

    /// CPUs that programs other than this one, and those that it started and saw end, have used since.
    pub(crate) fn cpus(&self) -> f64 {
        let others = (busy_seconds() - self.busy) - (own_seconds() - self.own);
        (others / self.since.elapsed().as_secs_f64()).max(0.0)
    }
}

/// Of all CPUs: user, nice, system, irq, softirq.
fn busy_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = ticks.filter_map(|ticks| ticks.parse().ok()).collect();
    [0, 1, 2, 5, 6].iter().filter_map(|&at| ticks.get(at)).sum::<f64>() / TICKS
}

fn own_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name, which may contain anything; utime is field 14, the times of children follow.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(4).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}
