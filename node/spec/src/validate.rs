//! What a spec of the right shape may still not say. Pure, so the leader runs it on what arrives over
//! the API, with the same words as for a file.

mod access;
mod address;
mod balance;
mod check;
mod findings;
mod listen;
mod probe;
mod resilience;
mod rollout;
mod route;
mod upstream;

use std::{collections::BTreeSet, time::Duration};

use self::findings::Findings;
use crate::{
    AppName, AppSpec, Autoscale, Compression, Limits, Listen, Placement, Protocol, RedirectHttps, Replicas,
    Resolve, Target, TcpKeepalive, Timeouts, UpstreamOptions,
    diagnostic::{CONTRADICTION, DUPLICATE, MISSING, OUT_OF_RANGE, TOO_LARGE, WRONG_VALUE},
    units::{duration_text, size_text},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// `listen[0].port`, from the app's table on.
    pub path: String,
    pub code: &'static str,
    pub message: String,
    pub help: Option<String>,
}

/// Each request goes through all of them, there and back.
const MAX_LAYERS: usize = 20;
/// Each is compared with the type of every response.
const MAX_TYPES: usize = 50;
/// Of each target, on each worker of each node: what the targets have to hold open for nobody.
const MAX_WARM: u32 = 1_000;
/// More nodes than a region has.
const MAX_REPLICAS: u32 = 10_000;
/// What one log entry and one snapshot are dimensioned for.
const MAX_SPEC_BYTES: usize = 1 << 20;
const MAX_TARGETS: usize = 10_000;
/// Far beyond use, and far below where adding two of them could overflow a clock.
const MAX_DURATION: Duration = Duration::from_secs(30 * 24 * 3600);
const MIN_DURATION: Duration = Duration::from_millis(1);
/// A connect attempt that is never given up would hold its session for ever.
const MAX_CONNECT: Duration = Duration::from_secs(300);
/// Weights are compared and summed; beyond this no ratio is finer in practice.
const MAX_WEIGHT: u32 = 65_535;
/// An HTTP/1 parser needs room for a request line and some fields.
const HEADER_BYTES: (u64, u64) = (8 << 10, 1 << 20);
/// What the parser has room for at most.
const REQUEST_LINE_BYTES: (u64, u64) = (1 << 10, 16 << 10);
const MAX_HEADER_FIELDS: u32 = 100;
/// Linux counts keepalive times in seconds up to 32,767, and probes up to 127 (tcp(7)).
const MAX_KEEPALIVE: Duration = Duration::from_secs(9 * 3600);
const MAX_KEEPALIVE_PROBES: u32 = 127;

pub fn validate(spec: &AppSpec) -> Vec<Violation> {
    let mut findings = Findings::default();
    let AppSpec {
        // A fact of its own type.
        name: _,
        // Free text, counted with the whole.
        description: _,
        labels: _,
        listen,
        targets,
        pool,
        resolve,
        balance,
        check,
        probe: _,
        outlier,
        breaker,
        retry,
        timeouts,
        limits,
        upstream,
        route,
        access: _,
        compression,
        layers,
        placement,
        rollout,
    } = spec;
    listen::validate(listen, &mut findings);
    pool_targets("targets", targets, &mut findings);
    for (name, pool) in pool {
        let path = format!("pool.{name}");
        if let Err(invalid) = AppName::parse(name) {
            findings.add(&path, WRONG_VALUE, format!("`{name}` is not a pool name: {}", invalid.why));
        }
        if pool.targets.is_empty() {
            findings.add(&path, MISSING, format!("pool `{name}` has no targets"));
        }
        pool_targets(&format!("{path}.targets"), &pool.targets, &mut findings);
    }
    // Where every port is TCP the routes are for names in TLS hellos; beside HTTP they are for requests.
    let has_http = listen.iter().any(|listen| listen.protocol == Protocol::Http);
    let has_tcp = listen.iter().any(|listen| listen.protocol == Protocol::Tcp);
    let sends_away = |listen: &Listen| listen.redirect_https != RedirectHttps::Off;
    let only_sends_away = !listen.is_empty() && listen.iter().all(sends_away);
    let needs_default = route.is_empty() && !only_sends_away || has_http && has_tcp;
    if targets.is_empty() && needs_default {
        findings
            .add("targets", MISSING, "the app has no targets")
            .help("name at least one: `targets = [\"10.0.0.11:3000\"]`");
    }
    let target_count = targets.len() + pool.values().map(|pool| pool.targets.len()).sum::<usize>();
    if target_count > MAX_TARGETS {
        findings.add(
            "targets",
            TOO_LARGE,
            format!("{target_count} targets; an app has at most {MAX_TARGETS}"),
        );
    }
    balance::validate(balance, &mut findings);
    resolving(resolve, &mut findings);
    check::validate(check, &mut findings);
    probe::validate(spec, &mut findings);
    resilience::outlier(outlier, &mut findings);
    resilience::breaker(breaker.as_ref(), &mut findings);
    resilience::retry(retry, timeouts, &mut findings);
    times(timeouts, &mut findings);
    bounds(limits, &mut findings);
    connections(upstream, &mut findings);
    upstream::validate(spec, &mut findings);
    route::validate(spec, &mut findings);
    if let Some(compression) = compression {
        codings(compression, &mut findings);
    }
    for (index, layer) in layers.iter().enumerate() {
        if !balance::is_word(layer) {
            let message = format!("`{layer}` names no layer: write letters, digits, `_` and `-`");
            findings.add(&format!("layers[{index}]"), WRONG_VALUE, message);
        }
    }
    if layers.len() > MAX_LAYERS {
        let message = format!("{} layers; at most {MAX_LAYERS}", layers.len());
        findings.add("layers", TOO_LARGE, message);
    }
    if !layers.is_empty() && !has_http && !listen.is_empty() {
        findings.add("layers", CONTRADICTION, "layers are for requests, and no port of this app is HTTP");
    }
    access::validate(spec, &mut findings);
    places(placement, &mut findings);
    rollout::validate(rollout, target_count, &mut findings);
    let size = spec.to_json().len();
    if size > MAX_SPEC_BYTES {
        let message = format!("the spec is {size} bytes long; at most {MAX_SPEC_BYTES} are replicated");
        findings.add("", TOO_LARGE, message);
    }
    findings.into()
}

