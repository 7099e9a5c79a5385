//! Every metric of the data plane: names, help, labels, and the cells the workers count in.
//!
//! A worker counts in plain cells of its own and adds them to the shared handles once per tick, so
//! the hot path touches neither an atomic nor a name. Nothing a client can choose is a label.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, Unit, counter, gauge, histogram};

use crate::{config::Protocol, rounds::Rounds};

/// Off only to measure what counting costs (the feature `without-metrics`).
const ON: bool = cfg!(not(feature = "without-metrics"));

/// Upper bounds of the latency buckets in seconds. A worker keeps one cell per bucket.
pub const LATENCY_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Writes the help text of every metric of this crate. Call once, after a recorder is installed.
pub fn describe() {
    use metrics::{describe_counter as c, describe_gauge as g, describe_histogram as h};
    c!("flotilla_http_requests_total", "Requests answered, by status class and route.");
    h!(
        "flotilla_http_request_duration_seconds",
        Unit::Seconds,
        "From the head of a request to the end of its response."
    );
    h!(
        "flotilla_http_time_to_first_byte_seconds",
        Unit::Seconds,
        "From the head of a request to the head of its response."
    );
    c!("flotilla_http_request_bytes_total", "Bytes of request bodies forwarded.");
    c!("flotilla_http_response_bytes_total", "Bytes of response bodies forwarded.");
    g!("flotilla_http_requests_in_flight", "Requests whose response has not ended.");
    g!("flotilla_requests_pending", "Requests and sessions that wait for room.");
    c!(
        "flotilla_access_refused_total",
        "Requests that a guard turned away: denied, or not looked at in time."
    );
    c!("flotilla_access_keys_failed_total", "Times that the keys of tokens could not be fetched.");
    c!("flotilla_rate_limited_total", "Requests refused because their client asks too often.");
    c!("flotilla_http_retries_total", "Requests tried again, by what became of the retry.");
    c!("flotilla_http_rule_failures_total", "Rules of routes that could not be evaluated for a request.");
    c!("flotilla_http_mirrored_total", "Requests copied to another pool, or not, by what became of that.");
    c!("flotilla_http_compressed_total", "Responses compressed on their way.");
    c!("flotilla_http_compressed_bytes_total", "Bytes of their bodies before that.");
    c!("flotilla_http_hedges_total", "Requests asked at a further endpoint because the answer took long.");
    c!("flotilla_connections_opened_total", "Connections accepted.");
    c!("flotilla_connections_closed_total", "Connections that ended, by reason.");
    g!("flotilla_connections_active", "Connections open now.");
    g!("flotilla_connections_parked", "HTTP/1.1 connections open now and idle for a while.");
    c!("flotilla_connections_rejected_total", "Connections closed right after accept, by reason.");
    h!("flotilla_connection_duration_seconds", Unit::Seconds, "Life of a connection.");
    c!("flotilla_received_bytes_total", "Bytes read, by side.");
    c!("flotilla_sent_bytes_total", "Bytes written, by side.");
    h!("flotilla_upstream_connect_duration_seconds", Unit::Seconds, "Time to connect to an endpoint.");
    c!("flotilla_upstream_connects_total", "Attempts to connect to an endpoint, by result.");
    g!("flotilla_upstream_connections_active", "Connections to endpoints, idle ones included.");
    c!("flotilla_upstream_pool_requests_total", "Requests by how they got their connection.");
    g!("flotilla_target_load", "Requests and sessions in flight per target.");
    c!("flotilla_tls_handshakes_total", "TLS handshakes with clients, by result and version.");
    g!(
        "flotilla_tls_certificate_not_after_timestamp_seconds",
        "When a certificate that is served expires, in seconds since 1970."
    );
    c!("flotilla_dns_lookups_total", "Names and services of targets looked up, by result.");
    c!(
        "flotilla_tls_certificates_reloaded_total",
        "Times that changed certificate files were read, by result."
    );
    g!("flotilla_target_healthy", "Whether an endpoint of the target passes its checks.");
    c!("flotilla_target_health_checks_total", "Checks of endpoints, by result.");
    c!("flotilla_target_ejections_total", "Endpoints taken out because of failures in a row.");
    g!("flotilla_circuit_state", "0 = closed, 1 = half open, 2 = open.");
    c!("flotilla_limit_hits_total", "How often a limit was reached, by limit.");
    g!("flotilla_memory_used_bytes", Unit::Bytes, "Anonymous memory of the process.");
    g!("flotilla_memory_budget_bytes", Unit::Bytes, "Of which connections may fill 95 percent.");
    g!("flotilla_overloaded", "1 while new connections are turned away for want of memory.");
    g!("flotilla_listeners", "Listening ports, by state.");
    g!("flotilla_listener_generation", "The generation that serves.");
    h!("flotilla_listener_drain_duration_seconds", Unit::Seconds, "From unwanted to closed, per port.");
    c!("flotilla_listener_drain_forced_total", "Generations whose last sessions were cut at the deadline.");
    c!("flotilla_listener_restarts_total", "Accept tasks that died and were started again.");
    c!("flotilla_worker_stalls_total", "Times a traffic thread made no progress for seconds.");
}

