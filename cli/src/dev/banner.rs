//! What is told about a fleet that has just come up. Every command can be pasted as it stands.

use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use flotilla_api::v1::ClusterStatusReply;
use serde_json::{Value, json};

use super::{
    demo::{self, Demo},
    layout::Layout,
};
use crate::{
    output::Style,
    view::{plural, seconds},
};

const DEFAULT_ADDRESS: &str = "127.0.0.1:7400";
/// Where the elapsed times stand.
const TIME_COLUMN: usize = 76;

pub(super) struct Banner<'a> {
    pub(super) layout: &'a Layout,
    pub(super) status: &'a ClusterStatusReply,
    /// In the order of the nodes.
    pub(super) pids: Vec<u32>,
    pub(super) formed_in: Duration,
    pub(super) demo: Option<Demo>,
    /// The directory, when it is not removed at the end.
    pub(super) kept: Option<&'a Path>,
}

impl Banner<'_> {
    pub(super) fn render(&self, style: Style) -> String {
        let program = program(&self.layout.addresses());
        let nodes = plural(self.layout.nodes.len(), "node");
        let leader = &self.status.leader_name;
        let region = format!("region dev: {nodes} up, {leader} leads (term {})", self.status.term);
        let mut lines = vec![timed(&region, self.formed_in, style)];
        if let Some(demo) = &self.demo {
            let what = format!(
                "demo app `{}` on {} → {}",
                demo::APP,
                urls(&demo.addresses),
                plural(demo.targets, "target")
            );
            lines.push(timed(&what, demo.took, style));
        }
        let first = &self.layout.nodes[0];
        lines.push(format!(
            "  api        {}      health  http://{}/readyz      metrics  http://{}/metrics",
            first.cluster, first.admin, first.admin
        ));

        let mut tries = Vec::new();
        if let Some(demo) = &self.demo {
            if let Some(url) = demo.addresses.first() {
                tries.push((format!("curl http://{url}"), "again and again: the targets take turns"));
            }
            let apply = format!("{program} app apply -f {}", shell_word(&demo.next.display().to_string()));
            tries.push((apply, "watch a rollout move traffic"));
        }
        tries.push((format!("{program} cluster status"), "who leads, who follows"));
        let all = self.layout.addresses().join(",");
        tries.push((format!("export FLOTILLA_ADDR={all}"), "ask whichever node answers"));
        if let Some(pid) = self.leader_pid() {
            tries.push((format!("kill -9 {pid}"), "lose the leader, keep the traffic"));
            if let Some(url) = self.survivor() {
                tries.push((
                    format!("curl http://{url}"),
                    "the other nodes serve on; the lost one is back in 3 s",
                ));
            }
        }
        let mut label = "try";
        for (command, why) in tries {
            lines.push(format!("  {label:<10} {command}   {}", style.dim(&format!("# {why}"))));
            label = "";
        }
        lines.push(match self.kept {
            None => "Ctrl-C stops it and deletes its temporary directory.".to_owned(),
            Some(dir) => format!("Ctrl-C stops it; the fleet stays in {}.", dir.display()),
        });
        lines.join("\n")
    }

    pub(super) fn json(&self) -> Value {
        let nodes: Vec<Value> = self
            .layout
            .nodes
            .iter()
            .zip(&self.pids)
            .map(|(node, pid)| {
                json!({
                    "name": node.name,
                    "pid": pid,
                    "clusterAddress": node.cluster,
                    "adminAddress": node.admin,
                    "trafficAddress": node.traffic,
                })
            })
            .collect();
        json!({
            "leader": self.status.leader_name,
            "nodes": nodes,
            "demo": self.demo.as_ref().map(|demo| json!({
                "app": demo::APP,
                "addresses": demo.addresses,
                "next": demo.next,
            })),
        })
    }

    fn leader(&self) -> Option<usize> {
        self.layout.nodes.iter().position(|node| node.name == self.status.leader_name)
    }

    fn leader_pid(&self) -> Option<u32> {
        self.pids.get(self.leader()?).copied().filter(|pid| *pid != 0)
    }

    /// Where the demo answers while the leader is gone.
    fn survivor(&self) -> Option<SocketAddr> {
        let (leader, demo) = (self.leader()?, self.demo.as_ref()?);
        demo.addresses.iter().enumerate().find(|(node, _)| *node != leader).map(|(_, address)| *address)
    }
}

