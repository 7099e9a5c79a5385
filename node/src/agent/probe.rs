//! The user's probes: asked through a generation's own listener, routes and upstreams, before it may
//! serve and while it does. What a series of answers means is decided here; `ask` does the asking.
//!
//! A readiness probe must pass before the generation counts as ready, and spoils the bake when it
//! fails later. A liveness probe is asked only while the generation serves; one that fails during the
//! rollout of its generation turns the rollout back, and one that fails later is reported.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use flotilla_proxy::{Door, Proxy, config::Protocol};
use flotilla_spec::{self as spec, AppName};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Key;
use crate::{
    metrics,
    rollout::observed::{ProbeKind, ProbeReport, ProbeState},
};

mod ask;

/// Probes asked at the same time; the others wait for their turn.
const ASKED_AT_ONCE_MAX: usize = 64;

/// What a node's own file says about probes, and who it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProbeSettings {
    /// The programs that `command` probes may name; `None`: none.
    pub(crate) commands: Option<PathBuf>,
    pub(crate) node: String,
}

/// A series of answers to one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Series {
    rise: u32,
    fall: u32,
    passes: u32,
    failures: u32,
    state: ProbeState,
    detail: String,
}

impl Series {
    fn new(probe: &spec::Probe) -> Self {
        let (rise, fall) = (probe.rise, probe.fall);
        Self { rise, fall, passes: 0, failures: 0, state: ProbeState::Pending, detail: String::new() }
    }

    fn add(&mut self, answer: Result<(), String>) {
        match answer {
            Ok(()) => {
                (self.passes, self.failures) = (self.passes.saturating_add(1), 0);
                if self.passes >= self.rise {
                    self.state = ProbeState::Passing;
                }
                // A probe that rises again keeps its reason until it has risen.
                if self.state == ProbeState::Passing {
                    self.detail.clear();
                }
            }
            Err(why) => {
                (self.passes, self.failures) = (0, self.failures.saturating_add(1));
                if self.failures >= self.fall {
                    self.state = ProbeState::Failing;
                }
                self.detail = why;
            }
        }
    }
}

