//! `flotilla app apply`: creates and changes apps, and waits until they serve.

use flotilla_api::v1::{
    AppChange, AppChanged, ApplyAppsReply, ApplyAppsRequest, Rollout, WatchRolloutRequest,
    app_changed::Outcome,
};
use flotilla_spec::AppSpec;
use serde_json::{Value, json};

use super::plan;
use crate::{
    args::Shell,
    client::{Client, fleet},
    exit::{Exit, Failure},
    follow::{Followed, Until, follow},
    json, spec_file,
};

/// Create and change apps, and wait until they serve
///
/// All apps of the file change together or not at all. Each then moves to its next generation
/// node by node, and back by itself when a node does not become ready. Ctrl-C detaches; the
/// rollout goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla app apply -f web.toml
  flotilla app apply -f apps/                       every spec of a folder, in one step
  flotilla app apply -f web.toml --if-version 12    only if nobody else changed it
  generate-spec | flotilla app apply -f -")]
pub(crate) struct Args {
    /// File (TOML, YAML or JSON), folder of files, or - for stdin
    #[arg(short, long, value_name = "FILE|DIR|-")]
    file: String,
    /// Show what would change, and change nothing
    #[arg(long, conflicts_with = "no_wait")]
    dry_run: bool,
    /// What to wait for: `serving` on every live node, by digest; `ready` on every live node;
    /// or `committed`, which only the log has
    #[arg(long, value_enum, value_name = "UNTIL", require_equals = true, num_args = 0..=1,
          default_value = "serving", default_missing_value = "serving", conflicts_with = "dry_run")]
    wait: Wait,
    /// The same as --wait=committed
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
    /// Refuse unless the app is at this version; 0: it must not exist
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Wait {
    Serving,
    Ready,
    Committed,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let specs = spec_file::read(&args.file, &shell.output)?;
    let changes = changes(&specs, args.if_version)?;
    let mut client = shell.client();
    if args.dry_run {
        plan::show(&client, shell, &args.file, changes).await?;
        return Ok(Exit::Done);
    }

    let reply = send(shell, &client, changes).await?;
    match args.wait {
        Wait::Committed => accepted(shell, &reply.apps),
        _ if args.no_wait => accepted(shell, &reply.apps),
        Wait::Ready => wait(shell, &mut client, &reply.apps, Until::Ready).await,
        Wait::Serving => wait(shell, &mut client, &reply.apps, Until::Finished).await,
    }
}

/// Applies specs to the fleet of `client` and waits until they serve, as the verb does.
pub(crate) async fn apply(shell: &Shell, client: &mut Client, specs: &[AppSpec]) -> Result<Exit, Failure> {
    let reply = send(shell, client, changes(specs, None)?).await?;
    wait(shell, client, &reply.apps, Until::Finished).await
}

async fn send(shell: &Shell, client: &Client, apps: Vec<AppChange>) -> Result<ApplyAppsReply, Failure> {
    let request = ApplyAppsRequest { request: Some(client.request_id()), apps };
    client
        .write(shell.answer_within(), async |channel| fleet(channel).apply_apps(request.clone()).await)
        .await
}

async fn wait(
    shell: &Shell,
    client: &mut Client,
    apps: &[AppChanged],
    until: Until,
) -> Result<Exit, Failure> {
    let (serving, moving) = split(client, apps).await;
    for app in &serving {
        shell.output.note(format!("= {} is unchanged and serves (version {})", app.app, app.version));
    }
    let followed =
        moving.iter().map(|app| Followed { app: app.app.clone(), generation: app.generation }).collect();
    let followings = follow(shell, client, followed, until).await?;
    shell.output.json("AppsApplied", || applied(apps, &followings.rollouts))?;
    Ok(followings.exit)
}

/// Specs as the fleet takes them.
pub(super) fn changes(specs: &[AppSpec], if_version: Option<u64>) -> Result<Vec<AppChange>, Failure> {
    if if_version.is_some() && specs.len() != 1 {
        let message = format!("--if-version is about one app, and the file has {}", specs.len());
        return Err(Failure::usage(message).help("apply the app from a file of its own"));
    }
    if specs.is_empty() {
        return Err(Failure::usage("there is no app in what was read").help("an app begins with `[[app]]`"));
    }
    Ok(specs.iter().map(|spec| AppChange { spec: spec.to_json(), if_version }).collect())
}

fn accepted(shell: &Shell, apps: &[AppChanged]) -> Result<Exit, Failure> {
    let text = |app: &AppChanged| match app.outcome() {
        Outcome::Unchanged => format!("= {} is unchanged (version {})", app.app, app.version),
        Outcome::Unspecified | Outcome::Created | Outcome::Changed | Outcome::Deleted => {
            format!("✓ {} {}: version {}", app.app, json::outcome(app.outcome()), app.version)
        }
    };
    shell.output.emit(
        "AppsApplied",
        || applied(apps, &[]),
        |_| apps.iter().map(text).collect::<Vec<_>>().join("\n"),
    )?;
    shell.output.note("the rollout goes on by itself; watch it with: flotilla rollout status --watch");
    Ok(Exit::Done)
}

/// Apps that serve what was asked for already, and apps that have a way to go. An unchanged app
/// may still be on its way from an earlier apply.
async fn split<'a>(client: &Client, apps: &'a [AppChanged]) -> (Vec<&'a AppChanged>, Vec<&'a AppChanged>) {
    let (mut serving, mut moving) = (Vec::new(), Vec::new());
    for app in apps {
        let serves =
            app.outcome() == Outcome::Unchanged && state(client, app).await.as_deref() == Some("completed");
        if serves { serving.push(app) } else { moving.push(app) }
    }
    (serving, moving)
}

async fn state(client: &Client, app: &AppChanged) -> Option<String> {
    let request = WatchRolloutRequest { app: app.app.clone(), generation: app.generation };
    let opened = client.open(async |channel| fleet(channel).watch_rollout(request.clone()).await).await;
    let rollout = opened.ok()?.stream.message().await.ok()??;
    Some(rollout.state)
}

fn applied(apps: &[AppChanged], rollouts: &[Rollout]) -> Value {
    let one = |app: &AppChanged| {
        let mut object = json::changed(app);
        let rollout = rollouts.iter().find(|rollout| rollout.app == app.app);
        object["rollout"] = rollout.map(json::rollout).unwrap_or_default();
        object
    };
    json!({ "apps": json::list(apps, one) })
}
