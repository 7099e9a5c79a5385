//! `flotilla app plan`: what an apply would change, and what that would move.

use flotilla_api::v1::{
    AppChange, AppPlan, FieldChange, PlanAppsReply, PlanAppsRequest, app_changed::Outcome,
};
use serde_json::json;

use super::apply;
use crate::{
    args::Shell,
    client::{Client, fleet},
    exit::{Exit, Failure},
    json,
    output::Style,
    spec_file,
};

/// Show what an apply would change, and what that would move
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla app plan -f web.toml
  flotilla app plan -f apps/ --exit-code      10 when something would change (for scripts)

Change classes:
  C0  swap: nothing closes      C3  bind a port      C4  close a port, after its drain
  new  first generation on the node      leave  the app leaves the node")]
pub(crate) struct Args {
    /// File (TOML, YAML or JSON), folder of files, or - for stdin
    #[arg(short, long, value_name = "FILE|DIR|-")]
    file: String,
    /// Exit with 10 when changes are pending
    #[arg(long)]
    exit_code: bool,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let specs = spec_file::read(&args.file, &shell.output)?;
    let pending = show(&shell.client(), shell, &args.file, apply::changes(&specs, None)?).await?;
    Ok(if args.exit_code && pending { Exit::Pending } else { Exit::Done })
}

/// Prints the plan; true when it changes something.
pub(super) async fn show(
    client: &Client,
    shell: &Shell,
    file: &str,
    apps: Vec<AppChange>,
) -> Result<bool, Failure> {
    let request = PlanAppsRequest { apps };
    let reply = client.read(async |channel| fleet(channel).plan_apps(request.clone()).await).await?;
    shell.output.emit(
        "Plan",
        || {
            json!({
                "cluster": reply.cluster,
                "index": reply.index,
                "apps": json::list(&reply.apps, json::plan),
                "appsUnchanged": reply.apps_unchanged,
            })
        },
        |style| render(&reply, style),
    )?;
    let pending = reply.apps.iter().filter(|plan| changes_something(plan)).count();
    if pending > 0 {
        shell.output.note(next(&reply, file, pending));
    }
    Ok(pending > 0)
}

fn render(reply: &PlanAppsReply, style: Style) -> String {
    let mut lines = Vec::new();
    for plan in &reply.apps {
        lines.push(head(plan, reply, style));
        let width = plan.changes.iter().map(|change| change.field.chars().count()).max().unwrap_or(0);
        lines.extend(plan.changes.iter().map(|change| field(change, width, style)));
        lines.extend(nodes(plan));
        if !plan.rollout.is_empty() {
            lines.push(format!("  rollout   {}", plan.rollout));
        }
        lines.extend(plan.warnings.iter().map(|warning| format!("{} {warning}", style.yellow("!"))));
    }
    let pending = reply.apps.iter().filter(|plan| changes_something(plan)).count();
    let noun = if pending == 1 { "app changes" } else { "apps change" };
    lines.push(format!("{pending} {noun}, {} unchanged.", reply.apps_unchanged));
    lines.join("\n")
}

fn head(plan: &AppPlan, reply: &PlanAppsReply, style: Style) -> String {
    let app = style.bold(&plan.app);
    let against = style.dim(&format!("(against {}, index {})", reply.cluster, reply.index));
    match plan.outcome() {
        Outcome::Created => format!("{} {app}   new   {against}", style.green("+")),
        Outcome::Deleted => format!("{} {app}   deleted   {against}", style.red("-")),
        Outcome::Unchanged => format!("= {app}   version {}, unchanged   {against}", plan.version_before),
        Outcome::Changed | Outcome::Unspecified => format!(
            "{} {app}   version {} → {}   {against}",
            style.yellow("~"),
            plan.version_before,
            plan.version_after
        ),
    }
}

fn field(change: &FieldChange, width: usize, style: Style) -> String {
    let field = format!("{:width$}", change.field);
    match (change.before.as_str(), change.after.as_str()) {
        ("", after) => format!("    {field}   {}", style.green(&format!("+ {after}"))),
        (before, "") => format!("    {field}   {}", style.red(&format!("- {before}"))),
        (before, after) => format!("    {field}   {before} → {after}"),
    }
}

