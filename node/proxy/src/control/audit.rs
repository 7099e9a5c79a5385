//! Does what is served agree with what was decided? Looked at from the workers' end: which slots they
//! accept for, and where those lead.
//!
//! Nothing in the program lets the two drift apart; this is for what nobody thought of.

use std::{collections::BTreeSet, fmt, sync::Arc};

use sha2::{Digest as _, Sha256};

use super::{Effect, Entry, Phase, PortKey, Stage, State, keys};
use crate::generation::Serving;

/// Something that was not as it should be, and has been put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    pub app: Arc<str>,
    pub generation: u64,
    pub port: u16,
    pub kind: DriftKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriftKind {
    /// New sessions and requests of the port went to another generation, or (`None`) to none.
    LedElsewhere { to: Option<u64> },
    /// A worker did not accept on the port.
    NotAccepting { worker: usize },
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { app: _, generation, port, kind } = self;
        match kind {
            DriftKind::LedElsewhere { to: Some(to) } => {
                write!(f, "port {port} led to generation {to} instead of {generation}")
            }
            DriftKind::LedElsewhere { to: None } => {
                write!(f, "port {port} led nowhere instead of to generation {generation}")
            }
            DriftKind::NotAccepting { worker } => {
                write!(f, "worker {worker} did not accept on port {port} of generation {generation}")
            }
        }
    }
}

impl State {
    /// The slots that every worker is to accept for.
    pub(crate) fn listening(&self) -> BTreeSet<u64> {
        self.ports.values().filter(|port| port.stage == Stage::Listening).map(|port| port.slot.id).collect()
    }

    /// Puts right what is wrong with the ports. `expected`: what was listening before the workers were
    /// asked; `accepting`: their answers. What changed meanwhile is left to the next look.
    pub(crate) fn audit(
        &mut self,
        expected: &BTreeSet<u64>,
        accepting: &[Option<BTreeSet<u64>>],
    ) -> (Vec<Drift>, Vec<(usize, Effect)>) {
        let (mut drifts, mut effects) = (Vec::new(), Vec::new());
        for app in self.apps.values() {
            for entry in app.generations.values().filter(|entry| entry.phase == Phase::Serving) {
                for config in &entry.generation.config.ports {
                    let key = (config.address, config.port);
                    let Some(port) = self.ports.get(&key) else { continue };
                    let Some(tenancy) = port.of(&entry.generation.config.app) else { continue };
                    let drift = |kind| Drift {
                        app: Arc::clone(&entry.generation.config.app),
                        generation: entry.generation.config.generation,
                        port: config.port,
                        kind,
                    };
                    if !tenancy.serves(&entry.generation) {
                        let to = tenancy.tenant.serving.load().as_ref().map(number);
                        drifts.push(drift(DriftKind::LedElsewhere { to }));
                        tenancy.tenant.serving.store(app.wanted(key).map(Arc::new));
                    }
                    let is_due = port.stage == Stage::Listening && expected.contains(&port.slot.id);
                    for (worker, accepting) in accepting.iter().enumerate() {
                        let accepts = accepting.as_ref().is_none_or(|slots| slots.contains(&port.slot.id));
                        if is_due && !accepts {
                            drifts.push(drift(DriftKind::NotAccepting { worker }));
                            let (slot, sockets) = (Arc::clone(&port.slot), Arc::clone(&port.sockets));
                            effects.push((worker, Effect::Listen { slot, sockets }));
                        }
                    }
                }
            }
        }
        (drifts, effects)
    }

    /// Of one generation where all its ports lead to it, of what they lead to otherwise.
    pub(super) fn served_digest(&self, entry: &Entry) -> [u8; 32] {
        let own = entry.generation.digest;
        let config = &entry.generation.config;
        let ports = || keys(config).map(|key| self.ports.get(&key)?.of(&config.app));
        let leads_here =
            |port: Option<&super::tenancy::Tenancy>| port.is_some_and(|port| port.serves(&entry.generation));
        if entry.phase != Phase::Serving || ports().all(leads_here) {
            return own;
        }
        let mut hash = Sha256::new();
        for port in ports() {
            let serving = port.map(|port| port.tenant.serving.load());
            let digest = serving.as_ref().and_then(|serving| serving.as_ref());
            hash.update(digest.map_or([0; 32], |serving| serving.generation.digest));
        }
        hash.finalize().into()
    }

    /// For tests: lets a port lead to another generation of its app behind the back of everything.
    pub(crate) fn mislead(&self, key: PortKey, app: &str, number: u64) -> bool {
        let tenancy = self.ports.get(&key).and_then(|port| port.of(app));
        let (Some(tenancy), Some(entry)) = (tenancy, self.entry(app, number)) else { return false };
        let Some(serving) = tenancy.tenant.serving.load_full() else { return false };
        tenancy.tenant.serving.store(Some(Arc::new(Serving {
            generation: Arc::clone(&entry.generation),
            split: None,
            ..Serving::clone(&serving)
        })));
        true
    }
}

fn number(serving: &Arc<Serving>) -> u64 {
    serving.generation.config.generation
}