/// Something with cells to add to the shared handles.
pub(crate) trait Flush {
    fn flush(&self);
}

/// All cells of a worker that are in use.
#[derive(Default)]
pub(crate) struct Registry(Rounds<Weak<dyn Flush>>);

impl Registry {
    pub(crate) fn add<T: Flush + 'static>(&self, cells: T) -> Rc<T> {
        let cells = Rc::new(cells);
        let weak: Weak<dyn Flush> = Rc::downgrade(&(Rc::clone(&cells) as Rc<dyn Flush>));
        self.0.add(weak);
        cells
    }

    /// Adds what was counted since the last time.
    pub(crate) async fn flush(&self) {
        self.0.go(flush).await;
    }

    /// The same at once.
    pub(crate) fn flush_now(&self) {
        self.0.run(flush);
    }
}

/// False: they are not in use any more.
fn flush(cells: &Weak<dyn Flush>) -> bool {
    cells.upgrade().inspect(|cells| cells.flush()).is_some()
}

/// A counter of one worker.
pub(crate) struct Count {
    pending: Cell<u64>,
    handle: Counter,
}

impl Count {
    fn new(handle: Counter) -> Count {
        Count { pending: Cell::new(0), handle }
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, n: u64) {
        if ON {
            self.pending.set(self.pending.get() + n);
        }
    }

    /// One that nobody sees.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn unseen() -> Count {
        Count::new(Counter::noop())
    }

    /// What was counted since the last flush.
    #[cfg(test)]
    pub(crate) fn pending(&self) -> u64 {
        self.pending.get()
    }

    fn flush(&self) {
        let n = self.pending.take();
        if n > 0 {
            self.handle.increment(n);
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.flush();
    }
}

/// This worker's part of a gauge: what is open here is added, all workers together are the value.
pub(crate) struct Level {
    now: Cell<i32>,
    published: Cell<i32>,
    handle: Gauge,
}

impl Level {
    fn new(handle: Gauge) -> Level {
        Level { now: Cell::new(0), published: Cell::new(0), handle }
    }

    pub(crate) fn up(&self) {
        if ON {
            self.now.set(self.now.get() + 1);
        }
    }

    pub(crate) fn down(&self) {
        if ON {
            self.now.set(self.now.get() - 1);
        }
    }

    fn flush(&self) {
        let change = self.now.get() - self.published.replace(self.now.get());
        if change != 0 {
            self.handle.increment(f64::from(change));
        }
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        self.now.set(0);
        self.flush();
    }
}

/// A histogram of one worker: count and sum per bucket, recorded as that many times their mean,
/// which keeps both the buckets and the total exact.
pub(crate) struct Timing {
    buckets: [Cell<(u32, f64)>; LATENCY_BUCKETS.len() + 1],
    handle: Histogram,
}

impl Timing {
    fn new(handle: Histogram) -> Timing {
        Timing { buckets: Default::default(), handle }
    }

    pub(crate) fn record(&self, duration: Duration) {
        if !ON {
            return;
        }
        let seconds = duration.as_secs_f64();
        let bucket = &self.buckets[LATENCY_BUCKETS.partition_point(|bound| *bound < seconds)];
        let (count, sum) = bucket.get();
        bucket.set((count + 1, sum + seconds));
    }

