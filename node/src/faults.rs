//! A place for a test program to make a generation misbehave. Nothing in here does anything, and no
//! shipped program installs anything.

use std::{collections::BTreeMap, sync::OnceLock};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// On the thread that compiles a generation.
    Compile,
    /// Right before a generation takes traffic.
    Serve,
}

/// Gets the labels of the spec, and a way to let a traffic thread stand still.
pub type Hook = fn(Moment, &BTreeMap<String, String>, &dyn Fn());

static HOOK: OnceLock<Hook> = OnceLock::new();

/// The first one stays.
pub fn install(hook: Hook) {
    HOOK.get_or_init(|| hook);
}

pub(crate) fn at(moment: Moment, labels: &BTreeMap<String, String>, stall: &dyn Fn()) {
    if let Some(hook) = HOOK.get() {
        hook(moment, labels, stall);
    }
}
