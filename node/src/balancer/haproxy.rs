//! HAProxy, told over its runtime API.
//!
//! Reconciles: reads what it has, changes what differs, reads again. Nothing is remembered between two
//! rounds, so a reload that brings back the state of its file, an operator's command and a lost answer
//! are all the same: something differs, and is put right.
//!
//! Per backend, the servers whose names begin with the prefix are the fleet's. `PREFIX1`, `PREFIX2`, …
//! are slots, from a `server-template` of the file: they get the address of a node and go back to
//! maintenance. When no slot is free a server `PREFIX-NODE` is added, and deleted after its last session.

use std::time::Duration;

use flotilla_raft_store::Haproxy;
use tracing::debug;

use super::{desired::Service, status::Outcome};

mod plan;
mod runtime;
mod table;

use plan::plan;

/// For one exchange of commands and answers. HAProxy answers between two events of its loop.
const TIMEOUT: Duration = Duration::from_secs(2);

/// One round.
pub(crate) async fn reconcile(settings: &Haproxy, services: &[Service]) -> Result<Outcome, String> {
    let before = read(settings).await?;
    let first = plan(settings, services, &before);
    if first.commands.is_empty() && first.deletions.is_empty() {
        return Ok(Outcome { changes: 0, problems: first.problems, servers: first.servers });
    }
    let mut problems = tell(settings, &first.commands).await?;
    // A server that still has sessions is not deleted; it is in maintenance, and is tried again.
    for deletion in &first.deletions {
        let answer = exchange(settings, deletion).await?;
        debug!(command = deletion, answer = answer.trim(), "delete server");
    }
    let after = read(settings).await?;
    let second = plan(settings, services, &after);
    problems.extend(second.problems);
    problems.extend(second.commands.into_iter().map(|command| format!("had no effect: {command}")));
    let changes = (first.commands.len() + first.deletions.len()) as u64;
    Ok(Outcome { changes, problems, servers: second.servers })
}

async fn read(settings: &Haproxy) -> Result<table::Backends, String> {
    let answer = exchange(settings, "show servers state").await?;
    table::parse(&answer).map_err(|why| format!("{}: show servers state: {why}", settings.address))
}

async fn exchange(settings: &Haproxy, line: &str) -> Result<String, String> {
    match tokio::time::timeout(TIMEOUT, runtime::exchange(&settings.address, line)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(err)) => Err(format!("{}: {err}", settings.address)),
        Err(_) => Err(format!("{}: no answer within {TIMEOUT:?}", settings.address)),
    }
}

/// Returns what was refused.
async fn tell(settings: &Haproxy, commands: &[String]) -> Result<Vec<String>, String> {
    let mut problems = Vec::new();
    for line in runtime::lines(commands) {
        let answers = exchange(settings, &line.join(";")).await?;
        problems.extend(runtime::refusals(line, &answers));
    }
    Ok(problems)
}
