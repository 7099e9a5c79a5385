//! The agent with a real proxy and real sockets, and a fleet that a test writes.

use std::{net::SocketAddr, sync::Mutex};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use flotilla_proxy::ProxyConfig;
use flotilla_raft_store::{
    ApplyApp, Availability, Change, ClusterId, Command, Desired, Member, Timestamp, Transition,
};
use flotilla_spec::AppSpec;
use tokio::{net::TcpListener, task::JoinSet};

use super::*;
use crate::rollout::observed::{GenerationReport, ProbeState};

const ME: NodeId = NodeId(1);
const PATIENCE: Duration = Duration::from_secs(20);

/// An origin whose answer a test chooses.
struct Origin {
    address: SocketAddr,
    status: Arc<Mutex<u16>>,
    _tasks: JoinSet<()>,
}

impl Origin {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let status = Arc::new(Mutex::new(200));
        let answer = async |State(status): State<Arc<Mutex<u16>>>| {
            StatusCode::from_u16(*status.lock().unwrap()).unwrap()
        };
        let router = Router::new().route("/smoke", get(answer)).with_state(status.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, status, _tasks: tasks }
    }

    fn say(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }
}

struct Node {
    fleet: Fleet,
    published: watch::Sender<Arc<Fleet>>,
    reports: watch::Receiver<Running>,
    proxy: Proxy,
    listen: SocketAddr,
    _agent: JoinSet<anyhow::Result<()>>,
}

impl Node {
    async fn start() -> Self {
        let proxy = Proxy::start(ProxyConfig { workers: 2, ..ProxyConfig::default() }).unwrap();
        // Free a moment ago; SO_REUSEADDR lets the proxy have it.
        let listen = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let published = watch::Sender::new(Arc::new(Fleet::default()));
        let here =
            translate::Here { traffic_address: Some(listen.ip()), certificates: "certificates".into() };
        let (agent, reports) = Agent::new(
            ME,
            published.subscribe(),
            proxy.clone(),
            here,
            ProbeSettings::default(),
            Trials::default(),
        );
        let mut tasks = JoinSet::new();
        tasks.spawn(agent.run());
        let mut node = Self { fleet: Fleet::default(), published, reports, proxy, listen, _agent: tasks };
        let member = Member {
            name: "n1".to_owned(),
            region: "test".to_owned(),
            zone: "z1".to_owned(),
            cluster_address: "127.0.0.1:1".to_owned(),
            admin_address: "127.0.0.1:2".to_owned(),
            traffic_address: "127.0.0.1".to_owned(),
            labels: BTreeMap::new(),
            port_pool: (20_000, 20_001),
            reserved_ports: Vec::new(),
            availability: Availability::Active,
            drain: None,
            weight: 100,
            binary_version: "0".to_owned(),
        };
        let (id, name) = (ClusterId("c".to_owned()), "c".to_owned());
        node.apply(Change::InitCluster { id, name, member });
        node.apply(Change::TakeControl { term: 1, node: ME });
        node
    }

    fn apply(&mut self, change: Change) {
        let index = self.fleet.index + 1;
        let command = Command { request: None, time: Timestamp(index * 1_000), change };
        self.fleet.apply(index, &command).unwrap();
        self.published.send_replace(Arc::new(self.fleet.clone()));
    }

    /// Applies a spec with `tables`; the key of its generation.
    fn app(&mut self, origin: &Origin, tables: &str) -> Key {
        let spec = format!(
            r#"{{"name":"web","listen":["http:{}"],"targets":["{}"],"check":"tcp"{tables}}}"#,
            self.listen.port(),
            origin.address
        );
        let spec = AppSpec::from_json(spec.as_bytes()).unwrap();
        let app = spec.name.clone();
        self.apply(Change::ApplyApps { apps: vec![ApplyApp { spec, if_version: None, placed: vec![ME] }] });
        (app, GenerationId(self.fleet.index))
    }

