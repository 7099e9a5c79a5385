//! What people say to the fleet. Writes, and reads that need what nodes report, are answered by the
//! leader; without one, reads are answered from this node's applied state and say less.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use flotilla_api::v1::{self, fleet_client::FleetClient, fleet_server};
use flotilla_raft_store::{
    ApplyApp, Change, Fleet, GenerationId, NodeId, Rejection, Reply, RequestId, Timestamp,
};
use flotilla_spec::{AppName, AppSpec, Replicas};
use futures_util::Stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{
    convert,
    error::{Refusal, rejected},
    forward::{self, Leader},
    nodes,
};
use crate::{
    balancer::{
        desired::{Endpoint, Services, State},
        export,
    },
    clock,
    node::Shared,
    replica::Replica,
    rollout::placement::{self, Loads, Nodes},
};

pub(super) struct Service {
    pub(super) shared: Shared,
}

/// How often a watcher looks although nothing fired: ages in `waiting` change by themselves.
const WATCH_REFRESH: Duration = Duration::from_secs(1);

type Answer<T> = Result<Response<T>, Status>;

/// Passes the call on when another node leads. `$local`: also answer here when nobody does.
macro_rules! on_leader {
    ($self:ident, $request:ident, $method:ident) => {{
        let replica = $self.shared.replica()?;
        match forward::leader(&replica, &$request)? {
            Leader::Other(channel) => return client(channel).$method(forward::mark($request)).await,
            Leader::Me => (replica, $request.into_inner()),
        }
    }};
    ($self:ident, $request:ident, $method:ident, or_here) => {{
        let replica = $self.shared.replica()?;
        match forward::leader(&replica, &$request) {
            Ok(Leader::Other(channel)) => match client(channel).$method(forward::mark(copy(&$request))).await
            {
                // The leader died a moment ago: say what is known here.
                Err(status) if unreachable(&status) => (replica, $request.into_inner()),
                answer => return answer,
            },
            Ok(Leader::Me) | Err(_) => (replica, $request.into_inner()),
        }
    }};
}

fn client(channel: tonic::transport::Channel) -> FleetClient<tonic::transport::Channel> {
    FleetClient::new(channel)
        .max_decoding_message_size(super::APPLY_BYTES_MAX)
        .max_encoding_message_size(super::APPLY_BYTES_MAX)
}

fn copy<T: Clone>(request: &Request<T>) -> Request<T> {
    let mut copy = Request::new(request.get_ref().clone());
    *copy.metadata_mut() = request.metadata().clone();
    copy
}

/// The node was not reached, as opposed to: it was, and refused.
fn unreachable(status: &Status) -> bool {
    matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Unknown)
        && status.metadata().get("flotilla-code").is_none()
}

#[tonic::async_trait]
impl fleet_server::Fleet for Service {
    async fn apply_apps(&self, request: Request<v1::ApplyAppsRequest>) -> Answer<v1::ApplyAppsReply> {
        let (replica, request) = on_leader!(self, request, apply_apps);
        let changes = parse_changes(request.apps)?;
        let fleet = replica.fleet();
        let apps = placed(&replica, &fleet, changes)?;
        match replica.propose(request_id(request.request), Change::ApplyApps { apps }).await? {
            Ok(Reply::Apps { apps }) => {
                let apps = apps.iter().map(convert::app_changed_to_pb).collect();
                Ok(Response::new(v1::ApplyAppsReply { apps }))
            }
            Ok(Reply::Done | Reply::Member { .. }) => {
                Err(Status::internal("apps were applied without an answer"))
            }
            Err(rejection) => Err(rejected(&rejection)),
        }
    }

    async fn plan_apps(&self, request: Request<v1::PlanAppsRequest>) -> Answer<v1::PlanAppsReply> {
        let (replica, request) = on_leader!(self, request, plan_apps);
        let changes = parse_changes(request.apps)?;
        let fleet = replica.fleet();
        let apps = placed(&replica, &fleet, changes)?;
        // What apply would do is found out by doing it, on a copy.
        let mut after = (*fleet).clone();
        let command = flotilla_raft_store::Command {
            request: None,
            time: crate::clock::now(),
            change: Change::ApplyApps { apps },
        };
        match after.apply(fleet.index + 1, &command) {
            Ok(Reply::Apps { apps }) => Ok(Response::new(convert::plan_to_pb(&fleet, &after, &apps))),
            Ok(Reply::Done | Reply::Member { .. }) => {
                Err(Status::internal("apps were planned without an answer"))
            }
            Err(rejection) => Err(rejected(&rejection)),
        }
    }

