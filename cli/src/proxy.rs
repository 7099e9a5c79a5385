//! `flotilla proxy`: the data plane alone, in the foreground, without a cluster.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, error::ErrorKind};
use flotilla_node::{ProxyConfig, Standalone};
use flotilla_spec::AppSpec;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

use crate::{
    args::Shell,
    exit::{Exit, Failure},
    spec_file,
};

/// How often the file is read again. Reading a file of ten thousand apps takes a few milliseconds.
const LOOK: Duration = Duration::from_millis(500);
/// For sessions that are still there after SIGTERM.
const DRAIN: Duration = Duration::from_secs(30);

/// Run the data plane alone until SIGTERM or SIGINT
///
/// From a file, any app spec: it is applied again when the file changes, and on SIGHUP. A file with a
/// mistake changes nothing. Or from flags, one listener after the other.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla proxy --listen http:127.0.0.1:8080 --to 127.0.0.1:3000 --to 127.0.0.1:3001
  flotilla proxy --listen tcp:[::]:9000 --to 10.0.0.1:9000 --and --listen http:0.0.0.0:80 --to 10.0.0.2:80
  flotilla proxy --listen https:[::]:443 --cert web.pem --key web.key --to 127.0.0.1:3000
  flotilla proxy -f web.toml --workers 2")]
pub(crate) struct Args {
    /// Apps to serve, instead of --listen
    #[arg(short, long, conflicts_with = "listen", required_unless_present = "listen")]
    file: Option<PathBuf>,
    #[command(flatten)]
    listeners: Listeners,
    /// Where certificates are that a spec has by name: NAME.pem and NAME.key
    #[arg(long, value_name = "DIR", default_value = "certificates")]
    certificates: PathBuf,
    /// Traffic threads; 0 = one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    workers: usize,
    /// Connections at once over all listeners; 0 = no limit
    #[arg(long, value_name = "N", default_value_t = ProxyConfig::default().max_connections)]
    max_connections: usize,
    /// Connections at once from one client address; 0 = no limit
    #[arg(long, value_name = "N", default_value_t = ProxyConfig::default().max_connections_per_source)]
    max_connections_per_source: usize,
    /// Memory in bytes from 95 % of which on new connections are turned away; 0 = no limit [default: what the machine
    /// and the control groups allow]
    #[arg(long, value_name = "BYTES")]
    memory_budget: Option<u64>,
    /// Where this proxy stands, for apps with `balance.zone_aware`
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,
}

/// `--listen` begins a listener, and every `--to`, `--cert` and `--key` up to the next one belongs to it.
#[derive(Debug, Default)]
struct Listeners(Vec<Listener>);

#[derive(Debug)]
struct Listener {
    scheme: Scheme,
    address: SocketAddr,
    targets: Vec<String>,
    certificates: Vec<String>,
    keys: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Tcp,
    Http,
    /// The same as HTTP, which takes clients that begin with HTTP/2.
    H2c,
    Https,
    /// TCP inside TLS.
    Tls,
}

impl Scheme {
    const ALL: [(&'static str, Scheme); 5] = [
        ("tcp", Scheme::Tcp),
        ("http", Scheme::Http),
        ("h2c", Scheme::H2c),
        ("https", Scheme::Https),
        ("tls", Scheme::Tls),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, scheme)| *scheme == self).expect("all of them are in there").0
    }

    fn protocol(self) -> &'static str {
        match self {
            Scheme::Tcp | Scheme::Tls => "tcp",
            Scheme::Http | Scheme::H2c | Scheme::Https => "http",
        }
    }

    fn is_secure(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Tls)
    }
}

pub(crate) fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    shell.log_to_stderr_always();
    control.block_on(serve(args, shell))
}

