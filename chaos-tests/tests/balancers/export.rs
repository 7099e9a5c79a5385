//! `flotilla lb export`, read by the programs that it is for.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use flotilla_chaos_tests::{
    peers,
    poll::eventually,
    process::{SOON, TestFleet},
};

use crate::support::{PROGRAM, Process, fleet_with_web};

fn check(command: &mut Command) {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
}

#[tokio::test]
async fn what_is_exported_is_accepted_by_the_programs_it_is_for() {
    let (fleet, _echo) = fleet_with_web().await;
    let export = async |format: &str, name: &str| {
        let file = fleet.directory().join(name).to_str().unwrap().to_owned();
        fleet.cli(["lb", "export", format, "--file", &file]).await.exits(0);
        let text = std::fs::read_to_string(&file).unwrap();
        for node in fleet.nodes() {
            assert!(text.contains(&node.cluster_address().ip().to_string()), "{}: {text}", node.name());
        }
        (file, text)
    };
    if let Some(haproxy) = peers::program("haproxy") {
        check(Command::new(haproxy).args(["-c", "-f", &export("haproxy", "exported.cfg").await.0]));
    }
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    if let Some(nginx) = peers::program("nginx") {
        let (file, text) = export("nginx", "exported.conf").await;
        if module.exists() {
            std::fs::write(&file, format!("load_module {};\n{text}", module.display())).unwrap();
        }
        let settings = format!("pid {}; error_log stderr;", fleet.directory().join("pid").display());
        check(Command::new(nginx).args(["-t", "-g", &settings, "-c", &file]));
    }
    if let Some(envoy) = peers::program("envoy") {
        let (file, _) = export("envoy", "exported.json").await;
        check(Command::new(envoy).args(["--mode", "validate", "-c", &file]));
    }
    let services: serde_json::Value = serde_json::from_str(&export("json", "services.json").await.1).unwrap();
    assert_eq!(services["items"][0]["endpoints"][2]["state"], "ready", "{services:#}");
    let nodes: serde_json::Value = serde_json::from_str(&export("prometheus-sd", "sd.json").await.1).unwrap();
    assert_eq!(nodes[1]["labels"]["node"], "n2", "{nodes:#}");
    fleet.cli(["lb", "export", "json", "--app", "nobody"]).await.exits(6).says("nobody");
}

/// Waits until the file says this of the nodes, and the command that is run after each change has seen it.
async fn says(file: &Path, copy: &Path, states: [&str; 3]) {
    eventually(&format!("the export says {states:?}"), SOON, async || {
        let text = fs::read_to_string(file).map_err(|err| err.to_string())?;
        let services: serde_json::Value = serde_json::from_str(&text).expect("nobody reads half a file");
        let endpoints = services["items"][0]["endpoints"].as_array().ok_or_else(|| text.clone())?;
        let said: Vec<_> = endpoints.iter().filter_map(|endpoint| endpoint["state"].as_str()).collect();
        let copied = fs::read_to_string(copy).unwrap_or_default();
        if said == states && copied == text {
            Ok(())
        } else {
            Err(format!("{said:?}; the command saw {copied}"))
        }
    })
    .await;
}

fn watch(fleet: &TestFleet, file: &Path, command: &str) -> Process {
    let addresses: Vec<_> = fleet.nodes().iter().map(|node| node.cluster_address().to_string()).collect();
    let mut watch = Command::new(PROGRAM);
    watch.args(["lb", "export", "json", "--watch", "--exec", command, "--file"]).arg(file);
    watch.env("FLOTILLA_ADDR", addresses.join(",")).env("FLOTILLA_UNDER_TEST", "1");
    Process::start(&mut watch, fleet.directory())
}

#[tokio::test]
async fn a_watched_export_follows_drains_and_deaths_and_runs_its_command_after_each() {
    let (mut fleet, _echo) = fleet_with_web().await;
    let path = |name: &str| -> PathBuf { fleet.directory().join(name) };
    let (file, copy) = (path("services.json"), path("copy.json"));
    let command = format!("cp {} {}", file.display(), copy.display());
    let _watch = watch(&fleet, &file, &command);
    says(&file, &copy, ["ready", "ready", "ready"]).await;

    fleet.cli(["node", "drain", "n2", "--quiet-for", "1h", "--deadline", "3h", "--no-wait"]).await.exits(0);
    says(&file, &copy, ["ready", "drain", "ready"]).await;
    fleet.cli(["node", "undrain", "n2"]).await.exits(0);
    says(&file, &copy, ["ready", "ready", "ready"]).await;

    // The one that knows dies.
    let leader = fleet.leader().await;
    fleet.node_mut(leader).kill();
    let mut states = ["ready"; 3];
    states[leader] = "down";
    says(&file, &copy, states).await;
}

#[tokio::test]
async fn a_command_that_fails_after_an_export_is_told() {
    let (fleet, _echo) = fleet_with_web().await;
    let file = fleet.directory().join("services.json").to_str().unwrap().to_owned();
    let export = ["lb", "export", "json", "--file", &file, "--exec", "exit 3"];
    fleet.cli(export).await.exits(1).says("`exit 3` ended with exit status: 3");
    assert!(Path::new(&file).exists());
}
