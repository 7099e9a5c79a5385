//! The data plane alone: one process, no cluster, apps from a file. The way to measure it, to test it
//! from outside, and to run a single proxy.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use flotilla_proxy::{PrepareError, Proxy, ProxyConfig};
use flotilla_raft_store::GenerationId;
use flotilla_spec::{AppName, AppSpec};

use crate::agent::translate::{self, Here};

/// A proxy and what it serves.
pub struct Standalone {
    proxy: Proxy,
    here: Here,
    serving: BTreeMap<AppName, (GenerationId, AppSpec)>,
    last: GenerationId,
}

/// What one [`Standalone::apply`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub changed: Vec<AppName>,
    pub removed: Vec<AppName>,
}

/// Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("app `{app}`: {source}")]
    Prepare { app: AppName, source: PrepareError },
    #[error("app `{app}` listens on port 0: without a cluster nobody chooses a port")]
    NoPort { app: AppName },
}

impl Standalone {
    /// `certificates`: where those are that have a name.
    pub fn start(config: ProxyConfig, certificates: PathBuf) -> anyhow::Result<Self> {
        let here = Here { traffic_address: None, certificates };
        Ok(Self { proxy: Proxy::start(config)?, here, serving: BTreeMap::new(), last: GenerationId(0) })
    }

    /// Serves exactly `apps` from now on. All of them are prepared before the first one shifts, so a
    /// port that cannot be had changes nothing. Apps that did not change are left alone.
    pub async fn apply(&mut self, apps: Vec<AppSpec>) -> Result<Applied, ApplyError> {
        let changed: Vec<AppSpec> = apps
            .iter()
            .filter(|app| self.serving.get(&app.name).is_none_or(|(_, old)| old != *app))
            .cloned()
            .collect();
        let mut prepared = Vec::new();
        for app in changed {
            self.last = GenerationId(self.last.0 + 1);
            prepared.push((app.name.clone(), self.last, app.clone()));
            if let Err(err) = self.prepare(&app, self.last).await {
                for (name, generation, _) in &prepared {
                    self.forget(name, *generation, None);
                }
                return Err(err);
            }
        }
        let mut applied = Applied::default();
        for (name, generation, app) in prepared {
            self.proxy.serve(name.as_str(), generation.0).expect("it was prepared above");
            if let Some((old, _)) = self.serving.insert(name.clone(), (generation, app)) {
                self.forget(&name, old, None);
            }
            applied.changed.push(name);
        }
        let gone = self.serving.keys().filter(|name| !apps.iter().any(|app| app.name == **name)).cloned();
        applied.removed = gone.collect();
        for name in &applied.removed {
            if let Some((generation, app)) = self.serving.remove(name) {
                self.forget(name, generation, Some(app.rollout.drain));
            }
        }
        Ok(applied)
    }

    /// Finishes what is under way, for no longer than `drain`.
    pub async fn stop(self, drain: Duration) {
        self.proxy.shutdown(drain).await;
    }

    async fn prepare(&self, app: &AppSpec, generation: GenerationId) -> Result<(), ApplyError> {
        let ports: Vec<u16> = app.listen.iter().map(|listen| listen.port).collect();
        if ports.contains(&0) {
            return Err(ApplyError::NoPort { app: app.name.clone() });
        }
        let config = translate::translate(app, generation, &ports, &self.here);
        self.proxy
            .prepare(config)
            .await
            .map_err(|source| ApplyError::Prepare { app: app.name.clone(), source })
    }

    fn forget(&self, name: &AppName, generation: GenerationId, cut_after: Option<Duration>) {
        // One that could not be prepared is not there; that is what is wanted.
        let _absent = self.proxy.remove(name.as_str(), generation.0, cut_after);
    }
}

#[cfg(test)]
mod tests;
