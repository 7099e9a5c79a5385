use flotilla_api::envoy::config::core::v3::{Node, Status};
use flotilla_raft_store::{GenerationId, NodeId};
use flotilla_spec::{AppName, Protocol};

use super::*;
use crate::balancer::desired;

fn services(endpoints: &[(u8, State)]) -> BTreeMap<String, Arc<Service>> {
    let service = Service {
        name: "web".to_owned(),
        app: AppName::parse("web").unwrap(),
        port: 8080,
        protocol: Protocol::Tcp,
        endpoints: endpoints
            .iter()
            .map(|&(node, state)| desired::Endpoint {
                node: NodeId(node.into()),
                node_name: format!("n{node}"),
                address: ([10, 0, 0, node], 8080).into(),
                weight: 100,
                state,
                generation: GenerationId(7),
            })
            .collect(),
    };
    [("web".to_owned(), Arc::new(service))].into()
}

fn request(names: &[&str], nonce: &str, refused: Option<&str>) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Some(Node { id: "edge-1".to_owned(), cluster: String::new() }),
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        type_url: ENDPOINTS.to_owned(),
        response_nonce: nonce.to_owned(),
        error_detail: refused.map(|message| Status { code: 3, message: message.to_owned() }),
        ..DiscoveryRequest::default()
    }
}

/// `10.0.0.1 HEALTHY`, of the only resource.
fn hosts(resource: &Any) -> Vec<(String, i32)> {
    let assignment = ClusterLoadAssignment::decode(resource.value.as_slice()).unwrap();
    let endpoints = assignment.endpoints.iter().flat_map(|group| &group.lb_endpoints);
    let host = |one: &LbEndpoint| {
        let Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)) = &one.host_identifier else { panic!() };
        let Some(address::Address::SocketAddress(socket)) = endpoint.address.clone().unwrap().address else {
            panic!()
        };
        (socket.address, one.health_status)
    };
    endpoints.map(host).collect()
}

fn has(session: &impl Session) -> Vec<State> {
    let has = session.stream().has["web"].iter();
    has.flat_map(|service| &service.endpoints).map(|endpoint| endpoint.state).collect()
}

use State::{Drain, Ready, Unknown};

#[test]
fn what_changes_is_sent_once_and_counts_when_it_is_acknowledged() {
    let mut session = StateOfTheWorld::new(3);
    let first = services(&[(1, Ready), (2, Ready)]);
    assert!(session.answer(&first).is_none(), "nothing was asked for");
    session.take(request(&["web"], "", None));
    let answer = session.answer(&first).unwrap();
    assert_eq!((answer.nonce.as_str(), answer.type_url.as_str()), ("3.1", ENDPOINTS));
    assert_eq!(hosts(&answer.resources[0]), [("10.0.0.1".to_owned(), 1), ("10.0.0.2".to_owned(), 1)]);
    assert!(has(&session).is_empty(), "not acknowledged yet");
    assert!(session.answer(&first).is_none(), "sent once");
    session.take(request(&["web"], "3.1", None));
    assert_eq!(has(&session), [Ready, Ready]);

    let second = services(&[(1, Ready), (2, Drain)]);
    let answer = session.answer(&second).unwrap();
    assert_eq!(hosts(&answer.resources[0])[1], ("10.0.0.2".to_owned(), 3));
    session.take(request(&["web"], "3.1", None));
    assert_eq!(has(&session), [Ready, Ready], "that was about the answer before");
    session.take(request(&["web"], "3.2", None));
    assert_eq!(has(&session), [Ready, Drain]);
    assert_eq!(session.stream().acknowledged, "3.2");
}

#[test]
fn what_is_refused_is_said_and_not_sent_again_until_it_changes() {
    let mut session = StateOfTheWorld::new(3);
    session.take(request(&["web"], "", None));
    let first = services(&[(1, Ready)]);
    session.answer(&first).unwrap();
    session.take(request(&["web"], "3.1", Some("malformed IP address")));
    assert_eq!(session.stream().error, "malformed IP address");
    assert!(session.answer(&first).is_none());
    assert!(has(&session).is_empty());
    session.answer(&services(&[(2, Ready)])).unwrap();
    session.take(request(&["web"], "3.2", None));
    assert_eq!((session.stream().error.as_str(), has(&session)), ("", vec![Ready]));
}

#[test]
fn a_service_that_is_not_there_is_empty_and_one_that_is_not_known_yet_waits() {
    let mut session = StateOfTheWorld::new(3);
    session.take(request(&["nobody"], "", None));
    let answer = session.answer(&BTreeMap::new()).unwrap();
    assert!(hosts(&answer.resources[0]).is_empty());
    let mut session = StateOfTheWorld::new(4);
    session.take(request(&["web"], "", None));
    assert!(session.answer(&services(&[(1, Ready), (2, Unknown)])).is_none());
    assert!(session.answer(&services(&[(1, Ready), (2, Ready)])).is_some());
}

#[test]
fn other_types_of_an_aggregated_stream_are_not_ours() {
    let mut session = StateOfTheWorld::new(3);
    let other = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    session.take(DiscoveryRequest { type_url: other, ..request(&["web"], "", None) });
    assert!(session.answer(&services(&[(1, Ready)])).is_none());
}

#[test]
fn an_incremental_client_that_comes_back_gets_only_what_it_does_not_have() {
    let subscribe = |versions: BTreeMap<String, String>| DeltaDiscoveryRequest {
        type_url: ENDPOINTS.to_owned(),
        resource_names_subscribe: vec!["web".to_owned()],
        initial_resource_versions: versions.into_iter().collect(),
        ..DeltaDiscoveryRequest::default()
    };
    let mut session = Incremental::new(3);
    session.take(subscribe(BTreeMap::new()));
    let first = services(&[(1, Ready)]);
    let answer = session.answer(&first).unwrap();
    assert_eq!(answer.resources[0].name, "web");
    let version = answer.resources[0].version.clone();
    let acknowledged = DeltaDiscoveryRequest {
        type_url: ENDPOINTS.to_owned(),
        response_nonce: answer.nonce,
        ..DeltaDiscoveryRequest::default()
    };
    session.take(acknowledged);
    assert_eq!(has(&session), [Ready]);

    let mut session = Incremental::new(4);
    session.take(subscribe([("web".to_owned(), version)].into()));
    assert!(session.answer(&first).is_none());
    assert_eq!(has(&session), [Ready]);
    let answer = session.answer(&services(&[(1, Drain)])).unwrap();
    assert_eq!(hosts(answer.resources[0].resource.as_ref().unwrap()), [("10.0.0.1".to_owned(), 3)]);
    let mut gone = subscribe(BTreeMap::new());
    gone.resource_names_unsubscribe = std::mem::take(&mut gone.resource_names_subscribe);
    session.take(gone);
    assert!(session.answer(&first).is_none());
}
