//! What `deploy/` ships is read by the programs it is for.

#![allow(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use flotilla_chaos_tests::peers;
use flotilla_node::config::{Config, ConfigFile};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy").join(path)
}

fn nodes() -> Vec<Config> {
    let files = ["n1", "n2", "n3"].map(|name| deploy(&format!("nodes/{name}.toml")));
    files.iter().map(|file| ConfigFile::read(file).unwrap().resolve().unwrap()).collect()
}

fn check(command: &mut Command) {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
}

#[test]
fn the_node_files_make_one_region_of_three_nodes_in_three_zones() {
    let nodes = nodes();
    let distinct = |of: fn(&Config) -> String| nodes.iter().map(of).collect::<BTreeSet<_>>().len();
    assert_eq!(distinct(|node| node.name.clone()), 3);
    assert_eq!(distinct(|node| node.zone.clone()), 3);
    assert_eq!(distinct(|node| node.region.clone()), 1);
    for node in &nodes {
        let others: BTreeSet<_> = nodes
            .iter()
            .map(|other| &other.cluster_advertise)
            .filter(|&address| *address != node.cluster_advertise)
            .collect();
        assert_eq!(node.join.iter().collect::<BTreeSet<_>>(), others, "{} looks for the others", node.name);
    }
}

#[test]
fn systemd_waits_longer_than_a_node_drains() {
    let unit = fs::read_to_string(deploy("flotilla.service")).unwrap();
    let seconds =
        unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")?.strip_suffix('s')).unwrap();
    let waits = Duration::from_secs(seconds.parse().unwrap());
    for node in nodes() {
        assert!(waits > node.drain, "{} drains for {:?}", node.name, node.drain);
    }
}

#[test]
fn haproxy_accepts_its_example() {
    let Some(haproxy) = peers::program("haproxy") else { return };
    check(Command::new(haproxy).arg("-c").arg("-f").arg(deploy("load-balancer/haproxy.cfg")));
}

#[test]
fn nginx_accepts_its_example() {
    let Some(nginx) = peers::program("nginx") else { return };
    let directory = tempfile::tempdir().unwrap();
    // Where Debian's nginx writes by default, only root may.
    let settings = format!("pid {}/pid; error_log stderr;", directory.path().display());
    check(
        Command::new(nginx)
            .arg("-t")
            .arg("-g")
            .arg(settings)
            .arg("-c")
            .arg(deploy("load-balancer/nginx.conf")),
    );
}

#[test]
fn every_command_of_the_runbook_exists() {
    let runbook = fs::read_to_string(deploy("runbook.md")).unwrap();
    let mut commands = 0;
    for line in runbook.lines().filter_map(|line| line.strip_prefix("flotilla ")) {
        let arguments = line.split(" #").next().unwrap().split_whitespace();
        check(Command::new(env!("CARGO_BIN_EXE_flotilla-under-test")).args(arguments).arg("--help"));
        commands += 1;
    }
    assert!(commands >= 10, "only {commands} commands were found");
}
