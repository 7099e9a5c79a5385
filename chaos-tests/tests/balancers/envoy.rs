//! Envoy, which subscribes to endpoints.

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

use crate::support::{Process, fleet_with_web, forwards, seen, status};

pub(crate) struct Envoy {
    _process: Process,
    front: SocketAddr,
    admin: SocketAddr,
}

/// `delta`: the incremental protocol; else the state of the world.
pub(crate) fn start(fleet: &TestFleet, delta: bool) -> Option<Envoy> {
    let envoy = peers::program("envoy")?;
    let address = fleet.spare_address(9);
    let (front, admin) = (SocketAddr::from((address, 8080)), SocketAddr::from((address, 9901)));
    let api = if delta { "DELTA_GRPC" } else { "GRPC" };
    let nodes: Vec<String> = fleet
        .nodes()
        .iter()
        .map(|node| {
            let ip = node.cluster_address().ip();
            format!(
                "{{ endpoint: {{ address: {{ socket_address: {{ address: {ip}, port_value: 7403 }} }} }} }}"
            )
        })
        .collect();
    let nodes = nodes.join(", ");
    let config = format!(
        r#"
node: {{ id: edge-1, cluster: edge }}
admin: {{ address: {{ socket_address: {{ address: {}, port_value: 9901 }} }} }}
dynamic_resources:
  ads_config:
    api_type: {api}
    transport_api_version: V3
    grpc_services: [ {{ envoy_grpc: {{ cluster_name: fleet }} }} ]
static_resources:
  listeners:
  - name: web
    address: {{ socket_address: {{ address: {}, port_value: 8080 }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: web
          cluster: web
          max_connect_attempts: 3
  clusters:
  - name: web
    type: EDS
    connect_timeout: 2s
    eds_cluster_config: {{ service_name: web, eds_config: {{ ads: {{}}, resource_api_version: V3 }} }}
  - name: fleet
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: fleet
      endpoints: [ {{ lb_endpoints: [ {nodes} ] }} ]
"#,
        admin.ip(),
        front.ip()
    );
    let file = fleet.file("envoy.yaml", &config);
    let process = Process::start(
        Command::new(envoy).args([
            "-c",
            &file,
            "--disable-hot-restart",
            "--concurrency",
            "1",
            "-l",
            "warning",
        ]),
        fleet.directory(),
    );
    Some(Envoy { _process: process, front, admin })
}

async fn follows(delta: bool) {
    if peers::program("envoy").is_none() {
        return;
    }
    let (mut fleet, _echo) = fleet_with_web().await;
    let envoy = start(&fleet, delta).unwrap();
    let admin = envoy.admin.to_string();
    fleet.cli(["balancer", "add", "envoy", "mesh", "--port", "7403", "--admin", &admin]).await.exits(0);
    let all = ["n1 ready", "n2 ready", "n3 ready"];
    let status = seen(&fleet, "mesh", "in sync", &all).await;
    let client = &status["clients"][0];
    assert_eq!(client["id"], "edge-1", "{status:#}");
    assert_eq!(client["sent"], client["acknowledged"], "{status:#}");
    forwards(envoy.front).await;
    Load::tcp([envoy.front]).operations(300).run().await.assert_clean();

    let mut held = TcpStream::connect(fleet.node(1).port(8080)).await.unwrap();
    held.write_all(b"whoami\n").await.unwrap();
    held.read_u8().await.unwrap();
    fleet.node(1).signal(Signal::SIGTERM);
    eventually("Envoy has n2 as draining", SOON, async || {
        let (_, clusters) = get(envoy.admin, "/clusters").await?;
        let address = fleet.node(1).port(8080).to_string();
        let mut lines = clusters.lines().filter(|line| line.starts_with("web::") && line.contains(&address));
        if lines.any(|line| line.contains("draining")) { Ok(()) } else { Err(clusters) }
    })
    .await;
    Load::tcp([envoy.front]).operations(300).run().await.assert_clean();
    drop(held);
    fleet.node_mut(1).ended().await;
    fleet.node_mut(1).start().await;
    seen(&fleet, "mesh", "in sync", &all).await;
}

#[tokio::test]
async fn envoy_follows_the_nodes_by_the_state_of_the_world() {
    follows(false).await;
}

#[tokio::test]
async fn envoy_follows_the_nodes_incrementally() {
    follows(true).await;
}

/// Half of this drain is an hour: it goes on because Envoy has confirmed.
async fn drains(delta: bool, looks: bool) {
    if peers::program("envoy").is_none() {
        return;
    }
    let (fleet, _echo) = fleet_with_web().await;
    let envoy = start(&fleet, delta).unwrap();
    let admin = envoy.admin.to_string();
    let mut add = vec!["balancer", "add", "envoy", "mesh", "--port", "7403"];
    if looks {
        add.extend(["--admin", &admin]);
    }
    fleet.cli(add).await.exits(0);
    seen(&fleet, "mesh", "in sync", &["n1 ready", "n2 ready", "n3 ready"]).await;
    forwards(envoy.front).await;
    let load = Load::tcp([envoy.front]).per_second(100).start();
    let drain = ["node", "drain", "n2", "--deadline", "2h", "--quiet-for", "1s"];
    fleet.cli(drain).await.exits(0).says("phase=empty");
    load.stop().await.assert_clean();
    let confirmed =
        |node: &flotilla_chaos_tests::process::Node| node.log().contains("the balancers have confirmed");
    assert!(fleet.nodes().iter().any(confirmed));
}

#[tokio::test]
async fn a_drain_goes_on_when_envoy_has_acknowledged() {
    drains(false, false).await;
}

#[tokio::test]
async fn a_drain_goes_on_when_envoy_was_seen_to_send_nothing() {
    drains(true, true).await;
}

#[tokio::test]
async fn envoy_keeps_what_it_has_while_the_leader_changes_and_follows_the_next() {
    if peers::program("envoy").is_none() {
        return;
    }
    let (mut fleet, _echo) = fleet_with_web().await;
    let envoy = start(&fleet, false).unwrap();
    fleet.cli(["balancer", "add", "envoy", "mesh", "--port", "7403"]).await.exits(0);
    seen(&fleet, "mesh", "in sync", &["n1 ready", "n2 ready", "n3 ready"]).await;
    forwards(envoy.front).await;
    let leader = fleet.leader().await;
    fleet.node_mut(leader).kill();
    let expected: Vec<String> = (0..3)
        .map(|node| format!("n{} {}", node + 1, if node == leader { "maint" } else { "ready" }))
        .collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    let status = seen(&fleet, "mesh", "in sync", &expected).await;
    assert_eq!(status["clients"].as_array().unwrap().len(), 1, "{status:#}");
    Load::tcp([envoy.front]).operations(300).run().await.assert_clean();
}

#[tokio::test]
async fn an_envoy_that_nobody_started_is_waited_for() {
    let (fleet, _echo) = fleet_with_web().await;
    fleet.cli(["balancer", "add", "envoy", "mesh", "--port", "7403"]).await.exits(0);
    eventually("it is waited for", SOON, async || match status(&fleet, "mesh").await {
        status if status["state"] == "waiting" => Ok(()),
        other => Err(format!("{other}")),
    })
    .await;
}