    async fn delete_app(&self, request: Request<v1::DeleteAppRequest>) -> Answer<v1::AppChanged> {
        let (replica, request) = on_leader!(self, request, delete_app);
        let app = app_name(&request.app)?;
        let known = existing(&replica.fleet(), &app)?;
        let change = Change::DeleteApp { app: app.clone(), if_version: request.if_version };
        match replica.propose(request_id(request.request), change).await? {
            Ok(_) => Ok(Response::new(v1::AppChanged {
                app: app.to_string(),
                outcome: v1::app_changed::Outcome::Deleted.into(),
                version: known.version,
                generation: known.wanted.0,
            })),
            Err(rejection) => Err(rejected(&rejection)),
        }
    }

    async fn rollback_app(&self, request: Request<v1::RollbackAppRequest>) -> Answer<v1::AppChanged> {
        let (replica, request) = on_leader!(self, request, rollback_app);
        let app = app_name(&request.app)?;
        let fleet = replica.fleet();
        let known = existing(&fleet, &app)?;
        let earlier = known.earlier(request.to).ok_or_else(|| {
            let version = request.to.unwrap_or(known.version.saturating_sub(1));
            rejected(&Rejection::NoSuchVersion { app: app.clone(), version })
        })?;
        let placed = Placing::new(&replica, &fleet).place(&earlier.spec)?;
        let change = Change::Rollback { app, to: request.to, if_version: request.if_version, placed };
        match replica.propose(request_id(request.request), change).await? {
            Ok(Reply::Apps { apps }) => match apps.first() {
                Some(changed) => Ok(Response::new(convert::app_changed_to_pb(changed))),
                None => Err(Status::internal("an app was rolled back without an answer")),
            },
            Ok(Reply::Done | Reply::Member { .. }) => {
                Err(Status::internal("an app was rolled back without an answer"))
            }
            Err(rejection) => Err(rejected(&rejection)),
        }
    }

    async fn steer_rollout(&self, request: Request<v1::SteerRolloutRequest>) -> Answer<v1::Rollout> {
        let (replica, request) = on_leader!(self, request, steer_rollout);
        let app = app_name(&request.app)?;
        let steer = convert::steer(request.word).map_err(Refusal::from)?;
        let change = Change::Steer { app: app.clone(), if_version: request.if_version, steer };
        if let Err(rejection) = replica.propose(request_id(request.request), change).await? {
            return Err(rejected(&rejection));
        }
        let fleet = replica.fleet();
        let wanted = existing(&fleet, &app)?.wanted;
        let rollout =
            convert::rollout_to_pb(&fleet, &app, wanted, &replica.reports, &replica.waiting.borrow());
        rollout.map(Response::new).ok_or_else(|| rejected(&Rejection::NoSuchApp { app }))
    }

    async fn list_apps(&self, _: Request<v1::ListAppsRequest>) -> Answer<v1::ListAppsReply> {
        let fleet = self.shared.replica()?.fleet();
        let apps = fleet.apps.keys().filter_map(|app| convert::app_to_pb(&fleet, app)).collect();
        Ok(Response::new(v1::ListAppsReply { apps, index: fleet.index }))
    }

    async fn describe_app(&self, request: Request<v1::DescribeAppRequest>) -> Answer<v1::AppDescription> {
        let (replica, request) = on_leader!(self, request, describe_app, or_here);
        let app = app_name(&request.app)?;
        let fleet = replica.fleet();
        existing(&fleet, &app)?;
        let description =
            convert::description_to_pb(&fleet, &app, &replica.reports, &replica.waiting.borrow());
        description.map(Response::new).ok_or_else(|| rejected(&Rejection::NoSuchApp { app }))
    }

