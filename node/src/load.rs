//! What this node carries, measured at every report: sessions begun, connections, processor time.

use std::{collections::BTreeMap, time::Duration};

use flotilla_proxy::Proxy;
use flotilla_spec::AppName;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};
use tokio::time::Instant;

use crate::rollout::observed::{AppLoad, NodeLoad};

/// Rates are measured over at least this long: less would be noise.
const WINDOW: Duration = Duration::from_secs(1);

pub(crate) struct Meter {
    /// When the present window began, and what had been counted by then.
    since: Instant,
    begun: BTreeMap<AppName, u64>,
    processor: Duration,
    /// As of the last full window.
    rates: BTreeMap<AppName, u64>,
    cpu_percent: u32,
    all_begun: u64,
    quiet_since: Instant,
}

impl Meter {
    pub(crate) fn start() -> Self {
        let now = Instant::now();
        Self {
            since: now,
            begun: BTreeMap::new(),
            processor: processor_time(),
            rates: BTreeMap::new(),
            cpu_percent: 0,
            all_begun: 0,
            quiet_since: now,
        }
    }

    pub(crate) fn measure(&mut self, proxy: &Proxy) -> NodeLoad {
        let now = Instant::now();
        let loads: Vec<_> = proxy
            .loads()
            .into_iter()
            .filter_map(|load| Some((AppName::parse(&load.app).ok()?, load.connections, load.begun)))
            .collect();
        let all_begun = loads.iter().map(|(_, _, begun)| begun).sum();
        if all_begun != self.all_begun {
            (self.all_begun, self.quiet_since) = (all_begun, now);
        }
        let begun = loads.iter().map(|(app, _, begun)| (app.clone(), *begun)).collect();
        self.turn(now, begun);
        let apps = loads.into_iter().map(|(app, connections, _)| {
            let begun_per_second = self.rates.get(&app).copied().unwrap_or(0);
            (app, AppLoad { connections, begun_per_second })
        });
        NodeLoad {
            quiet_for: now.duration_since(self.quiet_since),
            cpu_percent: self.cpu_percent,
            apps: apps.filter(|(_, load)| *load != AppLoad::default()).collect(),
            overloaded: proxy.is_overloaded(),
        }
    }

    /// Begins a new window when the present one is long enough.
    fn turn(&mut self, now: Instant, begun: BTreeMap<AppName, u64>) {
        let window = now.duration_since(self.since);
        if window < WINDOW {
            return;
        }
        let millis = u64::try_from(window.as_millis()).unwrap_or(u64::MAX).max(1);
        self.rates = begun
            .iter()
            .map(|(app, begun)| {
                let before = self.begun.get(app).copied().unwrap_or(0);
                // An app that came back counts from 0 again.
                (app.clone(), begun.saturating_sub(before) * 1000 / millis)
            })
            .collect();
        let processor = processor_time();
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as u128;
        let used = processor.saturating_sub(self.processor).as_millis() * 100;
        self.cpu_percent = u32::try_from(used / (u128::from(millis) * processors)).unwrap_or(100).min(100);
        (self.since, self.begun, self.processor) = (now, begun, processor);
    }
}

/// Of this process, user and system.
fn processor_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use flotilla_proxy::ProxyConfig;

    use super::*;

    #[test]
    fn a_node_says_that_its_memory_runs_short() {
        // No process does with one byte.
        for (memory_budget, expected) in [(Some(1), true), (Some(0), false)] {
            let config = ProxyConfig { workers: 1, memory_budget, ..ProxyConfig::default() };
            let proxy = Proxy::start(config).unwrap();
            assert_eq!(Meter::start().measure(&proxy).overloaded, expected, "{memory_budget:?}");
        }
    }
}
