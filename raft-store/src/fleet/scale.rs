//! How many nodes an app shall be on when that is not, or not only, a matter of its spec.

use std::sync::Arc;

use flotilla_spec::{AppName, AppSpec, Replicas};

use super::{Answer, At, Fleet, Timestamp, assignment::stale};
use crate::{AppChanged, Outcome, Rejection, Reply};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    pub replicas: Replicas,
    pub by: ScaledBy,
    /// When the number last changed. `cooldown` counts from here.
    pub since: Timestamp,
    /// Replicas that no node has room for, as of the last decision.
    pub short: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaledBy {
    /// `app scale`: stays until it is taken back.
    User,
    /// By the rules of the spec; without them it means nothing.
    Autoscaler,
}

impl Fleet {
    /// How many nodes an app with this spec is to be on.
    pub fn replicas(&self, spec: &AppSpec) -> Replicas {
        let app = self.apps.get(&spec.name).filter(|app| !app.deleted);
        match (app.and_then(|app| app.scale), &spec.placement.autoscale) {
            (Some(Scale { by: ScaledBy::User, replicas, .. }), _) => replicas,
            (Some(Scale { by: ScaledBy::Autoscaler, replicas: Replicas::Count(count), .. }), Some(rules)) => {
                Replicas::Count(count.min(rules.max).max(rules.min))
            }
            (_, Some(rules)) => Replicas::Count(rules.min),
            (_, None) => spec.placement.replicas,
        }
    }

    /// `None`: back to what the spec says. An autoscaler goes on from where the app is.
    pub(super) fn scale_app(
        &mut self,
        at: At,
        app: &AppName,
        replicas: Option<Replicas>,
        if_version: Option<u64>,
    ) -> Answer {
        self.check_version(app, if_version)?;
        let record = self.living(app)?;
        let before = record.scale;
        let scale = match replicas {
            Some(replicas) => Some(Scale { replicas, by: ScaledBy::User, since: at.time, short: 0 }),
            None => before.filter(|_| record.spec.placement.autoscale.is_some()).map(|scale| Scale {
                by: ScaledBy::Autoscaler,
                since: at.time,
                short: 0,
                ..scale
            }),
        };
        let same =
            before.map(|scale| (scale.replicas, scale.by)) == scale.map(|scale| (scale.replicas, scale.by));
        let changed = AppChanged {
            app: app.clone(),
            outcome: if same { Outcome::Unchanged } else { Outcome::Changed },
            version: record.version,
            generation: record.wanted,
        };
        if !same {
            let what = match replicas {
                Some(replicas) => format!("scaled to {} by hand", text(replicas)),
                None => "scaled by its spec again".to_owned(),
            };
            self.set_scale(app, scale);
            self.record(at, Some(app), None, what);
        }
        Ok(Reply::Apps { apps: vec![changed] })
    }

    /// What the autoscaler decided. `reason` is the event.
    pub(super) fn autoscale(
        &mut self,
        at: At,
        app: &AppName,
        replicas: u32,
        short: u32,
        reason: &str,
    ) -> Result<(), Rejection> {
        let record = self.living(app)?;
        if record.spec.placement.autoscale.is_none() {
            return Err(stale("the app does not scale by itself"));
        }
        let before = record.scale;
        if before.is_some_and(|scale| scale.by == ScaledBy::User) {
            return Err(stale("the app was scaled by hand"));
        }
        let replicas = Replicas::Count(replicas);
        let moved = before.is_none_or(|scale| scale.replicas != replicas);
        if !moved && before.is_some_and(|scale| scale.short == short) {
            return Err(stale("the app has that many replicas already"));
        }
        let since = before.filter(|_| !moved).map_or(at.time, |scale| scale.since);
        self.set_scale(app, Some(Scale { replicas, by: ScaledBy::Autoscaler, since, short }));
        self.record(at, Some(app), None, reason.to_owned());
        Ok(())
    }

    fn set_scale(&mut self, app: &AppName, scale: Option<Scale>) {
        if let Some(record) = self.apps.get_mut(app) {
            Arc::make_mut(record).scale = scale;
        }
    }
}

fn text(replicas: Replicas) -> String {
    match replicas {
        Replicas::All => "all nodes".to_owned(),
        Replicas::Count(1) => "1 replica".to_owned(),
        Replicas::Count(count) => format!("{count} replicas"),
    }
}
