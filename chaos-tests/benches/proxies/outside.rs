//! Load generators of others, for what ours does not speak.

use std::{
    io::Read,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{client::Result, world::World};

/// `wrk`, 64 connections over TLS.
pub(crate) fn wrk_tls(world: &mut World, port: u16, run: Duration) -> Result {
    wrk(world, &format!("https://127.0.0.1:{port}/"), 64, run)
}

/// `wrk` counts what it got and what failed. It takes whole seconds only.
pub(crate) fn wrk(world: &mut World, url: &str, connections: usize, run: Duration) -> Result {
    let seconds = run.as_secs().max(1);
    let mut command = Command::new("wrk");
    command.args(["-t1", "--latency", &format!("-c{connections}"), &format!("-d{seconds}s"), url]);
    let (said, elapsed) = finish(world, &mut command);
    let number = |before: &str| {
        let line = said.lines().find(|line| line.contains(before))?;
        line.split(before).next()?.split_whitespace().next_back()?.parse::<u64>().ok()
    };
    let failed = said.lines().find(|line| line.contains("Socket errors") || line.contains("Non-2xx"));
    let p99 = said.lines().find_map(|line| line.trim().strip_prefix("99%")).and_then(micros);
    Result {
        operations: number(" requests in ").unwrap_or_else(|| panic!("wrk said {said}")),
        failed: u64::from(failed.is_some()),
        failure: failed.map(str::to_owned),
        seconds: elapsed,
        micros: p99.into_iter().collect(),
        ..Result::default()
    }
}

/// `1.23ms` and the like.
fn micros(typed: &str) -> Option<u32> {
    let typed = typed.trim();
    let (number, unit) = typed.split_at(typed.find(|c: char| c.is_alphabetic())?);
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        _ => 1e6,
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some((number.parse::<f64>().ok()? * factor) as u32)
}

/// `h2load`, 8 connections with 32 streams each.
pub(crate) fn h2load(world: &mut World, port: u16, run: Duration) -> Result {
    let mut command = Command::new("h2load");
    let seconds = run.as_secs().max(1).to_string();
    command.args(["-t1", "-c8", "-m32", "-D", &seconds, &format!("http://127.0.0.1:{port}/")]);
    let (said, elapsed) = finish(world, &mut command);
    let line = said.lines().find(|line| line.starts_with("requests:")).unwrap_or_else(|| panic!("{said}"));
    let count = |what: &str| {
        let before = line.split(what).next().unwrap_or_default();
        before.split_whitespace().next_back().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    let failed = count(" failed");
    Result {
        operations: count(" succeeded"),
        failed,
        failure: (failed > 0).then(|| line.to_owned()),
        seconds: elapsed,
        ..Result::default()
    }
}

/// `hey`, so many requests over so many connections: how the thesis measured.
pub(crate) fn hey(world: &mut World, url: &str, requests: u64, connections: usize) -> Result {
    let mut command = Command::new("hey");
    command.args(["-n", &requests.to_string(), "-c", &connections.to_string(), url]);
    let (said, _) = finish(world, &mut command);
    let after = |text: &str| said.lines().find_map(|line| line.trim().strip_prefix(text)).map(str::trim);
    let ok = after("[200]").and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    let seconds: f64 =
        after("Total:").and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(f64::NAN);
    let p99: Option<f64> = after("99% in").and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let micros = p99.map(|seconds| (seconds * 1e6) as u32);
    Result {
        operations: ok,
        failed: requests - ok,
        failure: (ok != requests).then(|| "not every answer was 200".to_owned()),
        seconds,
        micros: micros.into_iter().collect(),
        ..Result::default()
    }
}

/// Serves the targets until the program has ended.
fn finish(world: &mut World, command: &mut Command) -> (String, f64) {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // All of them say less than a pipe holds before they end.
    world.serve_until(|| child.try_wait().unwrap().is_some());
    let mut said = String::new();
    child.stdout.take().expect("it is piped").read_to_string(&mut said).unwrap();
    (said, start.elapsed().as_secs_f64())
}
