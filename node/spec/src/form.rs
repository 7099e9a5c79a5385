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
    (@value $field:ident OneOrMany) => { &OneOrMany($field) };
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

mod route;

always_a_table!(
    Access,
    Compression,
    Basic,
    Jwt,
    ForwardAuth,
    ExtAuthz,
    AppSpec,
    Outlier,
    Breaker,
    Retry,
    Hedge,
    Backoff,
    Pool,
    Probe,
    Resolve,
    Timeouts,
    Tls,
    Limits,
    Rate,
    UpstreamOptions,
    UpstreamTls,
    TcpKeepalive,
    SocketOptions,
    Placement,
    Autoscale,
    Rollout,
    AbortOn
);

table!(AppSpec {
    name;
    description, labels, listen, targets, pool, resolve, balance, check, probe, outlier, breaker, retry, timeouts, limits, upstream,
    route, access, compression, layers, placement, rollout,
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
    probe: Vec::new(),
    outlier: Default::default(),
    breaker: None,
    retry: Default::default(),
    timeouts: Default::default(),
    limits: Default::default(),
    upstream: Default::default(),
    route: Vec::new(),
    access: Default::default(),
    compression: None,
    layers: Vec::new(),
    placement: Default::default(),
    rollout: Default::default(),
});
table!(Listen {
    port; address, protocol, tls, proxy_protocol, trusted_proxies, hosts, max_connections, socket, redirect_https
} _this => Self::default());
table!(SocketOptions {
    ; backlog, nodelay, keepalive, user_timeout: DurationText, receive_buffer: SizeText, send_buffer: SizeText
} _this => Self::default());
table!(Tls { ; certificate: OneOrMany, min_version, alpn, client_ca } _this => Self::default());
table!(Compression { ; level, min_size: SizeText, types } _this => Self::default());
table!(Access { ; allow, deny, basic, jwt, forward, ext_authz, signer } _this => Self::default());
table!(Basic { ; realm, users, file, timeout: DurationText } _this => Self::default());
table!(Jwt {
    jwks; ca, issuer, audience, algorithms, header, leeway: DurationText, refresh: DurationText,
    refresh_floor: DurationText, timeout: DurationText
} _this => Self::default());
table!(ForwardAuth { targets; path, copy, timeout: DurationText, tls } _this => Self::default());
table!(ExtAuthz { targets; timeout: DurationText, tls } _this => Self::default());
table!(Target { address; weight, zone, backup } _this => Self::new("", Self::default_weight()));
table!(Balance {
    ; policy, hash_on, slow_start: DurationText, zone_aware, panic_threshold
} _this => Self::default());
table!(Pool { ; targets } _this => Self { targets: Vec::new() });
table!(Resolve {
    ; mode, family, min_ttl: DurationText, max_ttl: DurationText, stale: DurationText
} _this => Self::default());
table!(Check {
    ; kind ["type"], path, host, port, interval: DurationText, timeout: DurationText, rise, fall,
    expect: StatusesText, service
} _this => Self::default());
table!(Probe {
    name;
    kind, ask ["type"], port, path, host, expect: StatusesText, send, body, service, command,
    interval: DurationText, timeout: DurationText, rise, fall
} _this => Self::default());
table!(Outlier { ; consecutive_failures, ejection: DurationText, max_ejected } _this => Self::default());
table!(Breaker {
    ; error_percent, window: DurationText, min_requests, open_for: DurationText
} _this => Self::default());
table!(Retry {
    ; attempts, on, per_try_timeout: DurationText, backoff, budget, methods, hedge
} _this => Self::default());
table!(Hedge { ; after: DurationText, max } _this => Self::default());
table!(Backoff { ; base: DurationText, max: DurationText } _this => Self::default());
table!(Timeouts {
    ; connect: DurationText, tls_handshake: DurationText, request_header: DurationText, request_body: DurationText, response_header: DurationText,
    request: DurationText, idle: DurationText, tcp_idle: DurationText, tunnel: DurationText
} _this => Self::default());
table!(Limits {
    ; max_connections, max_connections_per_ip, max_header_size: SizeText, max_request_line: SizeText, max_header_fields,
    max_requests_per_connection, max_body_size: SizeText, max_in_flight,
    max_pending, pending_timeout: DurationText, target_soft, target_hard, rate
} _this => Self::default());
table!(Rate { per_second; key, burst, max_keys } _this => Self::default());
table!(UpstreamOptions { ; max_idle, warm, idle_timeout: DurationText, tcp_keepalive, send_proxy, protocol, tls } _this => Self::default());
table!(UpstreamTls { ; enabled, server_name, ca, certificate } _this => Self::default());
table!(TcpKeepalive { ; idle: DurationText, interval: DurationText, count } _this => Self::default());
table!(Placement { ; replicas, regions, spread, require, autoscale } _this => Self::default());
table!(Autoscale {
    max; min, target_connections, target_requests_per_second, target_cpu_percent, cooldown: DurationText
} this => Self {
    min: Self::default_min(),
    max: this.max,
    target_connections: None,
    target_requests_per_second: None,
    target_cpu_percent: None,
    cooldown: Self::default_cooldown(),
});
table!(Rollout {
    ; strategy, max_parallel, canary, steps, min_healthy: DurationText, min_healthy_targets,
    healthy_deadline: DurationText, progress_deadline: DurationText, drain: DurationText, auto_promote,
    auto_rollback, abort_on
} _this => Self::default());
table!(AbortOn { ; error_percent, p99: DurationText, min_requests } _this => Self::default());

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let short = Self { port: self.port, protocol: self.protocol, ..Self::default() };
        let secure = Self { tls: Some(Tls::default()), ..short.clone() };
        match self.protocol {
            Protocol::Http if *self == secure => serializer.collect_str(&format_args!("https:{}", self.port)),
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
                let (protocol, tls) = match protocol {
                    "tcp" => (Protocol::Tcp, None),
                    "http" => (Protocol::Http, None),
                    "https" => (Protocol::Http, Some(Tls::default())),
                    _ => return Err(E::unknown_variant(protocol, &["tcp", "http", "https"])),
                };
                match port.parse() {
                    Ok(port) => Ok(Listen { port, protocol, tls, ..Listen::default() }),
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

/// A list of one is written as that one.
pub(crate) struct OneOrMany<'a, T>(&'a [T]);

impl<T: Serialize> Serialize for OneOrMany<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            [one] => one.serialize(serializer),
            many => many.serialize(serializer),
        }
    }
}

