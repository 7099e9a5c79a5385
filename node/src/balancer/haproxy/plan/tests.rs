use flotilla_raft_store::{GenerationId, NodeId};
use flotilla_spec::{AppName, Protocol};

use super::*;

fn settings() -> Haproxy {
    Haproxy {
        address: "127.0.0.1:9999".to_owned(),
        node: None,
        backend: "{app}".to_owned(),
        prefix: "flotilla".to_owned(),
        options: "check inter 1s".to_owned(),
    }
}

fn service(endpoints: &[(u8, State)]) -> Service {
    Service {
        name: "web".to_owned(),
        app: AppName::parse("web").unwrap(),
        port: 8080,
        protocol: Protocol::Tcp,
        endpoints: endpoints
            .iter()
            .map(|&(node, state)| Endpoint {
                node: NodeId(node.into()),
                node_name: format!("n{node}"),
                address: ([10, 0, 0, node], 8080).into(),
                weight: 100,
                state,
                generation: GenerationId(7),
            })
            .collect(),
    }
}

/// `flotilla1 10.0.0.1:8080 100 0`: name, address, weight, admin bits.
fn backend(rows: &[&str]) -> Backends {
    let server = |row: &&str| {
        let fields: Vec<&str> = row.split(' ').collect();
        let address: std::net::SocketAddr = fields[1].parse().unwrap();
        Server {
            name: fields[0].to_owned(),
            address: Some(address.ip()),
            port: address.port(),
            weight: fields[2].parse().unwrap(),
            admin: fields[3].parse().unwrap(),
            operational: 2,
            has_agent: false,
        }
    };
    [("web".to_owned(), rows.iter().map(server).collect())].into()
}

#[track_caller]
fn check(endpoints: &[(u8, State)], has: &[&str], commands: &[&str], deletions: &[&str]) {
    let plan = plan(&settings(), &[service(endpoints)], &backend(has));
    assert_eq!(plan.commands, commands);
    assert_eq!(plan.deletions, deletions);
}

use State::{Down, Drain, Ready, Unknown};

const FREE: [&str; 2] = ["flotilla1 127.0.0.1:1 1 5", "flotilla2 127.0.0.1:1 1 5"];

#[test]
fn free_slots_are_filled_and_then_servers_are_added() {
    check(
        &[(1, Ready), (2, Ready), (3, Ready), (4, Drain), (5, Down)],
        &FREE,
        &[
            "set server web/flotilla1 addr 10.0.0.1 port 8080",
            "set server web/flotilla1 weight 100",
            "set server web/flotilla1 state ready",
            "set server web/flotilla2 addr 10.0.0.2 port 8080",
            "set server web/flotilla2 weight 100",
            "set server web/flotilla2 state ready",
            "add server web/flotilla-n3 10.0.0.3:8080 weight 100 check inter 1s",
            "enable health web/flotilla-n3",
            "enable server web/flotilla-n3",
        ],
        &[],
    );
}

#[test]
fn what_is_as_it_should_be_needs_no_command() {
    check(
        &[(1, Ready), (2, Drain), (3, Down), (4, Drain)],
        &[
            "flotilla1 10.0.0.1:8080 100 0",
            "flotilla2 10.0.0.2:8080 100 8",
            "flotilla3 10.0.0.3:8080 100 1",
            "flotilla-n4 10.0.0.4:8080 100 1",
        ],
        &[],
        &[],
    );
}

#[test]
fn new_servers_come_before_those_that_go() {
    check(
        &[(1, Drain), (2, Down), (3, Ready)],
        &["flotilla1 10.0.0.1:8080 100 0", "flotilla2 10.0.0.2:8080 100 0", "flotilla3 127.0.0.1:1 1 5"],
        &[
            "set server web/flotilla3 addr 10.0.0.3 port 8080",
            "set server web/flotilla3 weight 100",
            "set server web/flotilla3 state ready",
            "set server web/flotilla1 state drain",
            "set server web/flotilla2 state maint",
        ],
        &[],
    );
}

#[test]
fn a_node_that_is_gone_frees_its_slot_or_takes_its_server_with_it() {
    check(
        &[(1, Ready)],
        &[
            "flotilla1 10.0.0.1:8080 100 0",
            "flotilla2 10.0.0.2:8080 100 8",
            "flotilla-n3 10.0.0.3:8080 100 0",
        ],
        &["set server web/flotilla2 state maint", "set server web/flotilla-n3 state maint"],
        &["del server web/flotilla-n3"],
    );
}

#[test]
fn servers_of_the_user_are_left_alone() {
    check(&[], &["fallback 10.9.9.9:80 1 0", "static1 10.9.9.8:80 1 5"], &[], &[]);
}

#[test]
fn what_an_operator_changed_is_put_right() {
    check(
        &[(1, Ready), (2, Ready)],
        &["flotilla1 10.0.0.1:8080 3 8", "flotilla-n2 10.7.7.7:8080 100 0"],
        &[
            "set server web/flotilla1 weight 100",
            "set server web/flotilla1 state ready",
            "set server web/flotilla-n2 addr 10.0.0.2 port 8080",
        ],
        &[],
    );
}

#[test]
fn a_new_leader_takes_nothing_away_that_it_has_not_heard_of_yet() {
    check(
        &[(1, Ready), (2, Unknown)],
        &["flotilla1 10.0.0.1:8080 100 8", "flotilla2 10.0.0.2:8080 100 0", "flotilla3 10.0.0.3:8080 100 0"],
        &["set server web/flotilla1 state ready"],
        &[],
    );
}

#[test]
fn a_plan_that_was_carried_out_leaves_nothing_to_do() {
    let wanted = service(&[(1, Ready), (2, Drain)]);
    let done = backend(&["flotilla1 10.0.0.1:8080 100 0", "flotilla2 10.0.0.2:8080 100 8"]);
    let plan = plan(&settings(), &[wanted], &done);
    assert!(plan.commands.is_empty() && plan.servers.iter().all(status::Server::is_as_wanted));
}

#[test]
fn ports_of_one_app_do_not_share_a_backend() {
    let service = Service { name: "web-8443".to_owned(), port: 8443, ..service(&[]) };
    for (template, name) in
        [("{app}", "web-8443"), ("be_{app}", "be_web-8443"), ("{app}_{port}", "web_8443"), ("x", "x")]
    {
        assert_eq!(backend_name(template, &service), name);
    }
}
