//! `flotilla dev`: a whole fleet on this machine, to try things out.
//!
//! The nodes are real processes of this very program, started with `node run` and spoken to over
//! gRPC like any other node. Nothing here is a shortcut that a real fleet would not take, but that
//! the disks, the network and the fate of this machine are shared.

mod banner;
mod child;
mod demo;
mod form;
mod layout;
mod orphan;
mod port_owner;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use flotilla_spec::AppSpec;
use tempfile::TempDir;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use self::{banner::Banner, child::Children, demo::Targets, form::form, layout::Layout};
use crate::{
    app::apply::apply,
    args::Shell,
    client::Client,
    exit::{Exit, Failure},
    spec_file,
};

/// All nodes must be up and agree within this.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at something that comes up in milliseconds.
const POLL: Duration = Duration::from_millis(20);
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
    let own = args.app.as_ref().map(|file| spec_file::read(file, &shell.output)).transpose()?;
    let home = Home::open(args.data_dir.as_deref())?;
    let layout =
        Layout::new(args.nodes, args.api_port, !args.one_address && layout::has_many_addresses(args.nodes));
    let demo_port = (!args.no_demo && args.app.is_none()).then_some(args.port);
    layout.check_free(demo_port)?;
    let mut children = Children::start(&layout, home.path())?;

    // Cancel-safe: what is dropped here is only the asking; the children are stopped below.
    let outcome = tokio::select! {
        served = serve(&args, own, shell, &layout, &home, &mut children) => served,
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
    own: Option<Vec<AppSpec>>,
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

    let mut client = Client::new(&layout.addresses());
    let targets = Targets::start().await?;
    let demo = match (&own, args.no_demo) {
        (None, false) => Some(demo::start(&client, layout, &targets, args.port, home.path()).await?),
        (Some(_), _) | (None, true) => None,
    };
    let banner =
        Banner { layout, status: &status, pids: children.pids(), formed_in, demo, kept: home.kept() };
    shell.output.emit("Dev", || banner.json(), |style| banner.render(style))?;

    // An app that does not come to serve is no reason to take the fleet away from its user.
    let apply_own = async {
        if let Some(specs) = own
            && let Err(failure) = apply(shell, &mut client, &specs).await
        {
            shell.output.error(&failure);
        }
        std::future::pending().await
    };
    tokio::select! {
        failed = children.keep_alive(shell) => failed,
        never = apply_own => never,
    }
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