    fn flush(&self) {
        for bucket in &self.buckets {
            let (count, sum) = bucket.take();
            if count > 0 {
                self.handle.record_many(sum / f64::from(count), count as usize);
            }
        }
    }
}

impl Drop for Timing {
    fn drop(&mut self) {
        self.flush();
    }
}

macro_rules! cells {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ident),* $(,)? }) => {
        $(#[$doc])*
        pub(crate) struct $name { $(pub(crate) $field: $kind),* }
        impl Flush for $name {
            fn flush(&self) { $(self.$field.flush();)* }
        }
    };
}

cells! {
    /// What one worker counts for one app.
    AppCells {
        request_duration: Timing, first_byte: Timing, request_bytes: Count, response_bytes: Count,
        in_flight: Level, pending: Level, rate_limited: Count, retries_ok: Count, retries_failed: Count, retries_over_budget: Count, hedged: Count,
        closed_done: Count, closed_reset: Count, closed_idle: Count, closed_cut: Count, closed_no_target: Count,
        rejected_limit: Count, rejected_overload: Count, rejected_no_target: Count, rejected_access: Count, rejected_proxy_header: Count, connection_duration: Timing,
        received_client: Count, received_upstream: Count, sent_client: Count, sent_upstream: Count,
        connect_duration: Timing, connects_ok: Count, connects_failed: Count, connects_timeout: Count, connects_lost: Count,
        begun: Count, parked: Level, upstream_active: Level, pool_hit: Count, pool_new: Count, rules_failed: Count,
        mirrored_ok: Count, mirrored_failed: Count, mirrored_too_large: Count, mirrored_over_limit: Count,
        mirrored_unfinished: Count, compressed: Count, compressed_bytes: Count,
    }
}

impl AppCells {
    /// `begun`: counts HTTP requests, and TCP sessions on which the client sent something.
    pub(crate) fn new(app: &Arc<str>, begun: Counter) -> AppCells {
        let closed = |reason| {
            Count::new(
                counter!("flotilla_connections_closed_total", "app" => app.clone(), "reason" => reason),
            )
        };
        let rejected = |reason| {
            Count::new(
                counter!("flotilla_connections_rejected_total", "app" => app.clone(), "reason" => reason),
            )
        };
        let retries = |result| {
            Count::new(counter!("flotilla_http_retries_total", "app" => app.clone(), "result" => result))
        };
        let received = |side| {
            Count::new(counter!("flotilla_received_bytes_total", "app" => app.clone(), "side" => side))
        };
        let sent =
            |side| Count::new(counter!("flotilla_sent_bytes_total", "app" => app.clone(), "side" => side));
        let connects = |result| {
            Count::new(counter!("flotilla_upstream_connects_total", "app" => app.clone(), "result" => result))
        };
        let pool = |result| {
            Count::new(
                counter!("flotilla_upstream_pool_requests_total", "app" => app.clone(), "result" => result),
            )
        };
        let mirrored = |result| {
            Count::new(counter!("flotilla_http_mirrored_total", "app" => app.clone(), "result" => result))
        };
        let timing = |name: &'static str| Timing::new(histogram!(name, "app" => app.clone()));
        let plain = |name: &'static str| Count::new(counter!(name, "app" => app.clone()));
        let level = |name: &'static str| Level::new(gauge!(name, "app" => app.clone()));
        AppCells {
            request_duration: timing("flotilla_http_request_duration_seconds"),
            first_byte: timing("flotilla_http_time_to_first_byte_seconds"),
            request_bytes: plain("flotilla_http_request_bytes_total"),
            response_bytes: plain("flotilla_http_response_bytes_total"),
            in_flight: level("flotilla_http_requests_in_flight"),
            pending: level("flotilla_requests_pending"),
            rate_limited: plain("flotilla_rate_limited_total"),
            retries_ok: retries("ok"),
            retries_failed: retries("failed"),
            retries_over_budget: retries("over_budget"),
            hedged: plain("flotilla_http_hedges_total"),
            closed_done: closed("done"),
            closed_reset: closed("reset"),
            closed_idle: closed("idle"),
            closed_cut: closed("cut"),
            closed_no_target: closed("no_target"),
            rejected_limit: rejected("limit"),
            rejected_overload: rejected("overload"),
            rejected_no_target: rejected("no_target"),
            rejected_access: rejected("acl"),
            rejected_proxy_header: rejected("proxy_header"),
            connection_duration: timing("flotilla_connection_duration_seconds"),
            received_client: received("client"),
            received_upstream: received("upstream"),
            sent_client: sent("client"),
            sent_upstream: sent("upstream"),
            connect_duration: timing("flotilla_upstream_connect_duration_seconds"),
            connects_ok: connects("ok"),
            connects_failed: connects("failed"),
            connects_timeout: connects("timeout"),
            connects_lost: connects("lost"),
            begun: Count::new(begun),
            parked: level("flotilla_connections_parked"),
            upstream_active: level("flotilla_upstream_connections_active"),
            pool_hit: pool("hit"),
            pool_new: pool("new"),
            rules_failed: plain("flotilla_http_rule_failures_total"),
            mirrored_ok: mirrored("ok"),
            mirrored_failed: mirrored("failed"),
            mirrored_too_large: mirrored("too_large"),
            mirrored_over_limit: mirrored("over_limit"),
            mirrored_unfinished: mirrored("unfinished"),
            compressed: plain("flotilla_http_compressed_total"),
            compressed_bytes: plain("flotilla_http_compressed_bytes_total"),
        }
    }
}

