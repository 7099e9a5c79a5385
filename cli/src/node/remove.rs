//! `flotilla node remove`

use std::{
    io::{self, BufRead as _, IsTerminal as _},
    time::Duration,
};

use flotilla_api::v1::{SetNodeRequest, set_node_request::Action};
use tokio::time::{Instant, sleep};

use super::{
    drain::{Followed, Terms, follow},
    set,
};
use crate::{
    args::Shell,
    client::Client,
    exit::{Exit, Failure},
    json,
    view::clock,
};

const POLL: Duration = Duration::from_millis(300);

/// Take a node out of the cluster for good
///
/// It is drained, gives up its vote, and leaves; its process then ends. Its id is never used again:
/// to come back it needs an empty data directory. A node that is dead needs --force.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla node remove n3
  flotilla node remove n3 --force --yes     it is dead and will not come back")]
pub(crate) struct Args {
    node: String,
    #[command(flatten)]
    terms: Terms,
    /// Without a drain: what the node may still serve is cut
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Return when the removal has begun
    #[arg(long)]
    no_wait: bool,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let client = shell.client();
    if !args.yes {
        confirm(shell, &args.node, args.force)?;
    }
    let started = Instant::now();
    let request = args.terms.request(args.node, Action::Remove);
    let node = set::set(&client, shell, SetNodeRequest { force: args.force, ..request }).await?;
    let (id, name) = (node.id, node.name.clone());
    if args.no_wait {
        let text = format!("✓ {name} is being removed; look with: flotilla node list");
        shell.output.emit("Node", || json::node(&node), |_| text)?;
        return Ok(Exit::Done);
    }
    match follow(&client, shell, node.clone()).await? {
        Followed::Over(node) if node.drain.is_none() => {
            return Err(Failure::new(Exit::Failed, format!("the removal of {name} was called off")));
        }
        Followed::Over(_) => wait_until_gone(&client, shell, id, &name).await?,
        Followed::Gone(_) => {}
        Followed::Detached => return Ok(Exit::Interrupted),
    }
    let text = format!("✓ {name} has left the cluster ({})", clock(started.elapsed()));
    shell.output.emit("Node", || json::node(&node), |_| text)?;
    Ok(Exit::Done)
}

fn confirm(shell: &Shell, node: &str, force: bool) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("removing `{node}` needs --yes when nobody can be asked"))
            .help(format!("flotilla node remove {node} --yes")));
    }
    let how = if force { " at once, and cuts what it serves" } else { "" };
    shell.output.complain(&format!("This takes `{node}` out of the cluster for good{how}."));
    shell.output.complain("Remove it? [y/N]");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Failed, "nothing was removed")),
    }
}

/// A leader that leaves is followed by another first: a fleet that is silent for a while is at it.
async fn wait_until_gone(client: &Client, shell: &Shell, id: u64, name: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + shell.rollout_within();
    while !matches!(set::look(client, id).await, Ok(None)) {
        if Instant::now() + POLL > deadline {
            return Err(Failure::new(Exit::Unreachable, format!("{name} has not left within --timeout"))
                .help("it leaves when the voters that stay are a majority that is alive: `flotilla cluster status`"));
        }
        sleep(POLL).await;
    }
    Ok(())
}
