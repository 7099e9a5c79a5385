//! The demo app: three targets that say who they are, and two versions of a spec for them.

use std::{
    convert::Infallible,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use flotilla_api::v1::{AppChange, ApplyAppsRequest, ListPortsRequest};
use flotilla_spec::Format;
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{POLL, START_TIMEOUT, layout::Layout, not_up};
use crate::{
    client::{Client, fleet},
    exit::{Exit, Failure},
    follow::{self, Followed},
};

pub(super) const APP: &str = "hello";
const TARGETS: usize = 3;
/// Connections of one target at a time; the next one waits.
const CONNECTIONS_MAX: usize = 4096;
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// The demo app as it serves.
pub(super) struct Demo {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) targets: usize,
    /// File of the next version.
    pub(super) next: PathBuf,
    pub(super) took: Duration,
}

/// Applies the app, and waits until it answers on every node.
pub(super) async fn start(
    client: &Client,
    layout: &Layout,
    targets: &Targets,
    port: u16,
    home: &Path,
) -> Result<Demo, Failure> {
    let started = Instant::now();
    let port = layout.demo_port(port);
    apply(client, &spec(port, &targets.addresses)).await?;
    let addresses = serving(client, layout).await?;
    let next = home.join("hello-v2.toml");
    fs::write(&next, next_spec(port, &targets.addresses))?;
    Ok(Demo { addresses, targets: targets.addresses.len(), next, took: started.elapsed() })
}

async fn apply(client: &Client, toml: &str) -> Result<(), Failure> {
    let specs = flotilla_spec::parse(toml, Format::Toml)
        .map_err(|_| Failure::new(Exit::Failed, "the demo app is not a valid spec"))?;
    let apps = specs.iter().map(|spec| AppChange { spec: spec.to_json(), if_version: None }).collect();
    let request = ApplyAppsRequest { request: Some(client.request_id()), apps };
    let reply =
        client.write(START_TIMEOUT, async |channel| fleet(channel).apply_apps(request.clone()).await).await?;
    let deadline = Instant::now() + START_TIMEOUT;
    for app in reply.apps {
        let followed = Followed { app: app.app, generation: app.generation };
        let rollout = follow::finished(client, &followed, deadline).await?;
        if rollout.state != "completed" {
            return Err(not_up(&format!("the demo app does not serve: {}", rollout.reason)));
        }
    }
    Ok(())
}

/// Serves until it is dropped.
pub(super) struct Targets {
    addresses: Vec<SocketAddr>,
    _accepting: JoinSet<()>,
}

impl Targets {
    pub(super) async fn start() -> Result<Self, Failure> {
        let mut accepting = JoinSet::new();
        let mut addresses = Vec::new();
        for number in 1..=TARGETS {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            addresses.push(listener.local_addr()?);
            accepting.spawn(accept(listener, format!("target-{number}")));
        }
        Ok(Self { addresses, _accepting: accepting })
    }
}

async fn accept(listener: TcpListener, name: String) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        while connections.try_join_next().is_some() {}
        // Out of descriptors, say: the next attempt may have more luck.
        let Ok((stream, _)) = listener.accept().await else {
            sleep(POLL).await;
            continue;
        };
        let name = name.clone();
        connections.spawn(async move {
            let answer = service_fn(|request| {
                let answer = answer(&request, &name);
                async { Ok::<_, Infallible>(answer) }
            });
            // A client that went away is the client's business.
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await);
        });
    }
}

fn answer(request: &Request<Incoming>, name: &str) -> Response<Full<Bytes>> {
    let body = match request.uri().path() {
        "/healthz" => "ok\n".to_owned(),
        _ => format!("hello from {name}\n"),
    };
    let response = Response::builder().header(CONTENT_TYPE, "text/plain").header("x-target", name);
    response.body(Full::from(body)).expect("the names of targets are header values")
}

/// The app as `flotilla dev` starts it. Nothing serves before it, so nothing is worth waiting for.
fn spec(port: u16, targets: &[SocketAddr]) -> String {
    file("Three targets that say who they are.", port, targets)
}

/// The next version, for the user to apply: `target-1` gets no more traffic.
fn next_spec(port: u16, targets: &[SocketAddr]) -> String {
    file("The second version leaves target-1 out.", port, targets.get(1..).unwrap_or_default())
}

fn file(description: &str, port: u16, targets: &[SocketAddr]) -> String {
    let targets: Vec<String> = targets.iter().map(|target| format!("\"{target}\"")).collect();
    format!(
        "[[app]]\nname = \"{APP}\"\ndescription = \"{description}\"\nlisten = [\"http:{port}\"]\n\
         targets = [{}]\ncheck = {{ type = \"http\", path = \"/healthz\", interval = \"1s\", rise = 1 }}\n\n\
         [app.rollout]\nmin_healthy = \"0s\"\ndrain = \"5s\"\n",
        targets.join(", ")
    )
}

/// Where the app answers on each node, once it does on all of them.
async fn serving(client: &Client, layout: &Layout) -> Result<Vec<SocketAddr>, Failure> {
    let request = ListPortsRequest { app: APP.to_owned() };
    let reply = client.read(async |channel| fleet(channel).list_ports(request.clone()).await).await?;
    let ip_of = |name: &str| -> Option<IpAddr> {
        layout.nodes.iter().find(|node| node.name == name).map(|node| node.traffic)
    };
    let mut addresses: Vec<SocketAddr> = reply
        .ports
        .iter()
        .filter(|port| port.desired == "serve")
        .filter_map(|port| Some(SocketAddr::new(ip_of(&port.node)?, u16::try_from(port.port).ok()?)))
        .collect();
    addresses.sort();
    addresses.dedup();
    let deadline = Instant::now() + START_TIMEOUT;
    for address in &addresses {
        while !answers(*address).await {
            if Instant::now() > deadline {
                return Err(not_up(&format!("the demo app does not answer at http://{address}")));
            }
            sleep(POLL).await;
        }
    }
    Ok(addresses)
}

async fn answers(address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!("GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut response = Vec::new();
        stream.take(4096).read_to_end(&mut response).await.ok()?;
        Some(response.starts_with(b"HTTP/1.1 200"))
    };
    timeout(PROBE_TIMEOUT, ask).await.is_ok_and(|answered| answered == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_valid_and_differ_in_their_targets() {
        let targets: Vec<SocketAddr> =
            [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port))).to_vec();
        let parse =
            |text: String| flotilla_spec::parse(&text, flotilla_spec::Format::Toml).unwrap().remove(0);
        let (first, next) = (parse(spec(8080, &targets)), parse(next_spec(8080, &targets)));
        assert_eq!(first.targets.len(), 3);
        assert_eq!(next.targets[..], first.targets[1..]);
        assert_eq!(first.name, next.name);
    }

    #[tokio::test]
    async fn targets_answer_over_http() {
        let targets = Targets::start().await.unwrap();
        assert_eq!(targets.addresses.len(), TARGETS);
        for address in &targets.addresses {
            assert!(answers(*address).await);
        }
    }
}
