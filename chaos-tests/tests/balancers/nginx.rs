//! nginx beside a node, told by a file.

use std::{path::Path, process::Command};

use flotilla_chaos_tests::{
    load::Load,
    origin, peers,
    poll::eventually,
    process::{NodeSettings, SOON, TestFleet},
    spec,
};
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{PROGRAM, Process, forwards, seen};

const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

#[tokio::test]
async fn nginx_follows_the_nodes_by_reloads_that_are_seen_to_work() {
    let Some(nginx) = peers::program("nginx") else { return };
    let mut fleet = TestFleet::empty(PROGRAM);
    let directory = fleet.directory().to_owned();
    let at = |name: &str| directory.join(name).display().to_string();
    let section = format!(
        "[nginx]\nprogram = \"{}\"\nconfig = \"{}\"\nupstreams = \"{}\"\npid = \"{}\"\n",
        nginx.display(),
        at("nginx.conf"),
        at("upstreams.conf"),
        at("nginx.pid")
    );
    for _ in 0..3 {
        fleet.add(NodeSettings { more: section.clone(), ..NodeSettings::default() }).await;
    }
    fleet.init(0).await;
    fleet.join(1, 0).await;
    fleet.join(2, 0).await;
    fleet.settled().await;
    let echo = origin::Echo::start("echo");
    fleet.apply(&spec::app("web", "8080", &[echo.address()], "")).await.exits(0);

    let front = std::net::SocketAddr::from((fleet.spare_address(9), 8080));
    let module = if Path::new(MODULE).exists() { format!("load_module {MODULE};\n") } else { String::new() };
    fleet.file("upstreams.conf", "upstream web { server 127.0.0.1:1 down; }\n");
    let config = format!(
        "{module}pid {};\nerror_log stderr;\ndaemon off;\nworker_processes 1;\nevents {{}}\nstream {{\n    include \
         {};\n    server {{ listen {front}; proxy_pass web; proxy_next_upstream on; }}\n}}\n",
        at("nginx.pid"),
        at("upstreams.conf")
    );
    let file = fleet.file("nginx.conf", &config);
    let _nginx = Process::start(Command::new(nginx).args(["-c", &file]), fleet.directory());
    let add = ["balancer", "add", "nginx", "local", "--node", "n2"];
    fleet.cli(add).await.exits(0);
    seen(&fleet, "local", "in sync", &["n1 ready", "n2 ready", "n3 ready"]).await;
    forwards(front).await;
    Load::tcp([front]).operations(300).run().await.assert_clean();

    let mut held = TcpStream::connect(fleet.node(2).port(8080)).await.unwrap();
    held.write_all(b"whoami\n").await.unwrap();
    held.read_u8().await.unwrap();
    fleet.node(2).signal(Signal::SIGTERM);
    drop(held);
    fleet.node_mut(2).ended().await;
    seen(&fleet, "local", "in sync", &["n1 ready", "n2 ready", "n3 maint"]).await;
    let upstreams = std::fs::read_to_string(at("upstreams.conf")).unwrap();
    assert!(
        upstreams
            .lines()
            .any(|line| line.contains(&fleet.node(2).port(8080).to_string()) && line.ends_with("down;"))
    );
    Load::tcp([front]).operations(300).run().await.assert_clean();

    // A main file that nginx refuses: what was there before stays, and the reason is told.
    fleet.file("nginx.conf", &config.replace("proxy_pass web", "proxy_passes web"));
    fleet.node_mut(2).start().await;
    eventually("the reason is told", SOON, async || {
        let status = crate::support::status(&fleet, "local").await;
        let said = status["problems"].to_string();
        if said.contains("[emerg]") { Ok(()) } else { Err(said) }
    })
    .await;
    fleet.file("nginx.conf", &config);
    seen(&fleet, "local", "in sync", &["n1 ready", "n2 ready", "n3 ready"]).await;
}