    async fn list_ports(&self, request: Request<v1::ListPortsRequest>) -> Answer<v1::ListPortsReply> {
        let fleet = self.shared.replica()?.fleet();
        let app = request.into_inner().app;
        if !app.is_empty() {
            existing(&fleet, &app_name(&app)?)?;
        }
        Ok(Response::new(convert::ports_to_pb(&fleet, &app)))
    }

    async fn list_rollouts(
        &self,
        request: Request<v1::ListRolloutsRequest>,
    ) -> Answer<v1::ListRolloutsReply> {
        let (replica, request) = on_leader!(self, request, list_rollouts, or_here);
        let fleet = replica.fleet();
        if !request.app.is_empty() {
            existing(&fleet, &app_name(&request.app)?)?;
        }
        let waiting = replica.waiting.borrow().clone();
        let rollouts = newest_rollouts(&fleet, &request.app)
            .iter()
            .filter_map(|(app, generation)| {
                convert::rollout_to_pb(&fleet, app, *generation, &replica.reports, &waiting)
            })
            .collect();
        Ok(Response::new(v1::ListRolloutsReply { rollouts }))
    }

    type WatchRolloutStream = Pin<Box<dyn Stream<Item = Result<v1::Rollout, Status>> + Send>>;

    async fn watch_rollout(
        &self,
        request: Request<v1::WatchRolloutRequest>,
    ) -> Result<Response<Self::WatchRolloutStream>, Status> {
        let replica = self.shared.replica()?;
        if let Leader::Other(channel) = forward::leader(&replica, &request)? {
            let stream = client(channel).watch_rollout(forward::mark(request)).await?.into_inner();
            return Ok(Response::new(Box::pin(stream)));
        }
        let v1::WatchRolloutRequest { app, generation } = request.into_inner();
        let app = app_name(&app)?;
        let wanted = existing(&replica.fleet(), &app)?.wanted;
        let generation = if generation == 0 { wanted } else { GenerationId(generation) };
        Ok(Response::new(Box::pin(watch(replica, app, generation))))
    }

    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<v1::EventsReply, Status>> + Send>>;

