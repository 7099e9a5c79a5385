//! Which apps a round of the coordinator has to look at: among 10,000 those of which something has
//! changed, and those that time alone moves. PURE but for what it remembers of the round before.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use flotilla_raft_store::{Fleet, NodeId};
use flotilla_spec::AppName;
use imbl::ordmap::DiffItem;

use super::observed::{Generations, Observed};

#[derive(Default)]
pub(crate) struct Attention {
    before: Option<Round>,
    /// How far [`Attention::walk`] has come; `None`: it begins anew.
    walked_to: Option<AppName>,
}

/// What a plan is made from, and what it left to do.
struct Round {
    fleet: Arc<Fleet>,
    reports: BTreeMap<NodeId, Generations>,
    liveness: Liveness,
    active: BTreeSet<AppName>,
}

/// Who counts. It matters to every app.
#[derive(PartialEq)]
struct Liveness {
    may_blame: bool,
    live: BTreeSet<NodeId>,
    lost: BTreeSet<NodeId>,
}

impl Round {
    fn new(fleet: Arc<Fleet>, observed: &Observed) -> Self {
        let liveness = Liveness {
            may_blame: observed.may_blame(),
            live: observed.live_members(&fleet),
            lost: observed.lost_members(&fleet),
        };
        let reports = observed.reports.iter().map(|(node, seen)| (*node, seen.generations.clone()));
        Self { fleet, reports: reports.collect(), liveness, active: BTreeSet::new() }
    }

    /// `None`: all apps.
    fn since(&self, before: &Self) -> Option<BTreeSet<AppName>> {
        if before.fleet.members != self.fleet.members || before.liveness != self.liveness {
            return None;
        }
        let mut names = self.fleet.apps_changed_since(&before.fleet);
        names.extend(before.active.iter().cloned());
        let nothing = Generations::new();
        for (node, seen) in &self.reports {
            let known = before.reports.get(node).unwrap_or(&nothing);
            names.extend(known.diff(seen).map(|item| match item {
                DiffItem::Add((app, _), _)
                | DiffItem::Remove((app, _), _)
                | DiffItem::Update { new: ((app, _), _), .. } => app.clone(),
            }));
        }
        Some(names)
    }
}

impl Attention {
    /// What the next plan has to look at; `None`: all apps.
    pub(crate) fn look(&mut self, fleet: &Arc<Fleet>, observed: &Observed) -> Option<BTreeSet<AppName>> {
        let round = Round::new(fleet.clone(), observed);
        let names = self.before.as_ref().and_then(|before| round.since(before));
        self.before = Some(round);
        names
    }

    /// That plan was made, and left something to do for these apps.
    pub(crate) fn planned(&mut self, active: BTreeSet<AppName>) {
        if let Some(round) = &mut self.before {
            round.active = active;
        }
    }

    /// The next so many apps of a walk through all of them, again and again.
    pub(crate) fn walk(&mut self, fleet: &Fleet, apps: usize) -> Vec<AppName> {
        let from = self.walked_to.take().map_or(Bound::Unbounded, Bound::Excluded);
        let next = fleet.apps.range((from, Bound::Unbounded)).take(apps);
        let next: Vec<AppName> = next.map(|(name, _)| name.clone()).collect();
        if next.len() == apps {
            self.walked_to = next.last().cloned();
        }
        next
    }
}
