//! Where apps serve, in the words of a load balancer. PURE.
//!
//! Whole files are meant to be started from; with `servers_only` only what changes when nodes do, to be
//! included in, or read beside, a file that the user keeps.

use std::fmt::Write as _;

use flotilla_raft_store::{Availability, Fleet};
use serde_json::{Value, json};

use super::desired::{Endpoint, Service, State};

pub(crate) fn haproxy(services: &[Service], servers_only: bool) -> String {
    let mut text = String::new();
    if !servers_only {
        text += "\
# Written by `flotilla lb export haproxy`: where the apps served when it was written.
# Check it with: haproxy -c -f FILE
global
    log stdout format raw local0

defaults
    mode tcp
    log global
    option tcplog
    option dontlognull
    timeout connect 2s
    timeout client 15m
    timeout server 15m
    # A connection that one node refuses goes to another, before the client sees anything.
    retries 2
    option redispatch 1
";
    }
    for Service { name, port, endpoints, .. } in services {
        if !servers_only && *port != 0 {
            let _infallible =
                write!(text, "\nfrontend {name}\n    bind :{port}\n    default_backend {name}\n");
        }
        let _infallible = write!(
            text,
            "\nbackend {name}\n    balance leastconn\n    default-server check inter 1s fall 2 rise 2\n"
        );
        for endpoint in endpoints {
            let Endpoint { node_name, address, weight, state, .. } = endpoint;
            // A weight of 0 keeps the sessions that a server has and gives it no new ones.
            let how = match state {
                State::Ready | State::Unknown => format!("weight {weight}"),
                State::Drain => "weight 0".to_owned(),
                State::Down => format!("weight {weight} disabled"),
            };
            let _infallible = writeln!(text, "    server flotilla-{node_name} {address} {how}");
        }
    }
    text
}

pub(crate) fn nginx(services: &[Service], servers_only: bool) -> String {
    let mut text = String::new();
    let mut indent = "";
    if !servers_only {
        indent = "    ";
        text += "\
# Written by `flotilla lb export nginx`: where the apps served when it was written.
# Check it with: nginx -t -c FILE. Debian has the stream module apart: put
# `load_module /usr/lib/nginx/modules/ngx_stream_module.so;` first.
worker_processes auto;
worker_rlimit_nofile 100000;

events {
    worker_connections 50000;
}

stream {
";
    }
    for Service { name, port, endpoints, .. } in services {
        let _infallible = write!(text, "{indent}upstream {name} {{\n{indent}    least_conn;\n");
        // An upstream without servers is an error, and refusing is what there is to say.
        if endpoints.is_empty() {
            let _infallible = writeln!(text, "{indent}    server 127.0.0.1:1 down;");
        }
        for Endpoint { address, weight, state, .. } in endpoints {
            let down = match state {
                State::Ready | State::Unknown => "",
                State::Drain | State::Down => " down",
            };
            let _infallible = writeln!(
                text,
                "{indent}    server {address} weight={weight} max_fails=1 fail_timeout=5s{down};"
            );
        }
        let _infallible = writeln!(text, "{indent}}}");
        if !servers_only && *port != 0 {
            let _infallible = write!(
                text,
                "    server {{
        listen {port} backlog=4096;
        proxy_pass {name};
        proxy_connect_timeout 2s;
        proxy_next_upstream on;
        proxy_timeout 15m;
    }}
"
            );
        }
    }
    if !servers_only {
        text += "}\n";
    }
    text
}

/// A bootstrap with everything in it; or what Envoy reads from the file of a `path_config_source`.
pub(crate) fn envoy(services: &[Service], servers_only: bool) -> String {
    let document = match servers_only {
        true => {
            let resources = services.iter().map(|service| {
                let mut assignment = load_assignment(service);
                assignment["@type"] =
                    json!("type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment");
                assignment
            });
            json!({ "resources": resources.collect::<Vec<_>>() })
        }
        false => json!({
            "static_resources": {
                "listeners": services.iter().filter(|service| service.port != 0).map(listener).collect::<Vec<_>>(),
                "clusters": services.iter().map(cluster).collect::<Vec<_>>(),
            }
        }),
    };
    pretty(&document)
}

fn listener(service: &Service) -> Value {
    json!({
        "name": service.name,
        "address": { "socket_address": { "address": "0.0.0.0", "port_value": service.port } },
        "filter_chains": [{
            "filters": [{
                "name": "envoy.filters.network.tcp_proxy",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": service.name,
                    "cluster": service.name,
                    "idle_timeout": "900s",
                    "max_connect_attempts": 3,
                },
            }],
        }],
    })
}

