//! `flotilla node list`

use flotilla_api::v1::{ListNodesRequest, Node};
use serde_json::json;

use crate::{
    args::Shell,
    client::fleet,
    exit::{Exit, Failure},
    json,
    output::{Format, Output},
    table::{self, number, or_dash, state, text},
    view::age,
    watch::{Answer, watch},
};

/// List the nodes of the cluster
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla node list
  flotilla node list -o wide            with zones, labels and addresses
  flotilla node list --watch")]
pub(crate) struct Args {
    /// Go on showing changes
    #[arg(short, long)]
    watch: bool,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let client = shell.client();
    let ask = async || {
        let reply = client.read(async |channel| fleet(channel).list_nodes(ListNodesRequest {}).await).await?;
        Ok(Answer {
            kind: "NodeList",
            json: json!({ "items": json::list(&reply.nodes, json::node) }),
            text: render(&reply.nodes, &shell.output),
        })
    };
    if args.watch { watch(&shell.output, ask).await } else { ask().await?.print(&shell.output) }
}

fn render(nodes: &[Node], output: &Output) -> String {
    const COLUMNS: [&str; 12] = [
        "NODE", "ID", "REGION", "ZONE", "ROLE", "STATE", "VERSION", "APPS", "CONNS", "ADDRESS", "REPORT",
        "LABELS",
    ];
    let shown = if output.format == Format::Wide { COLUMNS.len() } else { COLUMNS.len() - 2 };
    let row = |node: &Node| {
        let mut labels: Vec<String> =
            node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        labels.sort();
        let mut row = vec![
            text(&node.name),
            number(node.id.to_string()),
            text(or_dash(&node.region)),
            text(or_dash(&node.zone)),
            text(or_dash(&node.role)),
            state(node.drain.as_ref().map_or(&node.state, |drain| &drain.phase)),
            text(or_dash(&node.version)),
            number(node.apps.to_string()),
            number(node.connections.to_string()),
            text(&node.cluster_address),
            text(node.report_age_ms.map_or("never".to_owned(), |ms| format!("{} ago", age(ms)))),
            text(or_dash(&labels.join(","))),
        ];
        row.truncate(shown);
        row
    };
    table::render(output.stdout, output.headers.then_some(&COLUMNS[..shown]), nodes.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Style;

    #[test]
    fn the_wide_table_has_reports_and_labels() {
        let node = Node {
            id: 1,
            name: "n1".to_owned(),
            region: "dev".to_owned(),
            zone: "a".to_owned(),
            cluster_address: "127.0.0.1:7400".to_owned(),
            role: "leader".to_owned(),
            state: "ready".to_owned(),
            version: "0.1.0".to_owned(),
            apps: 2,
            connections: 7,
            labels: [("ssd".to_owned(), "yes".to_owned()), ("gpu".to_owned(), "no".to_owned())].into(),
            report_age_ms: Some(1500),
            ..Node::default()
        };
        let output = Output {
            format: Format::Wide,
            quiet: false,
            headers: true,
            stdout: Style::PLAIN,
            stderr: Style::PLAIN,
        };
        assert_eq!(
            render(&[node], &output),
            "\
NODE  ID  REGION  ZONE  ROLE    STATE  VERSION  APPS  CONNS  ADDRESS         REPORT  LABELS
n1     1  dev     a     leader  ready  0.1.0       2      7  127.0.0.1:7400  1s ago  gpu=no,ssd=yes
"
        );
    }
}