fn pool_targets(path: &str, targets: &[Target], findings: &mut Findings) {
    for (index, Target { address, weight, zone, backup: _ }) in targets.iter().enumerate() {
        address::validate(&format!("{path}[{index}].address"), address, findings);
        findings.number(&format!("{path}[{index}].weight"), *weight, 0..=MAX_WEIGHT);
        if zone.as_deref() == Some("") {
            findings.add(&format!("{path}[{index}].zone"), WRONG_VALUE, "a zone has a name");
        }
    }
    if !targets.is_empty() && targets.iter().all(|target| target.backup) {
        let message = "every target is a backup, and there is none that they could stand in for";
        findings.add(path, CONTRADICTION, message);
    }
    if !targets.is_empty() && targets.iter().all(|target| target.weight == 0) {
        let message = "every target has weight 0, so none of them would get any traffic";
        findings.add(path, CONTRADICTION, message);
    }
}

fn resolving(resolve: &Resolve, findings: &mut Findings) {
    let Resolve { mode: _, family: _, min_ttl, max_ttl, stale } = resolve;
    findings.duration("resolve.min_ttl", *min_ttl, MIN_DURATION..=MAX_DURATION);
    findings.duration("resolve.max_ttl", *max_ttl, MIN_DURATION..=MAX_DURATION);
    findings.duration_or_off("resolve.stale", *stale, MAX_DURATION);
    if min_ttl > max_ttl {
        let message = format!(
            "`min_ttl` ({}) is longer than `max_ttl` ({})",
            duration_text(*min_ttl),
            duration_text(*max_ttl)
        );
        let path = if *min_ttl == Resolve::default().min_ttl { "resolve.max_ttl" } else { "resolve.min_ttl" };
        findings.add(path, CONTRADICTION, message);
    }
}

fn times(timeouts: &Timeouts, findings: &mut Findings) {
    let Timeouts {
        connect,
        tls_handshake,
        request_header,
        request_body,
        response_header,
        request,
        idle,
        tcp_idle,
        tunnel,
    } = timeouts;
    findings.duration("timeouts.connect", *connect, MIN_DURATION..=MAX_CONNECT);
    findings.duration("timeouts.tls_handshake", *tls_handshake, MIN_DURATION..=MAX_CONNECT);
    for (name, value) in [
        ("request_header", request_header),
        ("request_body", request_body),
        ("response_header", response_header),
        ("request", request),
        ("idle", idle),
        ("tcp_idle", tcp_idle),
        ("tunnel", tunnel),
    ] {
        findings.duration_or_off(&format!("timeouts.{name}"), *value, MAX_DURATION);
    }
    // The default is nobody's claim: a shorter `request` simply comes first.
    let claimed = *response_header != Timeouts::default().response_header;
    if claimed && !request.is_zero() && response_header > request {
        let message = format!(
            "`response_header` ({}) is longer than `request` ({}), which ends the request first",
            duration_text(*response_header),
            duration_text(*request),
        );
        findings
            .add("timeouts.response_header", CONTRADICTION, message)
            .help(&format!("write `response_header = \"{}\"` or less", duration_text(*request)));
    }
}

fn bounds(limits: &Limits, findings: &mut Findings) {
    let Limits {
        max_connections: _,
        max_connections_per_ip: _,
        max_header_size,
        max_request_line,
        max_header_fields,
        max_requests_per_connection: _,
        max_body_size: _,
        max_in_flight: _,
        max_pending: _,
        pending_timeout,
        target_soft,
        target_hard,
        rate,
    } = limits;
    findings.number("limits.max_header_fields", *max_header_fields, 1..=MAX_HEADER_FIELDS);
    let (least, most) = REQUEST_LINE_BYTES;
    if !(least..=most).contains(max_request_line) {
        let message = format!(
            "`limits.max_request_line` must be from {} to {}, not {}",
            size_text(least),
            size_text(most),
            size_text(*max_request_line)
        );
        findings.add("limits.max_request_line", OUT_OF_RANGE, message);
    }
    resilience::room(*pending_timeout, *target_soft, *target_hard, findings);
    resilience::rate(rate.as_ref(), findings);
    let (min, max) = HEADER_BYTES;
    if !(min..=max).contains(max_header_size) {
        let message = format!(
            "`limits.max_header_size` must be from {} to {}, not {}",
            size_text(min),
            size_text(max),
            size_text(*max_header_size)
        );
        findings.add("limits.max_header_size", OUT_OF_RANGE, message);
    }
}

