//! Ports of nodes: who holds which, and how one is chosen.
//!
//! Chosen inside `apply` and nowhere else, so two leaders cannot give the same port twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_spec::{ANY_HOST, AppName, AppSpec, Listen};
use imbl::OrdMap;

use super::{Desired, Fleet, GenerationId, NodeId, RolloutState};
use crate::Rejection;

type PortKey = (NodeId, u16);
/// A name, and whose it is.
type OwnedHost = (String, AppName);

/// The apps that have a port of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    pub apps: BTreeSet<AppName>,
    /// Whose each name is that clients may ask for there, see [`flotilla_spec::claims`].
    pub hosts: BTreeMap<String, AppName>,
    /// Of these names: all that have a generation there which claims it. The newest of the generations decides whose it
    /// is, on the node, too; one that is older serves it until that does, and when that has gone.
    pub moving: BTreeMap<String, BTreeSet<AppName>>,
}

impl Holders {
    fn claimants(&self, host: &str) -> impl Iterator<Item = &AppName> {
        let moving = self.moving.get(host);
        let owner = self.hosts.get(host).filter(|_| moving.is_none());
        moving.into_iter().flatten().chain(owner)
    }

    fn other_than(&self, app: &AppName) -> Option<&AppName> {
        self.apps.iter().find(|holder| *holder != app)
    }

    /// All generations that claim a name, newest last.
    fn rank(&mut self, host: &str, mut claims: Vec<(GenerationId, AppName)>) {
        claims.sort_unstable();
        match claims.last() {
            Some((_, owner)) => drop(self.hosts.insert(host.to_owned(), owner.clone())),
            None => drop(self.hosts.remove(host)),
        }
        let apps: BTreeSet<AppName> = claims.into_iter().map(|(_, app)| app).collect();
        if apps.len() > 1 {
            self.moving.insert(host.to_owned(), apps);
        } else {
            self.moving.remove(host);
        }
    }
}

/// Ports that the command at hand takes, before it changes anything.
#[derive(Default)]
pub(super) struct Claims {
    /// With the entry of one of them, which is like all others.
    taken: BTreeMap<PortKey, (Holders, Listen)>,
    /// What the command makes of the apps that it changes, and where.
    changed: BTreeMap<AppName, (Arc<AppSpec>, BTreeSet<NodeId>)>,
    /// Who of those takes a name from whom: taker, giver.
    moves: BTreeMap<(AppName, AppName), Move>,
    /// The lowest port of each node that may be free: a command for a thousand apps must not look at
    /// the first thousand ports a thousand times.
    lowest: BTreeMap<NodeId, u16>,
}

struct Move {
    node: NodeId,
    port: u16,
    host: String,
}

impl Claims {
    pub(super) fn change(&mut self, spec: &Arc<AppSpec>, placed: &BTreeSet<NodeId>) {
        self.changed.insert(spec.name.clone(), (Arc::clone(spec), placed.clone()));
    }

    fn taken_by_other(
        &self,
        key: PortKey,
        app: &AppName,
        hosts: &BTreeSet<String>,
    ) -> Option<(String, AppName)> {
        let (holders, _) = self.taken.get(&key)?;
        let mut owned = hosts.iter().filter_map(|host| Some((host, holders.hosts.get(host)?)));
        owned.find(|(_, owner)| *owner != app).map(|(host, owner)| (host.clone(), owner.clone()))
    }

    fn take(&mut self, key: PortKey, app: &AppName, hosts: BTreeSet<String>, listen: &Listen) {
        let (holders, _) = self.taken.entry(key).or_insert_with(|| (Holders::default(), listen.clone()));
        holders.apps.insert(app.clone());
        holders.hosts.extend(hosts.into_iter().map(|host| (host, app.clone())));
    }

    /// Whoever gives a name up waits for its taker, so nobody may wait for himself.
    fn exchange(&self) -> Option<(&(AppName, AppName), &Move)> {
        let takers = |giver: &AppName| {
            let giver = giver.clone();
            self.moves.keys().filter(move |(_, from)| *from == giver).map(|(taker, _)| taker)
        };
        self.moves.iter().find(|((taker, giver), _)| {
            let (mut met, mut left) = (BTreeSet::new(), vec![taker]);
            while let Some(app) = left.pop() {
                if met.insert(app) {
                    left.extend(takers(app));
                }
            }
            met.contains(giver)
        })
    }
}

