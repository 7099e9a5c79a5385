//! Balancers that ask: HAProxy's agent checks, check ports, `/readyz`.

use std::{net::SocketAddr, process::Command};

use flotilla_chaos_tests::{
    client::get,
    load::Load,
    peers,
    poll::eventually,
    process::{SOON, TestFleet},
};
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{Process, fleet_with_web, forwards};

async fn agent(address: SocketAddr, app: &str) -> Result<String, String> {
    let mut stream = TcpStream::connect(address).await.map_err(|err| err.to_string())?;
    stream.write_all(format!("{app}\n").as_bytes()).await.map_err(|err| err.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(|err| err.to_string())?;
    Ok(answer)
}

async fn agent_says(fleet: &TestFleet, node: usize, app: &str, expected: &str) {
    let address = fleet.node(node).port(7402);
    eventually(&format!("the agent of {node} says {expected:?} of {app}"), SOON, async || {
        match agent(address, app).await {
            Ok(answer) if answer == expected => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn nodes_say_how_an_app_is_to_those_that_ask() {
    let (fleet, _echo) = fleet_with_web().await;
    fleet.cli(["balancer", "add", "agent-check", "agents", "--port", "7402"]).await.exits(0);
    let check = ["balancer", "add", "tcp-check", "check", "--port", "7410", "--app", "web"];
    fleet.cli(check).await.exits(0);
    let strict =
        ["balancer", "add", "tcp-check", "strict", "--port", "7411", "--app", "web", "--closes-on-drain"];
    fleet.cli(strict).await.exits(0);
    agent_says(&fleet, 1, "web", "ready up 100%\n").await;
    agent_says(&fleet, 1, "mail", "maint\n").await;
    let open = async |port: u16| TcpStream::connect(fleet.node(1).port(port)).await.is_ok();
    eventually("both check ports are open", SOON, async || {
        if open(7410).await && open(7411).await { Ok(()) } else { Err("closed") }
    })
    .await;
    let admin = fleet.node(1).admin_address();
    assert_eq!(get(admin, "/readyz?app=web").await.unwrap().0, 200);
    assert_eq!(get(admin, "/readyz?app=mail").await.unwrap().0, 503);

    // A session holds the node while it stops.
    let mut held = TcpStream::connect(fleet.node(1).port(8080)).await.unwrap();
    held.write_all(b"whoami\n").await.unwrap();
    held.read_u8().await.unwrap();
    fleet.node(1).signal(Signal::SIGTERM);
    eventually("the strict port is closed and readyz is red", SOON, async || {
        let (status, _) = get(admin, "/readyz?app=web").await?;
        if status == 503 && !open(7411).await { Ok(()) } else { Err(format!("{status}")) }
    })
    .await;
    drop(held);
}

#[tokio::test]
async fn haproxy_drains_a_node_whose_agent_says_so() {
    let Some(haproxy) = peers::program("haproxy") else { return };
    let (fleet, _echo) = fleet_with_web().await;
    fleet.cli(["balancer", "add", "agent-check", "agents", "--port", "7402"]).await.exits(0);
    let address = fleet.spare_address(9);
    let (front, runtime) = (SocketAddr::from((address, 8080)), SocketAddr::from((address, 9999)));
    let servers: Vec<String> = fleet
        .nodes()
        .iter()
        .map(|node| {
            let agent = "agent-check agent-port 7402 agent-inter 100ms agent-send \"web\\n\"";
            format!("    server {} {} weight 100 check inter 200ms {agent}", node.name(), node.port(8080))
        })
        .collect();
    let config = format!(
        "global\n    stats socket ipv4@{runtime} level admin\ndefaults\n    mode tcp\n    timeout connect 2s\n    \
         timeout client 1m\n    timeout server 1m\n    retries 2\n    option redispatch 1\nfrontend web\n    bind \
         {front}\n    default_backend web\nbackend web\n{}\n",
        servers.join("\n")
    );
    let file = fleet.file("haproxy.cfg", &config);
    let _haproxy = Process::start(Command::new(haproxy).args(["-db", "-f", &file]), fleet.directory());
    forwards(front).await;
    let ask = async |command: &str| {
        let mut stream = TcpStream::connect(runtime).await.unwrap();
        stream.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let mut held = TcpStream::connect(fleet.node(1).port(8080)).await.unwrap();
    held.write_all(b"whoami\n").await.unwrap();
    held.read_u8().await.unwrap();
    fleet.node(1).signal(Signal::SIGTERM);
    eventually("HAProxy has drained n2", SOON, async || {
        let state = ask("show servers state web").await;
        let line = state.lines().find(|line| line.contains(" n2 ")).unwrap_or_default().to_owned();
        let admin: u32 = line.split(' ').nth(6).and_then(|bits| bits.parse().ok()).unwrap_or(0);
        if admin & 0x08 != 0 { Ok(()) } else { Err(state) }
    })
    .await;
    Load::tcp([front]).operations(300).run().await.assert_clean();
    drop(held);
}