pub(crate) fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Certificate>, D::Error> {
    struct Form;
    impl<'de> Visitor<'de> for Form {
        type Value = Vec<Certificate>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a certificate's name, a table of `cert` and `key`, or a list of these")
        }
        fn visit_str<E: de::Error>(self, name: &str) -> Result<Vec<Certificate>, E> {
            Ok(vec![Certificate::Named(name.to_owned())])
        }
        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<Certificate>, A::Error> {
            let files = CertificateFiles::deserialize(MapAccessDeserializer::new(map))?;
            Ok(vec![Certificate::Files(files)])
        }
        fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Vec<Certificate>, A::Error> {
            Vec::deserialize(de::value::SeqAccessDeserializer::new(seq))
        }
    }
    deserializer.deserialize_any(Form)
}

impl Serialize for Certificate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Named(name) => serializer.serialize_str(name),
            Self::Files(files) => files.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Certificate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Certificate;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a certificate's name or a table of `cert` and `key`")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Certificate, E> {
                Ok(Certificate::Named(name.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Certificate, A::Error> {
                CertificateFiles::deserialize(MapAccessDeserializer::new(map)).map(Certificate::Files)
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self == Self::new(self.address.as_str(), Self::default_weight()) {
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
                Ok(Target::new(address, Target::default_weight()))
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
        match *self == (Self { policy: self.policy.clone(), ..Self::default() }) {
            true => self.policy.serialize(serializer),
            false => self.serialize_table(serializer),
        }
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
                let policy = Policy::deserialize(de::value::StrDeserializer::new(policy))?;
                Ok(Balance { policy, ..Balance::default() })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Balance, A::Error> {
                Balance::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Custom(name) => serializer.collect_str(&format_args!("custom:{name}")),
            policy => serializer.serialize_str(policy.name()),
        }
    }
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = Policy;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a policy such as \"p2c\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Policy, E> {
                Policy::parse(text).ok_or_else(|| E::unknown_variant(text, &Policy::WORDS))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl Serialize for RetryOn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self, Self::WORDS.iter().find(|(_, on)| on == self)) {
            (Self::Status(status), _) => serializer.serialize_u16(*status),
            (_, word) => serializer.serialize_str(word.map_or("", |(word, _)| word)),
        }
    }
}

