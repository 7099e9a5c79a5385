//! `flotilla app delete`

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _, IsTerminal as _},
    time::Duration,
};

use flotilla_api::v1::{
    App, AppChanged, DeleteAppRequest, ListAppsRequest, ListNodesRequest, Node, NodeGeneration,
};
use tokio::time::{Instant, sleep};

use super::{describe, with_suggestion};
use crate::{
    args::Shell,
    client::{Client, fleet},
    exit::{Exit, Failure},
    json,
    view::{clock, plural},
};

const POLL: Duration = Duration::from_millis(300);

/// Take an app and its ports from the fleet
///
/// Returns when no session is left of it: they may finish until the drain deadline of the app. Its ports
/// close about a minute after that began, so that no connection that is on its way meets a closed one,
/// and can be another app's from then on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla app delete web
  flotilla app delete web --yes                   without asking, for scripts
  flotilla app delete web --yes --wait=closed     until its ports are free for another app")]
pub(crate) struct Args {
    app: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Refuse unless the app is at this version
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
    /// What to wait for, on every live node: `drained`, no session is left; `closed`, its ports are
    /// free; or `committed`, which only the log has
    #[arg(long, value_enum, value_name = "UNTIL", require_equals = true, num_args = 0..=1,
          default_value = "drained", default_missing_value = "drained")]
    wait: Wait,
    /// The same as --wait=committed
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Wait {
    Drained,
    Closed,
    Committed,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let client = shell.client();
    if !args.yes {
        confirm(&client, shell, &args.app).await?;
    }
    let request = DeleteAppRequest {
        request: Some(client.request_id()),
        app: args.app.clone(),
        if_version: args.if_version,
    };
    let written = client
        .write(shell.answer_within(), async |channel| fleet(channel).delete_app(request.clone()).await)
        .await;
    let changed = match written {
        Ok(changed) => changed,
        Err(failure) => return Err(with_suggestion(&client, &args.app, failure).await),
    };
    let text = if args.no_wait || args.wait == Wait::Committed {
        format!("✓ {} is being deleted; its sessions may finish", args.app)
    } else {
        let started = Instant::now();
        let left = tokio::select! {
            left = wait_for(args.wait, &client, shell, &changed) => left?,
            _ = tokio::signal::ctrl_c() => {
                shell.output.note("detached; the deletion goes on. Look with: flotilla app list");
                return Ok(Exit::Interrupted);
            }
        };
        left.verdict(&args.app, &clock(started.elapsed()))
    };
    shell.output.emit("AppChanged", || json::changed(&changed), |_| text)?;
    Ok(Exit::Done)
}

async fn confirm(client: &Client, shell: &Shell, app: &str) -> Result<(), Failure> {
    let description = describe(client, app).await?;
    let described = description.app.unwrap_or_default();
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("deleting `{app}` needs --yes when nobody can be asked"))
            .help(format!("flotilla app delete {app} --yes")));
    }
    shell.output.complain(&format!(
        "This deletes `{app}` (version {}, {}) from {} and forgets its history.",
        described.version,
        described.listen.join(", "),
        plural(described.nodes_placed as usize, "node")
    ));
    shell.output.complain("Delete it? [y/N]");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Failed, "nothing was deleted")),
    }
}

/// A fleet that is silent for a while is still at it.
async fn wait_for(wait: Wait, client: &Client, shell: &Shell, deleted: &AppChanged) -> Result<Left, Failure> {
    let app = &deleted.app;
    let deadline = Instant::now() + shell.rollout_within();
    let mut said = String::new();
    loop {
        let left = look(client, deleted).await;
        if let Some(left) = left {
            if left.is_enough(wait) {
                return Ok(left);
            }
            let progress = left.progress();
            if progress != said {
                shell.output.note(format!("app={app} phase=deleting {progress}"));
                said = progress;
            }
        }
        if Instant::now() + POLL > deadline {
            let said = if said.is_empty() { String::new() } else { format!(": {said}") };
            let failure = format!("`{app}` is not deleted within --timeout{said}");
            return Err(
                Failure::new(Exit::Unreachable, failure).help("the deletion goes on: `flotilla app list`")
            );
        }
        sleep(POLL).await;
    }
}

