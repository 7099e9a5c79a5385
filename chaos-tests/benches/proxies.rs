//! What a request costs, next to nginx and HAProxy: CPU seconds per 100,000 requests on this machine.
//!
//!     cargo bench -p flotilla-chaos-tests --bench proxies                      # about two minutes
//!     cargo bench -p flotilla-chaos-tests --bench proxies -- --check FILE      # fails on more than 5 % above it
//!     cargo bench -p flotilla-chaos-tests --bench proxies -- --save FILE
//!
//! Every proxy gets one worker on CPU 0; this program, which is the origin, and `wrk` share CPU 1. The proxies take
//! turns, and what is compared is the median over the rounds of ours divided by theirs: a machine that is busy
//! elsewhere moves both. Rates are not compared, they tell as much about the load generator.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]
#![allow(clippy::unwrap_used, reason = "a benchmark that fails stops")]
#![allow(clippy::disallowed_methods, reason = "it measures real time, and waits for other programs")]

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::LocalSet,
};

const ROUNDS: usize = 5;
const WARM_UP: &str = "-d1s";
const RUN: &str = "-d2s";
/// By how much a ratio may exceed its baseline; repeated runs on an idle machine differ by less.
const TOLERANCE: f64 = 1.05;
/// Ticks per second in `/proc/PID/stat`, the same on every Linux a program can see (proc(5)).
const TICKS: f64 = 100.0;

struct Scenario {
    name: &'static str,
    wrk: &'static [&'static str],
    path: &'static str,
}

const SCENARIOS: [Scenario; 3] = [
    Scenario { name: "keep-alive", wrk: &["-c64"], path: "/" },
    Scenario { name: "connection-per-request", wrk: &["-c64", "-HConnection: close"], path: "/" },
    Scenario { name: "64-KiB-bodies", wrk: &["-c32"], path: "/64k" },
];

struct Peer {
    name: &'static str,
    /// Found, or there is nothing to compare with.
    version: &'static [&'static str],
    start: fn(directory: &Path, listen: u16, origin: SocketAddr) -> Command,
}

/// We are the first.
const PEERS: [Peer; 3] = [
    Peer { name: "flotilla", version: &[FLOTILLA, "--version"], start: flotilla },
    Peer { name: "nginx", version: &["nginx", "-v"], start: nginx },
    Peer { name: "haproxy", version: &["haproxy", "-v"], start: haproxy },
];

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

fn main() -> ExitCode {
    let mut arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments.first().map(String::as_str) != Some("--pinned") {
        let program = std::env::current_exe().unwrap();
        let mut pinned = Command::new("taskset");
        pinned.args(["-c", "1"]).arg(program).arg("--pinned").args(arguments);
        return if pinned.status().unwrap().success() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    arguments.remove(0);
    if !is_installed(&["wrk", "-v"]) {
        eprintln!("this benchmark needs wrk");
        return ExitCode::FAILURE;
    }
    let ratios = compare();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => ExitCode::SUCCESS,
        ["--save", file] => {
            let lines = ratios.iter().map(|(name, ratio)| format!("{name} {ratio:.3}\n"));
            fs::write(file, lines.collect::<String>()).unwrap();
            ExitCode::SUCCESS
        }
        ["--check", file] => check(&ratios, &fs::read_to_string(file).unwrap()),
        _ => {
            eprintln!("usage: [--check FILE | --save FILE]");
            ExitCode::FAILURE
        }
    }
}

/// Measures everything, prints the table, and returns ours / theirs by `scenario/peer`.
fn compare() -> Vec<(String, f64)> {
    let origin = start_origin();
    let peers: Vec<&Peer> = PEERS.iter().filter(|peer| is_installed(peer.version)).collect();
    // Per scenario and peer, one figure a round.
    let mut costs = vec![vec![Vec::new(); peers.len()]; SCENARIOS.len()];
    for round in 0..ROUNDS {
        for turn in 0..peers.len() {
            // Nobody is always the first.
            let peer = (turn + round) % peers.len();
            let running = Running::start(peers[peer], origin);
            for (scenario, costs) in SCENARIOS.iter().zip(&mut costs) {
                costs[peer].push(running.measure(scenario));
            }
        }
    }
    println!("{:<26}{:<12}{:>22}{:>12}", "scenario", "proxy", "CPU-s per 100,000", "ours / it");
    let mut ratios = Vec::new();
    for (scenario, costs) in SCENARIOS.iter().zip(&costs) {
        for (peer, theirs) in peers.iter().zip(costs) {
            let ratio = median(costs[0].iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect());
            println!("{:<26}{:<12}{:>22.3}{ratio:>12.2}", scenario.name, peer.name, median(theirs.clone()));
            if peer.name != PEERS[0].name {
                ratios.push((format!("{}/{}", scenario.name, peer.name), ratio));
            }
        }
    }
    ratios
}

