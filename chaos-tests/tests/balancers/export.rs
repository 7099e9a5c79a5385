//! `flotilla lb export`, read by the programs that it is for.

use std::{path::Path, process::Command};

use flotilla_chaos_tests::peers;

use crate::support::fleet_with_web;

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
