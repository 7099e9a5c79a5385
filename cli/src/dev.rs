//! `flotilla dev`: a whole fleet on this machine, to try things out.
//!
//! The nodes are real processes of this very program, started with `node run` and spoken to over
//! gRPC like any other node. Nothing here is a shortcut that a real fleet would not take, but that
//! the disks, the network and the fate of this machine are shared.

mod banner;
mod child;
mod demo;
mod layout;
mod orphan;
mod port_owner;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use flotilla_api::v1::{
    AppChange, ApplyAppsRequest, ClusterStatusReply, ClusterStatusRequest, InitRequest, JoinRequest,
};
use tempfile::TempDir;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

use self::{
    banner::{Banner, Demo},
    child::Children,
    demo::Targets,
    layout::{Layout, NodeLayout},
};
use crate::{
    args::Shell,
    client::{Client, cluster, fleet},
    exit::{Exit, Failure},
    follow::{self, Followed},
    spec_file,
};

/// All nodes must be up and agree within this.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// The code of a cluster that exists already: the data directory was kept.
const HAS_CLUSTER: &str = "E0501";
/// A node did not come up, and its log says why.
const NOT_UP: &str = "E0508";
const NODES_MAX: u8 = 9;

/// Run a whole fleet on this machine, with a demo app
///
/// Each node is a process of its own with an address of its own: 127.0.0.1, 127.0.0.2 and so on.
/// Ctrl-C stops all of them and removes what they wrote, unless --data-dir is given.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla dev
  flotilla dev --nodes 5 --no-demo
  flotilla dev --data-dir ./fleet             keeps the fleet for the next start
  flotilla dev --app web.toml                 your app instead of the demo")]
pub(crate) struct Args {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(NODES_MAX)))]
    nodes: u8,
    /// Apply this file instead of the demo app
    #[arg(long, value_name = "FILE", conflicts_with = "no_demo")]
    app: Option<String>,
    /// Keep the fleet here, and go on with what is there
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Start with no app
    #[arg(long)]
    no_demo: bool,
    /// Port of the demo app
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// gRPC port of the nodes; health and metrics are one above
    #[arg(long, value_name = "PORT", default_value_t = 7400, value_parser = clap::value_parser!(u16).range(1..65000))]
    api_port: u16,
    /// Behave as where 127.0.0.1 is the only address: all nodes share it
    #[arg(long, hide = true)]
    one_address: bool,
}

pub(crate) fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    shell.block_on(start(args, shell))
}

async fn start(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let home = Home::open(args.data_dir.as_deref())?;
    let layout =
        Layout::new(args.nodes, args.api_port, !args.one_address && layout::has_many_addresses(args.nodes));
    let demo_port = (!args.no_demo && args.app.is_none()).then_some(args.port);
    layout.check_free(demo_port)?;
    let mut children = Children::start(&layout, home.path())?;

    // Cancel-safe: what is dropped here is only the asking; the children are stopped below.
    let outcome = tokio::select! {
        served = serve(&args, shell, &layout, &home, &mut children) => served,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        _ = hangup.recv() => Ok(()),
    };
    shell.output.note("stopping");
    children.stop().await;
    if outcome.as_ref().is_err_and(|failure| failure.code.as_deref() == Some(NOT_UP)) {
        home.keep();
    }
    outcome.map(|()| Exit::Done)
}

/// Brings the fleet up, tells about it, and watches over it. Returns only with a failure.
async fn serve(
    args: &Args,
    shell: &Shell,
    layout: &Layout,
    home: &Home,
    children: &mut Children,
) -> Result<(), Failure> {
    let started = Instant::now();
    // A node that dies while it starts will not come up by being asked again.
    let status = tokio::select! {
        formed = form(layout) => formed?,
        failure = children.first_death() => return Err(failure),
    };
    let formed_in = started.elapsed();

    let started = Instant::now();
    let targets = Targets::start().await?;
    let addresses = layout.addresses();
    let client = Client::new(&addresses);
    let demo = if let Some(file) = &args.app {
        apply(&client, std::slice::from_ref(&spec_file::read(file, &shell.output)?)).await?;
        None
    } else if args.no_demo {
        None
    } else {
        let port = layout.demo_port(args.port);
        let spec = demo::spec(port, targets.addresses());
        apply(&client, &[vec![flotilla_spec_of(&spec)?]]).await?;
        let urls = demo::serving_urls(&client, layout, START_TIMEOUT).await?;
        let next = home.path().join("hello-v2.toml");
        tokio::fs::write(&next, demo::next_spec(port, targets.addresses())).await?;
        Some(Demo { urls, targets: targets.addresses().len(), next, took: started.elapsed() })
    };
    let banner =
        Banner { layout, status: &status, pids: children.pids(), formed_in, demo, kept: home.kept() };
    shell.output.emit("Dev", || banner.json(), |style| banner.render(style))?;
    children.keep_alive(shell).await
}

