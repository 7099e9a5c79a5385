//! `flotilla app list`

use flotilla_api::v1::{App, ListAppsReply, ListAppsRequest};
use serde_json::json;

use crate::{
    args::Shell,
    client::fleet,
    exit::{Exit, Failure},
    json,
    output::{Format, Output},
    table::{self, number, state, text},
    watch::{Answer, watch},
};

/// List the apps of the fleet
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla app list
  flotilla app list -o wide
  flotilla app list -o json")]
pub(crate) struct Args {
    /// Go on showing changes
    #[arg(short, long)]
    watch: bool,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let client = shell.client();
    let ask = async || {
        let reply = client.read(async |channel| fleet(channel).list_apps(ListAppsRequest {}).await).await?;
        Ok(Answer {
            kind: "AppList",
            json: json!({ "index": reply.index, "items": json::list(&reply.apps, json::app) }),
            text: render(&reply, &shell.output),
        })
    };
    if args.watch {
        return watch(&shell.output, ask).await;
    }
    let answer = ask().await?;
    let empty = answer.json["items"] == json!([]);
    let exit = answer.print(&shell.output)?;
    if empty {
        shell.output.note("no apps yet: `flotilla app apply -f FILE` makes one");
    }
    Ok(exit)
}

fn render(reply: &ListAppsReply, output: &Output) -> String {
    const COLUMNS: [&str; 9] =
        ["APP", "VERSION", "STATE", "NODES", "LISTEN", "TARGETS", "POLICY", "WANTED", "SERVING"];
    let shown = if output.format == Format::Wide { COLUMNS.len() } else { COLUMNS.len() - 2 };
    let row = |app: &App| {
        let mut row = vec![
            text(&app.name),
            number(app.version.to_string()),
            state(&app.state),
            text(format!("{}/{}", app.nodes_serving, app.nodes_placed)),
            text(app.listen.join(", ")),
            text(targets(&app.targets, output.format)),
            text(&app.policy),
            number(app.wanted.to_string()),
            number(if app.serving == 0 { "-".to_owned() } else { app.serving.to_string() }),
        ];
        row.truncate(shown);
        row
    };
    let columns = output.headers.then_some(&COLUMNS[..shown]);
    table::render(output.stdout, columns, reply.apps.iter().map(row).collect())
}

/// The first two and how many more; all of them in the wide table.
fn targets(targets: &[String], format: Format) -> String {
    match (targets, format) {
        ([first, second, rest @ ..], Format::Table) if !rest.is_empty() => {
            format!("{first}, {second} +{}", rest.len())
        }
        _ => targets.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Style;

    #[test]
    fn apps_are_a_table() {
        let app = |name: &str, serving: u64, state: &str, targets: &[&str]| App {
            name: name.to_owned(),
            version: 12,
            wanted: 41,
            serving,
            state: state.to_owned(),
            listen: vec!["http:8080".to_owned()],
            targets: targets.iter().map(|&target| target.to_owned()).collect(),
            policy: "p2c".to_owned(),
            nodes_serving: 2,
            nodes_placed: 3,
        };
        let reply = ListAppsReply {
            apps: vec![
                app("web", 41, "serving", &["10.0.0.11:3000", "10.0.0.12:3000", "10.0.0.13:3000"]),
                app("mail", 0, "rolling out", &["m:25"]),
            ],
            index: 7,
        };
        let output = |format, headers| Output {
            format,
            quiet: false,
            headers,
            stdout: Style::PLAIN,
            stderr: Style::PLAIN,
        };
        assert_eq!(
            render(&reply, &output(Format::Table, true)),
            "\
APP   VERSION  STATE        NODES  LISTEN     TARGETS                            POLICY
web        12  serving      2/3    http:8080  10.0.0.11:3000, 10.0.0.12:3000 +1  p2c
mail       12  rolling out  2/3    http:8080  m:25                               p2c
"
        );
        assert_eq!(
            render(&reply, &output(Format::Wide, false)),
            "\
web   12  serving      2/3  http:8080  10.0.0.11:3000, 10.0.0.12:3000, 10.0.0.13:3000  p2c  41  41
mail  12  rolling out  2/3  http:8080  m:25                                            p2c  41   -
"
        );
    }
}
