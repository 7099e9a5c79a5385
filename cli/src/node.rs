//! `flotilla node …`: runs a node, lists those that run, and takes them in and out.

mod cordon;
mod drain;
mod list;
mod remove;
mod set;
mod uncordon;
mod undrain;

use std::{net::IpAddr, path::PathBuf};

use clap::Subcommand;
use flotilla_node::config::{ConfigFile, LogFormat};

use crate::{
    args::Shell,
    exit::{Exit, Failure},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Run(Box<RunArgs>),
    List(list::Args),
    Cordon(cordon::Args),
    Uncordon(uncordon::Args),
    Drain(drain::Args),
    Undrain(undrain::Args),
    Remove(remove::Args),
}

/// Run a node until SIGTERM or SIGINT
///
/// Settings come from the file; a flag or its environment variable overrules the file.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = "Examples:
  flotilla node run -f /etc/flotilla/node.toml
  flotilla node run --name n1 --data-dir ./n1 --cluster-listen 127.0.0.1:7400
  flotilla node run -f node.toml --join 10.0.0.1,10.0.0.2")]
pub(crate) struct RunArgs {
    /// Settings of the node (TOML)
    #[arg(short, long, env = "FLOTILLA_NODE_FILE")]
    file: Option<PathBuf>,
    /// Name in the cluster [default: the host's]
    #[arg(long, env = "FLOTILLA_NODE_NAME")]
    name: Option<String>,
    #[arg(long, env = "FLOTILLA_REGION")]
    region: Option<String>,
    /// Failure domain inside the region
    #[arg(long, env = "FLOTILLA_ZONE")]
    zone: Option<String>,
    /// For `placement.require`; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Where the node keeps what the cluster agreed on [default: /var/lib/flotilla]
    #[arg(long, env = "FLOTILLA_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where peers and the CLI connect [default: :7400]
    #[arg(long, env = "FLOTILLA_CLUSTER_LISTEN", value_name = "HOST:PORT")]
    cluster_listen: Option<String>,
    /// How peers reach this node, when it listens on every address
    #[arg(long, env = "FLOTILLA_CLUSTER_ADVERTISE", value_name = "HOST:PORT")]
    cluster_advertise: Option<String>,
    /// Health and metrics over HTTP [default: 127.0.0.1:7401]
    #[arg(long, env = "FLOTILLA_ADMIN_LISTEN", value_name = "HOST:PORT")]
    admin_listen: Option<String>,
    /// Where apps that listen on every address listen on this node
    #[arg(long, env = "FLOTILLA_TRAFFIC_ADDRESS", value_name = "IP")]
    traffic_address: Option<IpAddr>,
    /// Members of the cluster to join, comma-separated
    #[arg(long, env = "FLOTILLA_JOIN", value_name = "ADDR", value_delimiter = ',')]
    join: Vec<String>,
    /// Ports for apps that ask for port 0 [default: 20000-29999]
    #[arg(long, env = "FLOTILLA_PORT_POOL", value_name = "FROM-TO")]
    port_pool: Option<String>,
    /// Traffic threads; 0 = one per core
    #[arg(long, env = "FLOTILLA_WORKERS", value_name = "N")]
    workers: Option<usize>,
    /// What is logged: info, or flotilla_node=debug,info
    #[arg(long, env = "FLOTILLA_LOG", value_name = "FILTER")]
    log_level: Option<String>,
    #[arg(long, env = "FLOTILLA_LOG_FORMAT", value_enum, value_name = "FORMAT")]
    log_format: Option<LogForm>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogForm {
    Text,
    Json,
}

pub(crate) fn run(verb: Verb, shell: &Shell) -> Result<Exit, Failure> {
    match verb {
        Verb::Run(args) => run_node(*args),
        Verb::List(args) => shell.block_on(list::run(args, shell)),
        Verb::Cordon(args) => shell.block_on(cordon::run(args, shell)),
        Verb::Uncordon(args) => shell.block_on(uncordon::run(args, shell)),
        Verb::Drain(args) => shell.block_on(drain::run(args, shell)),
        Verb::Undrain(args) => shell.block_on(undrain::run(args, shell)),
        Verb::Remove(args) => shell.block_on(remove::run(args, shell)),
    }
}

/// Blocks until the node was told to stop. The node makes its own runtimes.
fn run_node(args: RunArgs) -> Result<Exit, Failure> {
    let invalid = |err: anyhow::Error| {
        Failure::usage(format!("{err:#}")).help("`flotilla node run --help` lists the settings")
    };
    let file = match &args.file {
        Some(path) => ConfigFile::read(path).map_err(invalid)?,
        None => ConfigFile::default(),
    };
    let config = merge(file, args).resolve().map_err(invalid)?;
    flotilla_node::run(config)?;
    Ok(Exit::Done)
}

/// Flags and environment over the file.
fn merge(mut file: ConfigFile, args: RunArgs) -> ConfigFile {
    fn set<T>(field: &mut Option<T>, typed: Option<T>) {
        if typed.is_some() {
            *field = typed;
        }
    }
    set(&mut file.name, args.name);
    set(&mut file.region, args.region);
    set(&mut file.zone, args.zone);
    file.labels.extend(args.labels);
    set(&mut file.data_dir, args.data_dir);
    set(&mut file.cluster.listen, args.cluster_listen);
    set(&mut file.cluster.advertise, args.cluster_advertise);
    set(&mut file.admin.listen, args.admin_listen);
    set(&mut file.traffic.address, args.traffic_address);
    if !args.join.is_empty() {
        file.join.addresses = args.join;
    }
    set(&mut file.ports.pool, args.port_pool);
    set(&mut file.limits.workers, args.workers);
    set(&mut file.log.level, args.log_level);
    set(
        &mut file.log.format,
        args.log_format.map(|form| match form {
            LogForm::Text => LogFormat::Text,
            LogForm::Json => LogFormat::Json,
        }),
    );
    file
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE is expected".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_overrules_the_file_and_leaves_the_rest() {
        let mut file = ConfigFile {
            name: Some("file".to_owned()),
            zone: Some("a".to_owned()),
            labels: [("disk".to_owned(), "ssd".to_owned()), ("rack".to_owned(), "1".to_owned())].into(),
            ..ConfigFile::default()
        };
        file.join.addresses = vec!["10.0.0.1:7400".to_owned()];
        let args = RunArgs {
            name: Some("flag".to_owned()),
            labels: vec![label("rack=2").unwrap()],
            admin_listen: Some("127.0.0.1:9".to_owned()),
            ..RunArgs::default()
        };
        let merged = merge(file, args);
        assert_eq!(merged.name.as_deref(), Some("flag"));
        assert_eq!(merged.zone.as_deref(), Some("a"));
        assert_eq!(
            merged.labels,
            [("disk".to_owned(), "ssd".to_owned()), ("rack".to_owned(), "2".to_owned())].into()
        );
        assert_eq!(merged.admin.listen.as_deref(), Some("127.0.0.1:9"));
        assert_eq!(merged.join.addresses, ["10.0.0.1:7400"]);
        assert_eq!(label("novalue"), Err("KEY=VALUE is expected".to_owned()));
    }
}
