//! `flotilla balancer describe`

use std::fmt::Write as _;

use flotilla_api::v1::BalancerStatus;

use super::list::{balancers, kind};
use crate::{
    args::Shell,
    exit::{Exit, Failure},
    json,
    output::Output,
    table::{self, or_dash, state, text},
    view::age,
};

/// Show what a load balancer should have and was seen to have
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla balancer describe edge")]
pub(crate) struct Args {
    name: String,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let all = balancers(&shell.client()).await?;
    let named = |status: &&BalancerStatus| {
        status.balancer.as_ref().is_some_and(|balancer| balancer.name == args.name)
    };
    let Some(status) = all.iter().find(named) else {
        return Err(Failure::new(Exit::NotFound, format!("there is no balancer `{}`", args.name))
            .code("E0320")
            .help("`flotilla balancer list` shows what there is"));
    };
    shell.output.emit("Balancer", || json::balancer_status(status), |_| render(status, &shell.output))?;
    Ok(Exit::Done)
}

fn render(status: &BalancerStatus, output: &Output) -> String {
    let balancer = status.balancer.clone().unwrap_or_default();
    let apps = if balancer.apps.is_empty() { "all apps".to_owned() } else { balancer.apps.join(", ") };
    let mut shown =
        format!("{}   {}   {apps}   {}\n", balancer.name, kind(balancer.kind.as_ref()), status.state);
    if let Some(ms) = status.observed_age_ms {
        let _infallible = writeln!(shown, "seen {} ago, {} changes by this leader", age(ms), status.pushes);
    }
    for problem in &status.problems {
        let _infallible = writeln!(shown, "! {problem}");
    }
    if !status.servers.is_empty() {
        let rows = status.servers.iter().map(|server| {
            vec![
                text(&server.service),
                text(&server.node),
                text(&server.address),
                text(&server.wanted),
                state(&server.seen),
            ]
        });
        let columns = ["SERVICE", "NODE", "ADDRESS", "WANTED", "SEEN"];
        shown += "\n";
        shown += &table::render(output.stdout, output.headers.then_some(&columns[..]), rows.collect());
    }
    if !status.clients.is_empty() {
        let rows = status.clients.iter().map(|client| {
            vec![
                text(or_dash(&client.id)),
                text(or_dash(&client.by)),
                text(&client.r#type),
                text(or_dash(&client.sent)),
                text(or_dash(&client.acknowledged)),
                text(or_dash(&client.error)),
            ]
        });
        let columns = ["CLIENT", "THROUGH", "STREAM", "SENT", "ACKNOWLEDGED", "REFUSED"];
        shown += "\n";
        shown += &table::render(output.stdout, output.headers.then_some(&columns[..]), rows.collect());
    }
    shown
}
