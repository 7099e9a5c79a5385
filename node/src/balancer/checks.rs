//! The ports of every node that balancers come to: agent checks, check ports, xDS.
//!
//! What a node answers follows from what runs on it and what the fleet has agreed on (`standing`): with no leader
//! and no quorum the answers go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use flotilla_proxy::Proxy;
use flotilla_raft_store::{Balancer, BalancerKind, Fleet, NodeId};
use flotilla_spec::AppName;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    envoy,
    standing::{Standing, Standings, standings},
};
use crate::{config::Config, replica::Replica};

/// A port that could not be opened is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// How often all apps are looked at and not only those of which something has changed.
const LOOK_AT_ALL_EVERY: Duration = Duration::from_secs(5);
/// Checks at once on one port; more wait. HAProxy has one per server and thread of time.
const CHECKS_MAX: usize = 256;
/// For one check, from connecting to the answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Of the name that an agent check sends.
const NAME_BYTES_MAX: u64 = 128;
/// Who asked within this time is still there and will ask again.
const ASKS_AGAIN: Duration = Duration::from_secs(10);
/// Sources of agent checks per app that are remembered; the rest count as one.
const SOURCES_MAX: usize = 64;

pub(crate) async fn run(
    replica: Arc<Replica>,
    proxy: Proxy,
    config: Arc<Config>,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    let mut fleet = replica.fleet.clone();
    let mut running = proxy.changes();
    let mut retry = tokio::time::interval(RETRY);
    retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before = Arc::<Fleet>::default();
    let mut looked_at_all = Instant::now();
    let mut ports = Ports::default();
    let mut stopped = false;
    loop {
        let now = fleet.borrow_and_update().clone();
        let mut apps = now.apps_changed_since(&before);
        apps.extend(running.take().iter().filter_map(|app| AppName::parse(app).ok()));
        let all = stopping.is_cancelled()
            || now.members != before.members
            || looked_at_all.elapsed() >= LOOK_AT_ALL_EVERY;
        let mut standings = if all {
            looked_at_all = Instant::now();
            standings(&now, replica.me(), &proxy.status(), stopping.is_cancelled())
        } else {
            let status = proxy.status_of(apps.iter().map(AppName::as_str));
            let fresh = standings(&now, replica.me(), &status, false);
            let mut standings = Standings::clone(&replica.standings.borrow());
            for app in apps {
                match fresh.get(&app) {
                    Some(standing) => drop(standings.insert(app, *standing)),
                    None => drop(standings.remove(&app)),
                }
            }
            standings
        };
        if stopping.is_cancelled() {
            // Its ports close one by one; what served still drains until the process ends.
            for app in replica.standings.borrow().keys() {
                standings.entry(app.clone()).or_insert(Standing::Drain);
            }
        }
        replica.standings.send_if_modified(|before| {
            let changed = **before != standings;
            if changed {
                *before = Arc::new(standings);
            }
            changed
        });
        ports.open(&replica, &config, &now.balancers);
        before = now;
        // Cancel-safe: watch channels and intervals remember.
        tokio::select! {
            changed = fleet.changed() => changed?,
            () = running.changed() => {}
            () = stopping.cancelled(), if !stopped => {}
            _ = retry.tick() => {}
        }
        stopped = stopping.is_cancelled();
    }
}

/// One task for each port.
#[derive(Default)]
struct Ports {
    open: BTreeMap<String, (Arc<Balancer>, AbortHandle)>,
    tasks: JoinSet<()>,
}

impl Ports {
    fn open(&mut self, replica: &Arc<Replica>, config: &Config, balancers: &BTreeMap<String, Arc<Balancer>>) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|name, (settings, task)| {
            let same =
                balancers.get(name).is_some_and(|wanted| Arc::ptr_eq(wanted, settings) || wanted == settings);
            if !same {
                task.abort();
            }
            same && !task.is_finished()
        });
        for (name, settings) in balancers {
            let Some(port) = settings.kind.port().filter(|_| !self.open.contains_key(name)) else { continue };
            let address = match settings.kind {
                BalancerKind::Envoy { .. } => envoy::serve::address(config.cluster_listen, port),
                BalancerKind::AgentCheck { .. }
                | BalancerKind::TcpCheck { .. }
                | BalancerKind::Haproxy(_)
                | BalancerKind::Nginx { .. } => traffic_address(config.traffic_address, port),
            };
            let task = self.tasks.spawn(serve(replica.clone(), name.clone(), settings.clone(), address));
            self.open.insert(name.clone(), (settings.clone(), task));
        }
    }
}

