//! What the generations of a rollout did since a node took its present share.
//!
//! Soft state of the leader: the nodes report totals, and the difference since the step began is what a
//! gate compares. A new leader opens its windows anew, and a bake counts only as far as its window goes,
//! so nothing is promoted by what nobody has seen.

use std::collections::BTreeMap;

use flotilla_proxy::Tally;
use flotilla_raft_store::{Fleet, GenerationId, NodeId, RolloutState, Step, Timestamp};
use flotilla_spec::AppName;

use super::observed::{ObservedNode, Window};

type Tallies = BTreeMap<NodeId, ObservedNode>;

#[derive(Default)]
pub(crate) struct Windows {
    open: BTreeMap<(AppName, NodeId), Open>,
}

struct Open {
    generation: GenerationId,
    /// Of the step: another one opens another window.
    since: Timestamp,
    opened: Timestamp,
    new: Tally,
    /// On every node: where the new generation has a whole node, the old one is compared elsewhere.
    old: BTreeMap<NodeId, Tally>,
}

impl Windows {
    /// The windows as of now, of every node on which one of these apps bakes. Those of other apps are given up.
    pub(crate) fn look<'a>(
        &mut self,
        fleet: &Fleet,
        apps: impl IntoIterator<Item = &'a AppName>,
        reports: &Tallies,
        now: Timestamp,
    ) -> BTreeMap<(AppName, NodeId), Window> {
        let mut known = std::mem::take(&mut self.open);
        let mut windows = BTreeMap::new();
        for app in apps {
            let Some((generation, rollout)) = fleet.newest_rollout(app) else { continue };
            let (RolloutState::Progressing, Some(from)) = (rollout.state, rollout.from) else { continue };
            for (&node, step) in &rollout.steps {
                let Step::Monitoring { since, .. } = *step else { continue };
                let key = (app.clone(), node);
                let old = || -> BTreeMap<NodeId, Tally> {
                    reports.keys().map(|node| (*node, tally(reports, *node, app, from))).collect()
                };
                let new = || tally(reports, node, app, generation);
                let fits = |open: &Open| open.generation == generation && open.since == since;
                let open = known.remove(&key).filter(fits).unwrap_or_else(|| Open {
                    generation,
                    since,
                    opened: now,
                    new: new(),
                    old: old(),
                });
                let mut window = Window {
                    age: now.since(open.opened),
                    new: since_then(&new(), &open.new),
                    old: Tally::default(),
                };
                for (node, now) in old() {
                    let before = open.old.get(&node).cloned().unwrap_or_default();
                    add(&mut window.old, &since_then(&now, &before));
                }
                windows.insert(key.clone(), window);
                self.open.insert(key, open);
            }
        }
        windows
    }
}

fn tally(reports: &Tallies, node: NodeId, app: &AppName, generation: GenerationId) -> Tally {
    let report = reports.get(&node).and_then(|report| report.tallies.get(&(app.clone(), generation)));
    report.cloned().unwrap_or_default()
}

/// Totals that went down are those of a node that has started again.
fn since_then(now: &Tally, then: &Tally) -> Tally {
    if now.requests < then.requests {
        return now.clone();
    }
    let mut latency = now.latency;
    latency.iter_mut().zip(then.latency).for_each(|(now, then)| *now = now.saturating_sub(then));
    Tally {
        requests: now.requests - then.requests,
        errors: now.errors.saturating_sub(then.errors),
        unreached: now.unreached.saturating_sub(then.unreached),
        resets: now.resets.saturating_sub(then.resets),
        latency,
    }
}

fn add(sum: &mut Tally, more: &Tally) {
    sum.requests += more.requests;
    sum.errors += more.errors;
    sum.unreached += more.unreached;
    sum.resets += more.resets;
    sum.latency.iter_mut().zip(more.latency).for_each(|(sum, more)| *sum += more);
}