impl Fleet {
    /// The ports that a generation with this spec would get on a node now, one per `spec.listen`.
    pub fn choose_ports(&self, node: NodeId, spec: &AppSpec) -> Result<Vec<u16>, Rejection> {
        let mut claims = Claims::default();
        self.claim_fixed_ports(&mut claims, node, spec)?;
        self.claim_ports(&mut claims, node, spec)
    }

    /// First for all apps of a command, so that no chosen port gets in the way of a fixed one.
    pub(super) fn claim_fixed_ports(
        &self,
        claims: &mut Claims,
        node: NodeId,
        spec: &AppSpec,
    ) -> Result<(), Rejection> {
        let member = self.member(node)?;
        for listen in spec.listen.iter().filter(|listen| listen.port != 0) {
            let port = listen.port;
            if member.reserved_ports.contains(&port) || self.is_balancer_port(port) {
                return Err(Rejection::PortReserved { port, node: member.name.clone() });
            }
            if claims.taken.get(&(node, port)).is_some_and(|(holders, _)| holders.apps.contains(&spec.name)) {
                // One assignment has a port once.
                return Err(Rejection::PortTaken {
                    port,
                    node: member.name.clone(),
                    owner: spec.name.clone(),
                });
            }
            let hosts = flotilla_spec::claims(spec, listen);
            let moves =
                self.check_shared(claims, node, spec, listen, &hosts).map_err(|(owner, why)| match why {
                    Some(why) => {
                        let (app, node) = (spec.name.clone(), member.name.clone());
                        Rejection::CannotShare { port, node, app, owner, why }
                    }
                    None => Rejection::PortTaken { port, node: member.name.clone(), owner },
                })?;
            for (host, from) in moves.into_iter().filter(|(_, from)| claims.changed.contains_key(from)) {
                claims.moves.entry((spec.name.clone(), from)).or_insert(Move { node, port, host });
            }
            claims.take((node, port), &spec.name, hosts, listen);
        }
        Ok(())
    }

    pub(super) fn check_moves(&self, claims: &Claims) -> Result<(), Rejection> {
        let Some(((taker, giver), Move { node, port, host })) = claims.exchange() else { return Ok(()) };
        let why = format!(
            "it takes the host `{host}` from there, and hosts go back there in the same apply: \
             move those in another one, before or after"
        );
        let (app, owner) = (taker.clone(), giver.clone());
        Err(Rejection::CannotShare { port: *port, node: self.node_name(*node), app, owner, why })
    }

    /// Whose a port is that an app cannot have as well, and why; `None`: both want whatever is left. Otherwise the names
    /// that it takes from others, who give them up.
    fn check_shared(
        &self,
        claims: &Claims,
        node: NodeId,
        spec: &AppSpec,
        listen: &Listen,
        hosts: &BTreeSet<String>,
    ) -> Result<Vec<OwnedHost>, (AppName, Option<String>)> {
        let app = &spec.name;
        let key = (node, listen.port);
        let held = self.ports.get(&key).map(Arc::as_ref);
        let taken = claims.taken.get(&key);
        let only_rest = hosts.iter().all(|host| host == ANY_HOST);
        // All that have it agree with each other, so one of them speaks for all.
        let owner = held.and_then(|holders| holders.other_than(app));
        let terms_held = owner.into_iter().flat_map(|owner| {
            let entries = self.entries_at(key, owner).map(|(.., listen)| listen);
            entries.filter_map(move |other| Some((owner, flotilla_spec::differ(listen, other)?)))
        });
        let terms_taken = taken.and_then(|(holders, other)| {
            Some((holders.other_than(app)?, flotilla_spec::differ(listen, other)?))
        });
        if let Some((owner, why)) = terms_held.chain(terms_taken).next() {
            return Err((owner.clone(), Some(format!("{why}; make them alike, or take another port"))));
        }
        let refuse = |host: &str, owner: AppName| {
            let help = "take it from there first, or in the same apply";
            let why = (!only_rest).then(|| format!("the host `{host}` is its already: {help}"));
            Err((owner, why))
        };
        if let Some((host, owner)) = claims.taken_by_other(key, app, hosts) {
            return refuse(&host, owner);
        }
        let Some(held) = held.filter(|held| held.other_than(app).is_some()) else { return Ok(Vec::new()) };
        let mut moves = Vec::new();
        for host in hosts {
            let others = held.claimants(host).filter(|owner| *owner != app);
            for owner in others.filter(|_| !self.wants(key, app, host)) {
                if !self.lets_go(claims, key, owner, host) {
                    return refuse(host, owner.clone());
                }
                moves.push((host.clone(), owner.clone()));
            }
        }
        Ok(moves)
    }