/// `None`: nobody says, or not yet.
async fn look(client: &Client, deleted: &AppChanged) -> Option<Left> {
    let apps = client.read(async |channel| fleet(channel).list_apps(ListAppsRequest {}).await).await.ok()?;
    let known = apps.apps.iter().find(|known| known.name == deleted.app);
    match known.map(|known| is_still(known, deleted)) {
        // The name is free for somebody else as soon as the app is gone.
        None | Some(Still::Another) => return Some(Left::default()),
        Some(Still::NotKnown) => return None,
        Some(Still::Leaving) => {}
    }
    let nodes =
        client.read(async |channel| fleet(channel).list_nodes(ListNodesRequest {}).await).await.ok()?;
    let described = describe(client, &deleted.app).await.ok()?;
    Some(Left::of(&described.nodes, &nodes.nodes))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Still {
    Leaving,
    /// A new one has the name.
    Another,
    /// A node answers that has not applied the change yet.
    NotKnown,
}

fn is_still(known: &App, deleted: &AppChanged) -> Still {
    if known.state == "deleting" {
        Still::Leaving
    } else if known.wanted > deleted.generation {
        Still::Another
    } else {
        Still::NotKnown
    }
}

/// Nodes that still have something of an app that was deleted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Left {
    /// Sessions may still finish there.
    draining: BTreeSet<String>,
    /// Only ports are left, which close by themselves.
    closing: BTreeSet<String>,
    /// They give it back when they are there again.
    down: BTreeSet<String>,
}

impl Left {
    fn of(generations: &[NodeGeneration], nodes: &[Node]) -> Self {
        let is_down = |name: &str| nodes.iter().any(|node| node.name == name && node.state == "unreachable");
        let mut left = Self::default();
        for generation in generations {
            let node = generation.node.clone();
            match generation.desired.as_str() {
                _ if is_down(&node) => left.down.insert(node),
                "remove" => left.closing.insert(node),
                _ => left.draining.insert(node),
            };
        }
        left.closing.retain(|node| !left.draining.contains(node));
        left
    }

    fn is_enough(&self, wait: Wait) -> bool {
        self.draining.is_empty() && (self.closing.is_empty() || wait != Wait::Closed)
    }

    fn progress(&self) -> String {
        if self.draining.is_empty() {
            return "closing its ports, within a minute: a connection may be on its way".to_owned();
        }
        format!("draining on {}", names(&self.draining))
    }

    fn verdict(&self, app: &str, took: &str) -> String {
        let mut text = format!("✓ {app} is deleted ({took})");
        if !self.closing.is_empty() {
            text += "; its ports close within about a minute, for a connection may be on its way";
        }
        if !self.down.is_empty() {
            text += &format!("\n! down, and to give it back when there again: {}", names(&self.down));
        }
        text
    }
}

fn names(nodes: &BTreeSet<String>) -> String {
    nodes.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_an_app_says_whether_it_is_enough() {
        // Node, what it is asked, whether it is down.
        let check = |given: &[(&str, &str, bool)], enough: &[Wait], progress: &str, verdict: &str| {
            let generation = |(node, desired, _): &(&str, &str, bool)| NodeGeneration {
                node: (*node).to_owned(),
                desired: (*desired).to_owned(),
                ..NodeGeneration::default()
            };
            let node = |(name, _, is_down): &(&str, &str, bool)| Node {
                name: (*name).to_owned(),
                state: if *is_down { "unreachable" } else { "ready" }.to_owned(),
                ..Node::default()
            };
            let generations: Vec<_> = given.iter().map(generation).collect();
            let left = Left::of(&generations, &given.iter().map(node).collect::<Vec<_>>());
            let is: Vec<_> =
                [Wait::Drained, Wait::Closed].into_iter().filter(|wait| left.is_enough(*wait)).collect();
            assert_eq!((is.as_slice(), left.progress().as_str()), (enough, progress), "{given:?}");
            assert_eq!(left.verdict("web", "0:02"), verdict, "{given:?}");
        };
        let closing = "closing its ports, within a minute: a connection may be on its way";
        let closes = "✓ web is deleted (0:02); its ports close within about a minute, for a connection may be on its way";
        check(&[], &[Wait::Drained, Wait::Closed], closing, "✓ web is deleted (0:02)");
        check(
            &[("n1", "drain", false), ("n1", "remove", false), ("n2", "drain", false)],
            &[],
            "draining on n1, n2",
            "✓ web is deleted (0:02)",
        );
        check(&[("n1", "remove", false)], &[Wait::Drained], closing, closes);
        check(
            &[("n1", "remove", false), ("n2", "drain", true)],
            &[Wait::Drained],
            closing,
            &format!("{closes}\n! down, and to give it back when there again: n2"),
        );
        check(
            &[("n2", "drain", true)],
            &[Wait::Drained, Wait::Closed],
            closing,
            "✓ web is deleted (0:02)\n! down, and to give it back when there again: n2",
        );
    }

    #[test]
    fn an_answer_from_before_the_deletion_and_a_new_app_of_the_same_name_are_told_from_it() {
        let deleted = AppChanged { generation: 7, ..AppChanged::default() };
        for (state, wanted, still) in [
            ("deleting", 7, Still::Leaving),
            ("serving", 7, Still::NotKnown),
            ("rolling out", 9, Still::Another),
        ] {
            let known = App { state: state.to_owned(), wanted, ..App::default() };
            assert_eq!(is_still(&known, &deleted), still, "{state} {wanted}");
        }
    }
}