    fn ask_to_serve(&mut self, (app, generation): &Key) {
        use flotilla_raft_store::Step;
        let (app, generation) = (app.clone(), *generation);
        for step in [Step::Ready, serving_step(&self.fleet)] {
            let steps = vec![(ME, step)];
            let transition = Transition::Advance { app: app.clone(), generation, steps, why: String::new() };
            self.apply(Change::Coordinate { term: 1, transition });
        }
        assert_eq!(self.fleet.assignment(ME, &app, generation).unwrap().desired, Desired::Serve);
    }

    async fn until(&mut self, what: &str, key: &Key, is: impl Fn(&GenerationReport) -> bool) {
        let reported =
            self.reports.wait_for(|running| running.generations.get(key).is_some_and(|said| is(said)));
        if tokio::time::timeout(PATIENCE, reported).await.is_err() {
            panic!("never {what}: {:?}", self.reports.borrow().generations.get(key));
        }
    }
}

fn serving_step(fleet: &Fleet) -> flotilla_raft_store::Step {
    flotilla_raft_store::Step::Shifting { since: Timestamp(fleet.index * 1_000), percent: 100 }
}

const PROBES: &str = r#","probe":[
    {"name":"smoke","path":"/smoke","expect":[200],"interval":"20ms","fall":1},
    {"name":"alive","kind":"liveness","path":"/smoke","expect":[200,418],"interval":"20ms","fall":1}]"#;

#[tokio::test]
async fn a_generation_is_ready_when_its_probes_pass_through_it_and_lives_while_they_do() {
    let (mut node, origin) = (Node::start().await, Origin::start().await);
    origin.say(503);
    let key = node.app(&origin, PROBES);
    let says = |detail: &'static str| move |report: &GenerationReport| report.detail == detail;
    node.until("the probe stands in the way", &key, says("probe `smoke`: HTTP 503, expected 200")).await;
    node.until("it prepares", &key, |report| report.readiness == Readiness::Preparing).await;
    origin.say(200);
    node.until("ready", &key, |report| {
        report.readiness == Readiness::Ready && report.probes.len() == 1 && report.is_healthy()
    })
    .await;

    node.ask_to_serve(&key);
    node.until("both probes pass", &key, |report| {
        report.readiness == Readiness::Serving
            && report.probes.iter().filter(|probe| probe.state == ProbeState::Passing).count() == 2
    })
    .await;
    origin.say(418);
    node.until("readiness fails alone", &key, |report| {
        report.readiness == Readiness::Serving && !report.is_healthy() && report.not_alive().is_none()
    })
    .await;
    origin.say(500);
    let dead = "liveness probe `alive`: HTTP 500, expected 200, 418";
    node.until("dead", &key, |report| report.not_alive().as_deref() == Some(dead)).await;
    origin.say(200);
    node.until("well again", &key, |report| report.is_healthy() && report.not_alive().is_none()).await;
}

#[tokio::test]
async fn what_serves_is_reported_by_digest_and_a_drift_is_repaired_and_counted() {
    let (mut node, one, two) = (Node::start().await, Origin::start().await, Origin::start().await);
    let first = node.app(&one, "");
    node.until("ready", &first, |report| report.readiness == Readiness::Ready).await;
    node.ask_to_serve(&first);
    node.until("serving", &first, |report| report.readiness == Readiness::Serving).await;
    let second = node.app(&two, "");
    node.until("ready", &second, |report| report.readiness == Readiness::Ready).await;
    node.ask_to_serve(&second);
    let digest = node.fleet.generations[&second].digest;
    node.until("serving what was asked for", &second, |report| {
        report.readiness == Readiness::Serving && report.digest == digest && report.repairs == 0
    })
    .await;

    assert!(node.proxy.mislead(node.listen.ip(), node.listen.port(), "web", first.1.0));
    node.until("repaired", &second, |report| report.repairs == 1 && report.digest == digest).await;
    let serving = node.proxy.status().into_iter().find(|status| status.generation == second.1.0).unwrap();
    assert_eq!(serving.phase, flotilla_proxy::Phase::Serving);
    assert_eq!(node.proxy.audit().await, []);
}
