//! What the spec language knows and this version does not do yet. Asking for it is refused by name
//! rather than as a typing error. The one place to take a line out of when it becomes real.

/// By the key of the table they stand in.
const FIELDS: [(&str, &[&str]); 10] = [
    ("app", &["outlier", "breaker", "retry", "access", "log", "trace", "metrics", "filter"]),
    ("listen", &["tls", "proxy_protocol", "trusted_proxies", "redirect_https"]),
    ("targets", &["zone", "backup"]),
    ("balance", &["hash_on", "slow_start", "zone_aware", "panic_threshold"]),
    ("timeouts", &["tls_handshake"]),
    (
        "limits",
        &["max_connections_per_ip", "max_in_flight", "max_pending", "target_soft", "target_hard", "rate"],
    ),
    ("upstream", &["protocol", "tls", "send_proxy"]),
    (
        "route",
        &[
            "split",
            "respond",
            "redirect",
            "timeout",
            "rewrite",
            "request_headers",
            "response_headers",
            "mirror",
        ],
    ),
    ("match", &["path_regex", "headers", "expr"]),
    ("rollout", &["strategy", "canary", "steps", "auto_promote", "abort_on"]),
];

/// Values of fields that take one of a few words.
const WORDS: [&str; 6] = ["https", "least_conn", "random", "maglev", "ring_hash", "grpc"];

pub(crate) fn is_field(table: &str, field: &str) -> bool {
    FIELDS.iter().any(|(name, fields)| *name == table && fields.contains(&field))
}

pub(crate) fn is_word(word: &str) -> bool {
    WORDS.contains(&word)
}
