//! Which of two generations takes a client, by its address.
//!
//! The same client stays on the same side as long as the share does not change, and as the share grows
//! clients only ever move to the newer one. Each rollout draws its clients anew, and all nodes draw
//! alike.

use std::net::IpAddr;

/// Whether the generation numbered `newer`, which has `percent` of the clients, has this one.
pub(crate) fn takes(newer: u64, percent: u8, client: IpAddr) -> bool {
    let bits = match client.to_canonical() {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let bits = address.to_bits().to_be_bytes();
            let (high, low) = bits.split_at(8);
            let half = |half: &[u8]| u64::from_be_bytes(half.try_into().expect("eight bytes"));
            mix(half(high)) ^ half(low)
        }
    };
    // The upper half of the hash, scaled to 0..100 without the bias and the cost of a division.
    ((mix(bits ^ mix(newer)) >> 32) * 100) >> 32 < u64::from(percent)
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014): every bit of the input moves every bit of
/// the output. Not a secret: a client that chooses its address can choose its side.
fn mix(bits: u64) -> u64 {
    let mut z = bits.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn clients() -> impl Iterator<Item = IpAddr> {
        let four = (0..20_000_u32).map(|n| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n)));
        let six = (0..20_000_u128).map(|n| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) + (n << 64))));
        four.chain(six)
    }

    #[test]
    fn every_share_is_kept_and_a_client_never_moves_back_as_it_grows() {
        for generation in [1, 7, 1 << 40] {
            let mut before: Vec<IpAddr> = Vec::new();
            for percent in [0, 1, 5, 10, 50, 99, 100] {
                let taken: Vec<IpAddr> =
                    clients().filter(|client| takes(generation, percent, *client)).collect();
                let share = taken.len() as f64 / 400.0;
                let allowed = if percent % 100 == 0 { 0.0 } else { 1.0 };
                assert!((share - f64::from(percent)).abs() <= allowed, "{share} % instead of {percent} %");
                assert!(before.iter().all(|client| takes(generation, percent, *client)), "{percent} %");
                before = taken;
            }
        }
    }

    #[test]
    fn another_rollout_draws_other_clients_and_a_mapped_address_is_the_same_client() {
        let taken = |generation| clients().filter(move |client| takes(generation, 10, *client));
        let again = taken(7).filter(|client| takes(8, 10, *client)).count();
        assert!((200..800).contains(&again), "{again} of 4,000 were drawn twice");
        for client in clients().take(1_000) {
            let IpAddr::V4(address) = client else { panic!("the first ones are IPv4") };
            let mapped = IpAddr::V6(address.to_ipv6_mapped());
            assert_eq!(takes(7, 50, client), takes(7, 50, mapped));
        }
    }
}
