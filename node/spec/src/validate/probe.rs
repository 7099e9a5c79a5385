//! Probes: names, what each type may say, and the listener it goes in at.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Findings,
    check::{MAX_INTERVAL, MAX_TIMES, MIN_INTERVAL, http},
    route::is_route_name,
};
use crate::{
    AppSpec, Listen, Probe, ProbeType, Protocol,
    diagnostic::{CONTRADICTION, DUPLICATE, MISSING, TOO_LARGE, UNKNOWN_NAME, WRONG_VALUE},
};

/// Each is asked by every node for as long as the app is there.
const MAX_PROBES: usize = 16;
/// What is sent or looked for stays in memory with every generation.
const MAX_TEXT_BYTES: usize = 4_096;
const MAX_ARGUMENTS: usize = 64;

pub(super) fn validate(spec: &AppSpec, findings: &mut Findings) {
    if spec.probe.len() > MAX_PROBES {
        let message = format!("{} probes; an app has at most {MAX_PROBES}", spec.probe.len());
        findings.add("probe", TOO_LARGE, message);
    }
    let mut names = BTreeSet::new();
    for (index, probe) in spec.probe.iter().enumerate() {
        let at = format!("probe[{index}]");
        let name = &probe.name;
        if name.is_empty() {
            findings.add(&at, MISSING, "the probe has no name").help("write `name = \"smoke\"`");
        } else if !is_route_name(name) {
            let message = format!("`{name}` is not a probe name: 1 to 63 of a-z, 0-9, `-` and `_`");
            findings.add(&format!("{at}.name"), WRONG_VALUE, message);
        } else if !names.insert(name) {
            findings.add(&format!("{at}.name"), DUPLICATE, format!("another probe is named `{name}` too"));
        }
        one(&at, probe, &spec.listen, findings);
    }
}

fn one(at: &str, probe: &Probe, listen: &[Listen], findings: &mut Findings) {
    let field = |name: &str| format!("{at}.{name}");
    findings.duration(&field("interval"), probe.interval, MIN_INTERVAL..=MAX_INTERVAL);
    findings.duration(&field("timeout"), probe.timeout, Duration::from_millis(1)..=MAX_INTERVAL);
    findings.number(&field("rise"), probe.rise, 1..=MAX_TIMES);
    findings.number(&field("fall"), probe.fall, 1..=MAX_TIMES);
    for (name, text) in [("send", &probe.send), ("body", &probe.body), ("service", &probe.service)] {
        if text.len() > MAX_TEXT_BYTES {
            let message = format!("{} bytes; a probe's `{name}` has at most {MAX_TEXT_BYTES}", text.len());
            findings.add(&field(name), TOO_LARGE, message);
        }
    }
    match probe.ask {
        ProbeType::Http => http(at, &probe.path, probe.host.as_deref(), &probe.expect, findings),
        ProbeType::Command => command(&field("command"), &probe.command, findings),
        ProbeType::Tcp | ProbeType::Grpc => {}
    }
    foreign(at, probe, findings);
    door(at, probe, listen, findings);
}

/// What belongs to another type would be ignored in silence.
fn foreign(at: &str, probe: &Probe, findings: &mut Findings) {
    use ProbeType::{Command, Grpc, Http, Tcp};
    let default = Probe::default();
    for (name, is_set, types) in [
        ("path", probe.path != default.path, &[Http][..]),
        ("host", probe.host.is_some(), &[Http]),
        ("expect", probe.expect != default.expect, &[Http]),
        ("body", !probe.body.is_empty(), &[Http, Tcp, Command]),
        ("send", !probe.send.is_empty(), &[Tcp]),
        ("service", !probe.service.is_empty(), &[Grpc]),
        ("command", !probe.command.is_empty(), &[Command]),
    ] {
        if is_set && !types.contains(&probe.ask) {
            let message = format!("`{name}` says nothing to a probe of type `{}`", word(probe.ask));
            let words: Vec<_> = types.iter().map(|ask| format!("`type = \"{}\"`", word(*ask))).collect();
            findings
                .add(&format!("{at}.{name}"), CONTRADICTION, message)
                .help(&format!("it is for {}", words.join(", ")));
        }
    }
}

/// The listener that the probe goes in at.
fn door(at: &str, probe: &Probe, listen: &[Listen], findings: &mut Findings) {
    let needs_http = probe.ask == ProbeType::Http;
    let fits = |listen: &&Listen| !needs_http || listen.protocol == Protocol::Http;
    match probe.port {
        None if listen.iter().any(|listen| fits(&listen)) || listen.is_empty() => {}
        None => {
            let message = "an HTTP probe needs an HTTP port, and every port of this app is plain TCP";
            findings.add(&format!("{at}.type"), CONTRADICTION, message).help("write `type = \"tcp\"`");
        }
        Some(port) => match listen.iter().find(|listen| listen.port == port && port != 0) {
            Some(listen) if fits(&listen) => {}
            Some(_) => {
                let message = format!("port {port} is plain TCP, and this is an HTTP probe");
                findings.add(&format!("{at}.port"), CONTRADICTION, message);
            }
            None => {
                let message = format!("the app does not listen on port {port}");
                findings
                    .add(&format!("{at}.port"), UNKNOWN_NAME, message)
                    .help("name one of `listen`, or leave `port` out");
            }
        },
    }
}

fn command(at: &str, command: &[String], findings: &mut Findings) {
    let Some(program) = command.first() else {
        findings
            .add(at, MISSING, "the probe names no command")
            .help("write `command = [\"smoke\"]`, a file of the node's `[probes] commands` folder");
        return;
    };
    // A spec says which of the node's own programs runs, and nothing else.
    let plain = program.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if program.is_empty() || program.starts_with('.') || !plain {
        let message = format!("`{program}` is not the name of a file in the node's probe folder");
        findings.add(at, WRONG_VALUE, message);
    }
    let bytes: usize = command.iter().map(String::len).sum();
    if command.len() > MAX_ARGUMENTS || bytes > MAX_TEXT_BYTES {
        let message = format!("at most {MAX_ARGUMENTS} arguments of {MAX_TEXT_BYTES} bytes together");
        findings.add(at, TOO_LARGE, message);
    }
    if command.iter().any(|word| word.contains('\0')) {
        findings.add(at, WRONG_VALUE, "an argument contains a NUL byte");
    }
}

pub(crate) fn word(ask: ProbeType) -> &'static str {
    match ask {
        ProbeType::Http => "http",
        ProbeType::Tcp => "tcp",
        ProbeType::Grpc => "grpc",
        ProbeType::Command => "command",
    }
}
