//! Memory that runs short: new connections are turned away before the kernel ends the process and with it all others.
//!
//! Sampled on the control side; a worker reads one flag per connection. What counts is anonymous memory, which is what
//! connections and their buffers are made of: mapped files can be read again, and are not what a process dies of.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

/// Between two looks. A reading costs some ten microseconds.
pub(crate) const SAMPLE: Duration = Duration::from_millis(100);
/// Percent of the budget from which nobody new comes in, and below which they do again. The gap is what the connections
/// that end in the meantime give back; without it every second one would be turned away.
const FULL_PERCENT: u64 = 95;
const RELIEVED_PERCENT: u64 = 90;

/// Whether new connections are turned away.
pub(crate) struct Overload {
    is_on: AtomicBool,
    /// In bytes; `None` = no limit.
    pub(crate) budget: Option<u64>,
}

impl Overload {
    /// `budget`: in bytes; 0 = no limit, `None` = what this process may have.
    pub(crate) fn new(budget: Option<u64>) -> Overload {
        let budget = budget.or_else(available).filter(|budget| *budget > 0);
        Overload { is_on: AtomicBool::new(false), budget }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Relaxed)
    }

    /// Looks once.
    pub(crate) fn sample(&self) {
        let (Some(budget), Some(used)) = (self.budget, used()) else { return };
        let was = self.is_on();
        let is = is_full(was, used, budget);
        self.is_on.store(is, Relaxed);
        crate::metrics::memory(used, budget, is);
        match (was, is) {
            (false, true) => tracing::warn!(used, budget, "memory runs short: turning new connections away"),
            (true, false) => tracing::info!(used, budget, "memory is enough again: taking new connections"),
            (false, false) | (true, true) => {}
        }
    }
}

/// PURE.
fn is_full(was: bool, used: u64, budget: u64) -> bool {
    let percent = if was { RELIEVED_PERCENT } else { FULL_PERCENT };
    u128::from(used) * 100 >= u128::from(budget) * u128::from(percent)
}

/// Anonymous memory of this process, in bytes. `None` where the system does not say.
fn used() -> Option<u64> {
    field(&std::fs::read_to_string("/proc/self/status").ok()?, "RssAnon:")
}

/// What this process may have: the least of the machine's memory and the bounds of its control groups.
fn available() -> Option<u64> {
    let machine = field(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let bounds = group_files(&groups).into_iter().filter_map(|file| {
        // `max` is no number, and no bound.
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    });
    Some(bounds.fold(machine, u64::min))
}

/// `Name:   123 kB` in bytes (proc(5)). PURE.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Where the bounds of the groups of a process are, from its own to the outermost (cgroups(7)). PURE.
fn group_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|one| one == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = Path::new(group.trim_start_matches('/'));
        files.extend(group.ancestors().map(|group| Path::new(root).join(group).join(name)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_at_one_mark_and_ends_at_a_lower_one() {
        let mut is_on = false;
        for (used, expected) in [
            (0, false),
            (949, false),
            (950, true),
            (949, true),
            (900, true),
            (899, false),
            (949, false),
            (2000, true),
        ] {
            is_on = is_full(is_on, used, 1000);
            assert_eq!(is_on, expected, "{used}");
        }
        assert!(is_full(false, u64::MAX, u64::MAX), "no overflow");
    }

    #[test]
    fn sizes_are_read_in_bytes() {
        let status = "Name:\tx\nVmRSS:\t   9 kB\nRssAnon:\t    1234 kB\nRssFile:\t 5 kB\n";
        assert_eq!(field(status, "RssAnon:"), Some(1234 * 1024));
        assert_eq!(field(status, "RssShmem:"), None);
        assert_eq!(field("RssAnon: many kB\n", "RssAnon:"), None);
    }

    #[test]
    fn the_bounds_of_all_groups_around_a_process_count() {
        let files = |groups: &str| -> Vec<String> {
            group_files(groups).iter().map(|file| file.display().to_string()).collect()
        };
        assert_eq!(
            files("0::/a.slice/b\n"),
            [
                "/sys/fs/cgroup/a.slice/b/memory.max",
                "/sys/fs/cgroup/a.slice/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        assert_eq!(files("3:cpu:/x\n2:blkio,memory:/\n"), ["/sys/fs/cgroup/memory/memory.limit_in_bytes"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_less_than_it_may() {
        assert!(used().unwrap() > 0);
        assert!(used().unwrap() < available().unwrap());
        assert_eq!(Overload::new(Some(0)).budget, None);
        assert_eq!(Overload::new(Some(7)).budget, Some(7));
    }
}
