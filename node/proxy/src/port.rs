//! A port: the apps that have it, and how a connection or request finds its own.
//!
//! Most ports belong to one app, which takes whatever comes. Several share one by the names that clients ask for:
//! the `Host` of a request, the server name of a TLS hello. [`Tenants`] is replaced when an app comes, goes or
//! claims other names; a shift of one app swaps what its own [`Tenant`] leads to and touches nothing of the others.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::{ArcSwapOption, Cache};

use crate::{
    admission::Gate,
    generation::{LocalServing, Serving},
    rounds::Rounds,
    split,
    worker::Worker,
};

mod claims;
mod names;

pub(crate) use claims::{Claim, Claims, Terms};
pub(crate) use names::Names;

/// `None` until the app serves the port for the first time.
type Swap = ArcSwapOption<Serving>;
/// `None` until somebody serves the port.
type Table = ArcSwapOption<Tenants>;

/// A port as the workers see it.
pub(crate) struct Slot {
    pub(crate) id: u64,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) tenants: Arc<Table>,
}

/// One app on one port: the one place where a port and the generation it serves meet. A shift is one swap in here.
pub(crate) struct Tenant {
    id: u64,
    pub(crate) app: Arc<str>,
    pub(crate) serving: Arc<Swap>,
    /// Open connections of the app on the port.
    pub(crate) gate: Arc<Gate>,
    /// It is in no table any more, and nobody new will be led to it.
    pub(crate) is_gone: AtomicBool,
}

/// Who has a port.
#[derive(Clone)]
pub(crate) struct Tenants {
    /// The one that gets all there is.
    pub(crate) alone: Option<Arc<Tenant>>,
    /// Somebody, for what all of them have in common.
    pub(crate) first: Arc<Tenant>,
    pub(crate) names: Names,
    /// For names that nobody has claimed.
    pub(crate) any: Option<Arc<Tenant>>,
}

impl Tenant {
    pub(crate) fn new(app: &Arc<str>) -> Tenant {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Tenant {
            id: LAST.fetch_add(1, Relaxed),
            app: Arc::clone(app),
            serving: Arc::default(),
            gate: Arc::default(),
            is_gone: AtomicBool::new(false),
        }
    }
}

impl Tenants {
    /// Of a port that one app has to itself.
    pub(crate) fn alone(tenant: &Arc<Tenant>) -> Tenants {
        let (alone, first) = (Some(Arc::clone(tenant)), Arc::clone(tenant));
        Tenants { alone, first, names: Names::default(), any: None }
    }

    /// Whose `name` is: a host as clients write it.
    fn of(&self, name: Option<&str>) -> Option<&Arc<Tenant>> {
        name.and_then(|name| self.names.find(name)).or(self.any.as_ref())
    }
}

/// One worker's end of a [`Slot`].
pub(crate) struct LocalPort {
    pub(crate) slot: Arc<Slot>,
    tenants: RefCell<Cache<Arc<Table>, Option<Arc<Tenants>>>>,
    /// The tenant of a port that has one, and where that was read.
    alone: RefCell<Option<(Arc<Tenants>, Rc<LocalTenant>)>>,
    /// Those that were met here, by id.
    met: RefCell<HashMap<u64, Rc<LocalTenant>>>,
    all_met: Rc<Met>,
    /// For tests: its accept task is to panic.
    pub(crate) fails: Cell<bool>,
}

/// The tenants that a worker has met, by their port and id.
pub(crate) type Met = Rounds<(Weak<LocalPort>, u64)>;

/// One worker's end of a [`Tenant`].
pub(crate) struct LocalTenant {
    pub(crate) tenant: Arc<Tenant>,
    slot: Arc<Slot>,
    serving: RefCell<Cache<Arc<Swap>, Option<Arc<Serving>>>>,
    current: RefCell<Option<Rc<LocalServing>>>,
}

/// Where an HTTP connection came in, and whose it is, or the last of its requests was.
#[derive(Clone)]
pub(crate) struct At {
    pub(crate) port: Rc<LocalPort>,
    pub(crate) home: Rc<LocalTenant>,
}

impl LocalPort {
    pub(crate) fn new(slot: Arc<Slot>, all_met: Rc<Met>) -> LocalPort {
        let tenants = RefCell::new(Cache::new(Arc::clone(&slot.tenants)));
        LocalPort {
            slot,
            tenants,
            alone: RefCell::default(),
            met: RefCell::default(),
            all_met,
            fails: Cell::new(false),
        }
    }