    /// The leader knows first. Without one any node knows what it has applied.
    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let replica = self.shared.replica()?;
        if let Ok(Leader::Other(channel)) = forward::leader(&replica, &request) {
            match client(channel).watch_events(forward::mark(copy(&request))).await {
                // The leader died a moment ago.
                Err(status) if unreachable(&status) => {}
                stream => return Ok(Response::new(Box::pin(stream?.into_inner()))),
            }
        }
        let events = Events::new(&replica, request.into_inner())?;
        Ok(Response::new(Box::pin(futures_util::stream::unfold(Some(events), Events::next))))
    }

    async fn put_balancer(&self, request: Request<v1::PutBalancerRequest>) -> Answer<v1::PutBalancerReply> {
        let (replica, request) = on_leader!(self, request, put_balancer);
        let balancer = request.balancer.ok_or_else(|| Status::invalid_argument("no balancer"))?;
        let (name, balancer) =
            convert::balancer(&replica.fleet(), balancer).map_err(|err| Refusal::InvalidBalancer(err.0))?;
        let change = Change::PutBalancer { name, balancer, replace: request.replace };
        match replica.propose(request_id(request.request), change).await? {
            Ok(_) => Ok(Response::new(v1::PutBalancerReply {})),
            Err(rejection) => Err(rejected(&rejection)),
        }
    }

    async fn remove_balancer(
        &self,
        request: Request<v1::RemoveBalancerRequest>,
    ) -> Answer<v1::RemoveBalancerReply> {
        let (replica, request) = on_leader!(self, request, remove_balancer);
        let change = Change::RemoveBalancer { name: request.name };
        match replica.propose(request_id(request.request), change).await? {
            Ok(_) => Ok(Response::new(v1::RemoveBalancerReply {})),
            Err(rejection) => Err(rejected(&rejection)),
        }
    }

    async fn list_balancers(
        &self,
        request: Request<v1::ListBalancersRequest>,
    ) -> Answer<v1::ListBalancersReply> {
        let (replica, _) = on_leader!(self, request, list_balancers, or_here);
        let fleet = replica.fleet();
        let balancers = fleet.balancers.iter().map(|(name, balancer)| {
            let status = replica.board.of(name).unwrap_or_default();
            convert::balancer_status_to_pb(&fleet, name, balancer, &status)
        });
        Ok(Response::new(v1::ListBalancersReply { balancers: balancers.collect() }))
    }

    type ExportStream = Pin<Box<dyn Stream<Item = Result<v1::ExportReply, Status>> + Send>>;

    async fn export(
        &self,
        request: Request<v1::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let replica = self.shared.replica()?;
        if let Leader::Other(channel) = forward::leader(&replica, &request)? {
            let stream = client(channel).export(forward::mark(request)).await?.into_inner();
            return Ok(Response::new(Box::pin(stream)));
        }
        let request = request.into_inner();
        let apps = request.apps.iter().map(|app| app_name(app)).collect::<Result<BTreeSet<_>, _>>()?;
        for app in &apps {
            existing(&replica.fleet(), app)?;
        }
        let services = replica.services.subscribe();
        let exports = Exports { replica, services, apps, request, last: None };
        Ok(Response::new(Box::pin(futures_util::stream::unfold(Some(exports), Exports::next))))
    }

    async fn scale_app(&self, request: Request<v1::ScaleAppRequest>) -> Answer<v1::AppChanged> {
        let (replica, request) = on_leader!(self, request, scale_app);
        let app = app_name(&request.app)?;
        existing(&replica.fleet(), &app)?;
        let replicas = request.replicas.map(|count| match count {
            0 => Replicas::All,
            count => Replicas::Count(count),
        });
        let change = Change::ScaleApp { app, replicas, if_version: request.if_version };
        match replica.propose(request_id(request.request), change).await? {
            Ok(Reply::Apps { apps }) => match apps.first() {
                Some(changed) => Ok(Response::new(convert::app_changed_to_pb(changed))),
                None => Err(Status::internal("an app was scaled without an answer")),
            },
            Ok(Reply::Done | Reply::Member { .. }) => {
                Err(Status::internal("an app was scaled without an answer"))
            }
            Err(rejection) => Err(rejected(&rejection)),
        }
    }

    async fn set_node(&self, request: Request<v1::SetNodeRequest>) -> Answer<v1::Node> {
        let (replica, request) = on_leader!(self, request, set_node);
        let (node, change) = nodes::change(&replica.fleet(), &request)?;
        match replica.propose(request_id(request.request), change).await? {
            Ok(_) => {
                let shown = convert::nodes_to_pb(&replica).into_iter().find(|shown| shown.id == node.0);
                Ok(Response::new(shown.unwrap_or_default()))
            }
            Err(rejection) => Err(rejected(&rejection)),
        }
    }

    async fn list_nodes(&self, request: Request<v1::ListNodesRequest>) -> Answer<v1::ListNodesReply> {
        let (replica, _) = on_leader!(self, request, list_nodes, or_here);
        Ok(Response::new(v1::ListNodesReply { nodes: convert::nodes_to_pb(&replica) }))
    }

    async fn cluster_status(
        &self,
        request: Request<v1::ClusterStatusRequest>,
    ) -> Answer<v1::ClusterStatusReply> {
        let (replica, _) = on_leader!(self, request, cluster_status, or_here);
        Ok(Response::new(convert::status_to_pb(&replica)))
    }
}

/// What a load balancer shall have, once or after every change.
struct Exports {
    replica: Arc<Replica>,
    services: tokio::sync::watch::Receiver<Arc<Services>>,
    apps: BTreeSet<AppName>,
    request: v1::ExportRequest,
    last: Option<String>,
}

impl Exports {
    async fn next(this: Option<Self>) -> Option<(Result<v1::ExportReply, Status>, Option<Self>)> {
        let mut this = this?;
        loop {
            if this.replica.leads().is_none() {
                return Some((Err(Refusal::NoLeader.into()), None));
            }
            let services = this.services.borrow_and_update().clone();
            // Index 0: this leader has not looked yet.
            if services.index > 0
                && let Some(text) = this.text(&services)
                && this.last.as_ref() != Some(&text)
            {
                this.last = Some(text.clone());
                let reply = v1::ExportReply { text, index: services.index };
                let again = this.request.watch;
                return Some((Ok(reply), again.then_some(this)));
            }
            // Cancel-safe: watch channels remember that they changed. A closed one ends the node anyway.
            tokio::select! {
                _ = this.services.changed() => {}
                () = tokio::time::sleep(WATCH_REFRESH) => {}
            }
        }
    }