/// All probes that are asked on this node.
pub(super) struct Probes {
    proxy: Proxy,
    settings: Arc<ProbeSettings>,
    asking: BTreeMap<(Key, usize), DropGuard>,
    tasks: JoinSet<()>,
    turns: Arc<Semaphore>,
    results: Arc<Mutex<Results>>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Results {
    of_probe: BTreeMap<(Key, usize), ProbeReport>,
    changed: BTreeSet<AppName>,
}

impl Probes {
    pub(super) fn new(proxy: Proxy, settings: ProbeSettings) -> Self {
        Self {
            proxy,
            settings: Arc::new(settings),
            asking: BTreeMap::new(),
            tasks: JoinSet::new(),
            turns: Arc::new(Semaphore::new(ASKED_AT_ONCE_MAX)),
            results: Arc::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Fires when an answer changes what is reported.
    pub(super) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The apps of which an answer has changed what is reported since this was called last.
    pub(super) fn take_changed(&self) -> BTreeSet<AppName> {
        std::mem::take(&mut self.results().changed)
    }

    /// Of these apps, asks these and no others from now on. A probe that is asked already goes on as it is.
    pub(super) fn keep(&mut self, apps: &BTreeSet<AppName>, wanted: BTreeMap<(Key, usize), &spec::Probe>) {
        while self.tasks.try_join_next().is_some() {}
        let is_over = |at: &(Key, usize)| apps.contains(&at.0.0) && !wanted.contains_key(at);
        self.asking.retain(|at, _| !is_over(at));
        self.results().of_probe.retain(|at, _| !is_over(at));
        for (at, probe) in wanted {
            if !self.asking.contains_key(&at) {
                self.start(at, probe.clone());
            }
        }
    }

    /// In the order of the spec.
    pub(super) fn of(&self, key: &Key) -> Vec<ProbeReport> {
        let range = (key.clone(), 0)..=(key.clone(), usize::MAX);
        self.results().of_probe.range(range).map(|(_, report)| report.clone()).collect()
    }

    fn results(&self) -> std::sync::MutexGuard<'_, Results> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&mut self, at: (Key, usize), probe: spec::Probe) {
        let first = report(&probe, &Series::new(&probe));
        self.results().of_probe.insert(at.clone(), first);
        let stop = CancellationToken::new();
        let (results, changed, turns) = (self.results.clone(), self.changed.clone(), self.turns.clone());
        let (proxy, settings, stopped) = (self.proxy.clone(), self.settings.clone(), stop.clone());
        self.asking.insert(at.clone(), stop.drop_guard());
        self.tasks.spawn(async move {
            let publish = |report: ProbeReport| {
                let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                // It is not wanted any more once its entry is gone.
                let Some(known) = results.of_probe.get_mut(&at) else { return };
                if *known != report {
                    *known = report;
                    results.changed.insert(at.0.0.clone());
                    drop(results);
                    changed.send_replace(());
                }
            };
            let asked = ask_for_ever(&proxy, &settings, &at.0, &probe, &turns, publish);
            stopped.run_until_cancelled(asked).await;
        });
    }
}

async fn ask_for_ever(
    proxy: &Proxy,
    settings: &ProbeSettings,
    key: &Key,
    probe: &spec::Probe,
    turns: &Semaphore,
    publish: impl Fn(ProbeReport),
) {
    let mut series = Series::new(probe);
    let mut door = None;
    loop {
        let answer = {
            let _turn = turns.acquire().await;
            match open(proxy, key, probe, &mut door) {
                Ok(door) => ask::ask(probe, door.address(), key, settings).await,
                Err(why) => Err(why),
            }
        };
        metrics::probed(key.0.as_str(), &probe.name, answer.is_ok());
        series.add(answer);
        publish(report(probe, &series));
        tokio::time::sleep(jittered(probe.interval)).await;
    }
}

fn open<'a>(
    proxy: &Proxy,
    key: &Key,
    probe: &spec::Probe,
    door: &'a mut Option<Door>,
) -> Result<&'a Door, String> {
    if door.is_none() {
        let protocol = (probe.ask == spec::ProbeType::Http).then_some(Protocol::Http);
        let opened = proxy.open_door(key.0.as_str(), key.1.0, probe.port, protocol);
        *door = Some(opened.map_err(|err| err.to_string())?);
    }
    door.as_ref().ok_or_else(|| "there is no door".to_owned())
}

fn report(probe: &spec::Probe, series: &Series) -> ProbeReport {
    ProbeReport {
        name: probe.name.clone(),
        kind: match probe.kind {
            spec::ProbeKind::Readiness => ProbeKind::Readiness,
            spec::ProbeKind::Liveness => ProbeKind::Liveness,
        },
        state: series.state,
        detail: series.detail.clone(),
    }
}

/// ±10 %, so that a thousand nodes do not ask at the same moment.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_rises_and_falls_as_the_spec_says() {
        let probe = spec::Probe { rise: 2, fall: 3, ..spec::Probe::default() };
        let mut series = Series::new(&probe);
        let mut told = String::new();
        for answer in "+-++--+---+++".chars() {
            series.add(if answer == '+' { Ok(()) } else { Err("no".to_owned()) });
            told.push(match series.state {
                ProbeState::Pending => '?',
                ProbeState::Passing => '+',
                ProbeState::Failing => '-',
            });
            assert_eq!(
                series.detail.is_empty(),
                answer == '+'
                    && series.state != ProbeState::Failing
                    && (series.state == ProbeState::Passing || told.len() == 1),
                "{told}: {series:?}"
            );
        }
        assert_eq!(told, "???++++++--++");
    }
}
