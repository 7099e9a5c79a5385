//! The data plane alone: one process, no cluster, apps from a file. The way to measure it, to test it
//! from outside, and to run a single proxy.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use flotilla_proxy::{PrepareError, Proxy, ProxyConfig};
use flotilla_raft_store::GenerationId;
use flotilla_spec::{AppName, AppSpec};

use crate::{
    agent::translate::{self, Here},
    memory,
};

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
        let proxy = Proxy::start(ProxyConfig { give_back: memory::give_back, ..config })?;
        let here = Here { traffic_address: None, certificates };
        Ok(Self { proxy, here, serving: BTreeMap::new(), last: GenerationId(0) })
    }

    /// Serves exactly `apps` from now on. All of them are prepared before the first one shifts, so a
    /// port that cannot be had changes nothing. Apps that did not change are left alone.
    ///
    /// A host may move from one app to another: who gives it up is prepared before who takes it, and serves behind it, so
    /// that it is somebody's all the time. Two apps that exchange hosts take two steps.
    pub async fn apply(&mut self, apps: Vec<AppSpec>) -> Result<Applied, ApplyError> {
        let changed: Vec<AppSpec> = apps
            .iter()
            .filter(|app| self.serving.get(&app.name).is_none_or(|(_, old)| old != *app))
            .cloned()
            .collect();
        let gone = self.serving.keys().filter(|name| !apps.iter().any(|app| app.name == **name)).cloned();
        let mut applied = Applied { changed: Vec::new(), removed: gone.collect() };
        let prepared = self.prepare_all(changed, &applied.removed).await?;
        for (name, generation, app) in prepared.into_iter().rev() {
            self.proxy.serve(name.as_str(), generation.0).expect("it was prepared above");
            if let Some((old, _)) = self.serving.insert(name.clone(), (generation, app)) {
                self.forget(&name, old, None);
            }
            applied.changed.push(name);
        }
        applied.changed.sort_unstable();
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

    /// All of them or none, those that give something up before those that take it. Whatever is held by apps that are
    /// `gone` is let go where somebody wants it.
    async fn prepare_all(
        &mut self,
        apps: Vec<AppSpec>,
        gone: &[AppName],
    ) -> Result<Vec<(AppName, GenerationId, AppSpec)>, ApplyError> {
        let (mut prepared, mut left, mut is_let_go) = (Vec::new(), apps, gone.is_empty());
        let refused = loop {
            let (mut waiting, mut refused) = (Vec::new(), None);
            let before = left.len();
            for app in left {
                self.last = GenerationId(self.last.0 + 1);
                match self.prepare(&app, self.last).await {
                    Ok(()) => prepared.push((app.name.clone(), self.last, app)),
                    Err(err) => {
                        refused.get_or_insert(err);
                        waiting.push(app);
                    }
                }
            }
            match refused {
                None => return Ok(prepared),
                Some(ApplyError::Prepare { source: PrepareError::Taken(_), .. })
                    if waiting.len() < before => {}
                Some(ApplyError::Prepare { source: PrepareError::Taken(_), .. }) if !is_let_go => {
                    is_let_go = true;
                    for name in gone {
                        let (generation, _) = self.serving[name];
                        self.proxy.drain(name.as_str(), generation.0).expect("it serves");
                    }
                }
                Some(err) => break err,
            }
            left = waiting;
        };
        for (name, generation, _) in &prepared {
            self.forget(name, *generation, None);
        }
        for name in gone {
            let (generation, _) = self.serving[name];
            self.proxy.serve(name.as_str(), generation.0).expect("it has served until now");
        }
        Err(refused)
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
