//! The composition root: builds every part, owns every task, orders start and shutdown.
//!
//! Traffic comes first and goes last. At start the proxy runs before the store is open, and the agent
//! brings back what the store remembers before Raft has found a leader. At the end the proxy drains
//! while Raft still votes. The control plane has its own runtime and threads, so neither a slow disk
//! nor an election delays a byte.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use flotilla_proxy::{Proxy, ProxyConfig, config::NamesPolicy};
use flotilla_raft_store::{Balancer, BalancerKind, ClusterId, Identity, Store};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    admin,
    agent::{self, Agent, ProbeSettings, Trials},
    announce, balancer,
    config::Config,
    join, logging, membership, memory,
    metrics::{self, Exporter},
    replica::{self, FIRST_NODE, Replica},
    rollout, server,
    server::error::Refusal,
};

/// Threads of the control plane. It waits for disks and peers; it does not compute.
const CONTROL_THREADS: usize = 2;
/// How long `cluster init` waits for the cluster to elect its only member.
const INIT_TIMEOUT: Duration = Duration::from_secs(10);
/// A session that a balancer began before it was told may take this long to arrive: a lost SYN comes again
/// after a second (RFC 6298 §2).
const UNDER_WAY: Duration = Duration::from_millis(1_200);
/// How long the fleet may take to learn that this node stops: a report and a log entry. Without a quorum it never does.
const KNOWN_TIMEOUT: Duration = Duration::from_millis(500);
/// How long an ended connection of the control plane may take to go away.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs a node until SIGTERM or SIGINT. A second signal cuts the drain short.
pub fn run(config: Config) -> anyhow::Result<()> {
    logging::init(&config)?;
    let exporter = metrics::install()?;
    let proxy = Proxy::start(ProxyConfig {
        workers: config.workers,
        close_horizon: None,
        max_connections: config.max_connections,
        max_connections_per_source: config.max_connections_per_source,
        memory_budget: config.memory_budget,
        proxy_header_timeout: config.proxy_header_timeout,
        hello_timeout: config.hello_timeout,
        http2: config.http2,
        zone: Some(config.zone.clone()),
        name_server: None,
        give_back: memory::give_back,
        // The fleet has judged who may claim what, and numbers generations by the log.
        names: NamesPolicy::NewestGeneration,
    })
    .context("start the traffic workers")?;
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("flotilla-control")
        .enable_all()
        .build()
        .context("start the control runtime")?;
    control.block_on(async {
        let node = Node::start(config, proxy, exporter).await?;
        node.run().await
    })
}

/// What the gRPC and HTTP services see of the node.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) proxy: Proxy,
    /// `None` until the node belongs to a cluster.
    pub(crate) replica: watch::Receiver<Option<Arc<Replica>>>,
    pub(crate) requests: mpsc::Sender<Enter>,
    /// Set once the node has been asked to stop: it is no longer ready.
    pub(crate) stopping: CancellationToken,
}

impl Shared {
    pub(crate) fn replica(&self) -> Result<Arc<Replica>, Refusal> {
        self.replica.borrow().clone().ok_or(Refusal::NoCluster)
    }
}

/// A request to bring this node into a cluster, served one at a time by the node itself.
pub(crate) enum Enter {
    Init { name: String, reply: oneshot::Sender<Result<Identity, Refusal>> },
    Join { addresses: Vec<String>, reply: oneshot::Sender<Result<Identity, Refusal>> },
}

struct Node {
    shared: Shared,
    replica: watch::Sender<Option<Arc<Replica>>>,
    requests: mpsc::Receiver<Enter>,
    /// Tasks that run as long as the node. One that ends by itself ends the node.
    tasks: JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
    /// The cluster has removed this node.
    dismissed: CancellationToken,
}

impl Node {
    async fn start(config: Config, proxy: Proxy, exporter: Exporter) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let listener = TcpListener::bind(config.cluster_listen).await.with_context(|| {
            format!("listen on {} for the cluster ([cluster] listen)", config.cluster_listen)
        })?;
        let admin_listener = TcpListener::bind(config.admin_listen)
            .await
            .with_context(|| format!("listen on {} for admin ([admin] listen)", config.admin_listen))?;