impl<'de> Deserialize<'de> for RetryOn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = RetryOn;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word such as \"connect\" or a status code")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RetryOn, E> {
                const WORDS: [&str; 6] =
                    ["connect", "refused_stream", "reset", "timeout", "gateway_error", "server_error"];
                let known = RetryOn::WORDS.iter().find(|(word, _)| *word == text);
                known.map(|(_, on)| *on).ok_or_else(|| E::unknown_variant(text, &WORDS))
            }
            fn visit_u64<E: de::Error>(self, code: u64) -> Result<RetryOn, E> {
                let status =
                    u16::try_from(code).map_err(|_| E::custom(format!("{code} is not a status code")))?;
                Ok(RetryOn::Status(status))
            }
            fn visit_i64<E: de::Error>(self, code: i64) -> Result<RetryOn, E> {
                match u64::try_from(code) {
                    Ok(code) => self.visit_u64(code),
                    Err(_) => Err(E::custom(format!("{code} is not a status code"))),
                }
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl Serialize for RateKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::ClientIp => serializer.serialize_str("client_ip"),
            Self::Route => serializer.serialize_str("route"),
            Self::Header(name) => serializer.collect_str(&format_args!("header:{name}")),
        }
    }
}

impl<'de> Deserialize<'de> for RateKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = RateKey;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"client_ip\", \"route\" or \"header:NAME\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RateKey, E> {
                match (text, text.split_once(':')) {
                    ("client_ip", _) => Ok(RateKey::ClientIp),
                    ("route", _) => Ok(RateKey::Route),
                    (_, Some(("header", name))) => Ok(RateKey::Header(name.to_owned())),
                    _ => Err(E::unknown_variant(text, &["client_ip", "route", "header:NAME"])),
                }
            }
        }
        deserializer.deserialize_str(Form)
    }
}

impl Serialize for HashOn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::ClientIp => serializer.serialize_str("client_ip"),
            Self::Path => serializer.serialize_str("path"),
            Self::Header(name) => serializer.collect_str(&format_args!("header:{name}")),
            Self::Cookie(name) => serializer.collect_str(&format_args!("cookie:{name}")),
        }
    }
}

impl<'de> Deserialize<'de> for HashOn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = HashOn;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"client_ip\", \"path\", \"header:NAME\" or \"cookie:NAME\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<HashOn, E> {
                match text.split_once(':') {
                    None if text == "client_ip" => Ok(HashOn::ClientIp),
                    None if text == "path" => Ok(HashOn::Path),
                    Some(("header", name)) => Ok(HashOn::Header(name.to_owned())),
                    Some(("cookie", name)) => Ok(HashOn::Cookie(name.to_owned())),
                    _ => Err(E::unknown_variant(text, &["client_ip", "path", "header:NAME", "cookie:NAME"])),
                }
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
            CheckKind::Grpc if *self == short => serializer.serialize_str("grpc"),
            CheckKind::None if *self == short => serializer.serialize_str("none"),
            CheckKind::Http | CheckKind::Tcp | CheckKind::Grpc | CheckKind::None => {
                self.serialize_table(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Check {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Check;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"/path\", \"tcp\", \"grpc\", \"none\" or a table")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Check, E> {
                let kind = match text {
                    path if path.starts_with('/') => {
                        let path = path.to_owned();
                        return Ok(Check { kind: CheckKind::Http, path, ..Check::default() });
                    }
                    "tcp" => CheckKind::Tcp,
                    "grpc" => CheckKind::Grpc,
                    "none" => CheckKind::None,
                    _ => return Err(E::unknown_variant(text, &["/path", "tcp", "grpc", "none"])),
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