    /// Whether an app has a name only until its wanted generation takes its traffic.
    fn lets_go(&self, claims: &Claims, key: PortKey, app: &AppName, host: &str) -> bool {
        if let Some((spec, placed)) = claims.changed.get(app) {
            let entries = spec.listen.iter().filter(|listen| listen.port == key.1);
            let keeps = |listen| flotilla_spec::claims(spec, listen).contains(host);
            return !(placed.contains(&key.0) && entries.into_iter().any(keeps));
        }
        self.goes_on(app) && !self.wants(key, app, host)
    }

    /// The wanted generation of an app was not refused anywhere.
    fn goes_on(&self, app: &AppName) -> bool {
        let is_deleted = self.apps.get(app).is_none_or(|record| record.deleted);
        let goes_on = self.newest_rollout(app).is_some_and(|(_, rollout)| match rollout.state {
            RolloutState::Progressing | RolloutState::Paused | RolloutState::Completed => true,
            RolloutState::RollingBack
            | RolloutState::RolledBack
            | RolloutState::Failed
            | RolloutState::Superseded => false,
        });
        !is_deleted && goes_on
    }

    /// Whether the wanted generation of an app claims a name there.
    fn wants(&self, key: PortKey, app: &AppName, host: &str) -> bool {
        let Some(wanted) = self.apps.get(app).map(|record| record.wanted) else { return false };
        let mut entries = self.entries_at(key, app).filter(|(generation, ..)| *generation == wanted);
        entries.any(|(_, spec, listen)| flotilla_spec::claims(spec, listen).contains(host))
    }

    /// Who is to have names that an app serves, and gives up with its wanted generation; one of the names each. An app may
    /// wait for these: none of them waits for it.
    pub fn takers(&self, app: &AppName) -> BTreeMap<AppName, String> {
        let wanted = |app: &AppName| self.apps.get(app).map(|record| record.wanted);
        let mut takers = self.all_takers(app);
        takers.retain(|taker, _| wanted(taker) >= wanted(app) || self.all_takers(taker).is_empty());
        takers
    }

    fn all_takers(&self, app: &AppName) -> BTreeMap<AppName, String> {
        let mut takers = BTreeMap::new();
        if !self.goes_on(app) {
            return takers;
        }
        for (key, holders, host) in self.moving_of(app) {
            let others = holders.claimants(host).filter(|other| *other != app);
            let mut others = others.filter(|other| self.wants(key, other, host)).peekable();
            if others.peek().is_some() && self.serves_host(key, app, host) && !self.wants(key, app, host) {
                takers.extend(others.map(|other| (other.clone(), host.to_owned())));
            }
        }
        takers
    }

    /// Names that an app's older generations claim, and that another app has by now.
    pub(super) fn lost_hosts(&self, app: &AppName) -> BTreeMap<String, AppName> {
        let of_others = self.moving_of(app).flat_map(|(key, holders, host)| {
            let others = holders.claimants(host).filter(move |other| *other != app);
            let has = others.filter(move |other| self.goes_on(other) && self.wants(key, other, host));
            has.map(|other| (host.to_owned(), other.clone()))
        });
        of_others.collect()
    }

