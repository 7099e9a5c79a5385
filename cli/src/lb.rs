//! `flotilla lb export`: where apps serve, for a load balancer that the fleet does not reach.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Subcommand, ValueEnum};
use flotilla_api::v1::{ExportRequest, export_request};
use tokio::{process::Command, time::sleep};

use crate::{
    args::Shell,
    client::fleet,
    exit::{Exit, Failure},
};

/// Before a watch that broke off is begun again.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Export(Args),
}

/// Print where apps serve, as the configuration of a load balancer
///
/// Whole files, to start from; with --servers-only what changes when nodes do, to be included by a file of
/// yours (haproxy, nginx) or read beside it (envoy). With --watch the file is kept up to date and a command is
/// run after each change, on the machine of the load balancer.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla lb export haproxy > haproxy.cfg
  flotilla lb export nginx --servers-only --file /etc/nginx/flotilla.conf --watch --exec 'nginx -t && nginx -s reload'
  flotilla lb export prometheus-sd --file nodes.json")]
pub(crate) struct Args {
    format: Format,
    /// Only this app; may be repeated
    #[arg(long = "app", value_name = "APP")]
    apps: Vec<String>,
    /// Backends, upstreams or load assignments alone
    #[arg(long)]
    servers_only: bool,
    /// Write it there, and not to stdout
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Go on after changes
    #[arg(short, long)]
    watch: bool,
    /// Run this after the file was written, by sh -c
    #[arg(long, value_name = "COMMAND", requires = "file")]
    exec: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// haproxy.cfg
    Haproxy,
    /// nginx.conf, with the stream module
    Nginx,
    /// A bootstrap, or load assignments for a path_config_source
    Envoy,
    /// Services, their endpoints and their states
    Json,
    /// The nodes' metrics ports, for file_sd_configs
    PrometheusSd,
}

pub(crate) fn run(verb: Verb, shell: &Shell) -> Result<Exit, Failure> {
    match verb {
        Verb::Export(args) => shell.block_on(export(args, shell)),
    }
}

async fn export(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    let format = match args.format {
        Format::Haproxy => export_request::Format::Haproxy,
        Format::Nginx => export_request::Format::Nginx,
        Format::Envoy => export_request::Format::Envoy,
        Format::Json => export_request::Format::Json,
        Format::PrometheusSd => export_request::Format::PrometheusSd,
    };
    let request = ExportRequest {
        format: format.into(),
        apps: args.apps.clone(),
        servers_only: args.servers_only,
        watch: args.watch,
    };
    let client = shell.client();
    let mut last = None;
    loop {
        let opened = client.open(async |channel| fleet(channel).export(request.clone()).await).await;
        let broken = match opened {
            Ok(mut opened) => loop {
                match opened.stream.message().await {
                    Ok(Some(export)) => {
                        if last.as_ref() != Some(&export.text) {
                            put(&args, shell, &export.text).await?;
                            last = Some(export.text);
                        }
                    }
                    Ok(None) => break None,
                    Err(status) => {
                        client.avoid(opened.node);
                        break Some(status);
                    }
                }
            },
            Err(status) => Some(status),
        };
        match broken {
            Some(status) if !args.watch || !crate::exit::is_transient(&status) => return Err(status.into()),
            None if !args.watch => return Ok(Exit::Done),
            Some(_) | None => sleep(RETRY).await,
        }
    }
}

async fn put(args: &Args, shell: &Shell, text: &str) -> Result<(), Failure> {
    let Some(file) = &args.file else { return shell.output.print(text) };
    write(file, text)
        .map_err(|err| Failure::new(Exit::Failed, format!("write {}: {err}", file.display())))?;
    shell.output.note(format!("wrote {}", file.display()));
    if let Some(command) = &args.exec {
        let status = Command::new("sh").arg("-c").arg(command).status().await?;
        if !status.success() {
            let failure = format!("`{command}` ended with {status}");
            if !args.watch {
                return Err(Failure::new(Exit::Failed, failure));
            }
            shell.output.complain(&failure);
        }
    }
    Ok(())
}

/// Nobody reads half a file.
fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(".new");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, file)
}