fn cluster(service: &Service) -> Value {
    json!({
        "name": service.name,
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "connect_timeout": "2s",
        "load_assignment": load_assignment(service),
    })
}

fn load_assignment(service: &Service) -> Value {
    let endpoints: Vec<Value> = service
        .endpoints
        .iter()
        .map(|endpoint| {
            let status = match endpoint.state {
                State::Ready | State::Unknown => "HEALTHY",
                State::Drain => "DRAINING",
                State::Down => "UNHEALTHY",
            };
            json!({
                "endpoint": { "address": { "socket_address": {
                    "address": endpoint.address.ip().to_string(),
                    "port_value": endpoint.address.port(),
                } } },
                "health_status": status,
                "load_balancing_weight": endpoint.weight,
            })
        })
        .collect();
    let groups = if endpoints.is_empty() { json!([]) } else { json!([{ "lb_endpoints": endpoints }]) };
    json!({ "cluster_name": service.name, "endpoints": groups })
}

pub(crate) fn document(services: &[Service], index: u64) -> String {
    let services: Vec<Value> = services
        .iter()
        .map(|service| {
            let endpoints: Vec<Value> = service
                .endpoints
                .iter()
                .map(|endpoint| {
                    json!({
                        "node": endpoint.node_name,
                        "address": endpoint.address.ip().to_string(),
                        "port": endpoint.address.port(),
                        "weight": endpoint.weight,
                        "state": match endpoint.state {
                            State::Ready => "ready",
                            State::Drain => "drain",
                            State::Down => "down",
                            State::Unknown => "unknown",
                        },
                        "generation": endpoint.generation.0,
                    })
                })
                .collect();
            json!({
                "name": service.name,
                "app": service.app.as_str(),
                "port": service.port,
                "endpoints": endpoints,
            })
        })
        .collect();
    pretty(&json!({ "apiVersion": "flotilla/v1", "kind": "ServiceList", "index": index, "items": services }))
}

/// Where Prometheus scrapes the nodes: for `file_sd_configs`, and what an `http_sd_configs` answers.
pub(crate) fn prometheus_sd(fleet: &Fleet) -> String {
    let present = fleet.members.values().filter(|member| member.availability != Availability::Left);
    let groups: Vec<Value> = present
        .map(|member| {
            json!({
                "targets": [member.admin_address],
                "labels": { "node": member.name, "region": member.region, "zone": member.zone },
            })
        })
        .collect();
    pretty(&json!(groups))
}

fn pretty(document: &Value) -> String {
    let mut text = serde_json::to_string_pretty(document).expect("a Value has string keys");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use flotilla_raft_store::{GenerationId, NodeId};
    use flotilla_spec::{AppName, Protocol};

    use super::*;

    fn service() -> Service {
        let endpoint = |node: u8, state| Endpoint {
            node: NodeId(node.into()),
            node_name: format!("n{node}"),
            address: ([10, 0, 0, node], 8080).into(),
            weight: 100,
            state,
            generation: GenerationId(7),
        };
        Service {
            name: "web".to_owned(),
            app: AppName::parse("web").unwrap(),
            port: 8080,
            protocol: Protocol::Tcp,
            endpoints: vec![endpoint(1, State::Ready), endpoint(2, State::Drain), endpoint(3, State::Down)],
        }
    }

    #[test]
    fn every_format_says_which_node_takes_what() {
        assert_eq!(
            haproxy(&[service()], true),
            "
backend web
    balance leastconn
    default-server check inter 1s fall 2 rise 2
    server flotilla-n1 10.0.0.1:8080 weight 100
    server flotilla-n2 10.0.0.2:8080 weight 0
    server flotilla-n3 10.0.0.3:8080 weight 100 disabled
"
        );
        assert_eq!(
            nginx(&[service()], true),
            "upstream web {
    least_conn;
    server 10.0.0.1:8080 weight=100 max_fails=1 fail_timeout=5s;
    server 10.0.0.2:8080 weight=100 max_fails=1 fail_timeout=5s down;
    server 10.0.0.3:8080 weight=100 max_fails=1 fail_timeout=5s down;
}
"
        );
        let envoy: Value = serde_json::from_str(&envoy(&[service()], true)).unwrap();
        let hosts = &envoy["resources"][0]["endpoints"][0]["lb_endpoints"];
        let statuses: Vec<&Value> = (0..3).map(|host| &hosts[host]["health_status"]).collect();
        assert_eq!(statuses, ["HEALTHY", "DRAINING", "UNHEALTHY"]);
    }
}
