//! `flotilla app get`: the spec of an app, as it can be applied again.

use anyhow::Context as _;
use flotilla_api::v1::AppDescription;
use flotilla_spec::{AppSpec, to_toml};

use super::describe;
use crate::{
    args::Shell,
    exit::{Exit, Failure},
    output::Format,
};

/// Print the spec of an app, as it can be applied again
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla app get web > web.toml
  flotilla app get web --version 11
  flotilla app get web -o json")]
pub(crate) struct Args {
    app: String,
    /// An earlier version, from `flotilla app history`
    #[arg(long, value_name = "N")]
    version: Option<u64>,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let description = describe(&shell.client(), &args.app).await?;
    let canonical =
        spec_of(&description, args.version).ok_or_else(|| no_such_version(&description, &args))?;
    let text = match shell.output.format {
        // The spec itself and no envelope: it is what `app apply` reads.
        Format::Json => String::from_utf8_lossy(canonical).into_owned(),
        Format::Table | Format::Wide => {
            to_toml(&AppSpec::from_json(canonical).context("read the spec that the node sent")?)
        }
    };
    shell.output.print(&text)?;
    Ok(Exit::Done)
}

fn spec_of(description: &AppDescription, version: Option<u64>) -> Option<&[u8]> {
    match version {
        None => Some(&description.spec),
        Some(version) => description
            .history
            .iter()
            .find(|entry| entry.version == version)
            .map(|entry| entry.spec.as_slice()),
    }
}

fn no_such_version(description: &AppDescription, args: &Args) -> Failure {
    let versions: Vec<String> = description.history.iter().map(|entry| entry.version.to_string()).collect();
    let message = format!("`{}` has no version {}", args.app, args.version.unwrap_or_default());
    Failure::new(Exit::NotFound, message).code("E0303").help(format!("there are: {}", versions.join(", ")))
}
