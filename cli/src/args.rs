//! The command line as typed: global flags and the tree of verbs. Each verb keeps its own flags.

use std::{future::Future, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{
    app, balancer, bench,
    client::Client,
    cluster, completion, dev, events,
    exit::{Exit, Failure},
    explain, lb, node,
    output::{ColorChoice, Format, Output},
    proxy, rollout,
};

#[derive(Debug, Parser)]
#[command(
    name = "flotilla",
    version,
    about = "A fleet of proxies that agree with each other",
    long_about = "A fleet of proxies that agree with each other: every node carries traffic, and together they \
                  decide which app listens where.",
    after_help = "Examples:
  flotilla dev                              three nodes and a demo app on this machine
  flotilla app apply -f web.toml            create or change apps, and wait until they serve
  flotilla cluster status                   who leads, who lags

Exit codes:
  0 done      1 failed       2 usage or invalid spec    3 unreachable       4 no leader
  5 version conflict         6 not found               10 changes pending (app plan --exit-code)
  130 interrupted",
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 110
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// Nodes to ask, comma-separated, tried in order
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_ADDR",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400"
    )]
    addr: Vec<String>,
    /// How answers are written; wide is a table with more columns
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
    /// Say nothing but answers and errors
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Say more about what is done; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// When to use colour
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t)]
    color: ColorChoice,
    /// How long to wait for an answer (default 30s), or for a rollout (default 10m)
    #[arg(long, global = true, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Leave out the first line of tables
    #[arg(long, global = true)]
    no_headers: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Dev(dev::Args),
    /// Run nodes and look at them
    #[command(
        subcommand,
        after_help = "Examples:
  flotilla node run -f /etc/flotilla/node.toml
  flotilla node list --watch"
    )]
    Node(node::Verb),
    Proxy(proxy::Args),
    /// Make a cluster, join it, ask for its health
    #[command(
        subcommand,
        after_help = "Examples:
  flotilla cluster init --name fra
  flotilla --addr 10.0.0.2 cluster join 10.0.0.1
  flotilla cluster status"
    )]
    Cluster(cluster::Verb),
    /// Say what the fleet carries
    #[command(
        subcommand,
        after_help = "Examples:
  flotilla app plan -f web.toml
  flotilla app apply -f web.toml
  flotilla app rollback web"
    )]
    App(app::Verb),
    /// Follow a change through the fleet
    #[command(
        subcommand,
        after_help = "Examples:
  flotilla rollout list
  flotilla rollout status web --watch
  flotilla rollout events web"
    )]
    Rollout(rollout::Verb),
    /// Tell load balancers outside where apps serve, and see whether they know
    #[command(
        subcommand,
        after_help = "Examples:
  flotilla balancer list
  flotilla balancer add haproxy edge --address 10.0.0.9:9999 --app web"
    )]
    Balancer(balancer::Verb),
    /// Write the configuration of a load balancer that the fleet does not reach
    #[command(
        subcommand,
        after_help = "Examples:
  flotilla lb export haproxy > haproxy.cfg
  flotilla lb export nginx --servers-only --file /etc/nginx/flotilla.conf --watch --exec 'nginx -s reload'"
    )]
    Lb(lb::Verb),
    Events(events::Args),
    /// Ask through a proxy and count what comes back: also as `flotilla ping` and so on
    #[command(
        subcommand,
        after_help = "Examples:
  flotilla bench ping http://localhost:8080
  flotilla bench balance http://localhost:8080 -n 300"
    )]
    Bench(bench::Verb),
    #[command(hide = true)]
    Ping(bench::PingArgs),
    #[command(hide = true)]
    Balance(bench::BalanceArgs),
    #[command(hide = true)]
    Simulate(bench::SimulateArgs),
    Completion(completion::Args),
    Explain(explain::Args),
    /// Print the version
    #[command(after_help = "Examples:
  flotilla version -o json")]
    Version,
}

/// What every verb is given: the global flags, resolved.
#[derive(Debug)]
pub(crate) struct Shell {
    pub(crate) output: Output,
    addresses: Vec<String>,
    timeout: Option<Duration>,
    pub(crate) verbose: u8,
}

impl Globals {
    pub(crate) fn shell(&self) -> Shell {
        Shell {
            output: Output::new(self.output, self.quiet, !self.no_headers, self.color),
            addresses: self.addr.iter().map(|address| with_port(address.trim())).collect(),
            timeout: self.timeout,
            verbose: self.verbose,
        }
    }
}

impl Shell {
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.addresses)
    }

    /// `--timeout` for one answer.
    pub(crate) fn answer_within(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(30))
    }

    /// `--timeout` for a rollout.
    pub(crate) fn rollout_within(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(600))
    }

    /// Runs a verb that talks to nodes.
    pub(crate) fn block_on(
        &self,
        verb: impl Future<Output = Result<Exit, Failure>>,
    ) -> Result<Exit, Failure> {
        self.log_to_stderr();
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(verb)
    }

    /// `-v` shows what the client tries, `-vv` what its libraries do.
    fn log_to_stderr(&self) {
        match self.verbose {
            0 => {}
            1 => self.log("flotilla_cli=debug"),
            _ => self.log("debug"),
        }
    }

    /// For a verb that runs on and has no other way to say what it does.
    pub(crate) fn log_to_stderr_always(&self) {
        match (self.output.quiet, self.verbose) {
            (true, _) => self.log("warn"),
            (false, 0) => self.log("info"),
            (false, _) => self.log("debug"),
        }
    }

    fn log(&self, level: &str) {
        // A logger that is there already (a test's) is as good.
        drop(
            tracing_subscriber::fmt()
                .with_env_filter(level)
                .with_writer(std::io::stderr)
                .with_ansi(self.output.stderr.color)
                .try_init(),
        );
    }
}

/// `--addr 10.0.0.7` means the gRPC port.
pub(crate) fn with_port(address: &str) -> String {
    let has_port = address.rsplit_once(':').is_some_and(|(host, port)| {
        port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
    });
    match (has_port, address.contains(':') && !address.ends_with(']')) {
        (true, _) => address.to_owned(),
        (false, true) => format!("[{address}]:7400"),
        (false, false) => format!("{address}:7400"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_of_verbs_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_address_without_a_port_means_the_grpc_port() {
        for (typed, meant) in [
            ("10.0.0.7", "10.0.0.7:7400"),
            ("n1.example:9", "n1.example:9"),
            ("::1", "[::1]:7400"),
            ("[::1]", "[::1]:7400"),
            ("[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(with_port(typed), meant);
        }
    }
}
