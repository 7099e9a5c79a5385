//! One xDS stream: what was asked, sent and acknowledged. PURE.
//!
//! The protocol: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>. Every answer has a
//! nonce, and a request that names the nonce of the last one accepts it, or refuses it with an error. A
//! request with an older nonce was written before the last answer arrived, and says nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use flotilla_api::envoy::{
    config::{
        core::v3::{Address, Any, HealthStatus, SocketAddress, UInt32Value, address, socket_address},
        endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint},
    },
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
    },
};
use prost::Message as _;

use crate::balancer::desired::{Service, State};

pub(super) const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Of one stream: an Envoy has a cluster for each.
const NAMES_MAX: usize = 20_000;

/// What is the same for both protocols.
#[derive(Default)]
pub(super) struct Stream {
    /// Makes versions of two leaders differ.
    term: u64,
    sent: u64,
    names: BTreeSet<String>,
    /// As of the last answer.
    told: BTreeMap<String, Arc<Service>>,
    /// Which services went out under the last nonce.
    last: Vec<String>,
    /// Accepted.
    pub(super) has: BTreeMap<String, Option<Arc<Service>>>,
    pub(super) node: String,
    pub(super) acknowledged: String,
    pub(super) error: String,
}

/// Either protocol.
pub(super) trait Session: Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;

    fn new(term: u64) -> Self;
    fn take(&mut self, request: Self::Request);
    /// What has changed since the last answer, if anything.
    fn answer(&mut self, services: &BTreeMap<String, Arc<Service>>) -> Option<Self::Response>;
    fn stream(&self) -> &Stream;
}

impl Stream {
    pub(super) fn version(&self) -> String {
        match self.sent {
            0 => String::new(),
            sent => format!("{}.{sent}", self.term),
        }
    }

    /// False: written before the last answer arrived.
    fn hear(&mut self, nonce: &str, refused: Option<&str>) -> bool {
        if nonce.is_empty() {
            return true;
        }
        if nonce != self.version() {
            return false;
        }
        match refused {
            Some(why) => why.clone_into(&mut self.error),
            None => {
                self.error.clear();
                self.acknowledged = self.version();
                for name in self.last.drain(..) {
                    if let Some(has) = self.has.get_mut(&name) {
                        *has = self.told.get(&name).cloned();
                    }
                }
            }
        }
        true
    }

    fn subscribe(&mut self, name: String) {
        if self.names.len() < NAMES_MAX && self.names.insert(name.clone()) {
            self.has.insert(name, None);
        }
    }

    fn unsubscribe(&mut self, name: &str) {
        self.names.remove(name);
        self.told.remove(name);
        self.has.remove(name);
    }

    /// The services that differ from what was told, which count as told from now on.
    fn news(&mut self, services: &BTreeMap<String, Arc<Service>>) -> Vec<Arc<Service>> {
        let mut news = Vec::new();
        for name in &self.names {
            let service = match services.get(name) {
                // This leader has not heard from all of its nodes: Envoy keeps what it has.
                Some(service) if service.endpoints.iter().any(|one| one.state == State::Unknown) => continue,
                Some(service) => service.clone(),
                // It is gone, or never was: without an answer Envoy would wait for it.
                None => Arc::new(nothing(name)),
            };
            if self.told.get(name) != Some(&service) {
                self.told.insert(name.clone(), service.clone());
                news.push(service);
            }
        }
        if !news.is_empty() {
            self.sent += 1;
            self.last = news.iter().map(|service| service.name.clone()).collect();
        }
        news
    }
}

/// A service without endpoints.
fn nothing(name: &str) -> Service {
    Service {
        name: name.to_owned(),
        app: flotilla_spec::AppName::parse("none").expect("a name"),
        port: 0,
        protocol: flotilla_spec::Protocol::Tcp,
        endpoints: Vec::new(),
    }
}

#[derive(Default)]
pub(super) struct StateOfTheWorld {
    stream: Stream,
}