fn connections(upstream: &UpstreamOptions, findings: &mut Findings) {
    let UpstreamOptions { max_idle, warm, idle_timeout, tcp_keepalive, send_proxy: _, protocol: _, tls: _ } =
        upstream;
    findings.number("upstream.max_idle", *max_idle, 0..=65_535);
    findings.number("upstream.warm", *warm, 0..=MAX_WARM);
    if warm > max_idle {
        let message =
            format!("`warm` ({warm}) must not be more than `max_idle` ({max_idle}): they would not be kept");
        findings.add("upstream.warm", CONTRADICTION, message);
    }
    findings.duration_or_off("upstream.idle_timeout", *idle_timeout, MAX_DURATION);
    if !tcp_keepalive.idle.is_zero() {
        validate_keepalive("upstream.tcp_keepalive", tcp_keepalive, findings);
    }
}

fn validate_keepalive(path: &str, keepalive: &TcpKeepalive, findings: &mut Findings) {
    let TcpKeepalive { idle, interval, count } = keepalive;
    let second = Duration::from_secs(1);
    findings.duration(&format!("{path}.idle"), *idle, second..=MAX_KEEPALIVE);
    findings.duration(&format!("{path}.interval"), *interval, second..=MAX_KEEPALIVE);
    findings.number(&format!("{path}.count"), *count, 1..=MAX_KEEPALIVE_PROBES);
}

fn codings(compression: &Compression, findings: &mut Findings) {
    let Compression { level, min_size: _, types } = compression;
    findings.number("compression.level", *level, 1..=9);
    if types.is_empty() || types.len() > MAX_TYPES {
        findings.number("compression.types", types.len(), 1..=MAX_TYPES);
    }
    let is_word = |word: &str| balance::is_token(word) && !word.contains('*');
    for (index, one) in types.iter().enumerate() {
        let is_type = one
            .split_once('/')
            .is_some_and(|(family, kind)| is_word(family) && (kind == "*" || is_word(kind)));
        if !is_type {
            findings
                .add(
                    &format!("compression.types[{index}]"),
                    WRONG_VALUE,
                    format!("`{one}` is not a media type"),
                )
                .help("write \"text/html\", or \"text/*\" for all of a family");
        }
    }
}

fn places(placement: &Placement, findings: &mut Findings) {
    let Placement { replicas, regions, spread: _, require: _, autoscale } = placement;
    match replicas {
        Replicas::All => {}
        Replicas::Count(nodes) => findings.number("placement.replicas", *nodes, 1..=MAX_REPLICAS),
    }
    if let Some(autoscale) = autoscale {
        scales(autoscale, *replicas, findings);
    }
    let mut seen = BTreeSet::new();
    for (index, region) in regions.iter().enumerate() {
        let path = format!("placement.regions[{index}]");
        if region.is_empty() {
            findings.add(&path, WRONG_VALUE, "a region has a name");
        } else if !seen.insert(region) {
            findings.add(&path, DUPLICATE, format!("region `{region}` is listed twice"));
        }
    }
}

fn scales(autoscale: &Autoscale, replicas: Replicas, findings: &mut Findings) {
    let Autoscale { min, max, target_connections, target_requests_per_second, target_cpu_percent, cooldown } =
        autoscale;
    findings.number("placement.autoscale.min", *min, 1..=MAX_REPLICAS);
    findings.number("placement.autoscale.max", *max, 1..=MAX_REPLICAS);
    if min > max {
        let message = format!("`min` ({min}) must not be more than `max` ({max})");
        findings.add("placement.autoscale.min", CONTRADICTION, message);
    }
    let targets = [
        ("target_connections", target_connections, 1_000_000_000),
        ("target_requests_per_second", target_requests_per_second, 1_000_000_000),
        ("target_cpu_percent", target_cpu_percent, 100),
    ];
    for (name, target, most) in targets {
        if let Some(target) = target {
            findings.number(&format!("placement.autoscale.{name}"), *target, 1..=most);
        }
    }
    if targets.iter().all(|(_, target, _)| target.is_none()) {
        let message =
            "one of `target_connections`, `target_requests_per_second` and `target_cpu_percent` is needed";
        findings.add("placement.autoscale", MISSING, message);
    }
    findings.duration_or_off("placement.autoscale.cooldown", *cooldown, MAX_DURATION);
    if replicas != Replicas::All {
        let message = "`replicas` is a fixed number: remove it, or remove `autoscale`";
        findings.add("placement.replicas", CONTRADICTION, message);
    }
}
