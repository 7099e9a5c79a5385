//! Health checks.

use std::time::Duration;

use super::{Findings, route::path_fault};
use crate::{
    Check, CheckKind,
    diagnostic::{CONTRADICTION, MISSING, OUT_OF_RANGE, WRONG_VALUE},
};

/// Often enough for tests, seldom enough that checks are not the load.
pub(super) const MIN_INTERVAL: Duration = Duration::from_millis(10);
pub(super) const MAX_INTERVAL: Duration = Duration::from_secs(3600);
pub(super) const MAX_TIMES: u32 = 100;

pub(super) fn validate(check: &Check, findings: &mut Findings) {
    let Check { kind, path, host, port, interval, timeout, rise, fall, expect, service } = check;
    findings.duration("check.interval", *interval, MIN_INTERVAL..=MAX_INTERVAL);
    findings.duration("check.timeout", *timeout, Duration::from_millis(1)..=MAX_INTERVAL);
    findings.number("check.rise", *rise, 1..=MAX_TIMES);
    findings.number("check.fall", *fall, 1..=MAX_TIMES);
    if *port == Some(0) {
        findings.add("check.port", OUT_OF_RANGE, "`check.port` must be from 1 to 65535, not 0");
    }
    if *kind != CheckKind::Grpc && !service.is_empty() {
        findings
            .add("check.service", CONTRADICTION, "`check.service` is for gRPC checks, and this is none")
            .help("write `type = \"grpc\"` in the check");
    }
    match kind {
        CheckKind::Http => http("check", path, host.as_deref(), expect, findings),
        CheckKind::Tcp | CheckKind::Grpc | CheckKind::None => {
            let default = Check::default();
            for (field, is_set) in [
                ("path", *path != default.path),
                ("host", host.is_some()),
                ("expect", *expect != default.expect),
            ] {
                if is_set {
                    let message = format!("`check.{field}` is for HTTP checks, and this is none");
                    findings
                        .add(&format!("check.{field}"), CONTRADICTION, message)
                        .help("write `type = \"http\"` in the check");
                }
            }
        }
    }
}

/// What an HTTP question may say. `at`: the path of the table it stands in.
pub(super) fn http(at: &str, path: &str, host: Option<&str>, expect: &[(u16, u16)], findings: &mut Findings) {
    if let Some(why) = path_fault(path) {
        findings.add(&format!("{at}.path"), WRONG_VALUE, format!("`{path}` is not a path: {why}"));
    }
    // It becomes a header field: nothing in it may end the field.
    if host.is_some_and(|host| host.is_empty() || !host.bytes().all(|b| b.is_ascii_graphic())) {
        let message = format!("`{at}.host` must be a host name, without spaces");
        findings.add(&format!("{at}.host"), WRONG_VALUE, message);
    }
    if expect.is_empty() {
        let message = format!("`{at}.expect` is empty, so no answer would ever be good");
        findings.add(&format!("{at}.expect"), MISSING, message).help("write `expect = [\"200-399\"]`");
    }
    for (index, (from, to)) in expect.iter().enumerate() {
        let path = format!("{at}.expect[{index}]");
        if !(100..=599).contains(from) || !(100..=599).contains(to) {
            let message = format!("status codes go from 100 to 599, not {from} to {to}");
            findings.add(&path, OUT_OF_RANGE, message);
        } else if from > to {
            findings.add(&path, CONTRADICTION, format!("the range {from} to {to} is empty"));
        }
    }
}