    /// `None`: this leader has not heard from all nodes yet.
    fn text(&self, services: &Services) -> Option<String> {
        use v1::export_request::Format;
        let told = services.of_apps(&self.apps);
        let unknown = |endpoint: &Endpoint| endpoint.state == State::Unknown;
        if told.iter().flat_map(|service| &service.endpoints).any(unknown) {
            return None;
        }
        let servers_only = self.request.servers_only;
        Some(match self.request.format() {
            Format::Haproxy => export::haproxy(&told, servers_only),
            Format::Nginx => export::nginx(&told, servers_only),
            Format::Envoy => export::envoy(&told, servers_only),
            Format::Unspecified | Format::Json => export::document(&told, services.index),
            Format::PrometheusSd => export::prometheus_sd(&self.replica.fleet()),
        })
    }
}

/// What happened and, if it is followed, what happens.
struct Events {
    fleet: watch::Receiver<Arc<Fleet>>,
    asked: convert::EventsAsked,
    follow: bool,
    is_first: bool,
}

impl Events {
    fn new(replica: &Replica, request: v1::WatchEventsRequest) -> Result<Self, Status> {
        let app = (!request.app.is_empty()).then(|| app_name(&request.app)).transpose()?;
        let fleet = replica.fleet();
        if let Some(app) = &app
            && !fleet.events.iter().any(|event| event.app.as_ref() == Some(app))
        {
            existing(&fleet, app)?;
        }
        let since = request.since_ms.map_or(Timestamp(0), |ms| Timestamp(clock::now().0.saturating_sub(ms)));
        let asked = convert::EventsAsked { app, after: request.after, since };
        Ok(Self { fleet: replica.fleet.clone(), asked, follow: request.follow, is_first: true })
    }

    async fn next(this: Option<Self>) -> Option<(Result<v1::EventsReply, Status>, Option<Self>)> {
        let mut this = this?;
        loop {
            let fleet = this.fleet.borrow_and_update().clone();
            let reply = convert::events_to_pb(&fleet, &this.asked);
            this.asked.after = this.asked.after.max(fleet.index);
            if std::mem::take(&mut this.is_first) || !reply.events.is_empty() {
                let again = this.follow;
                return Some((Ok(reply), again.then_some(this)));
            }
            // Closed when the node ends.
            this.fleet.changed().await.ok()?;
        }
    }
}

/// The rollout after every change of it, until it has finished or this node no longer leads.
fn watch(
    replica: Arc<Replica>,
    app: AppName,
    generation: GenerationId,
) -> impl Stream<Item = Result<v1::Rollout, Status>> + Send {
    struct Watcher {
        replica: Arc<Replica>,
        last: Option<v1::Rollout>,
        done: bool,
    }
    let watcher = Watcher { replica, last: None, done: false };
    futures_util::stream::unfold(watcher, move |mut watcher| {
        let app = app.clone();
        async move {
            if watcher.done {
                return None;
            }
            let replica = watcher.replica.clone();
            let mut fleet = replica.fleet.clone();
            let mut reports = replica.reports.changes();
            let mut waiting = replica.waiting.subscribe();
            loop {
                if replica.leads().is_none() {
                    watcher.done = true;
                    return Some((Err(Refusal::NoLeader.into()), watcher));
                }
                let now = {
                    let fleet = fleet.borrow_and_update().clone();
                    convert::rollout_to_pb(
                        &fleet,
                        &app,
                        generation,
                        &replica.reports,
                        &waiting.borrow_and_update(),
                    )
                };
                let Some(now) = now else {
                    watcher.done = true;
                    let gone = Rejection::NoSuchApp { app };
                    return Some((Err(rejected(&gone)), watcher));
                };
                if watcher.last.as_ref() != Some(&now) {
                    watcher.done = now.finished;
                    watcher.last = Some(now.clone());
                    return Some((Ok(now), watcher));
                }
                // Cancel-safe: watch channels remember that they changed. A closed one ends the node anyway.
                tokio::select! {
                    _ = fleet.changed() => {}
                    _ = reports.changed() => {}
                    _ = waiting.changed() => {}
                    () = tokio::time::sleep(WATCH_REFRESH) => {}
                }
            }
        }
    })
}

