//! `flotilla app history`

use flotilla_api::v1::HistoryEntry;
use jiff::tz::TimeZone;
use serde_json::json;

use super::describe;
use crate::{
    args::Shell,
    exit::{Exit, Failure},
    json,
    output::Style,
    table::{self, number, state, text},
    view::moment,
};

/// List the versions of an app that it can go back to
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla app history web
  flotilla app get web --version 11      the spec of one of them")]
pub(crate) struct Args {
    app: String,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let description = describe(&shell.client(), &args.app).await?;
    shell.output.emit(
        "AppHistory",
        || json!({ "app": args.app, "items": json::list(&description.history, json::history_entry) }),
        |style| render(&description.history, style, shell.output.headers, &TimeZone::system()),
    )?;
    Ok(Exit::Done)
}

/// The newest version first.
pub(super) fn render(history: &[HistoryEntry], style: Style, headers: bool, zone: &TimeZone) -> String {
    const COLUMNS: [&str; 5] = ["VERSION", "GENERATION", "TIME", "CAUSE", "OUTCOME"];
    let mut newest_first: Vec<&HistoryEntry> = history.iter().collect();
    newest_first.sort_by_key(|entry| std::cmp::Reverse(entry.version));
    let row = |entry: &HistoryEntry| {
        vec![
            number(entry.version.to_string()),
            number(entry.generation.to_string()),
            text(moment(entry.time_ms, zone)),
            text(&entry.cause),
            state(&entry.outcome),
        ]
    };
    table::render(style, headers.then_some(&COLUMNS[..]), newest_first.into_iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_stands_first() {
        let entry = |version, cause: &str, outcome: &str| HistoryEntry {
            version,
            generation: version * 10,
            time_ms: version * 1000,
            cause: cause.to_owned(),
            outcome: outcome.to_owned(),
            ..HistoryEntry::default()
        };
        let history = [entry(1, "applied", "completed"), entry(2, "rolled back to 1", "in progress")];
        assert_eq!(
            render(&history, Style::PLAIN, true, &TimeZone::UTC),
            "\
VERSION  GENERATION  TIME                 CAUSE             OUTCOME
      2          20  1970-01-01 00:00:02  rolled back to 1  in progress
      1          10  1970-01-01 00:00:01  applied           completed
"
        );
    }
}