fn timed(text: &str, took: Duration, style: Style) -> String {
    let gap = TIME_COLUMN.saturating_sub(text.chars().count()).max(2);
    format!("{} {text}{}{}", style.green("✓"), " ".repeat(gap), style.dim(&seconds(took)))
}

/// `http://127.0.0.{1,2,3}:8080` where the nodes differ in their address alone.
fn urls(addresses: &[SocketAddr]) -> String {
    let same_port = addresses.windows(2).all(|pair| pair[0].port() == pair[1].port());
    match addresses {
        [first, _, ..] if same_port && addresses.iter().all(SocketAddr::is_ipv4) => {
            let last = |address: &SocketAddr| address.ip().to_string().rsplit('.').next().map(str::to_owned);
            let hosts: Vec<String> = addresses.iter().filter_map(last).collect();
            format!("http://127.0.0.{{{}}}:{}", hosts.join(","), first.port())
        }
        _ => addresses.iter().map(|address| format!("http://{address}")).collect::<Vec<_>>().join(" "),
    }
}

/// How this program is called from another terminal: by name if the shell finds it there, else by
/// its full path; with the address of the fleet unless that is the default.
fn program(addresses: &[String]) -> String {
    let exe =
        env::current_exe().and_then(|exe| exe.canonicalize()).unwrap_or_else(|_| PathBuf::from("flotilla"));
    let on_path = env::var_os("PATH").is_some_and(|path| {
        let mut found = env::split_paths(&path).map(|dir| dir.join("flotilla")).filter(|file| file.is_file());
        found.next().and_then(|file| file.canonicalize().ok()).as_deref() == Some(&exe)
    });
    let name = if on_path { "flotilla".to_owned() } else { shell_word(&exe.display().to_string()) };
    match addresses.first() {
        Some(address) if address != DEFAULT_ADDRESS => format!("{name} --addr {address}"),
        _ => name,
    }
}

/// POSIX.1-2017 §2.2.2: single quotes keep every character.
fn shell_word(text: &str) -> String {
    let safe = |char: char| char.is_ascii_alphanumeric() || "/._-+=:@%".contains(char);
    if text.chars().all(safe) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn banner<'a>(layout: &'a Layout, status: &'a ClusterStatusReply) -> Banner<'a> {
        Banner {
            layout,
            status,
            pids: vec![11, 12, 13],
            formed_in: Duration::from_millis(1230),
            demo: Some(Demo {
                addresses: layout.nodes.iter().map(|node| SocketAddr::new(node.traffic, 8080)).collect(),
                targets: 3,
                next: PathBuf::from("/tmp/my fleet/hello-v2.toml"),
                took: Duration::from_millis(400),
            }),
            kept: None,
        }
    }

    #[test]
    fn the_banner_tells_where_and_what_next() {
        let layout = Layout::new(3, 7400, true);
        let status =
            ClusterStatusReply { leader_name: "n2".to_owned(), term: 1, ..ClusterStatusReply::default() };
        let text = banner(&layout, &status).render(Style::PLAIN);
        assert!(text.starts_with("✓ region dev: 3 nodes up, n2 leads (term 1)  "), "{text}");
        assert!(text.contains("demo app `hello` on http://127.0.0.{1,2,3}:8080 → 3 targets"), "{text}");
        assert!(text.contains("app apply -f '/tmp/my fleet/hello-v2.toml'   #"), "{text}");
        assert!(text.contains("kill -9 12   #"), "{text}");
        assert!(!text.contains("--addr"), "{text}");
    }

    #[test]
    fn commands_name_the_fleet_when_it_is_not_at_the_default_address() {
        let layout = Layout::new(3, 7600, true);
        let status = ClusterStatusReply::default();
        let text = banner(&layout, &status).render(Style::PLAIN);
        assert!(text.contains(" --addr 127.0.0.1:7600 cluster status"), "{text}");
        assert!(!text.contains("kill"), "no leader, nobody to kill: {text}");
    }

    #[test]
    fn nodes_with_ports_of_their_own_are_listed_in_full() {
        let addresses = ["127.0.0.1:20000", "127.0.0.1:21000"].map(|address| address.parse().unwrap());
        assert_eq!(urls(&addresses), "http://127.0.0.1:20000 http://127.0.0.1:21000");
    }
}
