//! What differs between two versions of a fleet, at the price of the difference and not of the fleet.

use std::collections::BTreeSet;

use flotilla_spec::AppName;
use imbl::{OrdMap, ordmap::DiffItem};

use super::Fleet;

impl Fleet {
    /// Apps of which anything differs from `before`: the record, a generation, a rollout, or what a node
    /// is asked.
    pub fn apps_changed_since(&self, before: &Self) -> BTreeSet<AppName> {
        let apps = changed(&before.apps, &self.apps).cloned();
        let generations = changed(&before.generations, &self.generations).map(|(app, _)| app.clone());
        let rollouts = changed(&before.rollouts, &self.rollouts).map(|(app, _)| app.clone());
        let mut names: BTreeSet<AppName> = apps.chain(generations).chain(rollouts).collect();
        let nothing = OrdMap::new();
        for node in changed(&before.assignments, &self.assignments) {
            let [before, after] = [before, self].map(|fleet| fleet.assignments.get(node).unwrap_or(&nothing));
            names.extend(changed(before, after).map(|(app, _)| app.clone()));
        }
        names
    }
}

/// Keys that were added, removed, or have another value.
fn changed<'a, K: Ord, V: PartialEq>(
    before: &'a OrdMap<K, V>,
    after: &'a OrdMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    before.diff(after).map(|item| match item {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. } => key,
    })
}
