//! `flotilla bench …`: asks through a proxy and counts what comes back.
//!
//! It is for "does it spread, does it hold, what does it cost", from one machine and one thread; it is
//! no benchmark of a fleet at its limit.

mod address;
mod exchange;
mod histogram;
mod load;
mod report;

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use clap::Subcommand;
use tokio::signal;
use tokio_util::sync::CancellationToken;

use self::{
    address::{Address, Family},
    exchange::{Http, Protocol},
    load::{Load, Tally},
};
use crate::{
    args::Shell,
    exit::{Exit, Failure},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Ping(PingArgs),
    Balance(BalanceArgs),
    Simulate(SimulateArgs),
}

/// Connect and exchange a few bytes, one after the other
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla bench ping 127.0.0.1:9000 -n 20
  flotilla bench ping http://localhost:8080/healthz")]
pub(crate) struct PingArgs {
    #[command(flatten)]
    at: At,
    /// How many times
    #[arg(short, default_value = "10", value_name = "COUNT")]
    n: NonZeroU64,
    /// Bytes of a TCP payload
    #[arg(long, default_value = "64", value_name = "BYTES")]
    size: NonZeroU32,
}

/// Connect many times and count which target answers
///
/// A TCP target is asked with the line `whoami` and names itself in the line it answers; an HTTP
/// target names itself in the field `x-target`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla bench balance 127.0.0.1:9000 -n 300
  flotilla bench balance http://localhost:8080")]
pub(crate) struct BalanceArgs {
    #[command(flatten)]
    at: At,
    /// How many connections
    #[arg(short, default_value = "300", value_name = "COUNT")]
    n: NonZeroU64,
}

/// Many clients at once: what comes back, how fast, from whom, and what fails
///
/// Each client sends a payload and waits until all of it has come back, on a connection that it
/// keeps unless told otherwise. It goes on after errors. Ctrl-C ends it with the counts so far.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla bench simulate 127.0.0.1:9000 -c 50 -n 10000
  flotilla bench simulate [::1]:9000 --reconnect --size 65536 --identify
  flotilla bench simulate http://localhost:8080 --rate 500 --duration 30s")]
pub(crate) struct SimulateArgs {
    #[command(flatten)]
    at: At,
    /// Clients at the same time
    #[arg(short, long = "connections", default_value = "50", value_name = "COUNT")]
    c: NonZeroU32,
    /// Exchanges in all; 10000 unless there is a --duration
    #[arg(short, value_name = "COUNT")]
    n: Option<NonZeroU64>,
    /// Stop after this long
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Exchanges per second in all; as many as there can be unless given
    #[arg(long, value_name = "COUNT")]
    rate: Option<NonZeroU32>,
    /// Bytes of a payload: 64 for TCP; for HTTP a POST with a body instead of a GET
    #[arg(long, value_name = "BYTES")]
    size: Option<NonZeroU32>,
    /// A new connection for every exchange
    #[arg(long)]
    reconnect: bool,
    /// Ask each TCP connection with the line `whoami` for the name of its target
    #[arg(long)]
    identify: bool,
}

/// Where to, and how.
#[derive(Debug, clap::Args)]
struct At {
    /// host:port, [v6]:port or http://host:port/path
    #[arg(value_name = "ADDR", value_parser = Address::parse)]
    address: Address,
    /// HTTP requests rather than bytes that are echoed
    #[arg(long)]
    http: bool,
    /// IPv4 only
    #[arg(short = '4', conflicts_with = "v6")]
    v4: bool,
    /// IPv6 only
    #[arg(short = '6')]
    v6: bool,
}

pub(crate) fn run(verb: Verb, shell: &Shell) -> Result<Exit, Failure> {
    match verb {
        Verb::Ping(args) => shell.block_on(args.run(shell)),
        Verb::Balance(args) => shell.block_on(args.run(shell)),
        Verb::Simulate(args) => shell.block_on(args.run(shell)),
    }
}

impl PingArgs {
    pub(crate) async fn run(self, shell: &Shell) -> Result<Exit, Failure> {
        let protocol = self.at.protocol(Some(self.size), false).without_body();
        let load = Load {
            exchanges: Some(self.n.get()),
            is_reconnecting: true,
            ..self.at.load(protocol, shell).await?
        };
        let (exit, _) = finish("Ping", &self.at, load, shell).await?;
        Ok(exit)
    }
}

