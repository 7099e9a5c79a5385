//! `flotilla rollout pause`, `resume`, `promote` and `abort`: a word to a rollout that is on its way.

use flotilla_api::v1::{SteerRolloutRequest, steer_rollout_request::Word};

use crate::{
    app::with_suggestion,
    args::Shell,
    client::fleet,
    exit::{Exit, Failure},
    follow::{body, head},
    json,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    app: String,
    /// Refuse unless the app is at this version
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
}

/// Leave a rollout where it stands, with the traffic as it is
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla rollout pause web")]
pub(crate) struct Pause {
    #[command(flatten)]
    pub(super) target: Target,
}

/// Let a paused rollout go on; what failed is tried again
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla rollout resume web && flotilla rollout status web --watch")]
pub(crate) struct Resume {
    #[command(flatten)]
    pub(super) target: Target,
}

/// Let a rollout go on that waits for it (auto_promote = false)
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla rollout promote web
  flotilla rollout promote web --full      without the bakes and gates that are left")]
pub(crate) struct Promote {
    #[command(flatten)]
    pub(super) target: Target,
    /// Skip the bakes and gates that are left; readiness is still waited for
    #[arg(long)]
    pub(super) full: bool,
}

/// Turn a rollout back to the version before
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla rollout abort web && flotilla rollout status web --watch")]
pub(crate) struct Abort {
    #[command(flatten)]
    pub(super) target: Target,
}

pub(super) async fn run(target: Target, word: Word, shell: &Shell) -> Result<Exit, Failure> {
    let client = shell.client();
    let request = SteerRolloutRequest {
        request: Some(client.request_id()),
        app: target.app.clone(),
        if_version: target.if_version,
        word: word.into(),
    };
    let written = client
        .write(shell.answer_within(), async |channel| fleet(channel).steer_rollout(request.clone()).await)
        .await;
    let rollout = match written {
        Ok(rollout) => rollout,
        Err(failure) => return Err(with_suggestion(&client, &target.app, failure).await),
    };
    shell.output.emit(
        "Rollout",
        || json::rollout(&rollout),
        |style| format!("{}\n{}", head(&rollout, style), body(&rollout, style)),
    )?;
    shell.output.note(format!("watch it with: flotilla rollout status {} --watch", target.app));
    Ok(Exit::Done)
}
