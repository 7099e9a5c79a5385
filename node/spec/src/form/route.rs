//! How routes are written.

use std::{fmt, time::Duration};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
    ser::SerializeMap as _,
};

use crate::{
    spec::*,
    units::{SizeText, duration_text},
};

always_a_table!(Route, Match, Respond, Redirect, Rewrite, HeaderEdits);

table!(Route {
    name;
    matches ["match"], pool, split, sticky, respond, redirect, timeout: MaybeDuration, rewrite, request_headers, response_headers,
    mirror, connect
} _this => Self::default());
table!(Match { ; host, path, path_prefix, path_regex, methods, headers, query, expr } _this => Self::default());
table!(Mirror { pool; percent, max_body_size: SizeText } _this => Self::new(""));
table!(Respond { status; headers, body } _this => Self::default());
table!(Redirect { ; status, scheme, host, port, path } _this => Self::default());
table!(Rewrite { ; strip_prefix, add_prefix } _this => Self::default());
table!(HeaderEdits { ; set, add, remove } _this => Self::default());

impl Serialize for Mirror {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self == Self::new(self.pool.as_str()) {
            true => serializer.serialize_str(&self.pool),
            false => self.serialize_table(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Mirror {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Mirror;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a pool or a table")
            }
            fn visit_str<E: de::Error>(self, pool: &str) -> Result<Mirror, E> {
                Ok(Mirror::new(pool))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Mirror, A::Error> {
                Mirror::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

/// Written only where it is one.
struct MaybeDuration(Option<Duration>);

impl Serialize for MaybeDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.map(duration_text).serialize(serializer)
    }
}

impl Serialize for ValueMatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Self::Exact(value) = self {
            return serializer.serialize_str(value);
        }
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Self::Exact(value) => map.serialize_entry("exact", value)?,
            Self::Present(is_there) => map.serialize_entry("present", is_there)?,
            Self::Regex(pattern) => map.serialize_entry("regex", pattern)?,
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for ValueMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            #[serde(default)]
            exact: Option<String>,
            #[serde(default)]
            present: Option<bool>,
            #[serde(default)]
            regex: Option<String>,
        }
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = ValueMatch;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value, or a table with one of `exact`, `present` and `regex`")
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<ValueMatch, E> {
                Ok(ValueMatch::Exact(value.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ValueMatch, A::Error> {
                match Table::deserialize(MapAccessDeserializer::new(map))? {
                    Table { exact: Some(value), present: None, regex: None } => Ok(ValueMatch::Exact(value)),
                    Table { exact: None, present: Some(is), regex: None } => Ok(ValueMatch::Present(is)),
                    Table { exact: None, present: None, regex: Some(regex) } => Ok(ValueMatch::Regex(regex)),
                    Table { .. } => Err(de::Error::custom("one of `exact`, `present` and `regex` is needed")),
                }
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl Serialize for RedirectHttps {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::On => serializer.serialize_bool(true),
            Self::Port(port) => serializer.serialize_u16(*port),
        }
    }
}

impl<'de> Deserialize<'de> for RedirectHttps {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = RedirectHttps;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`true`, `false` or the port of https")
            }
            fn visit_bool<E: de::Error>(self, is_on: bool) -> Result<RedirectHttps, E> {
                Ok(if is_on { RedirectHttps::On } else { RedirectHttps::Off })
            }
            fn visit_u64<E: de::Error>(self, port: u64) -> Result<RedirectHttps, E> {
                match u16::try_from(port) {
                    Ok(port) if port > 0 => Ok(RedirectHttps::Port(port)),
                    Ok(_) | Err(_) => Err(E::custom(format!("{port} is not a port (1 to 65535)"))),
                }
            }
            fn visit_i64<E: de::Error>(self, port: i64) -> Result<RedirectHttps, E> {
                match u64::try_from(port) {
                    Ok(port) => self.visit_u64(port),
                    Err(_) => Err(E::custom(format!("{port} is not a port (1 to 65535)"))),
                }
            }
        }
        deserializer.deserialize_any(Form)
    }
}