/// What one worker counts for one port of one app.
pub(crate) struct PortCells {
    pub(crate) opened: Count,
    pub(crate) active: Level,
    app: Arc<str>,
    port: String,
    /// Per route in file order, the last entry for requests no route claimed; made when first hit.
    requests: Vec<[RefCell<Option<Count>>; 5]>,
    routes: Vec<String>,
}

impl PortCells {
    pub(crate) fn new(app: &Arc<str>, port: u16, protocol: Protocol, routes: Vec<String>) -> PortCells {
        let protocol = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Http => "http",
        };
        let port = port.to_string();
        PortCells {
            opened: Count::new(counter!("flotilla_connections_opened_total",
                "app" => app.clone(), "port" => port.clone(), "protocol" => protocol)),
            active: Level::new(
                gauge!("flotilla_connections_active", "app" => app.clone(), "port" => port.clone()),
            ),
            app: app.clone(),
            port,
            requests: (0..=routes.len()).map(|_| Default::default()).collect(),
            routes,
        }
    }

    /// Counts one answered request. `route` is an index into the routes; `None` = none claimed it.
    pub(crate) fn request(&self, route: Option<usize>, status: u16) {
        let route = route.unwrap_or(self.routes.len());
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        let mut cell = self.requests[route][class].borrow_mut();
        cell.get_or_insert_with(|| self.request_count(route, class)).one();
    }

    fn request_count(&self, route: usize, class: usize) -> Count {
        let class = ["1xx", "2xx", "3xx", "4xx", "5xx"][class];
        let route = self.routes.get(route).cloned().unwrap_or_default();
        Count::new(counter!("flotilla_http_requests_total",
            "app" => self.app.clone(), "port" => self.port.clone(), "code_class" => class, "route" => route))
    }
}

impl Flush for PortCells {
    fn flush(&self) {
        self.opened.flush();
        self.active.flush();
        for cell in self.requests.iter().flatten() {
            if let Some(count) = cell.borrow().as_ref() {
                count.flush();
            }
        }
    }
}

cells! {
    /// What one worker counts of handshakes of one app.
    TlsCells { ok_v12: Count, ok_v13: Count, failed: Count, timeout: Count }
}

impl TlsCells {
    pub(crate) fn new(app: &Arc<str>) -> TlsCells {
        let handshakes = |result, version| {
            Count::new(counter!("flotilla_tls_handshakes_total",
                "app" => app.clone(), "result" => result, "version" => version))
        };
        TlsCells {
            ok_v12: handshakes("ok", "1.2"),
            ok_v13: handshakes("ok", "1.3"),
            failed: handshakes("failed", ""),
            timeout: handshakes("timeout", ""),
        }
    }
}

