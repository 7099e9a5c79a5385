//! What HAProxy is told next. PURE: what it shall have and what it has in, commands out.
//!
//! Within a service new servers come before those that go, so that there is never less than there
//! was. A plan for a HAProxy that has what it should is empty.

use flotilla_raft_store::Haproxy;

use super::table::{Backends, Server};
use crate::balancer::{
    desired::{Endpoint, Service, State},
    status::{self, Seen},
};

#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) commands: Vec<String>,
    /// Refused while a server has sessions, and that is not a fault.
    pub(super) deletions: Vec<String>,
    pub(super) problems: Vec<String>,
    /// What it has now for each endpoint.
    pub(super) servers: Vec<status::Server>,
}

pub(super) fn plan(settings: &Haproxy, services: &[Service], backends: &Backends) -> Plan {
    let mut plan = Plan::default();
    for service in services {
        let backend = backend_name(&settings.backend, service);
        match backends.get(&backend) {
            Some(servers) => plan_backend(settings, service, &backend, servers, &mut plan),
            // A backend without any server is not in the table.
            None => plan_backend(settings, service, &backend, &[], &mut plan),
        }
    }
    plan
}

/// `{app}` and `{port}` of the template. Without `{port}` the name of the service takes the place of
/// `{app}`, so that the ports of one app do not share a backend.
fn backend_name(template: &str, service: &Service) -> String {
    match template.contains("{port}") {
        true => template.replace("{app}", service.app.as_str()).replace("{port}", &service.port.to_string()),
        false => template.replace("{app}", &service.name),
    }
}

fn plan_backend(settings: &Haproxy, service: &Service, backend: &str, servers: &[Server], plan: &mut Plan) {
    let mut free: Vec<&Server> =
        servers.iter().filter(|server| server.name.starts_with(&settings.prefix)).collect();
    let matched: Vec<(&Endpoint, Option<&Server>)> =
        service.endpoints.iter().map(|endpoint| (endpoint, take(&mut free, settings, endpoint))).collect();
    let mut slots: Vec<&Server> = free.iter().copied().filter(|server| is_slot(settings, server)).collect();
    // One in maintenance is nobody's; the others still go out of service.
    slots.sort_by_key(|server| server.seen() != Seen::Maint);
    let mut slots = slots.into_iter();
    let mut filled = Vec::new();
    let mut leaving = Vec::new();
    for (endpoint, server) in matched {
        let seen = server.map_or(Seen::Absent, Server::seen);
        plan.servers.push(status::Server::new(service, endpoint, seen));
        match (server, endpoint.state) {
            (Some(server), State::Ready) => ready(backend, server, endpoint, &mut plan.commands),
            (Some(server), State::Drain) if !matches!(seen, Seen::Drain | Seen::Maint) => {
                leaving.push(format!("set server {backend}/{} state drain", server.name));
            }
            (Some(server), State::Down) if seen != Seen::Maint => {
                leaving.push(format!("set server {backend}/{} state maint", server.name));
            }
            (None, State::Ready) => match slots.next() {
                Some(slot) => {
                    filled.push(&slot.name);
                    fill(backend, slot, endpoint, &mut plan.commands);
                }
                None => add(settings, backend, endpoint, &mut plan.commands),
            },
            (Some(_), State::Drain | State::Down | State::Unknown)
            | (None, State::Drain | State::Down | State::Unknown) => {}
        }
    }
    plan.commands.extend(leaving);
    // While this leader does not know all of the nodes, a server it cannot place may be one of theirs.
    if service.endpoints.iter().any(|endpoint| endpoint.state == State::Unknown) {
        return;
    }
    for server in free.into_iter().filter(|server| !filled.contains(&&server.name)) {
        if server.seen() != Seen::Maint {
            plan.commands.push(format!("set server {backend}/{} state maint", server.name));
        }
        if !is_slot(settings, server) {
            plan.deletions.push(format!("del server {backend}/{}", server.name));
        }
    }
}

/// The server that has the address of the endpoint, or the name of its node.
fn take<'a>(free: &mut Vec<&'a Server>, settings: &Haproxy, endpoint: &Endpoint) -> Option<&'a Server> {
    let at = free
        .iter()
        .position(|server| has_address(server, endpoint))
        .or_else(|| free.iter().position(|server| server.name == dynamic_name(settings, endpoint)))?;
    Some(free.remove(at))
}

fn has_address(server: &Server, endpoint: &Endpoint) -> bool {
    server.address == Some(endpoint.address.ip()) && server.port == endpoint.address.port()
}

/// Made by `server-template`: the prefix and a number.
fn is_slot(settings: &Haproxy, server: &Server) -> bool {
    let number = server.name.strip_prefix(&settings.prefix).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn dynamic_name(settings: &Haproxy, endpoint: &Endpoint) -> String {
    format!("{}-{}", settings.prefix, endpoint.node_name)
}

fn ready(backend: &str, server: &Server, endpoint: &Endpoint, commands: &mut Vec<String>) {
    let name = &server.name;
    if !has_address(server, endpoint) {
        commands.push(set_address(backend, name, endpoint));
    }
    // The weight that an agent sets is a share of the one in the file.
    if server.weight != endpoint.weight && !server.has_agent {
        commands.push(format!("set server {backend}/{name} weight {}", endpoint.weight));
    }
    if !matches!(server.seen(), Seen::Ready | Seen::Failing) {
        commands.push(format!("set server {backend}/{name} state ready"));
    }
}

fn fill(backend: &str, slot: &Server, endpoint: &Endpoint, commands: &mut Vec<String>) {
    let name = &slot.name;
    commands.push(set_address(backend, name, endpoint));
    if !slot.has_agent {
        commands.push(format!("set server {backend}/{name} weight {}", endpoint.weight));
    }
    commands.push(format!("set server {backend}/{name} state ready"));
}

/// A new server begins in maintenance and without its checks (management.txt, `add server`).
fn add(settings: &Haproxy, backend: &str, endpoint: &Endpoint, commands: &mut Vec<String>) {
    let name = dynamic_name(settings, endpoint);
    let Endpoint { address, weight, .. } = endpoint;
    let options = settings.options.trim();
    let space = if options.is_empty() { "" } else { " " };
    commands.push(format!("add server {backend}/{name} {address} weight {weight}{space}{options}"));
    let mut words = options.split_whitespace();
    if words.clone().any(|word| word == "check") {
        commands.push(format!("enable health {backend}/{name}"));
    }
    if words.any(|word| word == "agent-check") {
        commands.push(format!("enable agent {backend}/{name}"));
    }
    commands.push(format!("enable server {backend}/{name}"));
}

fn set_address(backend: &str, name: &str, endpoint: &Endpoint) -> String {
    format!("set server {backend}/{name} addr {} port {}", endpoint.address.ip(), endpoint.address.port())
}

#[cfg(test)]
mod tests;
