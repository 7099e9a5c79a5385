//! How durations, sizes and status codes are written: `"1m30s"`, `"64KiB"`, `"200-399"`.
//!
//! Text that is written here reads back as exactly the same value.

use std::{fmt, net::IpAddr, time::Duration};

use bytesize::ByteSize;
use ipnet::IpNet;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};

pub(crate) fn duration_text(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}

pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    // humantime adds up what it reads and can overflow in the last step; with at most nine digits a
    // number and 64 bytes in all the sum stays far below the limit.
    let longest_number = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    if text.len() > 64 || longest_number > 9 {
        return Err(format!("`{text}` is too long for a duration"));
    }
    humantime::parse_duration(text).map_err(|_| {
        format!(
            "`{text}` is not a duration: write numbers with units, such as \"250ms\", \"5s\" or \"1m30s\""
        )
    })
}

/// The largest unit that divides it, so nothing is rounded.
pub(crate) fn size_text(bytes: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match UNITS.iter().find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None if bytes == 0 => "0".to_owned(),
        None => format!("{bytes}B"),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    match text.parse::<ByteSize>() {
        Ok(size) => Ok(size.as_u64()),
        Err(_) => Err(format!("`{text}` is not a size: write a number with its unit, such as \"64KiB\"")),
    }
}

fn parse_statuses(text: &str) -> Result<(u16, u16), String> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    match (from.trim().parse(), to.trim().parse()) {
        (Ok(from), Ok(to)) => Ok((from, to)),
        _ => Err(format!("`{text}` is not a range of status codes: write \"200-399\" or 204")),
    }
}

pub(crate) struct DurationText(pub Duration);
pub(crate) struct SizeText(pub u64);
pub(crate) struct StatusesText<'a>(pub &'a [(u16, u16)]);

impl Serialize for DurationText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&duration_text(self.0))
    }
}

impl Serialize for SizeText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&size_text(self.0))
    }
}

impl Serialize for StatusesText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Form {
            Code(u16),
            Range(String),
        }
        serializer.collect_seq(self.0.iter().map(|(from, to)| match from == to {
            true => Form::Code(*from),
            false => Form::Range(format!("{from}-{to}")),
        }))
    }
}

/// `10.0.0.0/8`, or one address. Bits behind the length are refused: they are a mistake in one of the two.
fn parse_network(text: &str) -> Result<IpNet, String> {
    let network = match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
        (Ok(network), _) => network,
        (Err(_), Ok(address)) => IpNet::from(address),
        (Err(_), Err(_)) => {
            return Err(format!("`{text}` is not a network: write \"10.0.0.0/8\" or an address"));
        }
    };
    match network.trunc() {
        whole if whole == network => Ok(network),
        whole => Err(format!("`{text}` has bits behind its length: write \"{whole}\"")),
    }
}

pub(crate) fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    struct Network(IpNet);
    impl<'de> Deserialize<'de> for Network {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Reader;
            impl Visitor<'_> for Reader {
                type Value = Network;
                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a network such as \"10.0.0.0/8\"")
                }
                fn visit_str<E: de::Error>(self, text: &str) -> Result<Network, E> {
                    parse_network(text).map(Network).map_err(E::custom)
                }
            }
            deserializer.deserialize_str(Reader)
        }
    }
    let networks = Vec::<Network>::deserialize(deserializer)?;
    Ok(networks.into_iter().map(|Network(network)| network).collect())
}

pub(crate) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Reader;
    impl Visitor<'_> for Reader {
        type Value = Duration;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration such as \"250ms\", \"5s\" or \"1m30s\"")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            parse_duration(text).map_err(E::custom)
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<Duration, E> {
            Err(E::custom(format!("a duration needs its unit: write \"{number}s\" or \"{number}ms\"")))
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<Duration, E> {
            match u64::try_from(number) {
                Ok(number) => self.visit_u64(number),
                Err(_) => Err(E::custom(format!("a duration cannot be negative: {number}"))),
            }
        }
    }
    deserializer.deserialize_any(Reader)
}

pub(crate) fn some_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

pub(crate) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Reader;
    impl Visitor<'_> for Reader {
        type Value = u64;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size such as \"64KiB\" or \"10MiB\"; \"0\" = off")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            parse_size(text).map_err(E::custom)
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
            Err(E::custom(format!(
                "a size needs its unit: write \"{number}B\" or \"{number}KiB\"; \"0\" = off"
            )))
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<u64, E> {
            match u64::try_from(number) {
                Ok(number) => self.visit_u64(number),
                Err(_) => Err(E::custom(format!("a size cannot be negative: {number}"))),
            }
        }
    }
    deserializer.deserialize_any(Reader)
}

pub(crate) fn statuses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(u16, u16)>, D::Error> {
    struct Statuses((u16, u16));
    struct Reader;
    impl Visitor<'_> for Reader {
        type Value = Statuses;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a status code or a range such as \"200-399\"")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Statuses, E> {
            parse_statuses(text).map(Statuses).map_err(E::custom)
        }
        fn visit_u64<E: de::Error>(self, code: u64) -> Result<Statuses, E> {
            match u16::try_from(code) {
                Ok(code) => Ok(Statuses((code, code))),
                Err(_) => Err(E::custom(format!("{code} is not a status code"))),
            }
        }
        fn visit_i64<E: de::Error>(self, code: i64) -> Result<Statuses, E> {
            match u64::try_from(code) {
                Ok(code) => self.visit_u64(code),
                Err(_) => Err(E::custom(format!("{code} is not a status code"))),
            }
        }
    }
    impl<'de> Deserialize<'de> for Statuses {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_any(Reader)
        }
    }
    let ranges = Vec::<Statuses>::deserialize(deserializer)?;
    Ok(ranges.into_iter().map(|Statuses(range)| range).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_written_the_way_people_write_it() {
        for (millis, text) in
            [(0, "0s"), (250, "250ms"), (5_000, "5s"), (90_000, "1m30s"), (600_000, "10m"), (3_600_000, "1h")]
        {
            assert_eq!(duration_text(Duration::from_millis(millis)), text);
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)));
        }
    }

    #[test]
    fn a_duration_that_would_overflow_is_refused_and_not_a_panic() {
        for text in ["18446744073709551615s1000000000ns", "999999999999y", "", "5", "-5s", "5 parsecs"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_is_written_in_the_largest_unit_that_divides_it() {
        for (bytes, text) in
            [(0, "0"), (1, "1B"), (1024, "1KiB"), (1025, "1025B"), (65536, "64KiB"), (3 << 30, "3GiB")]
        {
            assert_eq!(size_text(bytes), text);
            assert_eq!(parse_size(text), Ok(bytes));
        }
        assert_eq!(parse_size(&size_text(u64::MAX)), Ok(u64::MAX));
    }
}