/// Where the apps listen, so that a balancer that reaches them reaches this.
fn traffic_address(traffic: Option<IpAddr>, port: u16) -> SocketAddr {
    (traffic.unwrap_or(Ipv6Addr::UNSPECIFIED.into()), port).into()
}

async fn serve(replica: Arc<Replica>, name: String, settings: Arc<Balancer>, address: SocketAddr) {
    let result = match &settings.kind {
        BalancerKind::AgentCheck { .. } => answer_agents(&replica, &settings, address).await,
        BalancerKind::TcpCheck { closes_on_drain, .. } => match settings.apps.first() {
            Some(app) => open_while_green(&replica, app, *closes_on_drain, address).await,
            None => return,
        },
        BalancerKind::Envoy { .. } => match TcpListener::bind(address).await {
            Ok(listener) => {
                envoy::serve::run(listener, replica, name.clone()).await.map_err(std::io::Error::other)
            }
            Err(err) => Err(err),
        },
        BalancerKind::Haproxy(_) | BalancerKind::Nginx { .. } => return,
    };
    if let Err(err) = result {
        warn!(balancer = name, %address, error = %err, "port of a balancer is not open; it is tried again");
    }
}

/// Open while the app serves, closed otherwise: a client is refused at once.
async fn open_while_green(
    replica: &Replica,
    app: &AppName,
    closes_on_drain: bool,
    address: SocketAddr,
) -> std::io::Result<()> {
    let mut standings = replica.standings.subscribe();
    loop {
        let green = |standings: &Arc<Standings>| is_green(standings.get(app).copied(), closes_on_drain);
        if standings.wait_for(green).await.is_err() {
            return Ok(());
        }
        let listener = TcpListener::bind(address).await?;
        info!(%app, %address, "check port is open");
        loop {
            // Cancel-safe: a connection that is not taken now is taken at the next turn, or refused.
            tokio::select! {
                accepted = listener.accept() => drop(accepted?),
                changed = standings.changed() => if changed.is_err() { return Ok(()) },
            }
            if !green(&standings.borrow_and_update()) {
                break;
            }
        }
        info!(%app, %address, "check port is closed");
    }
}

fn is_green(standing: Option<Standing>, closes_on_drain: bool) -> bool {
    match standing {
        Some(Standing::Ready) => true,
        Some(Standing::Drain) => !closes_on_drain,
        Some(Standing::Down) | None => false,
    }
}

async fn answer_agents(
    replica: &Arc<Replica>,
    settings: &Arc<Balancer>,
    address: SocketAddr,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let permits = Arc::new(Semaphore::new(CHECKS_MAX));
    let mut checks = JoinSet::new();
    loop {
        while checks.try_join_next().is_some() {}
        let Ok(permit) = permits.clone().acquire_owned().await else { return Ok(()) };
        let (stream, peer) = listener.accept().await?;
        let (replica, settings) = (replica.clone(), settings.clone());
        checks.spawn(async move {
            let _permit = permit;
            // A check that breaks off is made again.
            let _gone =
                tokio::time::timeout(CHECK_TIMEOUT, answer_agent(&replica, &settings, stream, peer.ip()))
                    .await;
        });
    }
}

async fn answer_agent(
    replica: &Replica,
    settings: &Balancer,
    stream: TcpStream,
    source: IpAddr,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let app = match settings.apps.len() {
        1 => settings.apps.first().cloned(),
        _ => {
            let mut name = String::new();
            (&mut stream).take(NAME_BYTES_MAX).read_line(&mut name).await?;
            let app = AppName::parse(name.trim()).ok();
            app.filter(|app| settings.apps.is_empty() || settings.apps.contains(app))
        }
    };
    let Some(app) = app else {
        return stream.write_all(b"down#no such app\n").await;
    };
    let standing = replica.standings.borrow().get(&app).copied();
    stream.write_all(answer(standing, weight(replica)).as_bytes()).await?;
    stream.shutdown().await?;
    replica.agents.note(&app, source, standing, Instant::now());
    Ok(())
}

/// `ready` takes back an earlier `drain` or `maint`, `up` an earlier `down` (configuration.txt, agent-check).
fn answer(standing: Option<Standing>, weight: u32) -> String {
    match standing {
        Some(Standing::Ready) => format!("ready up {weight}%\n"),
        Some(Standing::Drain) => "up drain\n".to_owned(),
        Some(Standing::Down) => "ready down#no target answers\n".to_owned(),
        None => "maint\n".to_owned(),
    }
}