    /// The app that has the port to itself; `None` where several share it, or nobody serves it yet.
    pub(crate) fn alone(self: &Rc<Self>) -> Option<Rc<LocalTenant>> {
        let mut cache = self.tenants.borrow_mut();
        let tenants = cache.load().as_ref()?;
        let tenant = tenants.alone.as_ref()?;
        let mut alone = self.alone.borrow_mut();
        match &*alone {
            Some((known, local)) if Arc::ptr_eq(known, tenants) => Some(Rc::clone(local)),
            Some(_) | None => {
                let local = self.meet(tenant);
                *alone = Some((Arc::clone(tenants), Rc::clone(&local)));
                Some(local)
            }
        }
    }

    /// Whose a connection or request is that asks for `name`; `None`: nobody's.
    pub(crate) fn tenant(self: &Rc<Self>, name: Option<&str>) -> Option<Rc<LocalTenant>> {
        if let Some(alone) = self.alone() {
            return Some(alone);
        }
        let mut cache = self.tenants.borrow_mut();
        Some(self.meet(cache.load().as_ref()?.of(name)?))
    }

    /// Somebody who has the port, whoever a client will ask for.
    pub(crate) fn first(self: &Rc<Self>) -> Option<Rc<LocalTenant>> {
        if let Some(alone) = self.alone() {
            return Some(alone);
        }
        let mut cache = self.tenants.borrow_mut();
        let tenants = cache.load().as_ref()?;
        Some(self.meet(tenants.any.as_ref().unwrap_or(&tenants.first)))
    }

    fn meet(self: &Rc<Self>, tenant: &Arc<Tenant>) -> Rc<LocalTenant> {
        let mut met = self.met.borrow_mut();
        let fresh = || {
            self.all_met.add((Rc::downgrade(self), tenant.id));
            Rc::new(LocalTenant::new(Arc::clone(tenant), Arc::clone(&self.slot)))
        };
        Rc::clone(met.entry(tenant.id).or_insert_with(fresh))
    }

    /// Lets go of what is not served any more, so that an idle port keeps no old generation. What is
    /// served now is looked at when somebody comes.
    pub(crate) fn forget_old(&self) {
        let mut cache = self.tenants.borrow_mut();
        let now = cache.load();
        let mut alone = self.alone.borrow_mut();
        let is_now = |known: &Arc<Tenants>| now.as_ref().is_some_and(|now| Arc::ptr_eq(known, now));
        if alone.as_ref().is_some_and(|(known, _)| !is_now(known)) {
            *alone = None;
        }
    }

    /// The same of one of its tenants. False, and it is forgotten, when it is gone and nobody uses it.
    pub(crate) fn forget_old_of(&self, tenant: u64) -> bool {
        let mut met = self.met.borrow_mut();
        let Some(local) = met.get(&tenant) else { return false };
        local.forget_old();
        let is_used = !local.tenant.is_gone.load(Relaxed) || Rc::strong_count(local) > 1;
        if !is_used {
            met.remove(&tenant);
        }
        is_used
    }
}

impl LocalTenant {
    fn new(tenant: Arc<Tenant>, slot: Arc<Slot>) -> LocalTenant {
        let serving = RefCell::new(Cache::new(Arc::clone(&tenant.serving)));
        LocalTenant { tenant, slot, serving, current: RefCell::default() }
    }

    fn forget_old(&self) {
        let mut cache = self.serving.borrow_mut();
        let serving = cache.load();
        let mut current = self.current.borrow_mut();
        let is_gone = self.tenant.is_gone.load(Relaxed);
        let is_old = |local: &Rc<LocalServing>| {
            is_gone || !serving.as_ref().is_some_and(|serving| Arc::ptr_eq(&local.serving, serving))
        };
        if current.as_ref().is_some_and(is_old) {
            *current = None;
        }
    }

    /// The choice of the generation: one atomic read, and a comparison as long as nothing changed. Where
    /// two share the clients, the address of the client decides.
    pub(crate) fn choose(&self, worker: &Worker, client: IpAddr) -> Rc<LocalServing> {
        let first = self.look(worker);
        match &first.rest {
            Some((percent, rest))
                if !split::takes(first.serving.generation.config.generation, *percent, client) =>
            {
                Rc::clone(rest)
            }
            Some(_) | None => first,
        }
    }

    /// What the app serves here now.
    pub(crate) fn look(&self, worker: &Worker) -> Rc<LocalServing> {
        let mut cache = self.serving.borrow_mut();
        let serving = cache
            .load()
            .as_ref()
            .expect("a tenant is published once it serves, and keeps what it served last");
        let mut current = self.current.borrow_mut();
        match &*current {
            Some(local) if Arc::ptr_eq(&local.serving, serving) => Rc::clone(local),
            Some(_) | None => {
                let fresh = Rc::new(LocalServing::new(worker, &self.slot, serving));
                *current = Some(Rc::clone(&fresh));
                fresh
            }
        }
    }
}