async fn serve(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut look = tokio::time::interval(LOOK);
    let apps = match &args.file {
        Some(file) => spec_file::read(&file.display().to_string(), &shell.output)?,
        None => args.listeners.0.iter().map(Listener::app).collect::<Result<_, _>>()?,
    };
    let mut proxy = Standalone::start(args.config(), args.certificates.clone())?;
    // Apps may share one.
    let ports: BTreeSet<u16> = apps.iter().flat_map(|app| &app.listen).map(|listen| listen.port).collect();
    proxy.apply(apps.clone()).await.map_err(|err| Failure::new(Exit::Failed, err.to_string()))?;
    info!(?ports, "serving");
    let mut applied = apps;
    let mut seen = args.file.as_ref().and_then(|file| std::fs::read(file).ok());
    loop {
        // Cancel-safe: signals and intervals lose nothing.
        let forced = tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => true,
            _ = look.tick() => false,
        };
        let Some(file) = &args.file else { continue };
        let now = std::fs::read(file).ok();
        if now.is_none() || (now == seen && !forced) {
            continue;
        }
        seen = now;
        // What is wrong with the file has been said on stderr; what serves goes on.
        let Ok(apps) = spec_file::read(&file.display().to_string(), &shell.output) else { continue };
        if apps == applied {
            continue;
        }
        match proxy.apply(apps.clone()).await {
            Ok(changes) => {
                info!(changed = ?changes.changed, removed = ?changes.removed, "file applied");
                applied = apps;
            }
            Err(err) => error!(error = %err, "file not applied: what served before goes on"),
        }
    }
    info!("stopping");
    proxy.stop(DRAIN).await;
    Ok(Exit::Done)
}

impl Args {
    fn config(&self) -> ProxyConfig {
        let defaults = ProxyConfig::default();
        ProxyConfig {
            workers: if self.workers == 0 { defaults.workers } else { self.workers },
            max_connections: self.max_connections,
            max_connections_per_source: self.max_connections_per_source,
            memory_budget: self.memory_budget,
            zone: self.zone.clone(),
            ..defaults
        }
    }
}

impl Listener {
    fn app(&self) -> Result<AppSpec, Failure> {
        let Self { scheme, address, targets, certificates, keys } = self;
        let mut listen = json!({
            "port": address.port(),
            "address": address.ip().to_string(),
            "protocol": scheme.protocol(),
        });
        if scheme.is_secure() {
            let files = certificates.iter().zip(keys).map(|(cert, key)| json!({ "cert": cert, "key": key }));
            listen["tls"] = json!({ "certificate": files.collect::<Vec<_>>() });
        }
        let app = json!({
            "name": format!("{}-{}", scheme.name(), address.port()),
            "listen": [listen],
            "targets": targets,
        });
        let app =
            AppSpec::from_json(app.to_string().as_bytes()).map_err(|err| Failure::usage(err.to_string()))?;
        match flotilla_spec::validate(&app).into_iter().next() {
            None => Ok(app),
            Some(violation) => Err(Failure::usage(format!("{}: {}", violation.path, violation.message))),
        }
    }

    fn parse(typed: &str) -> Result<Self, String> {
        let (protocol, address) = typed
            .split_once(':')
            .ok_or_else(|| format!("`{typed}` is not PROTO:ADDR:PORT, as in http:0.0.0.0:80"))?;
        let scheme = Scheme::ALL.iter().find(|(name, _)| *name == protocol).map(|(_, scheme)| *scheme);
        let scheme = scheme
            .ok_or_else(|| format!("`{protocol}` is not a protocol: use http, https, h2c, tcp or tls"))?;
        let address = address
            .parse()
            .map_err(|_| format!("`{address}` is not ADDR:PORT, as in 127.0.0.1:80 or [::]:80"))?;
        Ok(Self { scheme, address, targets: Vec::new(), certificates: Vec::new(), keys: Vec::new() })
    }
}