    fn moving_of<'a>(&'a self, app: &'a AppName) -> impl Iterator<Item = (PortKey, &'a Holders, &'a str)> {
        let keys: BTreeSet<PortKey> = self
            .assignments
            .keys()
            .flat_map(|node| self.assignments_of(*node, app).map(move |(_, assignment)| (*node, assignment)))
            .flat_map(|(node, assignment)| assignment.ports.iter().map(move |port| (node, *port)))
            .collect();
        let held = keys.into_iter().filter_map(|key| Some((key, self.ports.get(&key)?.as_ref())));
        held.flat_map(move |(key, holders)| {
            let moving = holders.moving.iter().filter(move |(_, apps)| apps.contains(app));
            moving.map(move |(host, _)| (key, holders, host.as_str()))
        })
    }

    /// The node is asked to serve a generation that claims the name.
    fn serves_host(&self, key: PortKey, app: &AppName, host: &str) -> bool {
        let serves = |generation| {
            self.assignment(key.0, app, generation).is_some_and(|asked| asked.desired == Desired::Serve)
        };
        let mut entries = self.entries_at(key, app).filter(|(generation, ..)| serves(*generation));
        entries.any(|(_, spec, listen)| flotilla_spec::claims(spec, listen).contains(host))
    }

    /// An app's generations on a node, oldest first, with the entries that have that port.
    fn entries_at(
        &self,
        (node, port): PortKey,
        app: &AppName,
    ) -> impl Iterator<Item = (GenerationId, &AppSpec, &Listen)> {
        self.assignments_of(node, app).flat_map(move |(generation, assignment)| {
            let spec = self.generations.get(&(app.clone(), generation)).map(|generation| &*generation.spec);
            let entries = spec
                .into_iter()
                .flat_map(move |spec| spec.listen.iter().map(move |listen| (generation, spec, listen)));
            entries.zip(&assignment.ports).filter(move |(_, held)| **held == port).map(|(entry, _)| entry)
        })
    }

    /// The newest generation of an app that claims each name there.
    fn claims_at(&self, key: PortKey, app: &AppName) -> BTreeMap<String, GenerationId> {
        let entries = self.entries_at(key, app);
        let claims = entries.flat_map(|(generation, spec, listen)| {
            flotilla_spec::claims(spec, listen).into_iter().map(move |host| (host, generation))
        });
        claims.collect()
    }

    /// `0` keeps the port that the same entry of `listen` has there, else gets the lowest free one of
    /// the node's pool.
    pub(super) fn claim_ports(
        &self,
        claims: &mut Claims,
        node: NodeId,
        spec: &AppSpec,
    ) -> Result<Vec<u16>, Rejection> {
        let member = self.member(node)?;
        let before = self.newest_assignment(node, &spec.name).map_or(&[][..], |newest| &newest.ports);
        let reserved: BTreeSet<u16> = member.reserved_ports.iter().copied().collect();
        let usable = |claims: &Claims, port: u16| {
            port != 0
                && !reserved.contains(&port)
                && !self.is_balancer_port(port)
                && !claims.taken.contains_key(&(node, port))
        };
        let (from, to) = member.port_pool;
        let mut ports = Vec::with_capacity(spec.listen.len());
        for (entry, listen) in spec.listen.iter().enumerate() {
            if listen.port != 0 {
                ports.push(listen.port);
                continue;
            }
            let is_own =
                |port| self.ports.get(&(node, port)).is_none_or(|held| held.other_than(&spec.name).is_none());
            let sticky = before.get(entry).copied().filter(|port| usable(claims, *port) && is_own(*port));
            let chosen = sticky.or_else(|| {
                let lowest = claims.lowest.get(&node).copied().unwrap_or(from);
                let mut held = self.held_between(node, lowest, to).peekable();
                let free =
                    (lowest..=to).find(|port| held.next_if_eq(port).is_none() && usable(claims, *port));
                claims.lowest.insert(node, free.unwrap_or(to));
                free
            });
            let exhausted = || Rejection::PortPoolExhausted { node: member.name.clone(), from, to };
            let port = chosen.ok_or_else(exhausted)?;
            claims.take((node, port), &spec.name, flotilla_spec::claims(spec, listen), listen);
            ports.push(port);
        }
        Ok(ports)
    }

    /// The lowest port of the node's pool that nobody holds and that `fits`.
    pub(super) fn free_port(&self, node: NodeId, fits: impl Fn(u16) -> bool) -> Result<u16, Rejection> {
        let member = self.member(node)?;
        let (from, to) = member.port_pool;
        let mut held = self.held_between(node, from, to).peekable();
        let free = (from..=to).find(|port| {
            held.next_if_eq(port).is_none()
                && *port != 0
                && !self.is_balancer_port(*port)
                && !member.reserved_ports.contains(port)
                && !self.is_balancer_port(*port)
                && fits(*port)
        });
        free.ok_or_else(|| Rejection::PortPoolExhausted { node: member.name.clone(), from, to })
    }

    /// In ascending order.
    fn held_between(&self, node: NodeId, from: u16, to: u16) -> impl Iterator<Item = u16> {
        let held = (from <= to).then(|| self.ports.range((node, from)..=(node, to)));
        held.into_iter().flatten().map(|((_, port), _)| *port)
    }

    /// Of one entry of `listen` each, for a generation that is assigned.
    pub(super) fn hold_ports(&mut self, node: NodeId, spec: &AppSpec, ports: &[u16]) {
        let app = &spec.name;
        for (listen, port) in spec.listen.iter().zip(ports) {
            let key = (node, *port);
            let holders = Arc::make_mut(self.ports.entry(key).or_default());
            holders.apps.insert(app.clone());
            let mut moving = BTreeSet::new();
            for host in flotilla_spec::claims(spec, listen) {
                match holders.hosts.get(&host) {
                    Some(owner) if owner != app || holders.moving.contains_key(&host) => {
                        moving.insert(host);
                    }
                    Some(_) | None => drop(holders.hosts.insert(host, app.clone())),
                }
            }
            self.rank_hosts(key, app, &moving);
        }
    }

    /// Frees what no other generation of the app uses on the node.
    pub(super) fn free_ports(&mut self, node: NodeId, spec: &AppSpec, ports: &[u16]) {
        let app = &spec.name;
        for (listen, port) in spec.listen.iter().zip(ports) {
            let key = (node, *port);
            let kept = self.claims_at(key, app);
            let Some(holders) = self.ports.get_mut(&key).map(Arc::make_mut) else { continue };
            let mut moving = BTreeSet::new();
            for host in flotilla_spec::claims(spec, listen) {
                if holders.moving.contains_key(&host) {
                    moving.insert(host);
                } else if !kept.contains_key(&host) {
                    holders.hosts.remove(&host);
                }
            }
            if kept.is_empty() {
                holders.apps.remove(app);
            }
            if holders.apps.is_empty() {
                self.ports.remove(&key);
            }
            self.rank_hosts(key, app, &moving);
        }
    }

    /// Decides anew whose names are that several claim, `app` or others.
    fn rank_hosts(&mut self, key: PortKey, app: &AppName, hosts: &BTreeSet<String>) {
        if hosts.is_empty() {
            return;
        }
        let Some(held) = self.ports.get(&key) else { return };
        let mut known: BTreeMap<AppName, BTreeMap<String, GenerationId>> = BTreeMap::new();
        let mut ranked = Vec::with_capacity(hosts.len());
        for host in hosts {
            let apps: BTreeSet<&AppName> = held.claimants(host).chain([app]).collect();
            let mut claims = Vec::new();
            for app in apps {
                let of_app = known.entry(app.clone()).or_insert_with(|| self.claims_at(key, app));
                claims.extend(of_app.get(host).map(|generation| (*generation, app.clone())));
            }
            ranked.push((host, claims));
        }
        let Some(holders) = self.ports.get_mut(&key).map(Arc::make_mut) else { return };
        for (host, claims) in ranked {
            holders.rank(host, claims);
        }
    }

    /// What `ports` must be: every port of every assignment. No name is claimed by the wanted generations of two apps.
    pub(crate) fn held_ports(&self) -> Result<OrdMap<PortKey, Arc<Holders>>, String> {
        let mut held: BTreeMap<PortKey, BTreeMap<AppName, BTreeMap<String, GenerationId>>> = BTreeMap::new();
        for (node, assignments) in &self.assignments {
            for (key @ (app, number), assignment) in assignments {
                let generation =
                    self.generations.get(key).ok_or_else(|| format!("{app}: no such generation"))?;
                for (listen, port) in generation.spec.listen.iter().zip(&assignment.ports) {
                    let claims = held.entry((*node, *port)).or_default().entry(app.clone()).or_default();
                    let hosts = flotilla_spec::claims(&generation.spec, listen);
                    claims.extend(hosts.into_iter().map(|host| (host, *number)));
                }
            }
        }
        let is_wanted = |(generation, app): &&(GenerationId, AppName)| {
            self.apps.get(app).is_some_and(|record| record.wanted == *generation)
        };
        let mut ports = OrdMap::new();
        for ((node, port), of_apps) in held {
            let mut holders = Holders { apps: of_apps.keys().cloned().collect(), ..Holders::default() };
            let mut claims: BTreeMap<String, Vec<(GenerationId, AppName)>> = BTreeMap::new();
            for (app, hosts) in of_apps {
                for (host, generation) in hosts {
                    claims.entry(host).or_default().push((generation, app.clone()));
                }
            }
            for (host, claims) in claims {
                let wanted: Vec<_> = claims.iter().filter(is_wanted).map(|(_, app)| app).collect();
                if let [one, other, ..] = wanted[..] {
                    return Err(format!(
                        "host {host} of port {port} of node {node} is wanted by {one} and {other}"
                    ));
                }
                holders.rank(&host, claims);
            }
            ports.insert((node, port), Arc::new(holders));
        }
        Ok(ports)
    }
}