impl BalanceArgs {
    pub(crate) async fn run(self, shell: &Shell) -> Result<Exit, Failure> {
        /// Enough to be quick, few enough that a policy that counts connections sees them come and go.
        const CONNECTIONS: u32 = 10;
        let protocol = self.at.protocol(None, true).without_body();
        let load = Load {
            connections: CONNECTIONS,
            exchanges: Some(self.n.get()),
            is_reconnecting: true,
            ..self.at.load(protocol, shell).await?
        };
        let (exit, tally) = finish("Balance", &self.at, load, shell).await?;
        if let Some(hint) = report::hint(&tally) {
            shell.output.note(hint);
        }
        Ok(exit)
    }
}

impl SimulateArgs {
    pub(crate) async fn run(self, shell: &Shell) -> Result<Exit, Failure> {
        const EXCHANGES: NonZeroU64 = NonZeroU64::new(10_000).expect("not zero");
        const SIZE: NonZeroU32 = NonZeroU32::new(64).expect("not zero");
        let size = if self.at.is_http() { self.size } else { self.size.or(Some(SIZE)) };
        let exchanges = if self.duration.is_some() { self.n } else { self.n.or(Some(EXCHANGES)) };
        let protocol = self.at.protocol(size, self.identify);
        let load = Load {
            connections: self.c.get(),
            exchanges: exchanges.map(NonZeroU64::get),
            duration: self.duration,
            rate: self.rate.map(NonZeroU32::get),
            is_reconnecting: self.reconnect,
            ..self.at.load(protocol, shell).await?
        };
        let (exit, tally) = finish("Simulation", &self.at, load, shell).await?;
        if let Some(hint) = report::hint(&tally).filter(|_| self.identify) {
            shell.output.note(hint);
        }
        Ok(exit)
    }
}

impl At {
    fn is_http(&self) -> bool {
        self.http || self.address.path.is_some()
    }

    fn family(&self) -> Family {
        match (self.v4, self.v6) {
            (true, _) => Family::V4,
            (_, true) => Family::V6,
            (false, false) => Family::Any,
        }
    }

    fn protocol(&self, size: Option<NonZeroU32>, is_identifying: bool) -> Protocol {
        match self.is_http() {
            true => Protocol::Http(Http {
                host: self.address.authority(),
                path: self.address.path.clone().unwrap_or_else(|| "/".to_owned()),
                body_bytes: size.map_or(0, NonZeroU32::get),
            }),
            false => Protocol::Echo { payload_bytes: size.map_or(0, NonZeroU32::get), is_identifying },
        }
    }

    /// One client that goes on for ever; the verbs set their bounds.
    async fn load(&self, protocol: Protocol, shell: &Shell) -> Result<Load, Failure> {
        Ok(Load {
            addresses: self.address.resolve(self.family()).await?,
            protocol,
            connections: 1,
            exchanges: None,
            duration: None,
            rate: None,
            is_reconnecting: false,
            timeout: shell.answer_within(),
        })
    }
}

impl Protocol {
    /// A GET.
    fn without_body(mut self) -> Self {
        if let Self::Http(http) = &mut self {
            http.body_bytes = 0;
        }
        self
    }
}

/// Runs it to its end or to Ctrl-C, and shows what there is then.
async fn finish(kind: &str, at: &At, load: Load, shell: &Shell) -> Result<(Exit, Tally), Failure> {
    let stop = CancellationToken::new();
    let running = load::run(load, stop.clone());
    tokio::pin!(running);
    // Both arms are pinned or cancel-safe: the load goes on after the signal, until its clients notice.
    let (tally, is_interrupted): (Tally, bool) = tokio::select! {
        tally = &mut running => (tally, false),
        Ok(()) = signal::ctrl_c() => {
            stop.cancel();
            (running.await, true)
        }
    };
    let output = &shell.output;
    output.emit(
        kind,
        || report::document(&at.address.to_string(), &tally),
        |style| report::render(&tally, output.headers, style),
    )?;
    let exit = match (is_interrupted, tally.failed()) {
        (true, _) => Exit::Interrupted,
        (false, 0) => Exit::Done,
        (false, _) => Exit::Failed,
    };
    Ok((exit, tally))
}