cells! {
    /// Whom the guards of one app turned away on one worker: denied, or not looked at.
    GuardCells {
        basic_denied: Count, basic_failed: Count, jwt_denied: Count, jwt_failed: Count, forward_denied: Count,
        forward_failed: Count, grpc_denied: Count, grpc_failed: Count,
    }
}

impl GuardCells {
    pub(crate) fn new(app: &Arc<str>) -> GuardCells {
        let refused = |guard, reason| {
            Count::new(counter!("flotilla_access_refused_total",
                "app" => app.clone(), "guard" => guard, "reason" => reason))
        };
        GuardCells {
            basic_denied: refused("basic", "denied"),
            basic_failed: refused("basic", "failed"),
            jwt_denied: refused("jwt", "denied"),
            jwt_failed: refused("jwt", "failed"),
            forward_denied: refused("forward", "denied"),
            forward_failed: refused("forward", "failed"),
            grpc_denied: refused("ext_authz", "denied"),
            grpc_failed: refused("ext_authz", "failed"),
        }
    }
}

cells! {
    /// What one worker has in flight towards one target.
    TargetCells { load: Level }
}

impl TargetCells {
    pub(crate) fn new(app: &Arc<str>, target: &Arc<str>) -> TargetCells {
        TargetCells {
            load: Level::new(
                gauge!("flotilla_target_load", "app" => app.clone(), "target" => target.clone()),
            ),
        }
    }
}

cells! {
    /// How often one worker reached each limit.
    LimitCells {
        connections: Count, per_source: Count, in_flight: Count, target_hard: Count, pending: Count,
        pending_timeout: Count, rate_keys: Count, memory: Count, header_bytes: Count, header_fields: Count, request_line: Count,
        header_timeout: Count, keep_alive_idle: Count, requests_per_connection: Count, body_idle: Count,
        body_bytes: Count, framing: Count, proxy_header_timeout: Count, tls_handshake_timeout: Count,
        h2_resets: Count, h2_pings: Count, h2_settings: Count, h2_frames: Count, h2_streams: Count, unclaimed: Count,
    }
}

impl LimitCells {
    pub(crate) fn new() -> LimitCells {
        let limit = |name| Count::new(counter!("flotilla_limit_hits_total", "limit" => name));
        LimitCells {
            connections: limit("connections"),
            per_source: limit("connections_per_source"),
            in_flight: limit("in_flight"),
            target_hard: limit("target_hard"),
            pending: limit("pending"),
            pending_timeout: limit("pending_timeout"),
            rate_keys: limit("rate_keys"),
            memory: limit("memory"),
            header_bytes: limit("header_bytes"),
            header_fields: limit("header_fields"),
            request_line: limit("request_line"),
            header_timeout: limit("header_timeout"),
            keep_alive_idle: limit("keep_alive_idle"),
            requests_per_connection: limit("requests_per_connection"),
            body_idle: limit("body_idle"),
            body_bytes: limit("body_bytes"),
            framing: limit("framing"),
            proxy_header_timeout: limit("proxy_header_timeout"),
            tls_handshake_timeout: limit("tls_handshake_timeout"),
            h2_resets: limit("h2_resets"),
            h2_pings: limit("h2_pings"),
            h2_settings: limit("h2_settings"),
            h2_frames: limit("h2_frames"),
            h2_streams: limit("h2_streams"),
            unclaimed: limit("unclaimed_host"),
        }
    }
}

/// Control side: what the checks of a target say.
pub(crate) fn target_healthy(app: &Arc<str>, target: &Arc<str>, is_healthy: bool) {
    gauge!("flotilla_target_healthy", "app" => app.clone(), "target" => target.clone()).set(if is_healthy {
        1.0
    } else {
        0.0
    });
}

/// Control side: a check has ended.
pub(crate) fn target_checked(app: &Arc<str>, has_passed: bool) {
    let result = if has_passed { "pass" } else { "fail" };
    counter!("flotilla_target_health_checks_total", "app" => app.clone(), "result" => result).increment(1);
}

