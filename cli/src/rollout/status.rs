//! `flotilla rollout status`: how far a change is, and what it waits for.

use flotilla_api::v1::Rollout;
use serde_json::json;

use super::list::rollouts;
use crate::{
    args::Shell,
    exit::{Exit, Failure},
    follow::{Followed, Until, body, follow, head},
    json,
    output::Style,
};

/// Show how far a change is and what it waits for
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla rollout status                  every rollout that has not finished
  flotilla rollout status web              the newest of one app
  flotilla rollout status web --watch      until it has finished; 1 if it did not succeed")]
pub(crate) struct Args {
    /// Only this app
    app: Option<String>,
    /// Follow until finished
    #[arg(short, long)]
    watch: bool,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let mut client = shell.client();
    let all = rollouts(&client, args.app.as_deref()).await?;
    let shown: Vec<Rollout> = match args.app {
        Some(_) => all.into_iter().max_by_key(|rollout| rollout.to).into_iter().collect(),
        None => all.into_iter().filter(|rollout| !rollout.finished || rollout.state == "paused").collect(),
    };
    if shown.is_empty() {
        shell.output.note("no rollout is on its way; `flotilla rollout list` shows the last ones");
    }
    if args.watch && !shown.is_empty() {
        let followed =
            shown.into_iter().map(|rollout| Followed { app: rollout.app, generation: rollout.to }).collect();
        let followings = follow(shell, &mut client, followed, Until::Finished).await?;
        shell
            .output
            .json("RolloutList", || json!({ "items": json::list(&followings.rollouts, json::rollout) }))?;
        return Ok(followings.exit);
    }
    shell.output.emit(
        "RolloutList",
        || json!({ "items": json::list(&shown, json::rollout) }),
        |style| render(&shown, style),
    )?;
    Ok(Exit::Done)
}

fn render(rollouts: &[Rollout], style: Style) -> String {
    let one = |rollout: &Rollout| format!("{}\n{}", head(rollout, style), body(rollout, style));
    rollouts.iter().map(one).collect::<Vec<_>>().join("\n\n")
}
