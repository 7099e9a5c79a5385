//! One question, one answer. `Err` says in a few words of plain English what was wrong with it.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use bytes::Bytes;
use flotilla_spec::{Probe, ProbeType};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
};

use super::{Key, ProbeSettings};

/// Of an answer that is searched for `body`; what comes later is not looked at.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Of what a command says; the rest is read and forgotten.
const OUTPUT_BYTES_MAX: usize = 4 << 10;
/// Of a command's output that goes into a reason.
const REASON_BYTES_MAX: usize = 200;
/// A proxy accepts before it knows whether there is anybody behind it: a session that is still open
/// after this has found somebody, or is about to be refused by the check of its target.
const SETTLED: Duration = Duration::from_millis(250);
const USER_AGENT: &str = "flotilla-probe";

pub(super) async fn ask(
    probe: &Probe,
    door: SocketAddr,
    key: &Key,
    settings: &ProbeSettings,
) -> Result<(), String> {
    let asked = async {
        match probe.ask {
            ProbeType::Http => http(probe, door).await,
            ProbeType::Tcp => tcp(probe, door).await,
            ProbeType::Grpc => grpc(probe, door).await,
            ProbeType::Command => command(probe, door, key, settings).await,
        }
    };
    match tokio::time::timeout(probe.timeout, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {}", humantime::format_duration(probe.timeout))),
    }
}

async fn http(probe: &Probe, door: SocketAddr) -> Result<(), String> {
    let host = probe.host.as_deref().unwrap_or("localhost");
    let request = Request::get(&probe.path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|err| format!("cannot ask for `{}` on `{host}`: {err}", probe.path))?;
    let stream = connect(door).await?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|err| reason(&err))?;
    let answer = async {
        let (head, body) = sender.send_request(request).await.map_err(|err| reason(&err))?.into_parts();
        let status = head.status.as_u16();
        if !probe.expect.iter().any(|&(from, to)| (from..=to).contains(&status)) {
            return Err(format!("HTTP {status}, expected {}", ranges(&probe.expect)));
        }
        if probe.body.is_empty() {
            return Ok(());
        }
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|err| format!("HTTP {status}, and then: {err}"))?.to_bytes();
        contains(&body, &probe.body)
    };
    tokio::pin!(connection, answer);
    // The connection moves only while it is polled; when it ends first, the answer knows at its next poll.
    tokio::select! {
        answer = &mut answer => answer,
        _ended = &mut connection => answer.await,
    }
}

async fn tcp(probe: &Probe, door: SocketAddr) -> Result<(), String> {
    let mut stream = connect(door).await?;
    stream.write_all(probe.send.as_bytes()).await.map_err(|err| describe(&err))?;
    if probe.body.is_empty() {
        let mut first = [0];
        return match tokio::time::timeout(SETTLED.min(probe.timeout / 2), stream.read(&mut first)).await {
            // Something was said, or nobody has hung up.
            Ok(Ok(1..)) | Err(_) => Ok(()),
            Ok(Ok(0)) => Err("closed at once".to_owned()),
            Ok(Err(err)) => Err(describe(&err)),
        };
    }
    let mut said = Vec::new();
    while said.len() < ANSWER_BYTES_MAX && contains(&said, &probe.body).is_err() {
        match stream.read_buf(&mut said).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(err) => return Err(describe(&err)),
        }
    }
    contains(&said, &probe.body)
}

/// The Health service that gRPC servers agree on (grpc.health.v1).
async fn grpc(probe: &Probe, door: SocketAddr) -> Result<(), String> {
    flotilla_proxy::grpc_health(connect(door).await?, &door.to_string(), &probe.service).await
}

async fn command(probe: &Probe, door: SocketAddr, key: &Key, settings: &ProbeSettings) -> Result<(), String> {
    let Some(folder) = &settings.commands else {
        return Err("this node runs no commands ([probes] commands is not set)".to_owned());
    };
    let (program, arguments) = probe.command.split_first().ok_or("it names no command")?;
    let (status, said) = run(&folder.join(program), arguments, |command| {
        command
            .env("FLOTILLA_NODE", &settings.node)
            .env("FLOTILLA_APP", key.0.as_str())
            .env("FLOTILLA_GENERATION", key.1.to_string())
            .env("FLOTILLA_PROBE_ADDRESS", door.to_string());
    })
    .await
    .map_err(|err| format!("run `{program}`: {}", describe(&err)))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&said);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let because = if last.is_empty() { String::new() } else { format!(": {}", shortened(last)) };
        return Err(format!("`{program}` ended with {status}{because}"));
    }
    contains(&said, &probe.body)
}

/// The first bytes of what the program says on either stream, and how it ended. It and whatever it
/// started are killed when this is given up.
async fn run(
    program: &Path,
    arguments: &[String],
    environment: impl FnOnce(&mut Command),
) -> io::Result<(ExitStatus, Vec<u8>)> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    environment(&mut command);
    // A group of its own, so that nothing it has started outlives it.
    let mut child = command.process_group(0).kill_on_drop(true).spawn()?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (mut said, complaint) = tokio::join!(listen(out), listen(err));
    let status = child.wait().await?;
    group.0 = None;
    said.extend(complaint);
    said.truncate(OUTPUT_BYTES_MAX);
    Ok((status, said))
}

struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended by itself.
            let _gone = killpg(group, Signal::SIGKILL);
        }
    }
}

async fn listen(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let Some(mut stream) = stream else { return Vec::new() };
    let (mut said, mut chunk) = (Vec::new(), [0; 1024]);
    // An error ends it like an end; what counts is how the program ends.
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        let room = OUTPUT_BYTES_MAX.saturating_sub(said.len()).min(count);
        said.extend_from_slice(&chunk[..room]);
    }
    said
}

async fn connect(door: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(door).await.map_err(|err| describe(&err))?;
    // Probes come for as long as the app lives: without this each would leave a TIME_WAIT behind.
    stream.set_zero_linger().map_err(|err| describe(&err))?;
    Ok(stream)
}

fn contains(answer: &[u8], wanted: &str) -> Result<(), String> {
    let found = wanted.is_empty() || answer.windows(wanted.len()).any(|part| part == wanted.as_bytes());
    if found { Ok(()) } else { Err(format!("the answer does not contain `{}`", shortened(wanted))) }
}

fn shortened(text: &str) -> &str {
    match text.char_indices().find(|(at, _)| *at >= REASON_BYTES_MAX) {
        Some((end, _)) => text[..end].trim_end(),
        None => text.trim_end(),
    }
}

fn ranges(expect: &[(u16, u16)]) -> String {
    let one = |&(from, to): &(u16, u16)| if from == to { from.to_string() } else { format!("{from}-{to}") };
    expect.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn reason(err: &hyper::Error) -> String {
    if err.is_parse() {
        return "the answer is not HTTP/1.1".to_owned();
    }
    if err.is_incomplete_message() || err.is_canceled() {
        return "closed without an answer".to_owned();
    }
    err.to_string()
}

/// "connection refused" rather than "Connection refused (os error 111)".
fn describe(err: &io::Error) -> String {
    match err.raw_os_error() {
        Some(_) if !err.kind().to_string().starts_with("uncategorized") => err.kind().to_string(),
        Some(_) | None => err.to_string(),
    }
}

#[cfg(test)]
mod tests;
