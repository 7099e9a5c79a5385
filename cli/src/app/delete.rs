//! `flotilla app delete`

use std::{
    io::{self, BufRead as _, IsTerminal as _},
    time::Duration,
};

use flotilla_api::v1::{DeleteAppRequest, ListAppsRequest, NodeGeneration};
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
/// Sessions may finish until the drain deadline of the app. Ports close about a minute after they
/// have fallen quiet, so that no connection that is on its way meets a closed one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla app delete web
  flotilla app delete web --yes         without asking, for scripts")]
pub(crate) struct Args {
    app: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Refuse unless the app is at this version
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
    /// Return when the change is accepted, before the last session is gone
    #[arg(long)]
    no_wait: bool,
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
    let text = if args.no_wait {
        format!("✓ {} is being deleted; its sessions may finish", args.app)
    } else {
        let started = Instant::now();
        tokio::select! {
            gone = wait_until_gone(&client, shell, &args.app) => gone?,
            _ = tokio::signal::ctrl_c() => {
                shell.output.note("detached; the deletion goes on. Look with: flotilla app list");
                return Ok(Exit::Interrupted);
            }
        }
        format!("✓ {} is deleted ({})", args.app, clock(started.elapsed()))
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
async fn wait_until_gone(client: &Client, shell: &Shell, app: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + shell.rollout_within();
    let mut said = String::new();
    loop {
        let asked = client.read(async |channel| fleet(channel).list_apps(ListAppsRequest {}).await).await;
        if let Ok(reply) = asked {
            let Some(left) = reply.apps.iter().find(|left| left.name == app) else { return Ok(()) };
            // The name is free for somebody else as soon as the app is gone.
            if left.state != "deleting" {
                return Ok(());
            }
            let described = describe(client, app).await.map(|description| description.nodes);
            let closes = |node: &NodeGeneration| node.desired == "remove";
            let progress = if described.is_ok_and(|nodes| !nodes.is_empty() && nodes.iter().all(closes)) {
                "closing its ports, in a minute: a connection may be on its way".to_owned()
            } else {
                format!("draining on {}", plural(left.nodes_placed as usize, "node"))
            };
            if progress != said {
                shell.output.note(format!("app={app} phase=deleting {progress}"));
                said = progress;
            }
        }
        if Instant::now() + POLL > deadline {
            return Err(Failure::new(Exit::Unreachable, format!("`{app}` is not gone within --timeout"))
                .help("the deletion goes on: `flotilla app list`"));
        }
        sleep(POLL).await;
    }
}
