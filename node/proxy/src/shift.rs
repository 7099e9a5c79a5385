//! The whole way of a generation in one call, for programs that have no rollout of their own.
//!
//! Adds nothing to what [`Proxy`] can do; a caller with canaries, gates and rollbacks takes the steps itself.

use std::collections::BTreeMap;

use crate::{
    Proxy,
    config::AppConfig,
    control::{PrepareError, UnknownGeneration},
    upstream::{Resolution, TargetStatus},
};

#[derive(Debug, thiserror::Error)]
pub enum ShiftError {
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// Somebody removed it while it got ready.
    #[error(transparent)]
    Removed(#[from] UnknownGeneration),
}

impl Proxy {
    /// Prepares a generation, waits until it can serve, gives it the traffic of its ports, and removes the other
    /// generations of the app. Nothing breaks: sessions that run live on with what they have.
    ///
    /// It can serve when each pool has an endpoint to offer, or when all names are resolved and all endpoints checked
    /// and there is none: waiting longer than that would not help. So the wait is bounded by the timeouts of checks
    /// and lookups.
    pub async fn shift(&self, config: AppConfig) -> Result<(), ShiftError> {
        let (app, generation) = (config.app.clone(), config.generation);
        let mut changed = self.changed();
        self.prepare(config).await?;
        loop {
            changed.mark_unchanged();
            let status = self.status_of([&*app]);
            let new = status.iter().find(|status| status.generation == generation);
            let new = new.ok_or(UnknownGeneration(generation))?;
            if can_serve(&new.targets) {
                break;
            }
            changed.changed().await.expect("the sender lives as long as the proxy");
        }
        self.serve(&app, generation)?;
        for old in self.status_of([&*app]) {
            if old.generation != generation {
                // One that is gone already is as good as removed.
                let _gone = self.remove(&app, old.generation, None);
            }
        }
        Ok(())
    }
}

fn can_serve(targets: &[TargetStatus]) -> bool {
    let mut pools: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
    for target in targets {
        let (is_available, is_decided) = pools.entry(&target.pool).or_insert((false, true));
        *is_available |= target.endpoints.iter().any(|endpoint| endpoint.available == Some(true));
        *is_decided &= target.resolution != Resolution::Pending
            && target.endpoints.iter().all(|endpoint| endpoint.available.is_some());
    }
    pools.values().all(|&(is_available, is_decided)| is_available || is_decided)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::EndpointStatus;

    /// A word per target: the pool's letter, then `?` for a name not resolved yet, `!` for one that fails, and for
    /// each endpoint `+` available, `-` not, `.` not checked yet.
    #[track_caller]
    fn check(targets: &str, expected: bool) {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let endpoint = |available| EndpointStatus {
            address: address.into(),
            available,
            last_error: None,
            ejected: false,
        };
        let target = |word: &str| {
            let mut status = TargetStatus {
                pool: word[..1].to_owned(),
                target: word.into(),
                resolution: Resolution::Resolved,
                endpoints: Vec::new(),
            };
            for mark in word[1..].chars() {
                match mark {
                    '?' => status.resolution = Resolution::Pending,
                    '!' => status.resolution = Resolution::Failed("x".to_owned()),
                    '+' => status.endpoints.push(endpoint(Some(true))),
                    '-' => status.endpoints.push(endpoint(Some(false))),
                    '.' => status.endpoints.push(endpoint(None)),
                    other => panic!("{other}"),
                }
            }
            status
        };
        let targets: Vec<TargetStatus> = targets.split_whitespace().map(target).collect();
        assert_eq!(can_serve(&targets), expected, "{targets:?}");
    }

    #[test]
    fn one_available_endpoint_in_each_pool_is_enough() {
        check("a+", true);
        check("a.+-", true);
        check("a. a+", true);
        check("a? a+", true);
        check("a+ b.", false);
        check("a+ b+", true);
    }

    #[test]
    fn a_pool_with_nothing_to_hope_for_is_not_waited_for() {
        check("", true);
        check("a-", true);
        check("a!", true);
        check("a! a-", true);
        check("a+ b!", true);
    }

    #[test]
    fn what_is_undecided_is_waited_for() {
        check("a?", false);
        check("a.", false);
        check("a-.", false);
        check("a- a?", false);
    }
}
