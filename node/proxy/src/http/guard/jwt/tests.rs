use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::*;

const NOW: f64 = 1_800_000_000.0;

fn config() -> JwtConfig {
    JwtConfig {
        issuer: Some("https://id.example".to_owned()),
        audience: vec!["web".to_owned(), "api".to_owned()],
        algorithms: vec![JwtAlgorithm::Rs256, JwtAlgorithm::Es256, JwtAlgorithm::EdDsa, JwtAlgorithm::Hs256],
        leeway: Duration::from_secs(30),
        ..JwtConfig::default()
    }
}

fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn keys(keys: &[Value]) -> KeySet {
    KeySet::parse(&serde_json::to_vec(&json!({ "keys": keys })).unwrap()).unwrap()
}

fn secret(kid: &str, secret: &[u8]) -> Value {
    json!({ "kty": "oct", "kid": kid, "k": b64(secret) })
}

fn good() -> Value {
    json!({ "iss": "https://id.example", "aud": "web", "exp": NOW + 60.0, "nbf": NOW - 60.0 })
}

fn token(algorithm: Algorithm, kid: Option<&str>, claims: &Value, key: &EncodingKey) -> String {
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
    encode(&header, claims, key).unwrap()
}

/// Signed with the secret `s`.
fn shared(claims: &Value) -> String {
    token(Algorithm::HS256, Some("a"), claims, &EncodingKey::from_secret(b"s"))
}

#[test]
fn claims_must_be_in_order() {
    let keys = keys(&[secret("a", b"s")]);
    for (field, value, expected) in [
        ("iss", json!("https://id.example"), Ok(())),
        ("iss", json!("https://evil.example"), Err(Unfit::Issuer)),
        ("iss", Value::Null, Err(Unfit::Issuer)),
        ("aud", json!(["other", "api"]), Ok(())),
        ("aud", json!(["other"]), Err(Unfit::Audience)),
        ("aud", json!("other"), Err(Unfit::Audience)),
        ("aud", json!([]), Err(Unfit::Audience)),
        ("exp", json!(NOW), Ok(())),
        ("exp", json!(NOW - 29.0), Ok(())),
        ("exp", json!(NOW - 30.0), Err(Unfit::Expired)),
        ("exp", Value::Null, Err(Unfit::Expired)),
        ("exp", json!("soon"), Err(Unfit::Malformed)),
        ("nbf", json!(NOW + 30.0), Ok(())),
        ("nbf", json!(NOW + 31.0), Err(Unfit::TooEarly)),
        ("nbf", Value::Null, Ok(())),
    ] {
        let mut claims = good();
        claims[field] = value.clone();
        assert_eq!(check(&shared(&claims), &keys, &config(), NOW), expected, "{field} {value}");
    }
}

#[test]
fn only_a_key_of_the_set_signs_and_only_as_the_configuration_allows() {
    let set = keys(&[secret("a", b"s"), secret("b", b"t")]);
    let [s, t, u] = [b"s", b"t", b"u"].map(|secret| EncodingKey::from_secret(secret));
    let hs256 = |kid, key| token(Algorithm::HS256, kid, &good(), key);
    for (what, token, expected) in [
        ("named", hs256(Some("b"), &t), Ok(())),
        ("named wrong", hs256(Some("a"), &t), Err(Unfit::Signature)),
        ("not named", hs256(None, &t), Ok(())),
        ("not named, unknown", hs256(None, &u), Err(Unfit::Signature)),
        ("unknown name", hs256(Some("c"), &s), Err(Unfit::UnknownKey)),
        ("not allowed", token(Algorithm::HS512, Some("a"), &good(), &s), Err(Unfit::Algorithm)),
        ("no token", "a.b".to_owned(), Err(Unfit::Malformed)),
        ("too long", "a".repeat(TOKEN_BYTES_MAX + 1), Err(Unfit::Malformed)),
    ] {
        assert_eq!(check(&token, &set, &config(), NOW), expected, "{what}");
    }
    // Unsigned: RFC 8725 §3.1.
    let none = format!("{}.{}.", b64(br#"{"alg":"none"}"#), b64(good().to_string().as_bytes()));
    assert_eq!(check(&none, &set, &config(), NOW), Err(Unfit::Malformed));
    let whole = shared(&good());
    let (signed, signature) = whole.rsplit_once('.').unwrap();
    let (header, _) = signed.split_once('.').unwrap();
    let forged = format!("{header}.{}.{signature}", b64(json!({"exp": NOW + 1e6}).to_string().as_bytes()));
    assert_eq!(check(&forged, &set, &config(), NOW), Err(Unfit::Signature));
}

#[test]
fn each_kind_of_key_signs_and_none_stands_in_for_another() {
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData as _};
    let curve = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let point = curve.der_bytes();
    let (x, y) = point[1..].split_at(32);
    let edwards = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let set = keys(&[
        json!({ "kty": "EC", "crv": "P-256", "kid": "ec", "alg": "ES256", "x": b64(x), "y": b64(y) }),
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": b64(edwards.der_bytes()) }),
        json!({ "kty": "future", "kid": "f" }),
        secret("hs", b"s"),
    ]);
    let ec = EncodingKey::from_ec_der(&curve.serialize_der());
    let ed = EncodingKey::from_ed_der(&edwards.serialize_der());
    let signed = |algorithm, kid, key| token(algorithm, Some(kid), &good(), key);
    assert_eq!(check(&signed(Algorithm::ES256, "ec", &ec), &set, &config(), NOW), Ok(()));
    assert_eq!(check(&signed(Algorithm::EdDSA, "ed", &ed), &set, &config(), NOW), Ok(()));
    assert_eq!(check(&signed(Algorithm::ES256, "hs", &ec), &set, &config(), NOW), Err(Unfit::Signature));
    // A public key is no secret to sign with (RFC 8725 §2.1).
    let public = EncodingKey::from_secret(point);
    assert_eq!(check(&signed(Algorithm::HS256, "ec", &public), &set, &config(), NOW), Err(Unfit::Signature));
    assert!(KeySet::parse(br#"{"keys":[{"kty":"future"}]}"#).is_err());
    assert!(KeySet::parse(b"<html>").is_err());
}

#[test]
fn a_token_is_found_in_its_field() {
    for (field, value, expected) in [
        ("authorization", &b"Bearer a.b.c"[..], Some("a.b.c")),
        ("Authorization", b"bearer  a.b.c", Some("a.b.c")),
        ("authorization", b"Basic a", None),
        ("authorization", b"a.b.c", None),
        ("x-token", b"a.b.c", Some("a.b.c")),
        ("x-token", b"Bearer a.b.c", Some("a.b.c")),
        ("x-token", b"\xff", None),
    ] {
        assert_eq!(token_in(field, value), expected, "{field} {}", value.escape_ascii());
    }
}