/// Makes the nodes one cluster, or waits until they are again what they were before.
async fn form(layout: &Layout) -> Result<ClusterStatusReply, Failure> {
    let deadline = Instant::now() + START_TIMEOUT;
    let [first, others @ ..] = layout.nodes.as_slice() else { unreachable!("there is at least one node") };
    enter(first, deadline, async |client: &Client| {
        let request = InitRequest { name: "dev".to_owned() };
        client
            .once(START_TIMEOUT, async |channel| cluster(channel).init(request.clone()).await)
            .await
            .map(drop)
    })
    .await?;
    for node in others {
        enter(node, deadline, async |client: &Client| {
            let request = JoinRequest { addresses: vec![first.cluster.to_string()] };
            client
                .once(START_TIMEOUT, async |channel| cluster(channel).join(request.clone()).await)
                .await
                .map(drop)
        })
        .await?;
    }

    let client = Client::new(&layout.addresses());
    loop {
        let asked =
            client.read(async |channel| fleet(channel).cluster_status(ClusterStatusRequest {}).await).await;
        match asked {
            Ok(status) if is_complete(&status, layout.nodes.len()) => return Ok(status),
            _ if Instant::now() > deadline => return Err(not_up("the nodes did not form a cluster in time")),
            _ => sleep(POLL).await,
        }
    }
}

/// Asks one node to become a member, as soon as it answers. One that is a member already is fine.
async fn enter(
    node: &NodeLayout,
    deadline: Instant,
    ask: impl AsyncFn(&Client) -> Result<(), Failure>,
) -> Result<(), Failure> {
    loop {
        let failure = match ask(&Client::new(&[node.cluster.to_string()])).await {
            Ok(()) => return Ok(()),
            Err(failure) if failure.code.as_deref() == Some(HAS_CLUSTER) => return Ok(()),
            Err(failure) => failure,
        };
        let starting = matches!(failure.exit, Exit::Unreachable | Exit::NoLeader);
        if !starting {
            return Err(failure);
        }
        if Instant::now() > deadline {
            return Err(not_up(&format!("{} did not come up in time: {}", node.name, failure.message)));
        }
        sleep(POLL).await;
    }
}

/// A leader, and every node with a voice that is heard. Five voters are the most a cluster has.
fn is_complete(status: &ClusterStatusReply, nodes: usize) -> bool {
    let ready = status.nodes.iter().filter(|node| node.state == "ready").count();
    status.leader != 0 && ready >= nodes && status.voters_live == status.voters
}

/// Applies each list of specs and waits until all of them serve.
async fn apply(client: &Client, files: &[Vec<flotilla_spec::AppSpec>]) -> Result<(), Failure> {
    let specs = files.iter().flatten();
    let apps = specs.map(|spec| AppChange { spec: spec.to_json(), if_version: None }).collect();
    let request = ApplyAppsRequest { request: Some(client.request_id()), apps };
    let reply =
        client.write(START_TIMEOUT, async |channel| fleet(channel).apply_apps(request.clone()).await).await?;
    let deadline = Instant::now() + START_TIMEOUT;
    for app in reply.apps {
        let followed = Followed { app: app.app, generation: app.generation };
        let rollout = follow::finished(client, &followed, deadline).await?;
        if rollout.state != "completed" {
            let message = format!("app `{}` does not serve: {}", rollout.app, rollout.reason);
            return Err(Failure::new(Exit::Failed, message));
        }
    }
    Ok(())
}

fn flotilla_spec_of(toml: &str) -> Result<flotilla_spec::AppSpec, Failure> {
    let specs = flotilla_spec::parse(toml, flotilla_spec::Format::Toml);
    let spec = specs.ok().and_then(|specs| specs.into_iter().next());
    spec.ok_or_else(|| Failure::new(Exit::Failed, "the demo app is not a valid spec"))
}

fn not_up(message: &str) -> Failure {
    Failure::new(Exit::Failed, message).code(NOT_UP)
}

/// Where the nodes keep their state: for this time only, or for the next time too.
enum Home {
    Temporary(TempDir),
    Kept(PathBuf),
}

impl Home {
    fn open(kept: Option<&Path>) -> Result<Self, Failure> {
        match kept {
            None => Ok(Self::Temporary(tempfile::Builder::new().prefix("flotilla-dev-").tempdir()?)),
            Some(dir) => {
                std::fs::create_dir_all(dir)?;
                Ok(Self::Kept(dir.canonicalize()?))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(dir) => dir.path(),
            Self::Kept(dir) => dir,
        }
    }

    /// For the logs in it.
    fn keep(self) {
        if let Self::Temporary(dir) = self {
            drop(dir.keep());
        }
    }

    fn kept(&self) -> Option<&Path> {
        match self {
            Self::Temporary(_) => None,
            Self::Kept(dir) => Some(dir),
        }
    }
}
