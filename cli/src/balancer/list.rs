//! `flotilla balancer list`

use flotilla_api::v1::{BalancerStatus, ListBalancersRequest, balancer::Kind};
use serde_json::json;

use crate::{
    args::Shell,
    client::{Client, fleet},
    exit::{Exit, Failure},
    json,
    output::{Format, Output},
    table::{self, number, or_dash, state, text},
    view::age,
    watch::{Answer, watch},
};

/// List the load balancers that are told where apps serve, and whether they have it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla balancer list
  flotilla balancer list -o wide           with what is wrong, in full
  flotilla balancer list --watch")]
pub(crate) struct Args {
    /// Go on showing changes
    #[arg(short, long)]
    watch: bool,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let client = shell.client();
    let ask = async || {
        let balancers = balancers(&client).await?;
        Ok(Answer {
            kind: "BalancerList",
            json: json!({ "items": json::list(&balancers, json::balancer_status) }),
            text: render(&balancers, &shell.output),
        })
    };
    if args.watch { watch(&shell.output, ask).await } else { ask().await?.print(&shell.output) }
}

pub(super) async fn balancers(client: &Client) -> Result<Vec<BalancerStatus>, Failure> {
    let ask = async |channel| fleet(channel).list_balancers(ListBalancersRequest {}).await;
    Ok(client.read(ask).await?.balancers)
}

/// `haproxy 10.0.0.9:9999`
pub(super) fn kind(kind: Option<&Kind>) -> String {
    match kind {
        Some(Kind::Haproxy(haproxy)) => format!("haproxy {}", haproxy.address),
        Some(Kind::Envoy(envoy)) => format!("envoy :{}", envoy.port),
        Some(Kind::Nginx(nginx)) => format!("nginx at {}", nginx.node),
        Some(Kind::AgentCheck(check)) => format!("agent-check :{}", check.port),
        Some(Kind::TcpCheck(check)) => format!("tcp-check :{}", check.port),
        None => "unknown".to_owned(),
    }
}

fn render(balancers: &[BalancerStatus], output: &Output) -> String {
    const COLUMNS: [&str; 8] = ["BALANCER", "KIND", "APPS", "STATE", "SERVERS", "PUSHED", "SEEN", "PROBLEM"];
    let row = |status: &BalancerStatus| {
        let balancer = status.balancer.clone().unwrap_or_default();
        let apps = if balancer.apps.is_empty() { "all".to_owned() } else { balancer.apps.join(",") };
        let as_wanted = status.servers.iter().filter(|server| server.seen == "ready").count();
        let servers = match status.clients.len() {
            0 => format!("{as_wanted}/{}", status.servers.len()),
            clients => format!("{as_wanted}/{} ({clients} connected)", status.servers.len()),
        };
        let ago = |ms: Option<u64>| ms.map_or("-".to_owned(), |ms| format!("{} ago", age(ms)));
        let problem = match (status.problems.as_slice(), output.format) {
            (problems, Format::Wide) => problems.join("; "),
            ([first, rest @ ..], _) if !rest.is_empty() => format!("{first} (+{} more)", rest.len()),
            (problems, _) => problems.concat(),
        };
        vec![
            text(&balancer.name),
            text(kind(balancer.kind.as_ref())),
            text(apps),
            state(&status.state),
            number(servers),
            text(ago(status.pushed_age_ms)),
            text(ago(status.observed_age_ms)),
            text(or_dash(&problem)),
        ]
    };
    table::render(output.stdout, output.headers.then_some(&COLUMNS[..]), balancers.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use flotilla_api::v1::{Balancer, BalancerServer, balancer};

    use super::*;
    use crate::output::Style;

    #[test]
    fn a_balancer_that_is_not_in_sync_says_why() {
        let server = |seen: &str| BalancerServer { seen: seen.to_owned(), ..BalancerServer::default() };
        let haproxy = balancer::Haproxy { address: "10.0.0.9:9999".to_owned(), ..Default::default() };
        let statuses = [
            BalancerStatus {
                balancer: Some(Balancer {
                    name: "edge".to_owned(),
                    apps: vec!["web".to_owned()],
                    kind: Some(Kind::Haproxy(haproxy)),
                    ..Balancer::default()
                }),
                state: "drifting".to_owned(),
                problems: vec!["No such backend.".to_owned(), "another".to_owned()],
                servers: vec![server("ready"), server("absent")],
                pushed_age_ms: Some(61_000),
                observed_age_ms: Some(300),
                ..BalancerStatus::default()
            },
            BalancerStatus {
                balancer: Some(Balancer {
                    name: "agents".to_owned(),
                    kind: Some(Kind::AgentCheck(balancer::AgentCheck { port: 7402 })),
                    ..Balancer::default()
                }),
                state: "asks".to_owned(),
                ..BalancerStatus::default()
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
            render(&statuses, &output),
            "\
BALANCER  KIND                   APPS  STATE     SERVERS  PUSHED    SEEN    PROBLEM
edge      haproxy 10.0.0.9:9999  web   drifting      1/2  1m1s ago  0s ago  No such backend. (+1 more)
agents    agent-check :7402      all   asks          0/0  -         -       -
"
        );
    }
}