impl Session for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn new(term: u64) -> Self {
        Self { stream: Stream { term, ..Stream::default() } }
    }

    fn take(&mut self, request: DiscoveryRequest) {
        if let Some(node) = request.node {
            self.stream.node = node.id;
        }
        let is_ours = request.type_url.is_empty() || request.type_url == ENDPOINTS;
        let refused = request.error_detail.as_ref().map(|status| status.message.as_str());
        if !is_ours || !self.stream.hear(&request.response_nonce, refused) {
            return;
        }
        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
        let gone: Vec<String> = self.stream.names.difference(&names).cloned().collect();
        for name in gone {
            self.stream.unsubscribe(&name);
        }
        for name in names {
            self.stream.subscribe(name);
        }
    }

    /// Of endpoints an answer may hold the changed ones alone.
    fn answer(&mut self, services: &BTreeMap<String, Arc<Service>>) -> Option<DiscoveryResponse> {
        let news = self.stream.news(services);
        (!news.is_empty()).then(|| DiscoveryResponse {
            version_info: self.stream.version(),
            resources: news.iter().map(|service| assignment(service)).collect(),
            type_url: ENDPOINTS.to_owned(),
            nonce: self.stream.version(),
        })
    }

    fn stream(&self) -> &Stream {
        &self.stream
    }
}

#[derive(Default)]
pub(super) struct Incremental {
    stream: Stream,
    /// What a client that connects again says that it has from before.
    before: BTreeMap<String, String>,
}

impl Session for Incremental {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn new(term: u64) -> Self {
        Self { stream: Stream { term, ..Stream::default() }, before: BTreeMap::new() }
    }

    fn take(&mut self, request: DeltaDiscoveryRequest) {
        if let Some(node) = request.node {
            self.stream.node = node.id;
        }
        if !request.type_url.is_empty() && request.type_url != ENDPOINTS {
            return;
        }
        let refused = request.error_detail.as_ref().map(|status| status.message.as_str());
        // An older nonce is no acknowledgement, but what it subscribes to holds all the same.
        let _is_last = self.stream.hear(&request.response_nonce, refused);
        for name in request.resource_names_unsubscribe {
            self.stream.unsubscribe(&name);
        }
        for name in request.resource_names_subscribe {
            // Asked for again, it is sent again.
            self.stream.told.remove(&name);
            self.stream.subscribe(name);
        }
        if self.stream.sent == 0 {
            self.before.extend(request.initial_resource_versions);
        }
    }

    fn answer(&mut self, services: &BTreeMap<String, Arc<Service>>) -> Option<DeltaDiscoveryResponse> {
        let mut resources = Vec::new();
        for service in self.stream.news(services) {
            let resource = assignment(&service);
            let version = digest(&resource.value);
            if self.before.remove(&service.name).is_some_and(|before| before == version) {
                self.stream.has.insert(service.name.clone(), Some(service));
                continue;
            }
            resources.push(Resource { version, name: service.name.clone(), resource: Some(resource) });
        }
        (!resources.is_empty()).then(|| DeltaDiscoveryResponse {
            system_version_info: self.stream.version(),
            resources,
            type_url: ENDPOINTS.to_owned(),
            nonce: self.stream.version(),
            removed_resources: Vec::new(),
        })
    }

    fn stream(&self) -> &Stream {
        &self.stream
    }
}

/// Only compared with itself: a node of another version may make another one, and then it is sent again.
fn digest(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn assignment(service: &Service) -> Any {
    let endpoints = service.endpoints.iter().map(|endpoint| {
        let status = match endpoint.state {
            State::Ready => HealthStatus::Healthy,
            State::Drain => HealthStatus::Draining,
            State::Down => HealthStatus::Unhealthy,
            State::Unknown => HealthStatus::Unknown,
        };
        let socket = SocketAddress {
            address: endpoint.address.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(endpoint.address.port().into())),
        };
        let address = Address { address: Some(address::Address::SocketAddress(socket)) };
        LbEndpoint {
            host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint { address: Some(address) })),
            health_status: status.into(),
            load_balancing_weight: Some(UInt32Value { value: endpoint.weight }),
        }
    });
    let group = LocalityLbEndpoints { lb_endpoints: endpoints.collect(), ..LocalityLbEndpoints::default() };
    let assignment = ClusterLoadAssignment {
        cluster_name: service.name.clone(),
        endpoints: if group.lb_endpoints.is_empty() { Vec::new() } else { vec![group] },
    };
    Any { type_url: ENDPOINTS.to_owned(), value: assignment.encode_to_vec() }
}

#[cfg(test)]
mod tests;
