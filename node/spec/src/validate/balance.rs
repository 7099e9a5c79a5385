//! Who gets the next session or request.

use super::{Findings, MAX_DURATION};
use crate::{
    Balance, HashOn, Policy,
    diagnostic::{CONTRADICTION, WRONG_VALUE},
};

pub(super) fn validate(balance: &Balance, findings: &mut Findings) {
    let Balance { policy, hash_on, slow_start, zone_aware: _, panic_threshold } = balance;
    if let Policy::Custom(name) = policy
        && !is_word(name)
    {
        let message = format!("`custom:{name}` names no strategy: write letters, digits, `_` and `-`");
        findings.add("balance.policy", WRONG_VALUE, message);
    }
    self::hash_on("balance.hash_on", hash_on, findings);
    if *hash_on != HashOn::default() && !policy.is_hashing() {
        let message = format!("`{}` does not hash, so `hash_on` would do nothing", policy.name());
        findings
            .add("balance.hash_on", CONTRADICTION, message)
            .help("write `policy = \"maglev\"`, `\"ring_hash\"` or `\"rendezvous\"`");
    }
    findings.duration_or_off("balance.slow_start", *slow_start, MAX_DURATION);
    findings.number("balance.panic_threshold", *panic_threshold, 0..=100);
}

pub(super) fn hash_on(path: &str, hash_on: &HashOn, findings: &mut Findings) {
    match hash_on {
        HashOn::ClientIp | HashOn::Path => {}
        // Both are tokens (RFC 9110 §5.1, RFC 6265 §4.1.1).
        HashOn::Header(name) | HashOn::Cookie(name) if !is_token(name) => {
            findings.add(path, WRONG_VALUE, format!("`{name}` cannot be a name there"));
        }
        HashOn::Header(_) | HashOn::Cookie(_) => {}
    }
}

pub(super) fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

/// RFC 9110 §5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_allowed)
}
