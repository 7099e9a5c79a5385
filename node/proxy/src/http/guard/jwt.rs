//! Signed tokens (RFC 7519): whether one is in order. Where the keys come from is the business of `keys`.

use std::collections::BTreeMap;

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use serde::Deserialize;

use crate::config::{JwtAlgorithm, JwtConfig};

/// Keys that are tried for a token that does not name its own.
const TRIED_MAX: usize = 8;
/// RFC 6750 sets no bound; a head has 64 KiB.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// The keys of one set.
#[derive(Default)]
pub(super) struct KeySet {
    named: BTreeMap<String, Vec<Key>>,
    all: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    key: DecodingKey,
    /// The only one it may be used with, if it says so.
    algorithm: Option<Algorithm>,
}

/// Why a token is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    Missing,
    Malformed,
    Algorithm,
    /// Its key is not in the set. A newer set may have it.
    UnknownKey,
    Signature,
    Expired,
    TooEarly,
    Issuer,
    Audience,
}

#[derive(Debug, Deserialize)]
struct Claims {
    iss: Option<String>,
    #[serde(default)]
    aud: Audience,
    exp: Option<f64>,
    nbf: Option<f64>,
}

/// RFC 7519 §4.1.3: one, or a list.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Audience {
    #[default]
    Nobody,
    One(String),
    Many(Vec<String>),
}

impl KeySet {
    /// RFC 7517 §5. Keys of kinds that are not known are left out.
    pub(super) fn parse(json: &[u8]) -> Result<KeySet, String> {
        #[derive(Deserialize)]
        struct Loose {
            keys: Vec<serde_json::Value>,
        }
        let Loose { keys } =
            serde_json::from_slice(json).map_err(|error| format!("not a set of keys: {error}"))?;
        let mut set = KeySet::default();
        for one in keys {
            let one = serde_json::json!({ "keys": [one] });
            let Ok(JwkSet { keys }) = serde_json::from_value(one) else { continue };
            for jwk in keys {
                let Ok(key) = DecodingKey::from_jwk(&jwk) else { continue };
                let algorithm = jwk.common.key_algorithm.and_then(|one| one.to_string().parse().ok());
                let key = Key { key, algorithm };
                if let Some(name) = jwk.common.key_id {
                    set.named.entry(name).or_default().push(key.clone());
                }
                set.all.push(key);
            }
        }
        if set.all.is_empty() { Err("no key in it is of a kind that is known".to_owned()) } else { Ok(set) }
    }
}

/// The token in the value of a field: behind `Bearer`, or all of it in a field of its own.
pub(super) fn token_in<'a>(field: &str, value: &'a [u8]) -> Option<&'a str> {
    let value = std::str::from_utf8(value).ok()?;
    match value.split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer ") => Some(token.trim()),
        _ if field.eq_ignore_ascii_case("authorization") => None,
        _ => Some(value),
    }
}

/// Whether `token` is in order at `now`, in seconds since 1970. PURE.
pub(super) fn check(token: &str, keys: &KeySet, config: &JwtConfig, now: f64) -> Result<(), Unfit> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Unfit::Malformed);
    }
    let header = decode_header(token).map_err(|_| Unfit::Malformed)?;
    let algorithm = header.alg;
    if !config.algorithms.iter().any(|allowed| name_of(*allowed) == algorithm) {
        return Err(Unfit::Algorithm);
    }
    let candidates = match &header.kid {
        Some(name) => keys.named.get(name).map_or(&[][..], Vec::as_slice),
        None => &keys.all,
    };
    if candidates.is_empty() {
        return Err(Unfit::UnknownKey);
    }
    // The time and everything else is looked at below, as of `now`.
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    let mut why = Unfit::Signature;
    for Key { key, algorithm: only } in candidates.iter().take(TRIED_MAX) {
        if only.is_some_and(|only| only != algorithm) {
            continue;
        }
        match decode::<Claims>(token, key, &validation) {
            Ok(token) => return check_claims(&token.claims, config, now),
            Err(error) => {
                use jsonwebtoken::errors::ErrorKind;
                if matches!(error.kind(), ErrorKind::Json(_) | ErrorKind::Base64(_) | ErrorKind::Utf8(_)) {
                    why = Unfit::Malformed;
                }
            }
        }
    }
    Err(why)
}

/// RFC 7519 §4.1. A token without an end is refused: it could never be taken back.
fn check_claims(claims: &Claims, config: &JwtConfig, now: f64) -> Result<(), Unfit> {
    let leeway = config.leeway.as_secs_f64();
    if claims.exp.is_none_or(|exp| now >= exp + leeway) {
        return Err(Unfit::Expired);
    }
    if claims.nbf.is_some_and(|nbf| now < nbf - leeway) {
        return Err(Unfit::TooEarly);
    }
    if config.issuer.as_ref().is_some_and(|wanted| claims.iss.as_ref() != Some(wanted)) {
        return Err(Unfit::Issuer);
    }
    let is_for = |wanted: &String| match &claims.aud {
        Audience::Nobody => false,
        Audience::One(one) => one == wanted,
        Audience::Many(many) => many.contains(wanted),
    };
    if !config.audience.is_empty() && !config.audience.iter().any(is_for) {
        return Err(Unfit::Audience);
    }
    Ok(())
}

fn name_of(algorithm: JwtAlgorithm) -> Algorithm {
    match algorithm {
        JwtAlgorithm::Rs256 => Algorithm::RS256,
        JwtAlgorithm::Es256 => Algorithm::ES256,
        JwtAlgorithm::EdDsa => Algorithm::EdDSA,
        JwtAlgorithm::Hs256 => Algorithm::HS256,
    }
}

#[cfg(test)]
mod tests;