fn parse_changes(apps: Vec<v1::AppChange>) -> Result<Vec<(AppSpec, Option<u64>)>, Status> {
    apps.into_iter()
        .map(|change| {
            let spec =
                AppSpec::from_json(&change.spec).map_err(|err| Refusal::InvalidSpec(err.to_string()))?;
            let violations = flotilla_spec::validate(&spec);
            if violations.is_empty() {
                return Ok((spec, change.if_version));
            }
            let all: Vec<_> = violations.iter().map(|v| format!("{}: {}", v.path, v.message)).collect();
            Err(Refusal::InvalidSpec(format!("app `{}`: {}", spec.name, all.join("; "))).into())
        })
        .collect()
}

fn placed(
    replica: &Replica,
    fleet: &Fleet,
    changes: Vec<(AppSpec, Option<u64>)>,
) -> Result<Vec<ApplyApp>, Status> {
    let mut placing = Placing::new(replica, fleet);
    changes
        .into_iter()
        .map(|(spec, if_version)| {
            let placed = placing.place(&spec)?;
            Ok(ApplyApp { spec, if_version, placed })
        })
        .collect()
}

/// Places several apps, each with an eye on those before it.
struct Placing<'a> {
    fleet: &'a Fleet,
    live: BTreeSet<NodeId>,
    lost: BTreeSet<NodeId>,
    loads: Loads,
}

impl<'a> Placing<'a> {
    fn new(replica: &Replica, fleet: &'a Fleet) -> Self {
        let members = || fleet.members.keys().copied();
        let lost =
            |node: &NodeId| replica.reports.silent_for(*node).is_some_and(|for_| for_ >= replica.lost_after);
        Self {
            fleet,
            live: members().filter(|node| replica.reports.is_live(*node)).collect(),
            lost: members().filter(lost).collect(),
            loads: Loads::of(fleet),
        }
    }

    fn place(&mut self, spec: &AppSpec) -> Result<Vec<NodeId>, Status> {
        let current = placement::nodes_of(self.fleet, &spec.name);
        let nodes = Nodes { live: &self.live, lost: &self.lost };
        let mut placed = placement::place_among(self.fleet, spec, &current, nodes, &self.loads);
        if placed.is_empty() {
            // A lost node is better than none.
            let nodes = Nodes { live: &self.live, lost: &BTreeSet::new() };
            placed = placement::place_among(self.fleet, spec, &current, nodes, &self.loads);
        }
        if placed.is_empty() {
            let why = "no active node matches its regions and labels".to_owned();
            return Err(rejected(&Rejection::NoPlacement { app: spec.name.clone(), why }));
        }
        for node in placed.iter().filter(|node| !current.contains(node)) {
            self.loads.add(*node, spec);
        }
        Ok(placed)
    }
}

fn app_name(name: &str) -> Result<AppName, Status> {
    AppName::parse(name).map_err(|err| Refusal::InvalidSpec(err.to_string()).into())
}

fn existing(fleet: &Fleet, app: &AppName) -> Result<Arc<flotilla_raft_store::App>, Status> {
    fleet.apps.get(app).cloned().ok_or_else(|| rejected(&Rejection::NoSuchApp { app: app.clone() }))
}

fn request_id(id: Option<v1::RequestId>) -> Option<RequestId> {
    id.filter(|id| !id.client.is_empty()).map(|id| RequestId { client: id.client, sequence: id.sequence })
}

/// All rollouts of one app, newest first; or the newest of every app.
fn newest_rollouts(fleet: &Fleet, app: &str) -> Vec<(AppName, GenerationId)> {
    if app.is_empty() {
        let newest: BTreeMap<_, _> = fleet.rollouts.keys().cloned().collect();
        return newest.into_iter().collect();
    }
    fleet.rollouts.keys().rev().filter(|(name, _)| name.as_str() == app).cloned().collect()
}
