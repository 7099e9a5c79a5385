//! A port and the apps that have it: which of them hold it, which serve it, and for which names.
//!
//! Each app comes and goes on its own. The sockets are there from the first to the last.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    config::{PortConfig, SocketOptions},
    generation::{Generation, Serving},
    metrics,
    port::{Claim, Claims, Names, Slot, Tenant, Tenants, Terms},
    socket::PortSockets,
};

pub(super) struct Port {
    pub(super) slot: Arc<Slot>,
    pub(super) sockets: Arc<PortSockets>,
    pub(super) stage: Stage,
    /// Boxed: a map of one has room for eleven.
    pub(super) tenancies: BTreeMap<Arc<str>, Box<Tenancy>>,
    /// Which app's generations hold a name.
    held: HashMap<Claim, Arc<str>>,
    /// Of the same names: the apps that hold them as well, for as long as one has not let go and the next one is prepared.
    held_next: BTreeMap<Claim, BTreeSet<Arc<str>>>,
    /// Of those that serve, or did last.
    names: Names,
    any: Option<Arc<Tenant>>,
    /// How many of the apps are in that, and how many of them are on their way out.
    leading: usize,
    closing: usize,
    /// Of the sockets now.
    options: Option<SocketOptions>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Bound,
    Listening,
    /// The workers let go of it.
    Last,
}

/// One app on a port. Most claim one name there, for which a sorted set would take twice the room.
pub(super) struct Tenancy {
    pub(super) tenant: Arc<Tenant>,
    pub(super) stage: Lease,
    /// In [`Port::held`], for the generations that keep the port.
    holds: HashSet<Claim>,
    /// For what serves.
    claims: HashMap<Claim, Rank>,
    /// Of those: in the table of the port.
    leads: HashSet<Claim>,
    takes_all_alone: bool,
}

/// What the generations claim that serve a port for an app.
pub(super) struct Leading {
    pub(super) names: HashMap<Claim, Rank>,
    /// See [`Claims::takes_all_alone`].
    pub(super) takes_all_alone: bool,
}

/// Which of several apps has a name: the higher one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// All that share the clients of the app claim it, so that all of them are answered.
    pub(super) is_whole: bool,
    /// The newest that does.
    pub(super) generation: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lease {
    /// Nothing of the app serves there yet.
    Waiting,
    Serving,
    /// Nobody wants it any more. It still takes all that is its own.
    Closing {
        since: Instant,
        until: Instant,
    },
}

impl Lease {
    fn leads(self) -> bool {
        match self {
            Lease::Waiting => false,
            Lease::Serving | Lease::Closing { .. } => true,
        }
    }
}

impl Tenancy {
    fn new(app: &Arc<str>) -> Tenancy {
        Tenancy {
            tenant: Arc::new(Tenant::new(app)),
            stage: Lease::Waiting,
            holds: HashSet::new(),
            claims: HashMap::new(),
            leads: HashSet::new(),
            takes_all_alone: false,
        }
    }

    pub(super) fn serves(&self, generation: &Generation) -> bool {
        self.tenant.serving.load().as_ref().is_some_and(|serving| serving.leads_to(generation))
    }

    pub(super) fn is_held(&self) -> bool {
        !self.holds.is_empty()
    }

    fn set_closing(&self, closing: bool) {
        if let Some(serving) = self.tenant.serving.load().as_ref() {
            self.tenant.serving.store(Some(Arc::new(serving.with_closing(closing))));
        }
    }
}

impl Port {
    pub(super) fn new(slot: Slot, sockets: PortSockets) -> Port {
        Port {
            slot: Arc::new(slot),
            sockets: Arc::new(sockets),
            stage: Stage::Bound,
            tenancies: BTreeMap::new(),
            held: HashMap::new(),
            held_next: BTreeMap::new(),
            names: Names::default(),
            any: None,
            leading: 0,
            closing: 0,
            options: None,
        }
    }

    pub(super) fn of(&self, app: &str) -> Option<&Tenancy> {
        self.tenancies.get(app).map(Box::as_ref)
    }

