//! What a load came to, for people and for scripts.

use std::time::Duration;

use serde_json::{Value, json};

use super::{histogram::Histogram, load::Tally};
use crate::{
    output::Style,
    table::{self, Field, number, text},
};

pub(super) fn document(address: &str, tally: &Tally) -> Value {
    let targets =
        by_count(tally).into_iter().map(|(name, count)| json!({ "name": name, "exchanges": count }));
    let failures = tally.faults.iter().map(
        |(class, faults)| json!({ "class": class.word(), "count": faults.count, "example": faults.example }),
    );
    json!({
        "address": address,
        "succeeded": tally.succeeded,
        "failed": tally.failed(),
        "connections": tally.connecting.count(),
        "elapsedMs": millis(tally.elapsed),
        "perSecond": (per_second(tally) * 10.0).round() / 10.0,
        "connectMs": times(&tally.connecting),
        "exchangeMs": times(&tally.exchanging),
        "targets": targets.collect::<Vec<_>>(),
        "targetUnknown": unknown(tally),
        "failures": failures.collect::<Vec<_>>(),
    })
}

pub(super) fn render(tally: &Tally, headers: bool, style: Style) -> String {
    let failed = tally.failed();
    let (mark, failures) = match failed {
        0 => (style.green("✓"), "none failed".to_owned()),
        _ => (style.red("✗"), style.red(&format!("{failed} failed"))),
    };
    let mut out = format!(
        "{mark} {} exchanges in {}, {:.0} per second, {} connections, {failures}\n",
        tally.succeeded + failed,
        readable(tally.elapsed),
        per_second(tally),
        tally.connecting.count(),
    );
    let mut section = |columns: &[&str], rows: Vec<Vec<Field>>| {
        if !rows.is_empty() {
            out += "\n";
            out += &table::render(style, headers.then_some(columns), rows);
        }
    };
    let timed = [("connect", &tally.connecting), ("exchange", &tally.exchanging)];
    let rows = timed.into_iter().filter(|(_, times)| times.count() > 0).map(|(name, times)| row(name, times));
    section(&["TIME", "MIN", "P50", "P90", "P99", "MAX"], rows.collect());
    section(&["TARGET", "EXCHANGES", "SHARE"], shares(tally));
    let rows = tally.faults.iter().map(|(class, faults)| {
        vec![text(class.word()), number(faults.count.to_string()), text(faults.example.as_str())]
    });
    section(&["FAILURE", "COUNT", "THE FIRST"], rows.collect());
    out
}

/// For those who asked which targets answered.
pub(super) fn hint(tally: &Tally) -> Option<&'static str> {
    let nobody_said = tally.targets.is_empty() && tally.succeeded > 0;
    nobody_said.then_some(
        "the distribution is unknown: the targets do not name themselves, they only echo or answer",
    )
}

fn row(name: &str, times: &Histogram) -> Vec<Field> {
    let columns =
        [times.min(), times.percentile(50), times.percentile(90), times.percentile(99), times.max()];
    [text(name)].into_iter().chain(columns.into_iter().map(|time| number(readable(time)))).collect()
}

fn times(times: &Histogram) -> Value {
    match times.count() {
        0 => Value::Null,
        _ => json!({
            "min": millis(times.min()),
            "p50": millis(times.percentile(50)),
            "p90": millis(times.percentile(90)),
            "p99": millis(times.percentile(99)),
            "max": millis(times.max()),
        }),
    }
}

fn shares(tally: &Tally) -> Vec<Vec<Field>> {
    let unknown = unknown(tally);
    let known = by_count(tally).into_iter();
    let rest = (unknown > 0 && !tally.targets.is_empty()).then_some(("(not known)", unknown));
    known
        .chain(rest)
        .map(|(name, count)| {
            let share = 100.0 * count as f64 / tally.succeeded as f64;
            vec![text(name), number(count.to_string()), number(format!("{share:.1}%"))]
        })
        .collect()
}

/// The busiest first.
fn by_count(tally: &Tally) -> Vec<(&str, u64)> {
    let mut targets: Vec<_> = tally.targets.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    targets.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    targets
}

fn unknown(tally: &Tally) -> u64 {
    tally.succeeded - tally.targets.values().sum::<u64>()
}

fn per_second(tally: &Tally) -> f64 {
    let seconds = tally.elapsed.as_secs_f64();
    if seconds > 0.0 { tally.succeeded as f64 / seconds } else { 0.0 }
}

/// To the microsecond.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn readable(time: Duration) -> String {
    match time {
        time if time >= Duration::from_secs(10) => format!("{:.1}s", time.as_secs_f64()),
        time if time >= Duration::from_secs(1) => format!("{:.2}s", time.as_secs_f64()),
        time => format!("{:.2}ms", time.as_secs_f64() * 1e3),
    }
}