        let (replica, replica_watch) = watch::channel(None);
        let (requests_in, requests) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let shared = Shared {
            config: config.clone(),
            proxy,
            replica: replica_watch,
            requests: requests_in,
            stopping: CancellationToken::new(),
        };
        let mut node = Self {
            shared: shared.clone(),
            replica,
            requests,
            tasks: JoinSet::new(),
            stop: stop.clone(),
            dismissed: CancellationToken::new(),
        };

        if let Some(identity) = Store::read_identity(&config.data_dir)? {
            let opened = Store::open(&config.data_dir, config.store()).await?;
            info!(cluster = %identity.cluster, node = %identity.node, "store opened");
            node.enter(opened).await?;
        } else if !config.join.is_empty() {
            node.tasks.spawn(join::until_joined(shared.clone(), stop.clone()));
        } else {
            info!("this node belongs to no cluster yet: `flotilla cluster init` or `flotilla cluster join`");
        }
        node.spawn("metrics", exporter.clone().upkeep());
        node.tasks.spawn(server::serve(listener, shared.clone(), stop.clone()));
        node.tasks.spawn(admin::serve(admin_listener, shared, exporter, stop));
        info!(cluster = %config.cluster_listen, admin = %config.admin_listen, "node started");
        Ok(node)
    }

    async fn run(mut self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let outcome = loop {
            // Cancel-safe: signals, channels and JoinSets lose nothing.
            tokio::select! {
                _ = terminate.recv() => break Ok(()),
                () = self.dismissed.cancelled() => {
                    warn!("this node has been removed from the cluster; to come back as a new one it needs an empty data directory");
                    break Ok(());
                }
                _ = interrupt.recv() => break Ok(()),
                Some(request) = self.requests.recv() => self.serve(request).await?,
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(err)) => break Err(err),
                    Err(panic) => break Err(panic.into()),
                },
            }
        };
        if let Err(err) = &outcome {
            error!(error = format!("{err:#}"), "node stops: a part of it ended");
        }
        // Cancel-safe: a second signal only shortens the wait.
        tokio::select! {
            () = self.shutdown() => {}
            _ = terminate.recv() => warn!("second signal: sessions are cut"),
            _ = interrupt.recv() => warn!("second signal: sessions are cut"),
        }
        outcome
    }

    /// Sessions first, while Raft still counts this node; then the tasks; then Raft itself.
    async fn shutdown(&mut self) {
        info!(sessions = self.shared.proxy.connections(), "stopping");
        let begun = Instant::now();
        self.shared.stopping.cancel();
        self.be_let_go().await;
        let left = self.shared.config.drain.saturating_sub(begun.elapsed());
        tokio::join!(self.shared.proxy.clone().shutdown(left), self.be_known_to_stop());
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
            self.tasks.shutdown().await;
        }
        if let Some(replica) = self.replica.borrow().clone()
            && let Err(err) = replica.raft.shutdown().await
        {
            warn!(error = %err, "Raft did not stop cleanly");
        }
        info!("stopped");
    }

    /// While a balancer that the fleet tells may send sessions here the ports stay open, for half of the time
    /// there is, as in a drain. One that is not told finds out by its own checks.
    async fn be_let_go(&self) {
        let Some(replica) = self.replica.borrow().clone() else { return };
        let is_told = |balancer: &Arc<Balancer>| !matches!(balancer.kind, BalancerKind::TcpCheck { .. });
        if !replica.fleet().balancers.values().any(is_told) {
            return;
        }
        let half = self.shared.config.drain / 2;
        let mut let_go = replica.let_go.subscribe();
        let confirmed = tokio::time::timeout(half, let_go.wait_for(|let_go| *let_go)).await.is_ok();
        if confirmed {
            info!("no balancer sends anything new");
            tokio::time::sleep(UNDER_WAY.min(half)).await;
        } else {
            warn!(?half, "the balancers have not confirmed that they send nothing new");
        }
    }

    /// Else the fleet would call it down when it is gone, above all when the one that knows is this one.
    async fn be_known_to_stop(&self) {
        let Some(replica) = self.replica.borrow().clone() else { return };
        let me = replica.me();
        if replica.leader().is_some() {
            let mut fleet = replica.fleet.clone();
            let known = fleet.wait_for(|fleet| fleet.absences.contains_key(&me));
            drop(tokio::time::timeout(KNOWN_TIMEOUT, known).await);
        }
    }

    /// An error here is the end of the node; a refusal is only an answer.
    async fn serve(&mut self, request: Enter) -> anyhow::Result<()> {
        let (result, reply) = match request {
            Enter::Init { name, reply } => (self.init(name).await?, reply),
            Enter::Join { addresses, reply } => (self.join(&addresses).await?, reply),
        };
        // The client may have gone; the cluster is there all the same.
        drop(reply.send(result));
        Ok(())
    }

    async fn init(&mut self, name: String) -> anyhow::Result<Result<Identity, Refusal>> {
        if let Some(replica) = self.replica.borrow().as_ref() {
            return Ok(Err(has_cluster(&replica.identity)));
        }
        if let Err(refusal) = join::refuse_if_seeds_have_a_cluster(&self.shared.config).await {
            return Ok(Err(refusal));
        }
        let identity = Identity {
            cluster: ClusterId(format!("{:032x}", rand::random::<u128>())),
            cluster_name: name,
            node: FIRST_NODE,
            node_name: self.shared.config.name.clone(),
        };
        self.create(&identity).await?;
        let replica = self.replica.borrow().clone().context("a created node has a replica")?;
        let mut fleet = replica.fleet.clone();
        let initialised = fleet.wait_for(|fleet| fleet.cluster.id == identity.cluster);
        match tokio::time::timeout(INIT_TIMEOUT, initialised).await {
            Ok(Ok(_)) => Ok(Ok(identity)),
            Ok(Err(_)) => bail!("the store stopped"),
            Err(_) => Ok(Err(Refusal::NoLeader)),
        }
    }

    async fn join(&mut self, addresses: &[String]) -> anyhow::Result<Result<Identity, Refusal>> {
        if let Some(replica) = self.replica.borrow().as_ref() {
            return Ok(Err(has_cluster(&replica.identity)));
        }
        match join::admit(&self.shared.config, addresses).await {
            Ok(identity) => {
                self.create(&identity).await?;
                Ok(Ok(identity))
            }
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    async fn create(&mut self, identity: &Identity) -> anyhow::Result<()> {
        let config = &self.shared.config;
        let opened =
            Store::create(&config.data_dir, identity, config.store()).await.context("create the store")?;
        self.enter(opened).await
    }

    /// From here on the node is a member: every task that works on the replica starts.
    async fn enter(&mut self, opened: flotilla_raft_store::Opened) -> anyhow::Result<()> {
        let (replica, proposer) = Replica::start(opened, &self.shared.config).await?;
        let proxy = self.shared.proxy.clone();
        let (agent, running) = Agent::new(
            replica.me(),
            replica.fleet.clone(),
            proxy.clone(),
            self.shared.config.here(),
            ProbeSettings {
                commands: self.shared.config.probe_commands.clone(),
                node: self.shared.config.name.clone(),
            },
            Trials::open(&self.shared.config.data_dir)?,
        );
        self.spawn("agent", agent.run());
        self.spawn("proposer", async move {
            proposer.run().await;
            Ok(())
        });
        self.spawn("store", replica::watch_over(replica.clone()));
        self.spawn("report", agent::report(replica.clone(), running, proxy, self.shared.stopping.clone()));
        self.spawn("announce", announce::run(replica.clone(), self.shared.config.join.clone()));
        self.spawn("membership", membership::run(replica.clone()));
        self.spawn("rollout", rollout::run(replica.clone()));
        self.spawn("balancer", balancer::run(replica.clone()));
        self.spawn("dismissal", membership::dismissal(replica.clone(), self.dismissed.clone()));
        self.spawn(
            "checks",
            balancer::checks::run(
                replica.clone(),
                self.shared.proxy.clone(),
                self.shared.config.clone(),
                self.shared.stopping.clone(),
            ),
        );
        self.replica.send_replace(Some(replica));
        Ok(())
    }

    /// For a task that may be dropped wherever it waits: what it did is in the log.
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            // Cancel-safe: see above.
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                ended = task => ended.context(name),
            }
        });
    }
}

fn has_cluster(identity: &Identity) -> Refusal {
    Refusal::HasCluster { id: identity.cluster.to_string(), name: identity.cluster_name.clone() }
}