    /// Why an app cannot have this port for those names; `others`: how another app has it; `lets_go`: whether another app
    /// has a name only for the time being.
    pub(super) fn refuses<'a>(
        &self,
        app: &str,
        config: &PortConfig,
        claims: &Claims,
        others: impl FnOnce(&str) -> Vec<&'a PortConfig>,
        lets_go: impl Fn(&str, &Claim) -> bool,
    ) -> Option<String> {
        let port = self.slot.port;
        // All that hold it agree with each other, so one of them speaks for all.
        let other = self.tenancies.iter().find(|(name, tenancy)| tenancy.is_held() && &***name != app);
        let (name, _) = other?;
        let terms = Terms::of(config);
        if let Some(why) = others(name).into_iter().find_map(|other| terms.differ(&Terms::of(other))) {
            return Some(format!("port {port} belongs to app `{name}`: {why}"));
        }
        let holders = |claim| self.holders(claim).map(move |holder| (claim, holder));
        let mut clashes = claims.names.iter().flat_map(holders);
        let (claim, owner) = clashes.find(|(claim, owner)| &***owner != app && !lets_go(owner, claim))?;
        let help = match claim {
            Claim::Any => "; one of the two must name its hosts",
            Claim::Exact(_) | Claim::Suffix(_) | Claim::Prefix(_) => "",
        };
        Some(format!("port {port} belongs to app `{owner}` for {claim}{help}"))
    }

    /// What the generations of an app hold of it now.
    pub(super) fn hold(&mut self, app: &Arc<str>, holds: HashSet<Claim>) {
        let tenancy = self.tenancies.entry(Arc::clone(app)).or_insert_with(|| Box::new(Tenancy::new(app)));
        let before = std::mem::replace(&mut tenancy.holds, holds.clone());
        for claim in before.difference(&holds) {
            self.let_go(app, claim);
        }
        for claim in holds.difference(&before) {
            match self.held.entry(claim.clone()) {
                Entry::Vacant(free) => drop(free.insert(Arc::clone(app))),
                Entry::Occupied(_) => {
                    self.held_next.entry(claim.clone()).or_default().insert(Arc::clone(app));
                }
            }
        }
    }

    fn holders(&self, claim: &Claim) -> impl Iterator<Item = &Arc<str>> {
        self.held.get(claim).into_iter().chain(self.held_next.get(claim).into_iter().flatten())
    }

    fn let_go(&mut self, app: &Arc<str>, claim: &Claim) {
        let mut next = self.held_next.remove(claim).unwrap_or_default();
        if self.held.get(claim) == Some(app) {
            match next.pop_first() {
                Some(heir) => drop(self.held.insert(claim.clone(), heir)),
                None => drop(self.held.remove(claim)),
            }
        } else {
            next.remove(app);
        }
        if !next.is_empty() {
            self.held_next.insert(claim.clone(), next);
        }
    }

    /// The names that an app has there, of those that it claims: taken from others that serve them until now.
    fn take_over(
        &mut self,
        app: &Arc<str>,
        claims: &HashMap<Claim, Rank>,
        lets_go: impl Fn(&str, &Claim) -> bool,
    ) -> HashSet<Claim> {
        let mut names: HashSet<Claim> = claims.keys().cloned().collect();
        if self.held_next.is_empty() {
            return names;
        }
        names.retain(|claim| {
            let own = claims[claim];
            let others: Vec<_> = self.holders(claim).filter(|other| *other != app).cloned().collect();
            let keeps = |other: &Arc<str>| {
                let tenancy = self.tenancies.get(other).filter(|other| other.stage == Lease::Serving);
                let rank = tenancy.and_then(|other| other.claims.get(claim));
                rank.is_some_and(|rank| own < *rank && !(own.is_whole && lets_go(other, claim)))
            };
            if others.iter().any(keeps) {
                return false;
            }
            for other in others {
                if let Some(tenancy) = self.tenancies.get_mut(&other) {
                    tenancy.leads.remove(claim);
                }
            }
            true
        });
        names
    }

    /// Gives names that an app had to who serves them as well, if anybody does.
    fn pass_on(&mut self, app: &Arc<str>, names: &HashSet<Claim>) {
        for claim in names {
            let serving = self.holders(claim).filter_map(|other| {
                let tenancy = self.tenancies.get(other).filter(|_| other != app)?;
                let rank = tenancy.claims.get(claim).filter(|_| tenancy.stage.leads())?;
                Some((*rank, Arc::clone(other)))
            });
            match serving.max() {
                Some((_, heir)) => {
                    let Some(tenancy) = self.tenancies.get_mut(&heir) else { continue };
                    tenancy.leads.insert(claim.clone());
                    let tenant = Arc::clone(&tenancy.tenant);
                    self.list_name(claim, &tenant);
                }
                None => self.unlist_name(claim),
            }
        }
    }

    /// The shift itself: one store. The apps that have to make room for it, which nobody wants there any more.
    pub(super) fn lead(
        &mut self,
        serving: Serving,
        leading: Leading,
        lets_go: impl Fn(&str, &Claim) -> bool,
    ) -> Vec<Arc<str>> {
        let config = &serving.generation.config;
        let app = Arc::clone(&config.app);
        let mut evicted = Vec::new();
        if self.closing > 0 {
            let key = (self.slot.address, self.slot.port);
            let differs = |other: &Tenancy| {
                let theirs = other.tenant.serving.load();
                let theirs = theirs.as_ref().and_then(|theirs| at(&theirs.generation, key));
                theirs
                    .zip(at(&serving.generation, key))
                    .is_some_and(|(theirs, own)| Terms::of(theirs).differ(&Terms::of(own)).is_some())
            };
            let closing = self
                .tenancies
                .iter_mut()
                .filter(|(name, tenancy)| **name != app && matches!(tenancy.stage, Lease::Closing { .. }));
            for (name, other) in closing {
                // What nobody wants yet stays its own.
                other.leads.retain(|claim| !leading.names.contains_key(claim));
                if other.leads.is_empty() || differs(other) {
                    evicted.push(Arc::clone(name));
                }
            }
        }
        for other in &evicted {
            self.unlist(other);
        }
        let names = self.take_over(&app, &leading.names, lets_go);
        let Some(tenancy) = self.tenancies.get_mut(&app) else { return evicted };
        let tenant = Arc::clone(&tenancy.tenant);
        tenant.serving.store(Some(Arc::new(serving)));
        let is_listed = tenancy.stage.leads()
            && tenancy.leads == names
            && tenancy.takes_all_alone == leading.takes_all_alone;
        self.closing -= usize::from(matches!(tenancy.stage, Lease::Closing { .. }));
        self.leading += usize::from(!tenancy.stage.leads());
        tenancy.stage = Lease::Serving;
        tenancy.claims = leading.names;
        if is_listed && evicted.is_empty() {
            return evicted;
        }
        let before = std::mem::replace(&mut tenancy.leads, names.clone());
        tenancy.takes_all_alone = leading.takes_all_alone;
        self.pass_on(&app, &before.difference(&names).cloned().collect());
        for claim in &names {
            self.list_name(claim, &tenant);
        }
        self.publish();
        evicted
    }

    /// Gives the sockets the options of a generation. A change is good for connections that come from then on.
    pub(super) fn set_options(&mut self, options: &SocketOptions) {
        if self.options.as_ref() == Some(options) {
            return;
        }
        let before = self.options.replace(options.clone());
        let is_other = before.is_some_and(|before| before.backlog != options.backlog);
        let mut set = self.sockets.set(options);
        if self.stage == Stage::Listening && is_other {
            set = set.and_then(|()| self.sockets.listen(options.backlog));
        }
        if let Err(error) = set {
            let Slot { address, port, .. } = *self.slot;
            tracing::error!(%address, port, %error, "set socket options");
        }
    }

    /// The next step of one app there. True: the port itself is to be closed now.
    pub(super) fn settle(&mut self, app: &Arc<str>, now: Instant, horizon: Duration) -> bool {
        let others_hold = || self.tenancies.iter().any(|(name, other)| name != app && other.is_held());
        let Some(tenancy) = self.tenancies.get(app) else { return false };
        match (tenancy.stage, tenancy.is_held()) {
            (Lease::Waiting, false) => {
                self.tenancies.remove(app);
            }
            // It could not be listened on.
            (Lease::Serving | Lease::Closing { .. }, false) if self.stage == Stage::Bound => self.unlist(app),
            (Lease::Serving, false) if self.stage == Stage::Listening => {
                self.set_stage(app, Lease::Closing { since: now, until: now + horizon });
            }
            (Lease::Closing { .. }, true) if self.stage == Stage::Listening => {
                self.set_stage(app, Lease::Serving)
            }
            (Lease::Closing { since, until }, false) if until <= now && self.stage == Stage::Listening => {
                if self.leading > 1 {
                    metrics::listener(app, self.slot.port, false, false);
                    metrics::drained(app, now.saturating_duration_since(since));
                    self.unlist(app);
                    self.publish();
                } else if others_hold() {
                    // Somebody has to be there until they serve.
                    self.set_stage(app, Lease::Closing { since, until: now + horizon });
                } else {
                    self.stage = Stage::Last;
                    return true;
                }
            }
            (Lease::Waiting, true) | (Lease::Serving | Lease::Closing { .. }, _) => {}
        }
        false
    }

    fn set_stage(&mut self, app: &Arc<str>, stage: Lease) {
        let Some(tenancy) = self.tenancies.get_mut(app) else { return };
        let closes = |stage| matches!(stage, Lease::Closing { .. });
        if closes(stage) != closes(tenancy.stage) {
            tenancy.set_closing(closes(stage));
            metrics::listener(app, self.slot.port, !closes(stage), closes(stage));
            self.closing = if closes(stage) { self.closing + 1 } else { self.closing - 1 };
        }
        tenancy.stage = stage;
    }

    /// All of them, at once.
    pub(super) fn close_now(&mut self, now: Instant) {
        let apps: Vec<Arc<str>> = self.tenancies.keys().cloned().collect();
        for app in apps {
            if self.of(&app).is_some_and(|tenancy| tenancy.stage == Lease::Serving) {
                self.set_stage(&app, Lease::Closing { since: now, until: now });
            }
        }
        self.stage = Stage::Last;
    }

    /// Those that are on their way out, since when and until when.
    pub(super) fn closing(&self) -> impl Iterator<Item = (&Arc<str>, Instant, Instant)> {
        let some = if self.closing > 0 { Some(&self.tenancies) } else { None };
        some.into_iter().flatten().filter_map(|(app, tenancy)| match tenancy.stage {
            Lease::Closing { since, until } => Some((app, since, until)),
            Lease::Waiting | Lease::Serving => None,
        })
    }

    /// Takes an app out, without telling the workers yet.
    fn unlist(&mut self, app: &Arc<str>) {
        let Some(tenancy) = self.tenancies.remove(app) else { return };
        tenancy.tenant.is_gone.store(true, Relaxed);
        self.pass_on(app, &tenancy.leads);
        for claim in &tenancy.holds {
            self.let_go(app, claim);
        }
        self.leading -= usize::from(tenancy.stage.leads());
        self.closing -= usize::from(matches!(tenancy.stage, Lease::Closing { .. }));
    }

    fn list_name(&mut self, claim: &Claim, tenant: &Arc<Tenant>) {
        match claim {
            Claim::Any => self.any = Some(Arc::clone(tenant)),
            Claim::Exact(_) | Claim::Suffix(_) | Claim::Prefix(_) => self.names.put(claim, tenant),
        }
    }

    fn unlist_name(&mut self, claim: &Claim) {
        match claim {
            Claim::Any => self.any = None,
            Claim::Exact(_) | Claim::Suffix(_) | Claim::Prefix(_) => self.names.remove(claim),
        }
    }

    fn publish(&self) {
        let mut leading = self.tenancies.values().filter(|tenancy| tenancy.stage.leads());
        let Some(first) = leading.next() else { return };
        let tenants = if self.leading == 1 && first.takes_all_alone {
            Tenants::alone(&first.tenant)
        } else {
            Tenants {
                alone: None,
                first: Arc::clone(&first.tenant),
                names: self.names.clone(),
                any: self.any.clone(),
            }
        };
        self.slot.tenants.store(Some(Arc::new(tenants)));
    }
}

/// How a generation has a port.
pub(super) fn at(generation: &Generation, key: super::PortKey) -> Option<&PortConfig> {
    generation.config.ports.iter().find(|port| (port.address, port.port) == key)
}
