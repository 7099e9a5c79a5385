//! `flotilla rollout list`

use flotilla_api::v1::{ListRolloutsRequest, Rollout};
use jiff::tz::TimeZone;
use serde_json::json;

use crate::{
    app::with_suggestion,
    args::Shell,
    client::{Client, fleet},
    exit::{Exit, Failure},
    follow::versions,
    json,
    output::Output,
    table::{self, state, text},
    view::moment,
};

/// List the newest rollout of every app, or all that are known of one
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla rollout list
  flotilla rollout list web")]
pub(crate) struct Args {
    /// Only this app
    app: Option<String>,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let rollouts = rollouts(&shell.client(), args.app.as_deref()).await?;
    shell.output.emit(
        "RolloutList",
        || json!({ "items": json::list(&rollouts, json::rollout) }),
        |_| render(&rollouts, &shell.output, &TimeZone::system()),
    )?;
    Ok(Exit::Done)
}

/// The newest rollout of every app, or all that are known of one.
pub(super) async fn rollouts(client: &Client, app: Option<&str>) -> Result<Vec<Rollout>, Failure> {
    let app = app.unwrap_or_default();
    let request = ListRolloutsRequest { app: app.to_owned() };
    let listed = client.read(async |channel| fleet(channel).list_rollouts(request.clone()).await).await;
    match listed {
        Ok(reply) => Ok(reply.rollouts),
        Err(failure) => Err(with_suggestion(client, app, failure).await),
    }
}

fn render(rollouts: &[Rollout], output: &Output, zone: &TimeZone) -> String {
    const COLUMNS: [&str; 6] = ["APP", "VERSIONS", "STATE", "NODES", "STARTED", "WHY"];
    let row = |rollout: &Rollout| {
        let done = rollout.steps.iter().filter(|step| step.step == "done").count();
        let why = match (rollout.reason.as_str(), rollout.waiting.as_slice()) {
            ("", [first, rest @ ..]) if !rest.is_empty() => format!("{first} (+{} more)", rest.len()),
            ("", waiting) => waiting.concat(),
            (reason, _) => reason.to_owned(),
        };
        vec![
            text(&rollout.app),
            text(versions(rollout)),
            state(&rollout.state),
            text(format!("{done}/{}", rollout.steps.len())),
            text(moment(rollout.started_ms, zone)),
            text(table::or_dash(&why)),
        ]
    };
    table::render(output.stdout, output.headers.then_some(&COLUMNS[..]), rollouts.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use flotilla_api::v1::RolloutStep;

    use super::*;
    use crate::output::{Format, Style};

    #[test]
    fn a_rollout_that_waits_says_what_for_and_one_that_failed_says_why() {
        let step = |step: &str| RolloutStep { step: step.to_owned(), ..RolloutStep::default() };
        let rollouts = [
            Rollout {
                app: "web".to_owned(),
                from_version: 12,
                to_version: 13,
                state: "progressing".to_owned(),
                steps: vec![step("done"), step("monitoring")],
                waiting: vec!["node n2: 12 s of 30 s bake".to_owned(), "node n3".to_owned()],
                ..Rollout::default()
            },
            Rollout {
                app: "mail".to_owned(),
                to_version: 1,
                state: "failed".to_owned(),
                reason: "n1: port 25 is taken".to_owned(),
                ..Rollout::default()
            },
        ];
        let output = Output {
            format: Format::Table,
            quiet: false,
            headers: true,
            stdout: Style::PLAIN,
            stderr: Style::PLAIN,
        };
        assert_eq!(
            render(&rollouts, &output, &TimeZone::UTC),
            "\
APP   VERSIONS   STATE        NODES  STARTED              WHY
web   12 → 13    progressing  1/2    1970-01-01 00:00:00  node n2: 12 s of 30 s bake (+1 more)
mail  version 1  failed       0/0    1970-01-01 00:00:00  n1: port 25 is taken
"
        );
    }
}
