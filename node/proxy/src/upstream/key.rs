//! What requests are hashed on, and with what.
//!
//! All nodes, of all versions, must send a client to the same target, so the hash is written down here
//! and not left to a library that may change it.

use std::net::IpAddr;

/// FNV-1a (Fowler, Noll, Vo), then mixed: FNV's high bits alone are poor for short inputs.
///
/// Whoever can choose the input can choose the endpoint, which is what hashing on it means.
pub fn hash(bytes: &[u8]) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
    mix(bytes.iter().fold(0xCBF2_9CE4_8422_2325, fnv))
}

/// A second, independent-looking 64 bits out of the first (the finaliser of SplitMix64).
pub fn mix(random: u64) -> u64 {
    let z = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Of a client. One that arrives over IPv4 on a dual-stack socket is the same as over IPv4.
pub(crate) fn of_client(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => hash(&address.octets()),
        IpAddr::V6(address) => hash(&address.octets()),
    }
}

/// The value of one cookie in the fields of a request (RFC 6265 §5.4). The first of that name counts.
pub(crate) fn cookie<'a>(fields: impl Iterator<Item = &'a [u8]>, name: &str) -> Option<&'a [u8]> {
    let mut pairs = fields.flat_map(|field| field.split(|byte| *byte == b';'));
    pairs.find_map(|pair| {
        let value = pair.trim_ascii_start().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(value.trim_ascii_end())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_same_on_every_node_and_in_every_version() {
        // If this fails, a rolling update would send every client to another target.
        for (bytes, expected) in [
            (&b""[..], 0xC381_7C01_6BA4_FF30),
            (b"a", 0x5F29_C2AA_DD9B_8527),
            (b"192.0.2.1", 0xD307_492F_BA64_DA08),
        ] {
            assert_eq!(hash(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_client_is_the_same_over_both_families() {
        let [v4, mapped, other]: [IpAddr; 3] =
            ["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        assert_eq!(of_client(v4), of_client(mapped));
        assert_ne!(of_client(v4), of_client(other));
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        for (fields, expected) in [
            (&["sid=1"][..], Some("1")),
            (&["a=b; sid=1; c=d"], Some("1")),
            (&["a=b;sid=1 ;c=d"], Some("1")),
            (&["a=b", "c=d; sid=1"], Some("1")),
            (&["sid=1; sid=2"], Some("1")),
            (&["sid="], Some("")),
            (&["xsid=1; sidx=2; sid"], None),
            (&["a=sid=1"], None),
            (&[], None),
        ] {
            let found = cookie(fields.iter().map(|field| field.as_bytes()), "sid");
            assert_eq!(found, expected.map(str::as_bytes), "{fields:?}");
        }
    }
}
