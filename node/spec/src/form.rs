//! How the types are written: tables without the fields that have their default value, and the short
//! forms (`9000`, `"http:8080"`, `"/healthz"`, `"all"`).
//!
//! Reading is strict (unknown keys are refused) and never `untagged`, which would lose the place and
//! the reason of an error inside a table.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
    ser::SerializeMap as _,
};

use crate::{
    spec::*,
    units::{DurationText, SizeText, StatusesText},
};

/// Writes `$type` as a table. The fields before the `;` are always there, those after it only when they
/// differ from the default. Every field must be named: a forgotten one does not compile.
macro_rules! table {
    ($type:ident { $($always:ident),* ; $($field:ident $([$key:literal])? $(: $wrap:ident)?),* $(,)? } $this:ident => $default:expr) => {
        impl $type {
            fn serialize_table<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let $this = self;
                let default: Self = $default;
                let Self { $($always,)* $($field,)* } = self;
                let mut map = serializer.serialize_map(None)?;
                $(map.serialize_entry(stringify!($always), $always)?;)*
                $(if *$field != default.$field {
                    map.serialize_entry(table!(@key $field $($key)?), table!(@value $field $($wrap)?))?;
                })*
                map.end()
            }
        }
    };
    (@key $field:ident) => { stringify!($field) };
    (@key $field:ident $key:literal) => { $key };
    (@value $field:ident) => { $field };
    (@value $field:ident StatusesText) => { &StatusesText($field) };
    (@value $field:ident $wrap:ident) => { &$wrap(*$field) };
}

macro_rules! always_a_table {
    ($($type:ident),*) => { $(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.serialize_table(serializer)
            }
        }
    )* };
}

always_a_table!(
    AppSpec,
    Pool,
    Resolve,
    Timeouts,
    Limits,
    UpstreamOptions,
    TcpKeepalive,
    Route,
    Match,
    Placement,
    Rollout
);

