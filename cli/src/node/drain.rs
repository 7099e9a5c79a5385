//! `flotilla node drain`: shows each phase until the node is empty.

use std::time::Duration;

use flotilla_api::v1::{Drain, Node, SetNodeRequest, set_node_request::Action};
use tokio::time::{Instant, sleep};

use super::set;
use crate::{
    args::Shell,
    client::Client,
    exit::{Exit, Failure},
    json,
    view::clock,
};

const POLL: Duration = Duration::from_millis(200);

/// Take the traffic from a node without losing any of it
///
/// Lame duck: balancers are told, other nodes take over, the node serves on. Quiet: they have
/// confirmed, and no session begins any more. Draining: clients are asked to go elsewhere, one after
/// the other. Empty: nobody is left, and the node gives its apps back. What is still open at the
/// deadline is cut. `flotilla node undrain` calls it off in any phase.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla node drain n3
  flotilla node drain n3 --deadline 30s     sessions that last longer are cut
  flotilla node drain n3 --no-wait

Exits with 1 when connections were cut.")]
pub(crate) struct Args {
    node: String,
    #[command(flatten)]
    terms: Terms,
    /// Show each phase and return when the node is empty (the default)
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Return when the drain has begun
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Terms {
    /// When what is left is cut. Half of it is for the balancers, half for the sessions
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    pub(super) deadline: Duration,
    /// How long no session may have begun: longer than the balancers' checks take to notice
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    pub(super) quiet_for: Duration,
}

impl Terms {
    pub(super) fn request(&self, node: String, action: Action) -> SetNodeRequest {
        let millis = |time: Duration| u64::try_from(time.as_millis()).ok();
        SetNodeRequest {
            node,
            action: action.into(),
            deadline_ms: millis(self.deadline),
            quiet_ms: millis(self.quiet_for),
            ..SetNodeRequest::default()
        }
    }
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let client = shell.client();
    let started = Instant::now();
    let node = set::set(&client, shell, args.terms.request(args.node, Action::Drain)).await?;
    if args.no_wait && !args.wait {
        let text = format!("✓ {} gives its traffic up; look with: flotilla node list", node.name);
        shell.output.emit("Node", || json::node(&node), |_| text)?;
        return Ok(Exit::Done);
    }
    let node = match follow(&client, shell, node).await? {
        Followed::Over(node) => node,
        Followed::Gone(name) => {
            return Err(Failure::new(Exit::Failed, format!("{name} has left the cluster meanwhile")));
        }
        Followed::Detached => return Ok(Exit::Interrupted),
    };
    let Some(drain) = node.drain.clone() else {
        return Err(Failure::new(Exit::Failed, format!("the drain of {} was called off", node.name)));
    };
    let took = clock(started.elapsed());
    if drain.phase == "empty" {
        let text = format!(
            "✓ {} is empty ({took}). Take it back with: flotilla node undrain {}",
            node.name, node.name
        );
        shell.output.emit("Node", || json::node(&node), |_| text)?;
        return Ok(Exit::Done);
    }
    shell.output.json("Node", || json::node(&node))?;
    shell.output.complain(&format!("✗ {} was cut at the deadline ({took})", node.name));
    Ok(Exit::Failed)
}

pub(super) enum Followed {
    Over(Box<Node>),
    /// It is no member any more. Its name.
    Gone(String),
    Detached,
}

/// One line for each phase and for each reason to wait, until the drain is over or was called off.
pub(super) async fn follow(client: &Client, shell: &Shell, mut node: Node) -> Result<Followed, Failure> {
    let deadline = Instant::now() + shell.rollout_within();
    let mut said = String::new();
    loop {
        let Some(drain) = node.drain.as_ref().filter(|drain| !drain.over) else {
            if let Some(drain) = &node.drain {
                shell.output.note(line(&node.name, drain));
            }
            return Ok(Followed::Over(Box::new(node)));
        };
        let now = line(&node.name, drain);
        // Numbers of seconds would be a new line each second.
        if steady(&now) != steady(&said) {
            shell.output.note(&now);
            said = now;
        }
        if Instant::now() + POLL > deadline {
            let late = format!("{} is not empty within --timeout", node.name);
            return Err(Failure::new(Exit::Unreachable, late).help("the drain goes on: `flotilla node list`"));
        }
        // Both are cancel-safe.
        tokio::select! {
            () = sleep(POLL) => {}
            _ = tokio::signal::ctrl_c() => {
                shell.output.note(format!(
                    "detached; the drain goes on. Call it off with: flotilla node undrain {}",
                    node.name
                ));
                return Ok(Followed::Detached);
            }
        }
        // A fleet that is silent for a while is still at it.
        match set::look(client, node.id).await {
            Ok(Some(seen)) => node = seen,
            Ok(None) => return Ok(Followed::Gone(node.name)),
            Err(_) => {}
        }
    }
}

fn line(node: &str, drain: &Drain) -> String {
    let phase = drain.phase.replace(' ', "-");
    match drain.waiting.first() {
        Some(why) if !drain.over => format!("node={node} phase={phase} waiting=\"{why}\""),
        Some(_) | None => format!("node={node} phase={phase}"),
    }
}

/// What stays the same while only its numbers change.
fn steady(line: &str) -> String {
    let digits = |c: char| c.is_ascii_digit();
    line.split(' ').map(|word| word.trim_matches('"').trim_matches(digits)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_changes_with_the_phase_and_the_reason_and_not_with_the_time() {
        let drain = |phase: &str, over, why: &str| Drain {
            phase: phase.to_owned(),
            over,
            waiting: vec![why.to_owned()],
            ..Drain::default()
        };
        let waits = drain("lame duck", false, "a balancer still sends it sessions of `web`");
        assert_eq!(
            line("n3", &waits),
            "node=n3 phase=lame-duck waiting=\"a balancer still sends it sessions of `web`\""
        );
        let left = |seconds| {
            line(
                "n3",
                &drain("draining", false, &format!("7 connections are left, which are cut in {seconds} s")),
            )
        };
        assert_eq!(
            left(9),
            "node=n3 phase=draining waiting=\"7 connections are left, which are cut in 9 s\""
        );
        assert_eq!(steady(&left(10)), steady(&left(8)));
        assert_ne!(steady(&left(9)), steady(&line("n3", &waits)));
        assert_eq!(line("n3", &drain("empty", true, "")), "node=n3 phase=empty");
    }
}
