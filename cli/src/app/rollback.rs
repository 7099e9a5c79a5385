//! `flotilla app rollback`

use flotilla_api::v1::RollbackAppRequest;
use serde_json::json;

use super::with_suggestion;
use crate::{
    args::Shell,
    client::fleet,
    exit::{Exit, Failure},
    follow::{Followed, Until, follow},
    json,
};

/// Make an earlier version of an app the newest again
///
/// The earlier spec becomes a new version, rolled out like any other.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla app rollback web             to the version before
  flotilla app rollback web --to 9")]
pub(crate) struct Args {
    app: String,
    /// A version from `flotilla app history`
    #[arg(long, value_name = "N")]
    to: Option<u64>,
    /// Refuse unless the app is at this version
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
    /// Return when the change is accepted, before it serves
    #[arg(long)]
    no_wait: bool,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let mut client = shell.client();
    let request = RollbackAppRequest {
        request: Some(client.request_id()),
        app: args.app.clone(),
        to: args.to,
        if_version: args.if_version,
    };
    let written = client
        .write(shell.answer_within(), async |channel| fleet(channel).rollback_app(request.clone()).await)
        .await;
    let changed = match written {
        Ok(changed) => changed,
        Err(failure) => return Err(with_suggestion(&client, &args.app, failure).await),
    };
    if args.no_wait {
        let text = format!("✓ {}: version {} is on its way", changed.app, changed.version);
        shell.output.emit("AppChanged", || json::changed(&changed), |_| text)?;
        return Ok(Exit::Done);
    }
    let followed = Followed { app: changed.app.clone(), generation: changed.generation };
    let followings = follow(shell, &mut client, vec![followed], Until::Finished).await?;
    shell.output.json("AppChanged", || {
        let mut object = json::changed(&changed);
        object["rollout"] = followings.rollouts.first().map(json::rollout).unwrap_or_else(|| json!(null));
        object
    })?;
    Ok(followings.exit)
}
