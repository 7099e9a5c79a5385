//! `flotilla cluster status`: who leads, who lags, and what may still break.

use flotilla_api::v1::{ClusterStatusReply, ClusterStatusRequest, Node};

use crate::{
    args::Shell,
    client::fleet,
    exit::{Exit, Failure},
    json,
    output::{Output, Style},
    table::{self, number, or_dash, state, text},
    view::{age, bytes},
    watch::{Answer, watch},
};

/// Show who leads, who lags, and how many nodes may still fail
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla cluster status
  flotilla cluster status --watch
  flotilla cluster status -o json | jq -r .leader

Exits with 4 when no leader answers.")]
pub(crate) struct Args {
    /// Go on showing changes
    #[arg(short, long)]
    watch: bool,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let client = shell.client();
    let ask = async || {
        client.read(async |channel| fleet(channel).cluster_status(ClusterStatusRequest {}).await).await
    };
    let answer = |reply: &ClusterStatusReply| Answer {
        kind: "ClusterStatus",
        json: json::cluster(reply),
        text: render(reply, &shell.output),
    };
    if args.watch {
        return watch(&shell.output, async || Ok(answer(&ask().await?))).await;
    }
    let reply = ask().await?;
    answer(&reply).print(&shell.output)?;
    Ok(if leads(&reply) { Exit::Done } else { Exit::NoLeader })
}

fn render(reply: &ClusterStatusReply, output: &Output) -> String {
    const COLUMNS: [&str; 9] =
        ["NODE", "ZONE", "ROLE", "STATE", "VERSION", "APPLIED", "BEHIND", "STORE", "CONNS"];
    let rows = reply.nodes.iter().map(|node| row(node, reply.commit)).collect();
    let nodes = table::render(output.stdout, output.headers.then_some(&COLUMNS[..]), rows);
    format!("{}\n{nodes}", head(reply, output.stdout))
}

fn head(reply: &ClusterStatusReply, style: Style) -> String {
    let name = style.bold(&reply.name);
    let (term, commit) = (reply.term, reply.commit);
    let answered_by = &reply.answered_by;
    if !leads(reply) {
        // Nodes report to the leader alone; this one cannot tell who is up.
        let leader = match reply.leader {
            0 => style.red(&format!("{answered_by} knows no leader")),
            _ => style.red(&format!("leader {} does not answer {answered_by}", reply.leader_name)),
        };
        return format!("{name}   {leader} (term {term})   {} voters   commit {commit}", reply.voters);
    }
    let health = match reply.health.as_str() {
        "healthy" => style.green("healthy"),
        "degraded" => style.yellow("degraded"),
        other => style.red(other),
    };
    let tolerates = match reply.tolerates {
        0 => style.yellow("tolerates no failure"),
        1 => "tolerates 1 more failure".to_owned(),
        more => format!("tolerates {more} more failures"),
    };
    format!(
        "{name}   {health}   {}/{} voters   leader {answered_by} (term {term})   commit {commit}   {tolerates}",
        reply.voters_live, reply.voters,
    )
}

/// Whether the node that answered leads. One that does not has asked the leader and got no answer.
fn leads(reply: &ClusterStatusReply) -> bool {
    reply.leader != 0 && reply.answered_by == reply.leader_name
}

fn row(node: &Node, commit: u64) -> Vec<table::Field> {
    let reports = node.report_age_ms.is_some();
    let known = |value: String| if reports { value } else { "-".to_owned() };
    let shown_state = match node.report_age_ms {
        Some(ms) if node.state == "unreachable" => format!("unreachable for {}", age(ms)),
        _ => node.state.clone(),
    };
    vec![
        text(&node.name),
        text(or_dash(&node.zone)),
        text(or_dash(&node.role)),
        state(&shown_state),
        text(or_dash(&node.version)),
        number(known(node.applied.to_string())),
        number(known(commit.saturating_sub(node.applied).to_string())),
        number(known(bytes(node.store_bytes))),
        number(known(node.connections.to_string())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    fn output() -> Output {
        Output {
            format: Format::Table,
            quiet: false,
            headers: true,
            stdout: Style::PLAIN,
            stderr: Style::PLAIN,
        }
    }

    fn node(name: &str, role: &str, state: &str, applied: u64, report_age_ms: Option<u64>) -> Node {
        Node {
            name: name.to_owned(),
            zone: "fra-1".to_owned(),
            role: role.to_owned(),
            state: state.to_owned(),
            version: "0.1.0".to_owned(),
            applied,
            connections: 61,
            store_bytes: 11_744_051,
            report_age_ms,
            ..Node::default()
        }
    }

    #[test]
    fn the_status_says_who_leads_who_lags_and_who_is_silent() {
        let reply = ClusterStatusReply {
            name: "fra".to_owned(),
            leader: 2,
            leader_name: "n2".to_owned(),
            answered_by: "n2".to_owned(),
            term: 7,
            commit: 18442,
            voters: 3,
            voters_live: 2,
            health: "degraded".to_owned(),
            nodes: vec![
                node("n1", "follower", "ready", 18440, Some(100)),
                node("n2", "leader", "ready", 18442, Some(0)),
                node("n3", "follower", "unreachable", 18000, Some(192_000)),
                node("n4", "learner", "unreachable", 0, None),
            ],
            ..ClusterStatusReply::default()
        };
        assert_eq!(
            render(&reply, &output()),
            "\
fra   degraded   2/3 voters   leader n2 (term 7)   commit 18442   tolerates no failure
NODE  ZONE   ROLE      STATE                  VERSION  APPLIED  BEHIND    STORE  CONNS
n1    fra-1  follower  ready                  0.1.0      18440       2  11.2MiB     61
n2    fra-1  leader    ready                  0.1.0      18442       0  11.2MiB     61
n3    fra-1  follower  unreachable for 3m12s  0.1.0      18000     442  11.2MiB     61
n4    fra-1  learner   unreachable            0.1.0          -       -        -      -
"
        );
    }
}