/// Control side: an endpoint failed too often in a row.
pub(crate) fn target_ejected(app: &Arc<str>, target: &Arc<str>) {
    counter!("flotilla_target_ejections_total", "app" => app.clone(), "target" => target.clone())
        .increment(1);
}

/// Control side: how much memory there is, and whether it is too much.
pub(crate) fn memory(used: u64, budget: u64, is_overloaded: bool) {
    #[allow(clippy::cast_precision_loss, reason = "a gauge is a float; bytes of memory stay far below 2^53")]
    let [used, budget] = [used as f64, budget as f64];
    gauge!("flotilla_memory_used_bytes").set(used);
    gauge!("flotilla_memory_budget_bytes").set(budget);
    gauge!("flotilla_overloaded").set(if is_overloaded { 1.0 } else { 0.0 });
}

/// Control side: the keys of tokens could not be fetched.
pub(crate) fn keys_failed(app: &Arc<str>) {
    counter!("flotilla_access_keys_failed_total", "app" => app.clone()).increment(1);
}

/// Control side: a circuit changed.
pub(crate) fn circuit(app: &Arc<str>, target: &Arc<str>, state: u8) {
    gauge!("flotilla_circuit_state", "app" => app.clone(), "target" => target.clone()).set(f64::from(state));
}

/// Control side: a listener task died and was started again.
pub(crate) fn listener_restarted(app: &Arc<str>) {
    counter!("flotilla_listener_restarts_total", "app" => app.clone()).increment(1);
}

/// Control side: a worker made no progress.
pub(crate) fn worker_stalled() {
    counter!("flotilla_worker_stalls_total").increment(1);
}

/// Control side: `listeners{state}` of one port.
pub(crate) fn listener(app: &Arc<str>, port: u16, serving: bool, draining: bool) {
    for (state, is) in [("serving", serving), ("draining", draining)] {
        gauge!("flotilla_listeners", "app" => app.clone(), "port" => port.to_string(), "state" => state)
            .set(if is { 1.0 } else { 0.0 });
    }
}

/// Control side: a certificate that clients get from now on.
pub(crate) fn certificate(name: &str, not_after: i64) {
    #[allow(clippy::cast_precision_loss, reason = "a gauge is a float; seconds stay far below 2^53")]
    gauge!("flotilla_tls_certificate_not_after_timestamp_seconds", "certificate" => name.to_owned())
        .set(not_after as f64);
}

/// Control side: a name was asked for, once for all apps that have it.
pub(crate) fn name_looked_up(is_ok: bool) {
    counter!("flotilla_dns_lookups_total", "result" => if is_ok { "ok" } else { "failed" }).increment(1);
}

/// Control side: the files of certificates had changed.
pub(crate) fn certificates_reloaded(result: &'static str) {
    counter!("flotilla_tls_certificates_reloaded_total", "result" => result).increment(1);
}

/// Control side: the generation that serves an app.
pub(crate) fn generation(app: &Arc<str>, generation: u64) {
    #[allow(clippy::cast_precision_loss, reason = "a gauge is a float; generations stay far below 2^53")]
    gauge!("flotilla_listener_generation", "app" => app.clone()).set(generation as f64);
}

/// Control side: a port closed this long after it was last wanted.
pub(crate) fn drained(app: &Arc<str>, after: Duration) {
    histogram!("flotilla_listener_drain_duration_seconds", "app" => app.clone()).record(after.as_secs_f64());
}

/// Control side: the sessions of a generation were cut.
pub(crate) fn drain_forced(app: &Arc<str>) {
    counter!("flotilla_listener_drain_forced_total", "app" => app.clone()).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_goes_away_takes_its_part_back() {
        let level = Level::new(Gauge::noop());
        level.up();
        level.up();
        level.down();
        level.flush();
        assert_eq!((level.now.get(), level.published.get()), (1, 1));
    }

    #[test]
    fn a_duration_lands_in_the_bucket_that_bounds_it() {
        let timing = Timing::new(Histogram::noop());
        for ms in [0, 1, 3, 20_000] {
            timing.record(Duration::from_millis(ms));
        }
        let counts: Vec<u32> = timing.buckets.iter().map(|bucket| bucket.get().0).collect();
        assert_eq!(counts, [1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
}
