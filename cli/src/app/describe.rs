//! `flotilla app describe`: one app, and how it stands on each node.

use flotilla_api::v1::{AppDescription, NodeGeneration};

use super::{describe, history};
use crate::{
    args::Shell,
    exit::{Exit, Failure},
    follow, json,
    output::Style,
    table::{self, or_dash, state, text},
};

/// Show one app, and how it stands on each node
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla app describe web
  flotilla app describe web -o json | jq .nodes")]
pub(crate) struct Args {
    app: String,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let description = describe(&shell.client(), &args.app).await?;
    let zone = jiff::tz::TimeZone::system();
    shell.output.emit(
        "App",
        || json::description(&description),
        |style| render(&description, style, &zone),
    )?;
    Ok(Exit::Done)
}

fn render(description: &AppDescription, style: Style, zone: &jiff::tz::TimeZone) -> String {
    let app = description.app.clone().unwrap_or_default();
    let serving = if app.serving == 0 { "none".to_owned() } else { app.serving.to_string() };
    let facts = vec![
        vec![text("version"), text(app.version.to_string())],
        vec![text("state"), state(&app.state)],
        vec![text("generation"), text(format!("wanted {}, serving {serving}", app.wanted))],
        vec![text("listen"), text(app.listen.join(", "))],
        vec![text("targets"), text(app.targets.join(", "))],
        vec![text("policy"), text(app.policy)],
        vec![text("nodes"), text(format!("{} of {} serve", app.nodes_serving, app.nodes_placed))],
        vec![text("digest"), text(or_dash(description.digest.get(..12).unwrap_or(&description.digest)))],
    ];
    let mut parts = vec![format!("{}\n{}", style.bold(&app.name), table::render(style, None, facts))];

    if !description.nodes.is_empty() {
        parts.push(nodes(&description.nodes, style));
    }
    if let Some(rollout) = description.rollout.as_ref().filter(|rollout| !rollout.finished) {
        parts.push(format!("{}\n{}\n", follow::head(rollout, style), follow::body(rollout, style)));
    }
    if !description.history.is_empty() {
        parts.push(history::render(&description.history, style, true, zone));
    }
    parts.join("\n")
}

fn nodes(nodes: &[NodeGeneration], style: Style) -> String {
    const COLUMNS: [&str; 9] =
        ["NODE", "GENERATION", "ASKED", "IS", "DIGEST", "PORTS", "PINS", "TARGETS", "PROBES"];
    let row = |node: &NodeGeneration| {
        vec![
            text(&node.node),
            text(node.generation.to_string()),
            text(or_dash(&node.desired)),
            state(&node.readiness),
            text(digest(node)),
            text(node.ports.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
            text(node.pins.to_string()),
            text(targets(node)),
            text(probes(node)),
        ]
    };
    let mut rendered = table::render(style, Some(&COLUMNS), nodes.iter().map(row).collect());
    for node in nodes {
        if !node.detail.is_empty() {
            rendered += &format!("{} {}: {}\n", style.yellow("!"), node.node, node.detail);
        }
        if node.repairs > 0 {
            let times = node.repairs;
            rendered +=
                &format!("{} {}: what it served was put right {times}×\n", style.yellow("!"), node.node);
        }
        for target in node.targets.iter().filter(|target| !target.detail.is_empty()) {
            rendered += &format!(
                "{} {}: target {}: {}\n",
                style.yellow("!"),
                node.node,
                target.target,
                target.detail
            );
        }
    }
    rendered
}

/// What the node has, and whether that is the spec: what it was asked for is no proof.
fn digest(node: &NodeGeneration) -> String {
    let short = node.digest.get(..12).unwrap_or(&node.digest);
    match (short.is_empty(), node.digest_matches, node.readiness.as_str()) {
        (true, _, _) => "-".to_owned(),
        (false, true, _) => format!("✓ {short}"),
        (false, false, "ready" | "serving") => format!("✗ {short}"),
        (false, false, _) => short.to_owned(),
    }
}

/// `2/3 pass`
fn probes(node: &NodeGeneration) -> String {
    if node.probes.is_empty() {
        return "-".to_owned();
    }
    let passing = node.probes.iter().filter(|probe| probe.state == "passing").count();
    format!("{passing}/{} pass", node.probes.len())
}

/// `2/3 up`: endpoints that take traffic, of all that the names resolved to.
fn targets(node: &NodeGeneration) -> String {
    if node.targets.is_empty() {
        return "-".to_owned();
    }
    let sum = |count: fn(&flotilla_api::v1::TargetStatus) -> u32| node.targets.iter().map(count).sum::<u32>();
    let unresolved = node.targets.iter().filter(|target| target.resolution != "resolved").count();
    let up = format!("{}/{} up", sum(|target| target.available), sum(|target| target.endpoints));
    if unresolved > 0 { format!("{up}, {unresolved} unresolved") } else { up }
}

#[cfg(test)]
mod tests {
    use flotilla_api::v1::{App, ProbeStatus, TargetStatus};

    use super::*;

    #[test]
    fn a_description_says_what_each_node_does_and_what_troubles_it() {
        let target = |name: &str, available, detail: &str| TargetStatus {
            target: name.to_owned(),
            resolution: "resolved".to_owned(),
            endpoints: 1,
            available,
            detail: detail.to_owned(),
        };
        let description = AppDescription {
            app: Some(App {
                name: "web".to_owned(),
                version: 2,
                wanted: 9,
                state: "rolling out".to_owned(),
                listen: vec!["http:8080".to_owned()],
                targets: vec!["a:1".to_owned(), "b:1".to_owned()],
                policy: "p2c".to_owned(),
                nodes_placed: 1,
                ..App::default()
            }),
            digest: "0123456789abcdef".to_owned(),
            nodes: vec![NodeGeneration {
                node: "n1".to_owned(),
                generation: 9,
                desired: "prepare".to_owned(),
                readiness: "preparing".to_owned(),
                detail: "waiting for a target".to_owned(),
                ports: vec![8080],
                targets: vec![target("a:1", 1, ""), target("b:1", 0, "connection refused")],
                digest: "0123456789abcdef".to_owned(),
                probes: vec![ProbeStatus { state: "pending".to_owned(), ..ProbeStatus::default() }],
                repairs: 1,
                ..NodeGeneration::default()
            }],
            ..AppDescription::default()
        };
        let expected = "\
web
version     2
state       rolling out
generation  wanted 9, serving none
listen      http:8080
targets     a:1, b:1
policy      p2c
nodes       0 of 1 serve
digest      0123456789ab

NODE  GENERATION  ASKED    IS         DIGEST        PORTS  PINS  TARGETS  PROBES
n1    9           prepare  preparing  0123456789ab  8080   0     1/2 up   0/1 pass
! n1: waiting for a target
! n1: what it served was put right 1×
! n1: target b:1: connection refused
";
        assert_eq!(render(&description, Style::PLAIN, &jiff::tz::TimeZone::UTC), expected);
    }
}
