//! `flotilla app scale`

use flotilla_api::v1::{ScaleAppRequest, app_changed::Outcome};

use super::with_suggestion;
use crate::{
    args::Shell,
    client::fleet,
    exit::{Exit, Failure},
    json,
};

/// Say on how many nodes an app runs, whatever its spec says
///
/// Holds until it is taken back with --auto, for later versions of the app, too. Nothing is rolled
/// out: nodes get the generation that serves, or give it back.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla app scale web 3
  flotilla app scale web all
  flotilla app scale web --auto         as its spec says, or as its load asks for")]
pub(crate) struct Args {
    app: String,
    /// A number of nodes, or all
    #[arg(value_name = "N|all", value_parser = replicas, required_unless_present = "auto", conflicts_with = "auto")]
    replicas: Option<u32>,
    /// Back to what the spec says
    #[arg(long)]
    auto: bool,
    /// Refuse unless the app is at this version
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let client = shell.client();
    let request = ScaleAppRequest {
        request: Some(client.request_id()),
        app: args.app.clone(),
        replicas: args.replicas,
        if_version: args.if_version,
    };
    let written = client
        .write(shell.answer_within(), async |channel| fleet(channel).scale_app(request.clone()).await)
        .await;
    let changed = match written {
        Ok(changed) => changed,
        Err(failure) => return Err(with_suggestion(&client, &args.app, failure).await),
    };
    let to = match args.replicas {
        None => "is scaled by its spec again".to_owned(),
        Some(0) => "runs on all nodes that match its placement".to_owned(),
        Some(1) => "runs on 1 node".to_owned(),
        Some(count) => format!("runs on {count} nodes"),
    };
    let already = if changed.outcome() == Outcome::Unchanged { " already" } else { "" };
    let text = format!("✓ {} {to}{already}; see: flotilla app ports {}", changed.app, changed.app);
    shell.output.emit("AppChanged", || json::changed(&changed), |_| text)?;
    Ok(Exit::Done)
}

/// 0 is how "all" travels.
fn replicas(text: &str) -> Result<u32, String> {
    match text {
        "all" => Ok(0),
        _ => match text.parse() {
            Ok(count @ 1..=10_000) => Ok(count),
            Ok(_) | Err(_) => Err("a number from 1 to 10000, or `all`".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::replicas;

    #[test]
    fn replicas_are_a_number_or_all() {
        assert_eq!(replicas("all"), Ok(0));
        assert_eq!(replicas("3"), Ok(3));
        assert!(replicas("0").is_err() && replicas("most").is_err());
    }
}
