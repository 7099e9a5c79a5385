//! Which app a name belongs to, among any number of them.
//!
//! A value: a change makes another one that shares with it all but the shards it touched, so that claiming a name
//! among a hundred thousand copies a few hundred of them.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use super::{Claim, Tenant};
use crate::http::{
    headers::without_port,
    route::{HOST_BYTES_MAX, lower_case},
};

const SHARDS: usize = 256;

type Shard = HashMap<Box<str>, Arc<Tenant>>;

#[derive(Clone, Default)]
pub(crate) struct Names {
    exact: Map,
    /// `*.example.com`, by `example.com`.
    by_suffix: Map,
    /// `api.*`, by `api`.
    by_prefix: Map,
}

#[derive(Clone, Default)]
struct Map {
    /// None of them as long as there is nothing.
    shards: Vec<Arc<Shard>>,
    len: usize,
    hasher: RandomState,
}

impl Names {
    pub(crate) fn put(&mut self, claim: &Claim, tenant: &Arc<Tenant>) {
        if let Some((map, name)) = self.map(claim) {
            map.put(name, tenant);
        }
    }

    pub(crate) fn remove(&mut self, claim: &Claim) {
        if let Some((map, name)) = self.map(claim) {
            map.remove(name);
        }
    }

    fn map<'a>(&mut self, claim: &'a Claim) -> Option<(&mut Map, &'a str)> {
        match claim {
            Claim::Any => None,
            Claim::Exact(name) => Some((&mut self.exact, name)),
            Claim::Suffix(name) => Some((&mut self.by_suffix, name)),
            Claim::Prefix(name) => Some((&mut self.by_prefix, name)),
        }
    }

    /// `host` as it came: in any case, with or without a port. The name itself comes first, then the longest
    /// suffix, then the longest prefix.
    pub(crate) fn find(&self, host: &str) -> Option<&Arc<Tenant>> {
        let mut lower = [0; HOST_BYTES_MAX];
        let host = lower_case(without_port(host), &mut lower)?;
        if let Some(tenant) = self.exact.get(host) {
            return Some(tenant);
        }
        let dots = || host.match_indices('.').map(|(dot, _)| dot).filter(|&dot| dot > 0);
        let by_suffix = || dots().find_map(|dot| self.by_suffix.get(&host[dot + 1..]));
        let by_prefix = || dots().rev().find_map(|dot| self.by_prefix.get(&host[..dot]));
        by_suffix().or_else(by_prefix)
    }
}

impl Map {
    fn get(&self, name: &str) -> Option<&Arc<Tenant>> {
        if self.len == 0 {
            return None;
        }
        self.shards[self.shard(name)].get(name)
    }

    fn put(&mut self, name: &str, tenant: &Arc<Tenant>) {
        if self.shards.is_empty() {
            self.shards = vec![Arc::default(); SHARDS];
        }
        let shard = self.shard(name);
        let before = Arc::make_mut(&mut self.shards[shard]).insert(name.into(), Arc::clone(tenant));
        self.len += usize::from(before.is_none());
    }

    fn remove(&mut self, name: &str) {
        if self.len == 0 {
            return;
        }
        let shard = self.shard(name);
        let gone = Arc::make_mut(&mut self.shards[shard]).remove(name);
        self.len -= usize::from(gone.is_some());
    }

    fn shard(&self, name: &str) -> usize {
        usize::try_from(self.hasher.hash_one(name) % SHARDS as u64).expect("a shard number is small")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `app=name` each.
    fn names(claims: &str) -> Names {
        let mut names = Names::default();
        for claim in claims.split_whitespace() {
            let (app, name) = claim.split_once('=').unwrap();
            names.put(&Claim::parse(name), &Arc::new(Tenant::new(&app.into())));
        }
        names
    }

    #[track_caller]
    fn check(names: &Names, host: &str, app: &str) {
        assert_eq!(names.find(host).map_or("", |tenant| &*tenant.app), app, "{host}");
    }

    #[test]
    fn the_closest_claim_wins() {
        let names = names(
            "a=example.com b=*.example.com c=*.shop.example.com d=www.shop.example.com e=api.* f=[::1]",
        );
        for (host, app) in [
            ("example.com", "a"),
            ("EXAMPLE.com.:443", "a"),
            ("www.example.com", "b"),
            ("a.b.example.com", "b"),
            ("shop.example.com", "b"),
            ("x.shop.example.com", "c"),
            ("www.shop.example.com", "d"),
            ("api.example.com", "b"),
            ("api.example.org", "e"),
            ("[::1]:8080", "f"),
            ("example.org", ""),
            (".example.com", ""),
            ("", ""),
        ] {
            check(&names, host, app);
        }
        check(&names, &"x.".repeat(200), "");
    }

    #[test]
    fn a_change_leaves_the_value_before_it_alone() {
        let before = names("a=a.example.com b=b.example.com");
        let mut after = before.clone();
        after.remove(&Claim::parse("a.example.com"));
        after.put(&Claim::parse("c.example.com"), &Arc::new(Tenant::new(&"c".into())));
        check(&before, "a.example.com", "a");
        check(&before, "c.example.com", "");
        check(&after, "a.example.com", "");
        check(&after, "b.example.com", "b");
        check(&after, "c.example.com", "c");
    }
}
