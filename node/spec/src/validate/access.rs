//! Who may ask. Networks are facts of their own type.

use std::time::Duration;

use super::{Findings, MAX_DURATION, MIN_DURATION, balance::is_token, pool_targets};
use crate::{
    Access, AppSpec, Basic, ExtAuthz, ForwardAuth, Jwt, Protocol, Target, UpstreamTls,
    diagnostic::{CONTRADICTION, MISSING, WRONG_VALUE},
};

/// A client that waits longer to be looked at has gone.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn validate(spec: &AppSpec, findings: &mut Findings) {
    let Access { allow: _, deny: _, basic, jwt, forward, ext_authz, signer } = &spec.access;
    let has_tcp = spec.listen.iter().any(|listen| listen.protocol == Protocol::Tcp);
    for (name, is_there) in [
        ("basic", basic.is_some()),
        ("jwt", jwt.is_some()),
        ("forward", forward.is_some()),
        ("ext_authz", ext_authz.is_some()),
        ("signer", signer.is_some()),
    ] {
        if is_there && has_tcp {
            let message = "it is about HTTP requests, and a port of this app is TCP: who comes there would not be asked";
            findings.add(&format!("access.{name}"), CONTRADICTION, message);
        }
    }
    if let Some(basic) = basic {
        self::basic(basic, findings);
    }
    if let Some(jwt) = jwt {
        self::jwt(jwt, findings);
    }
    if let Some(ForwardAuth { targets, path, copy, timeout, tls }) = forward {
        service("access.forward", targets, *timeout, tls.as_ref(), findings);
        if !path.starts_with('/') || path.bytes().any(|byte| !byte.is_ascii_graphic()) {
            findings.add(
                "access.forward.path",
                WRONG_VALUE,
                format!("`{path}` is not a path such as \"/verify\""),
            );
        }
        for (index, name) in copy.iter().enumerate().filter(|(_, name)| !is_token(name)) {
            let message = format!("`{name}` is not the name of a header field");
            findings.add(&format!("access.forward.copy[{index}]"), WRONG_VALUE, message);
        }
    }
    if let Some(ExtAuthz { targets, timeout, tls }) = ext_authz {
        service("access.ext_authz", targets, *timeout, tls.as_ref(), findings);
    }
}

fn basic(basic: &Basic, findings: &mut Findings) {
    let Basic { realm, users, file, timeout } = basic;
    findings.duration("access.basic.timeout", *timeout, MIN_DURATION..=MAX_TIMEOUT);
    if users.is_empty() && file.is_none() {
        findings
            .add("access.basic", MISSING, "nobody has a password, so nobody could come in")
            .help("add `users = { NAME = \"HASH\" }` with a hash of `htpasswd -nB NAME`, or `file`");
    }
    if realm.bytes().any(|byte| !(b' '..=b'~').contains(&byte) || byte == b'"' || byte == b'\\') {
        let message = "a realm is visible ASCII without `\"` and `\\`";
        findings.add("access.basic.realm", WRONG_VALUE, message);
    }
    for (name, hash) in users {
        let path = format!("access.basic.users.{name}");
        if name.is_empty() || name.contains(':') || name.chars().any(char::is_control) {
            findings.add(&path, WRONG_VALUE, format!("`{name}` is not the name of a user"));
        }
        let is_bcrypt = ["$2a$", "$2b$", "$2y$"].iter().any(|version| hash.starts_with(version));
        if !is_bcrypt || hash.len() != 60 {
            findings
                .add(&path, WRONG_VALUE, "this is not a bcrypt hash of 60 characters")
                .help("make one with `htpasswd -nB NAME`; a password itself does not belong here");
        }
    }
}

fn jwt(jwt: &Jwt, findings: &mut Findings) {
    let Jwt { jwks, ca, issuer: _, audience: _, algorithms, header, leeway, refresh, refresh_floor, timeout } =
        jwt;
    let second = Duration::from_secs(1);
    findings.duration("access.jwt.timeout", *timeout, MIN_DURATION..=MAX_TIMEOUT);
    findings.duration("access.jwt.refresh", *refresh, second..=MAX_DURATION);
    findings.duration("access.jwt.refresh_floor", *refresh_floor, second..=MAX_DURATION);
    findings.duration_or_off("access.jwt.leeway", *leeway, Duration::from_secs(3600));
    if refresh_floor > refresh {
        let message = "`refresh_floor` is longer than `refresh`";
        findings.add("access.jwt.refresh_floor", CONTRADICTION, message);
    }
    if jwks.is_empty() {
        findings
            .add("access.jwt", MISSING, "no keys are named that tokens could be checked with")
            .help("add `jwks = \"https://id.example/.well-known/jwks.json\"`, or a file on each node");
    }
    if jwks.starts_with("https://") && ca.is_none() {
        findings
            .add("access.jwt", MISSING, "nobody is named whose certificates are to be believed")
            .help("add `ca`: a PEM file on the node, or a name in its directory of certificates");
    }
    if algorithms.is_empty() {
        findings.add("access.jwt.algorithms", MISSING, "without an algorithm no token is in order");
    }
    if !is_token(header) {
        let message = format!("`{header}` is not the name of a header field");
        findings.add("access.jwt.header", WRONG_VALUE, message);
    }
}

fn service(
    path: &str,
    targets: &[Target],
    timeout: Duration,
    tls: Option<&UpstreamTls>,
    findings: &mut Findings,
) {
    findings.duration(&format!("{path}.timeout"), timeout, MIN_DURATION..=MAX_TIMEOUT);
    if targets.is_empty() {
        findings.add(path, MISSING, "nobody is named who could be asked").help("add `targets`");
    }
    pool_targets(&format!("{path}.targets"), targets, findings);
    if tls.is_some_and(|tls| tls.enabled && tls.ca.as_ref().is_none_or(String::is_empty)) {
        findings
            .add(&format!("{path}.tls"), MISSING, "nobody is named whose certificates are to be believed")
            .help("add `ca`: a PEM file on the node, or a name in its directory of certificates");
    }
}