/// Nodes that are moved alike share a line.
fn nodes(plan: &AppPlan) -> Vec<String> {
    let mut groups: Vec<(&str, &[u32], Vec<&str>)> = Vec::new();
    for node in &plan.nodes {
        match groups.iter_mut().find(|(class, ports, _)| *class == node.change_class && *ports == node.ports)
        {
            Some((_, _, names)) => names.push(&node.node),
            None => groups.push((&node.change_class, &node.ports, vec![&node.node])),
        }
    }
    let line = |(class, ports, names): (&str, &[u32], Vec<&str>)| {
        let ports = ports.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let noun = if ports.contains(',') { "ports" } else { "port" };
        let on = if ports.is_empty() { String::new() } else { format!("; {noun} {ports}") };
        format!("  {}   {class}: {}{on}", names.join(" "), meaning(class))
    };
    groups.into_iter().map(line).collect()
}

/// The change classes that a node names, in words.
fn meaning(class: &str) -> String {
    let one = |class: &str| match class {
        "C0" => "swap, nothing closes",
        "C2" => "socket options in place, nothing closes",
        "C5" => "bind the new address, close the old one after its drain",
        "C3" => "bind a port",
        "C4" => "close a port after its drain",
        "new" => "first generation here",
        "leave" => "the app leaves",
        _ => "see `flotilla app plan --help`",
    };
    class.split('+').map(one).collect::<Vec<_>>().join(", ")
}

fn changes_something(plan: &AppPlan) -> bool {
    plan.outcome() != Outcome::Unchanged
}

fn next(reply: &PlanAppsReply, file: &str, pending: usize) -> String {
    match (reply.apps.as_slice(), file) {
        (_, "-") => format!("Apply with:  flotilla app apply -f -   ({pending} to change)"),
        ([plan], file) => format!(
            "Apply exactly this with:  flotilla app apply -f {file} --if-version {}",
            plan.version_before
        ),
        (_, file) => format!("Apply with:  flotilla app apply -f {file}"),
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::v1::NodePlan;

    use super::*;

    fn change(field: &str, before: &str, after: &str) -> FieldChange {
        FieldChange { field: field.to_owned(), before: before.to_owned(), after: after.to_owned() }
    }

    fn node(name: &str, class: &str, ports: &[u32]) -> NodePlan {
        NodePlan { node: name.to_owned(), change_class: class.to_owned(), ports: ports.to_owned() }
    }

    #[test]
    fn a_plan_names_fields_nodes_and_warnings() {
        let reply = PlanAppsReply {
            apps: vec![AppPlan {
                app: "web".to_owned(),
                outcome: Outcome::Changed.into(),
                version_before: 12,
                version_after: 13,
                changes: vec![
                    change("balance.policy", "p2c", "round_robin"),
                    change("targets[2]", "", "10.0.0.13:3000"),
                    change("timeouts.connect", "30s", ""),
                ],
                nodes: vec![
                    node("n1", "C0", &[8080, 443]),
                    node("n2", "C0", &[8080, 443]),
                    node("n3", "C3+C4", &[9000]),
                ],
                warnings: vec!["node n3 is down".to_owned()],
                rollout: "canary on 1 node, 10 % -> 100 %".to_owned(),
            }],
            apps_unchanged: 14,
            index: 18442,
            cluster: "fra".to_owned(),
        };
        let expected = "\
~ web   version 12 → 13   (against fra, index 18442)
    balance.policy     p2c → round_robin
    targets[2]         + 10.0.0.13:3000
    timeouts.connect   - 30s
  n1 n2   C0: swap, nothing closes; ports 8080, 443
  n3   C3+C4: bind a port, close a port after its drain; port 9000
  rollout   canary on 1 node, 10 % -> 100 %
! node n3 is down
1 app changes, 14 unchanged.";
        assert_eq!(render(&reply, Style::PLAIN), expected);
        assert_eq!(
            next(&reply, "web.toml", 1),
            "Apply exactly this with:  flotilla app apply -f web.toml --if-version 12"
        );
    }

    #[test]
    fn an_unchanged_app_is_said_to_be_unchanged() {
        let plan = AppPlan {
            app: "web".to_owned(),
            outcome: Outcome::Unchanged.into(),
            version_before: 3,
            version_after: 3,
            ..AppPlan::default()
        };
        let reply =
            PlanAppsReply { apps: vec![plan], apps_unchanged: 1, index: 7, cluster: "dev".to_owned() };
        assert_eq!(
            render(&reply, Style::PLAIN),
            "= web   version 3, unchanged   (against dev, index 7)\n0 apps change, 1 unchanged."
        );
    }
}