table!(AppSpec {
    name;
    description, labels, listen, targets, pool, resolve, balance, check, timeouts, limits, upstream, route,
    placement, rollout,
} this => Self {
    name: this.name.clone(),
    description: String::new(),
    labels: Default::default(),
    listen: Vec::new(),
    targets: Vec::new(),
    pool: Default::default(),
    resolve: Default::default(),
    balance: Default::default(),
    check: Default::default(),
    timeouts: Default::default(),
    limits: Default::default(),
    upstream: Default::default(),
    route: Vec::new(),
    placement: Default::default(),
    rollout: Default::default(),
});
table!(Listen { port; address, protocol, max_connections } _this => Self::default());
table!(Target { address; weight } _this => Self { address: String::new(), weight: Self::default_weight() });
table!(Pool { ; targets } _this => Self { targets: Vec::new() });
table!(Resolve {
    ; mode, family, min_ttl: DurationText, max_ttl: DurationText, stale: DurationText
} _this => Self::default());
table!(Check {
    ; kind ["type"], path, host, port, interval: DurationText, timeout: DurationText, rise, fall,
    expect: StatusesText
} _this => Self::default());
table!(Timeouts {
    ; connect: DurationText, request_header: DurationText, response_header: DurationText,
    request: DurationText, idle: DurationText, tcp_idle: DurationText, tunnel: DurationText
} _this => Self::default());
table!(Limits {
    ; max_connections, max_header_size: SizeText, max_body_size: SizeText
} _this => Self::default());
table!(UpstreamOptions { ; max_idle, idle_timeout: DurationText, tcp_keepalive } _this => Self::default());
table!(TcpKeepalive { ; idle: DurationText, interval: DurationText, count } _this => Self::default());
table!(Route { name, pool; matches ["match"] } _this => Self {
    name: String::new(),
    matches: Match::default(),
    pool: String::new(),
});
table!(Match { ; host, path, path_prefix, methods } _this => Self::default());
table!(Placement { ; replicas, regions, spread, require } _this => Self::default());
table!(Rollout {
    ; max_parallel, min_healthy: DurationText, min_healthy_targets, healthy_deadline: DurationText,
    progress_deadline: DurationText, drain: DurationText, auto_rollback
} _this => Self::default());

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let short = Self { port: self.port, protocol: self.protocol, ..Self::default() };
        match self.protocol {
            _ if *self != short => self.serialize_table(serializer),
            Protocol::Tcp => serializer.serialize_u16(self.port),
            Protocol::Http => serializer.collect_str(&format_args!("http:{}", self.port)),
        }
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Listen;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port (0 to 65535), \"protocol:port\" or a table")
            }
            fn visit_u64<E: de::Error>(self, port: u64) -> Result<Listen, E> {
                match u16::try_from(port) {
                    Ok(port) => Ok(Listen { port, ..Listen::default() }),
                    Err(_) => Err(E::custom(format!("{port} is not a port (0 to 65535)"))),
                }
            }
            fn visit_i64<E: de::Error>(self, port: i64) -> Result<Listen, E> {
                match u64::try_from(port) {
                    Ok(port) => self.visit_u64(port),
                    Err(_) => Err(E::custom(format!("{port} is not a port (0 to 65535)"))),
                }
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Listen, E> {
                let (protocol, port) = text.split_once(':').unwrap_or(("tcp", text));
                let protocol = match protocol {
                    "tcp" => Protocol::Tcp,
                    "http" => Protocol::Http,
                    _ => return Err(E::unknown_variant(protocol, &["tcp", "http"])),
                };
                match port.parse() {
                    Ok(port) => Ok(Listen { port, protocol, ..Listen::default() }),
                    Err(_) => Err(E::custom(format!("`{port}` is not a port (0 to 65535)"))),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Listen, A::Error> {
                Listen::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.weight == Self::default_weight() {
            true => serializer.serialize_str(&self.address),
            false => self.serialize_table(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Target;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"host:port\" or a table")
            }
            fn visit_str<E: de::Error>(self, address: &str) -> Result<Target, E> {
                Ok(Target { address: address.to_owned(), weight: Target::default_weight() })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Target, A::Error> {
                Target::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl Serialize for Balance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { policy } = self;
        policy.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Balance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Balance;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a policy such as \"p2c\" or a table")
            }
            fn visit_str<E: de::Error>(self, policy: &str) -> Result<Balance, E> {
                Policy::deserialize(de::value::StrDeserializer::new(policy)).map(|policy| Balance { policy })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Balance, A::Error> {
                Balance::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let short = Self { kind: self.kind, ..Self::default() };
        let short_path = Self { kind: CheckKind::Http, path: self.path.clone(), ..Self::default() };
        match self.kind {
            CheckKind::Http if *self == short_path && self.path.starts_with('/') => {
                serializer.serialize_str(&self.path)
            }
            CheckKind::Tcp if *self == short => serializer.serialize_str("tcp"),
            CheckKind::None if *self == short => serializer.serialize_str("none"),
            CheckKind::Http | CheckKind::Tcp | CheckKind::None => self.serialize_table(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Check {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Check;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"/path\", \"tcp\", \"none\" or a table")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Check, E> {
                let kind = match text {
                    path if path.starts_with('/') => {
                        let path = path.to_owned();
                        return Ok(Check { kind: CheckKind::Http, path, ..Check::default() });
                    }
                    "tcp" => CheckKind::Tcp,
                    "none" => CheckKind::None,
                    _ => return Err(E::unknown_variant(text, &["/path", "tcp", "none"])),
                };
                Ok(Check { kind, ..Check::default() })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Check, A::Error> {
                Check::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl Serialize for Replicas {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::Count(nodes) => serializer.serialize_u32(*nodes),
        }
    }
}

impl<'de> Deserialize<'de> for Replicas {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = Replicas;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"all\" or a number of nodes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Replicas, E> {
                match text {
                    "all" => Ok(Replicas::All),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_u64<E: de::Error>(self, nodes: u64) -> Result<Replicas, E> {
                match u32::try_from(nodes) {
                    Ok(nodes) => Ok(Replicas::Count(nodes)),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Unsigned(nodes), &self)),
                }
            }
            fn visit_i64<E: de::Error>(self, nodes: i64) -> Result<Replicas, E> {
                match u64::try_from(nodes) {
                    Ok(nodes) => self.visit_u64(nodes),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Signed(nodes), &self)),
                }
            }
        }
        deserializer.deserialize_any(Form)
    }
}