fn check(ratios: &[(String, f64)], baseline: &str) -> ExitCode {
    let mut worse = 0;
    for (name, ratio) in ratios {
        let known = baseline.lines().filter_map(|line| line.split_once(' ')).find(|(known, _)| known == name);
        let Some((_, known)) = known else {
            println!("{name}: not in the baseline");
            continue;
        };
        let known: f64 = known.trim().parse().unwrap();
        if *ratio > known * TOLERANCE {
            println!("{name}: {ratio:.3}, was {known:.3}");
            worse += 1;
        }
    }
    if worse == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn is_installed(command: &[&str]) -> bool {
    let mut command = quiet(Command::new(command[0]).args(&command[1..]));
    // `wrk -v` ends with 1: that it started is enough.
    command.status().is_ok()
}

fn quiet(command: &mut Command) -> Command {
    let mut quiet = Command::new(command.get_program());
    quiet.args(command.get_args()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet
}

/// A proxy on CPU 0. Killed when dropped.
struct Running {
    process: Child,
    listen: u16,
    _directory: TempDir,
}

impl Running {
    fn start(peer: &Peer, origin: SocketAddr) -> Running {
        let directory = tempfile::tempdir().unwrap();
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let command = (peer.start)(directory.path(), listen, origin);
        let mut pinned = Command::new("taskset");
        pinned.args(["-c", "0"]).arg(command.get_program()).args(command.get_args());
        let process = quiet(&mut pinned).env("FLOTILLA_UNDER_TEST", "1").spawn().unwrap();
        let running = Running { process, listen, _directory: directory };
        for _ in 0..500 {
            if TcpStream::connect(("127.0.0.1", listen)).is_ok() {
                return running;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("{} does not listen", peer.name);
    }

    /// CPU seconds per 100,000 requests.
    fn measure(&self, scenario: &Scenario) -> f64 {
        self.load(scenario, WARM_UP);
        let before = self.cpu_seconds();
        let requests = self.load(scenario, RUN);
        (self.cpu_seconds() - before) / requests * 100_000.0
    }

    /// The number of requests that were answered; all of them well.
    fn load(&self, scenario: &Scenario, duration: &str) -> f64 {
        let mut wrk = Command::new("wrk");
        wrk.arg("-t1").arg(duration).args(scenario.wrk);
        wrk.arg(format!("http://127.0.0.1:{}{}", self.listen, scenario.path));
        let said = String::from_utf8(wrk.output().unwrap().stdout).unwrap();
        assert!(!said.contains("Non-2xx"), "{said}");
        let line = said.lines().find(|line| line.contains(" requests in ")).expect("wrk counts its requests");
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Of the process and its children, user and system together.
    fn cpu_seconds(&self) -> f64 {
        let pid = self.process.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let pids = children.split_whitespace().map(str::to_owned).chain([pid.to_string()]);
        pids.filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok())
            .map(|stat| {
                // After the name, which may contain anything; utime is field 14, stime 15.
                let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
                (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS
            })
            .sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which the next measurement would have shown.
        let _ended = self.process.kill();
        let _status = self.process.wait();
    }
}

fn flotilla(directory: &Path, listen: u16, origin: SocketAddr) -> Command {
    let file = directory.join("spec.toml");
    let listen = format!(r#"{{ port = {listen}, address = "127.0.0.1", protocol = "http" }}"#);
    fs::write(&file, format!("[[app]]\nname = \"app\"\nlisten = [{listen}]\ntargets = [\"{origin}\"]\n"))
        .unwrap();
    let mut command = Command::new(FLOTILLA);
    command.args(["-q", "proxy", "--workers", "1", "-f"]).arg(file);
    command
}

fn nginx(directory: &Path, listen: u16, origin: SocketAddr) -> Command {
    let file = directory.join("nginx.conf");
    let at = directory.display();
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {at};"));
    let config = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
        events {{ worker_connections 4096; multi_accept on; }}
        http {{
          access_log off; tcp_nodelay on; server_tokens off; keepalive_requests 1000000000; {}
          upstream app {{ server {origin}; keepalive 512; keepalive_requests 1000000000; }}
          server {{
            listen 127.0.0.1:{listen} backlog=4096;
            location / {{
              proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection \"\";
              proxy_buffer_size 8k; proxy_buffers 8 32k; proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0;
            }}
          }}
        }}\n",
        temporary.concat()
    );
    fs::write(&file, config).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-e").arg(directory.join("early.log")).arg("-c").arg(file);
    command
}

fn haproxy(directory: &Path, listen: u16, origin: SocketAddr) -> Command {
    let file = directory.join("haproxy.cfg");
    let config = format!(
        "global\n nbthread 1\n maxconn 4096\ndefaults\n mode http\n timeout connect 5s\n timeout client 60s\n \
         timeout server 60s\n http-reuse always\nlisten app\n bind 127.0.0.1:{listen} backlog 4096\n \
         option forwardfor\n server origin {origin}\n"
    );
    fs::write(&file, config).unwrap();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(file);
    command
}

/// Answers for as long as this program runs.
fn start_origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        LocalSet::new().block_on(&runtime, async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::task::spawn_local(answer(stream));
            }
        });
    });
    address
}

/// One answer for each head. The requests of this benchmark have no body.
async fn answer(mut stream: tokio::net::TcpStream) {
    stream.set_nodelay(true).unwrap();
    let small = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world".to_vec();
    let mut large = b"HTTP/1.1 200 OK\r\ncontent-length: 65536\r\n\r\n".to_vec();
    large.resize(large.len() + 65_536, b'x');
    let mut head = Vec::new();
    while matches!(stream.read_buf(&mut head).await, Ok(1..)) {
        if head.ends_with(b"\r\n\r\n") {
            let body = if head.starts_with(b"GET /64k ") { &large } else { &small };
            if stream.write_all(body).await.is_err() {
                return;
            }
            head.clear();
        }
    }
}