fn weight(replica: &Replica) -> u32 {
    replica.fleet.borrow().members.get(&replica.me()).map_or(100, |member| member.weight.clamp(1, 100))
}

/// When each source asked last, and what it was told.
type Sources = BTreeMap<IpAddr, (Instant, Option<Standing>)>;

/// Who asks how an app is here, and what it was told last.
#[derive(Default)]
pub(crate) struct Agents {
    asked: Mutex<BTreeMap<AppName, Sources>>,
    changed: watch::Sender<()>,
}

impl Agents {
    fn note(&self, app: &AppName, source: IpAddr, told: Option<Standing>, now: Instant) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let sources = asked.entry(app.clone()).or_default();
        sources.retain(|_, (at, _)| now.duration_since(*at) <= ASKS_AGAIN);
        let source = match sources.len() < SOURCES_MAX || sources.contains_key(&source) {
            true => source,
            false => Ipv6Addr::UNSPECIFIED.into(),
        };
        let news = sources.insert(source, (now, told)).map(|(_, before)| before) != Some(told);
        drop(asked);
        if news {
            self.changed.send_replace(());
        }
    }

    /// Apps that are asked about, drain here, and of which everybody who asks was told so.
    pub(crate) fn told_drain(&self, standings: &Standings, now: Instant) -> BTreeSet<AppName> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.is_empty() {
            return BTreeSet::new();
        }
        let is_told = |app: &AppName| {
            let Some(sources) = asked.get(app) else { return false };
            let mut present =
                sources.values().filter(|(at, _)| now.duration_since(*at) <= ASKS_AGAIN).peekable();
            present.peek().is_some() && present.all(|(_, told)| *told != Some(Standing::Ready))
        };
        let drains = standings.iter().filter(|(_, standing)| **standing == Standing::Drain);
        drains.map(|(app, _)| app).filter(|app| is_told(app)).cloned().collect()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

/// Where those that ask may still send: everywhere, but where all of them were told not to.
pub(super) fn sends<'a>(
    services: impl Iterator<Item = &'a super::desired::Service>,
    told: impl Fn(NodeId) -> BTreeSet<AppName>,
) -> BTreeSet<(NodeId, AppName)> {
    let mut of_node: BTreeMap<NodeId, BTreeSet<AppName>> = BTreeMap::new();
    let mut sends = BTreeSet::new();
    for service in services {
        for endpoint in &service.endpoints {
            let told = of_node.entry(endpoint.node).or_insert_with(|| told(endpoint.node));
            if !told.contains(&service.app) {
                sends.insert((endpoint.node, service.app.clone()));
            }
        }
    }
    sends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_answered_in_haproxys_words() {
        for (standing, expected) in [
            (Some(Standing::Ready), "ready up 75%\n"),
            (Some(Standing::Drain), "up drain\n"),
            (Some(Standing::Down), "ready down#no target answers\n"),
            (None, "maint\n"),
        ] {
            assert_eq!(answer(standing, 75), expected);
        }
    }

    #[test]
    fn a_check_port_is_open_while_the_app_serves_and_on_drain_as_configured() {
        for (standing, lenient, strict) in [
            (Some(Standing::Ready), true, true),
            (Some(Standing::Drain), true, false),
            (Some(Standing::Down), false, false),
            (None, false, false),
        ] {
            assert_eq!(
                (is_green(standing, false), is_green(standing, true)),
                (lenient, strict),
                "{standing:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_is_confirmed_when_everybody_who_asks_was_told() {
        let web = AppName::parse("web").unwrap();
        let agents = Agents::default();
        let drains = Standings::unit(web.clone(), Standing::Drain);
        let told = || agents.told_drain(&drains, Instant::now()).contains(&web);
        let [first, second] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
        assert!(!told(), "nobody asks: it is not known");
        agents.note(&web, first, Some(Standing::Ready), Instant::now());
        agents.note(&web, second, Some(Standing::Ready), Instant::now());
        agents.note(&web, first, Some(Standing::Drain), Instant::now());
        assert!(!told(), "the second has not asked since");
        agents.note(&web, second, Some(Standing::Drain), Instant::now());
        assert!(told());
        agents.note(&web, second, Some(Standing::Ready), Instant::now());
        assert!(!told());
        tokio::time::advance(ASKS_AGAIN / 2).await;
        agents.note(&web, first, Some(Standing::Drain), Instant::now());
        tokio::time::advance(ASKS_AGAIN / 2 + Duration::from_secs(1)).await;
        assert!(told(), "the second is gone");
    }
}
