//! `flotilla app ports`

use flotilla_api::v1::{ListPortsRequest, PortAssignment};
use serde_json::json;

use super::with_suggestion;
use crate::{
    args::Shell,
    client::fleet,
    exit::{Exit, Failure},
    json,
    output::Output,
    table::{self, number, or_dash, text},
};

/// List which app has which port of which node
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla app ports
  flotilla app ports web -o json")]
pub(crate) struct Args {
    /// Only this app
    app: Option<String>,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let client = shell.client();
    let app = args.app.unwrap_or_default();
    let request = ListPortsRequest { app: app.clone() };
    let listed = client.read(async |channel| fleet(channel).list_ports(request.clone()).await).await;
    let ports = match listed {
        Ok(reply) => reply.ports,
        Err(failure) => return Err(with_suggestion(&client, &app, failure).await),
    };
    shell.output.emit(
        "PortList",
        || json!({ "items": json::list(&ports, json::port) }),
        |_| render(&ports, &shell.output),
    )?;
    Ok(Exit::Done)
}

fn render(ports: &[PortAssignment], output: &Output) -> String {
    const COLUMNS: [&str; 7] = ["NODE", "ADDRESS", "PORT", "PROTOCOL", "APP", "GENERATION", "ASKED"];
    let row = |port: &PortAssignment| {
        vec![
            text(&port.node),
            text(or_dash(&port.address)),
            number(port.port.to_string()),
            text(or_dash(&port.protocol)),
            text(&port.app),
            number(port.generation.to_string()),
            text(or_dash(&port.desired)),
        ]
    };
    table::render(output.stdout, output.headers.then_some(&COLUMNS[..]), ports.iter().map(row).collect())
}
