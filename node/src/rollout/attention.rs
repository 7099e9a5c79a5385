//! Which apps a round of the coordinator has to look at: among 10,000 those of which something has
//! changed, and those that time alone moves. PURE but for what it remembers of the round before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_raft_store::{Fleet, NodeId};
use flotilla_spec::AppName;
use imbl::ordmap::DiffItem;

use super::observed::{Generations, Observed};

#[derive(Default)]
pub(crate) struct Attention {
    before: Option<Round>,
}

/// What a plan was made from, and what is left to do.
struct Round {
    fleet: Arc<Fleet>,
    reports: BTreeMap<NodeId, Generations>,
    presence: Presence,
    active: BTreeSet<AppName>,
}

/// Who counts. It matters to every app.
#[derive(PartialEq)]
struct Presence {
    may_blame: bool,
    live: Vec<NodeId>,
    lost: Vec<NodeId>,
}

impl Presence {
    fn of(fleet: &Fleet, observed: &Observed) -> Self {
        let members = || fleet.members.keys().copied();
        Self {
            may_blame: observed.may_blame(),
            live: members().filter(|node| observed.live(*node).is_some()).collect(),
            lost: members().filter(|node| observed.is_lost(*node)).collect(),
        }
    }
}

impl Attention {
    /// `None`: all apps.
    pub(crate) fn look(&self, fleet: &Fleet, observed: &Observed) -> Option<BTreeSet<AppName>> {
        let before = self.before.as_ref()?;
        let same = before.fleet.members == fleet.members && before.presence == Presence::of(fleet, observed);
        if !same {
            return None;
        }
        let mut names = fleet.apps_changed_since(&before.fleet);
        names.extend(before.active.iter().cloned());
        let nothing = Generations::new();
        for (node, seen) in &observed.reports {
            let known = before.reports.get(node).unwrap_or(&nothing);
            names.extend(known.diff(&seen.generations).map(|item| match item {
                DiffItem::Add((app, _), _)
                | DiffItem::Remove((app, _), _)
                | DiffItem::Update { new: ((app, _), _), .. } => app.clone(),
            }));
        }
        Some(names)
    }

    /// A plan was made from these, and `active` were the apps it left something to do for.
    pub(crate) fn planned(&mut self, fleet: Arc<Fleet>, observed: &Observed, active: BTreeSet<AppName>) {
        let presence = Presence::of(&fleet, observed);
        let reports = observed.reports.iter().map(|(node, seen)| (*node, seen.generations.clone()));
        self.before = Some(Round { fleet, reports: reports.collect(), presence, active });
    }

    /// The next look is at all apps.
    pub(crate) fn forget(&mut self) {
        self.before = None;
    }
}