impl clap::Args for Listeners {
    fn augment_args(command: Command) -> Command {
        command
            .arg(
                Arg::new("listen")
                    .long("listen")
                    .value_name("PROTO:ADDR:PORT")
                    .action(ArgAction::Append)
                    .requires("to")
                    .help("Where clients connect; PROTO is http, https, h2c, tcp, or tls for TCP inside TLS"),
            )
            .arg(
                Arg::new("to")
                    .long("to")
                    .value_name("ADDR:PORT")
                    .action(ArgAction::Append)
                    .requires("listen")
                    .help("A target of the listener before it; may be repeated"),
            )
            .arg(
                Arg::new("cert")
                    .long("cert")
                    .value_name("FILE")
                    .action(ArgAction::Append)
                    .requires_all(["listen", "key"])
                    .help("PEM, with the chain behind it, for the https or tls listener before it; may be repeated"),
            )
            .arg(
                Arg::new("key")
                    .long("key")
                    .value_name("FILE")
                    .action(ArgAction::Append)
                    .requires_all(["listen", "cert"])
                    .help("The private key of the certificate before it"),
            )
            .arg(
                Arg::new("and")
                    .long("and")
                    .action(ArgAction::Count)
                    .help("Between one listener and the next"),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Listeners {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let invalid = |why: String| clap::Error::raw(ErrorKind::ValueValidation, format!("{why}\n"));
        let typed = |id: &str| -> Vec<(usize, String)> {
            let indices = matches.indices_of(id).into_iter().flatten();
            indices.zip(matches.get_many::<String>(id).into_iter().flatten().cloned()).collect()
        };
        let mut listeners = Vec::new();
        for (at, listen) in typed("listen") {
            listeners.push((at, Listener::parse(&listen).map_err(invalid)?));
        }
        for flag in ["to", "cert", "key"] {
            for (at, value) in typed(flag) {
                let Some((_, listener)) = listeners.iter_mut().rev().find(|(begins, _)| *begins < at) else {
                    return Err(invalid(format!("--{flag} {value} comes before the first --listen")));
                };
                match flag {
                    "to" => listener.targets.push(value),
                    "cert" => listener.certificates.push(value),
                    _ => listener.keys.push(value),
                }
            }
        }
        for (_, Listener { scheme, address, targets, certificates, keys }) in &listeners {
            let what = format!("--listen {}:{address}", scheme.name());
            if targets.is_empty() {
                return Err(invalid(format!("{what} has no --to")));
            }
            if certificates.len() != keys.len() {
                return Err(invalid(format!("{what}: every --cert has its --key")));
            }
            if scheme.is_secure() == certificates.is_empty() {
                let why = if scheme.is_secure() { "needs --cert and --key" } else { "has no use for --cert" };
                return Err(invalid(format!("{what} {why}")));
            }
        }
        Ok(Self(listeners.into_iter().map(|(_, listener)| listener).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        args: Args,
    }

    fn check(typed: &str) -> Result<String, String> {
        let typed = Typed::try_parse_from(std::iter::once("proxy").chain(typed.split_whitespace()));
        let typed = typed.map_err(|err| err.to_string())?;
        let listeners = typed.args.listeners.0.iter().map(|listener| {
            let keys = listener.certificates.iter().zip(&listener.keys);
            let keys: String = keys.map(|(cert, key)| format!(" {cert}+{key}")).collect();
            format!("{} {}{keys} -> {}", listener.scheme.name(), listener.address, listener.targets.join(" "))
        });
        Ok(listeners.collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn every_target_belongs_to_the_listener_before_it() {
        assert_eq!(
            check("--listen http:127.0.0.1:80 --to a:1 --to b:2 --and --listen tcp:[::]:90 --to c:3")
                .unwrap(),
            "http 127.0.0.1:80 -> a:1 b:2, tcp [::]:90 -> c:3"
        );
        assert_eq!(
            check("--listen https:127.0.0.1:443 --cert a --key b --cert c --key d --to x:1 --and --listen h2c:[::]:1 --to y:2")
                .unwrap(),
            "https 127.0.0.1:443 a+b c+d -> x:1, h2c [::]:1 -> y:2"
        );
        for (typed, why) in [
            ("", "required"),
            ("--listen http:127.0.0.1:80", "--to"),
            ("--to a:1 --listen http:127.0.0.1:80", "comes before"),
            ("--listen http:127.0.0.1:80 --to a:1 --and --listen tcp:127.0.0.1:81", "has no --to"),
            ("--listen https:127.0.0.1:80 --to a:1", "needs --cert and --key"),
            ("--listen https:127.0.0.1:80 --to a:1 --cert a", "--key"),
            ("--listen https:127.0.0.1:80 --to a:1 --cert a --cert b --key c", "every --cert has its --key"),
            ("--listen http:127.0.0.1:80 --to a:1 --cert a --key b", "has no use for --cert"),
            ("--listen gopher:127.0.0.1:80 --to a:1", "not a protocol"),
            ("--listen http:80 --to a:1", "is not ADDR:PORT"),
            ("-f web.toml --listen http:127.0.0.1:80 --to a:1", "cannot be used with"),
        ] {
            let error = check(typed).expect_err(typed);
            assert!(error.contains(why), "{typed}: {error}");
        }
    }
}
