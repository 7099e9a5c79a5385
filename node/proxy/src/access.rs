//! Which client addresses may come in: lists of networks, compiled.
//!
//! Pure. An address is looked up in the same time whatever the length of the list.

use std::net::IpAddr;

use ipnet::IpNet;

/// Addresses as disjoint ranges of 128-bit numbers, ascending. IPv4 is where its mapped form is, so a client of
/// a dual-stack socket is the same as one of an IPv4 socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Networks(Vec<(u128, u128)>);

impl Networks {
    pub(crate) fn new(networks: &[IpNet]) -> Networks {
        let mut ranges: Vec<(u128, u128)> =
            networks.iter().map(|network| (number(network.network()), number(network.broadcast()))).collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (from, to) in ranges {
            match merged.last_mut() {
                Some(before) if from <= before.1 => before.1 = before.1.max(to),
                Some(_) | None => merged.push((from, to)),
            }
        }
        Networks(merged)
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        let ip = number(ip);
        let after = self.0.partition_point(|&(from, _)| from <= ip);
        after > 0 && ip <= self.0[after - 1].1
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// Who may connect to an app. Deny wins; an allow list that is there lets nobody else in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    allow: Option<Networks>,
    deny: Networks,
}

impl Access {
    /// `None` when everybody may.
    pub(crate) fn new(allow: &[IpNet], deny: &[IpNet]) -> Option<Access> {
        if allow.is_empty() && deny.is_empty() {
            return None;
        }
        let allow = (!allow.is_empty()).then(|| Networks::new(allow));
        Some(Access { allow, deny: Networks::new(deny) })
    }

    pub(crate) fn admits(&self, ip: IpAddr) -> bool {
        !self.deny.contains(ip) && self.allow.as_ref().is_none_or(|allow| allow.contains(ip))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn deny_wins_and_an_allow_list_lets_nobody_else_in() {
        for (allow, deny, ip, want) in [
            ("10.0.0.0/8", "", "10.255.255.255", true),
            ("10.0.0.0/8", "", "11.0.0.0", false),
            ("10.0.0.0/8", "", "::ffff:10.1.2.3", true),
            ("10.0.0.0/8", "", "2001:db8::1", false),
            ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", false),
            ("10.0.0.0/8", "10.1.0.0/16", "10.2.0.1", true),
            ("", "10.1.0.0/16", "10.1.2.3", false),
            ("", "10.1.0.0/16", "192.0.2.1", true),
            ("", "10.1.0.0/16", "2001:db8::1", true),
            ("", "0.0.0.0/0", "192.0.2.1", false),
            ("", "0.0.0.0/0", "2001:db8::1", true),
            ("", "::/0", "2001:db8::1", false),
            ("2001:db8::/32 192.0.2.7/32", "", "192.0.2.7", true),
            ("2001:db8::/32 192.0.2.7/32", "", "2001:db8:ffff::", true),
            ("192.0.2.64/26 192.0.2.0/25", "", "192.0.2.127", true),
        ] {
            let access = Access::new(&nets(allow), &nets(deny)).unwrap();
            assert_eq!(access.admits(ip.parse().unwrap()), want, "allow {allow} deny {deny}: {ip}");
        }
        assert_eq!(Access::new(&[], &[]), None);
    }

    proptest! {
        #[test]
        fn the_compiled_list_says_what_its_networks_say(
            list in proptest::collection::vec((any::<std::net::Ipv4Addr>(), 0u8..=32), 0..20),
            ip in any::<std::net::Ipv4Addr>(),
        ) {
            let list: Vec<IpNet> = list
                .into_iter()
                .map(|(ip, length)| IpNet::new(ip.into(), length).unwrap())
                .collect();
            let probes = list.iter().flat_map(|net| [net.network(), net.broadcast()]).chain([ip.into()]);
            let networks = Networks::new(&list);
            for ip in probes {
                prop_assert_eq!(networks.contains(ip), list.iter().any(|net| net.contains(&ip)));
            }
        }
    }
}
