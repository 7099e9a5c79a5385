//! `flotilla app validate`: reads specs and asks nobody.

use flotilla_spec::{AppSpec, CheckKind, Listen};
use serde_json::{Value, json};

use crate::{
    args::Shell,
    exit::{Exit, Failure},
    output::Style,
    spec_file,
    table::{self, number, text},
};

/// Check specs without asking the fleet
///
/// Finds everything that is wrong with the files themselves. Whether a port is free and a node fits
/// is known to the fleet: `flotilla app plan` asks it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla app validate -f web.toml
  flotilla app validate -f apps/ -o json      mistakes as JSON on stderr, exit code 2")]
pub(crate) struct Args {
    /// File (TOML, YAML or JSON), folder of files, or - for stdin
    #[arg(short, long, value_name = "FILE|DIR|-")]
    file: String,
}

pub(crate) fn run(args: &Args, shell: &Shell) -> Result<Exit, Failure> {
    let output = &shell.output;
    let apps = spec_file::read(&args.file, output)?;
    output.emit(
        "Validation",
        || json!({ "apps": apps.iter().map(document).collect::<Value>() }),
        |style| render(&apps, output.headers, style),
    )?;
    Ok(Exit::Done)
}

fn document(app: &AppSpec) -> Value {
    json!({
        "name": app.name.as_str(),
        "listen": app.listen.iter().map(port).collect::<Vec<_>>(),
        "targets": target_count(app),
        "check": check(app),
    })
}

fn render(apps: &[AppSpec], headers: bool, style: Style) -> String {
    let columns = ["APP", "LISTEN", "TARGETS", "CHECK"];
    let rows = apps.iter().map(|app| {
        let ports = app.listen.iter().map(port).collect::<Vec<_>>().join(" ");
        vec![text(app.name.as_str()), text(ports), number(target_count(app).to_string()), text(check(app))]
    });
    let table = table::render(style, headers.then_some(&columns), rows.collect());
    let (count, ports) = (apps.len(), apps.iter().map(|app| app.listen.len()).sum::<usize>());
    let summary = format!("✓ valid: {}, {}", counted(count, "app"), counted(ports, "port"));
    format!("{table}{}\n", style.green(&summary))
}

/// As short as it can be written in a spec.
fn port(listen: &Listen) -> String {
    let Listen { port, address, protocol, tls, .. } = listen;
    let protocol = match (protocol, tls) {
        (flotilla_spec::Protocol::Tcp, None) => "tcp",
        (flotilla_spec::Protocol::Tcp, Some(_)) => "tls",
        (flotilla_spec::Protocol::Http, None) => "http",
        (flotilla_spec::Protocol::Http, Some(_)) => "https",
    };
    match *address == Listen::default().address {
        true => format!("{protocol}:{port}"),
        false => format!("{protocol}:{}", std::net::SocketAddr::new(*address, *port)),
    }
}

fn target_count(app: &AppSpec) -> usize {
    app.targets.len() + app.pool.values().map(|pool| pool.targets.len()).sum::<usize>()
}

fn check(app: &AppSpec) -> &str {
    match app.check.kind {
        CheckKind::Tcp => "tcp",
        CheckKind::Http => &app.check.path,
        CheckKind::Grpc => "grpc",
        CheckKind::None => "none",
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use flotilla_spec::{Format, parse};

    use super::*;

    #[test]
    fn a_summary_names_what_each_app_is_about() {
        let text = "
[[app]]
name = 'web'
listen = ['http:8080', { port = 9000, address = '127.0.0.1' }]
targets = ['a:1']
check = '/healthz'
[app.pool.canary]
targets = ['b:1', 'c:1']
[[app]]
name = 'mail'
listen = [25]
targets = ['d:25']
";
        let apps = parse(text, Format::Toml).unwrap();
        assert_eq!(
            render(&apps, true, Style::PLAIN),
            "APP   LISTEN                        TARGETS  CHECK
web   http:8080 tcp:127.0.0.1:9000        3  /healthz
mail  tcp:25                              1  tcp
✓ valid: 2 apps, 3 ports
"
        );
    }
}
