//! The proxies under test: how each is told to do the same, and what it used meanwhile.
//!
//! One worker on CPU 0, three targets behind each listener, a choice between two of them at random by load,
//! connections to targets kept, splice where it is offered.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::world::World;

pub(crate) const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

/// Where the targets of each kind are.
pub(crate) struct Targets {
    pub(crate) http: Vec<SocketAddr>,
    pub(crate) echo: Vec<SocketAddr>,
    pub(crate) source: Vec<SocketAddr>,
}

/// Where the proxy listens. The last two only where it can.
pub(crate) struct Ports {
    pub(crate) http: u16,
    pub(crate) echo: u16,
    pub(crate) source: u16,
    pub(crate) h2c: u16,
    pub(crate) tls: u16,
}

/// Everything a configuration is made of.
pub(crate) struct Setting<'a> {
    pub(crate) directory: &'a Path,
    pub(crate) targets: &'a Targets,
    pub(crate) ports: &'a Ports,
    pub(crate) workers: usize,
    pub(crate) can: Can,
}

/// What this build of ours and this machine can do; a peer is not asked for more than we are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Can {
    pub(crate) h2c: bool,
    pub(crate) tls: bool,
}

#[derive(Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// Found, or there is nothing to compare with.
    pub(crate) version: &'static [&'static str],
    start: fn(&Setting<'_>) -> Command,
}

/// We are the first.
pub(crate) const PEERS: [Peer; 3] = [
    Peer { name: "flotilla", version: &[FLOTILLA, "--version"], start: flotilla },
    Peer { name: "nginx", version: &["nginx", "-v"], start: nginx },
    Peer { name: "haproxy", version: &["haproxy", "-v"], start: haproxy },
];

impl Can {
    pub(crate) fn find() -> Can {
        let help = Command::new(FLOTILLA).args(["proxy", "--help"]).output().unwrap();
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        let says = |word: &str| help.split(|c: char| !c.is_alphanumeric()).any(|said| said == word);
        Can {
            h2c: says("h2c") && is_installed(&["h2load", "--version"]),
            tls: says("https") && is_installed(&["openssl", "version"]) && is_installed(&["wrk", "-v"]),
        }
    }
}

pub(crate) fn is_installed(command: &[&str]) -> bool {
    // `wrk -v` ends with 1: that it started is enough.
    quiet(Command::new(command[0]).args(&command[1..])).status().is_ok()
}

fn quiet(command: &mut Command) -> Command {
    let mut quiet = Command::new(command.get_program());
    quiet.args(command.get_args()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet
}

/// A proxy that serves. Killed when dropped.
pub(crate) struct Running {
    process: Child,
    pub(crate) ports: Ports,
    _directory: TempDir,
}

impl Running {
    /// `cpus` as taskset has it; `None`: wherever the kernel likes.
    pub(crate) fn start(
        peer: &Peer,
        world: &mut World,
        targets: &Targets,
        can: Can,
        workers: usize,
        cpus: Option<&str>,
    ) -> Running {
        let directory = tempfile::tempdir().unwrap();
        let [http, echo, source, h2c, tls] = free_ports();
        let ports = Ports { http, echo, source, h2c, tls };
        if can.tls {
            certificate(directory.path());
        }
        let setting = Setting { directory: directory.path(), targets, ports: &ports, workers, can };
        let command = (peer.start)(&setting);
        // This process is pinned, and a child would inherit that.
        let mut pinned = Command::new("taskset");
        let everywhere =
            format!("0-{}", std::thread::available_parallelism().map_or(0, |n| n.get() - 1).max(1));
        pinned.args(["-c", cpus.unwrap_or(&everywhere)]).arg(command.get_program()).args(command.get_args());
        let process = quiet(&mut pinned).env("FLOTILLA_UNDER_TEST", "1").spawn().unwrap();
        let running = Running { process, ports, _directory: directory };
        let start = Instant::now();
        let mut wanted = vec![running.ports.http, running.ports.echo, running.ports.source];
        wanted.extend(can.h2c.then_some(running.ports.h2c));
        wanted.extend(can.tls.then_some(running.ports.tls));
        world.serve_until(|| {
            assert!(start.elapsed() < Duration::from_secs(20), "{} does not listen", peer.name);
            wanted.retain(|port| TcpStream::connect(("127.0.0.1", *port)).is_err());
            wanted.is_empty()
        });
        // What it begins with is over: first checks, worker processes.
        world.serve_for(Duration::from_millis(300));
        running
    }

    fn pids(&self) -> Vec<u32> {
        let pid = self.process.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).chain([pid]).collect()
    }

    /// Seconds on a CPU so far, user and system, all threads and children.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let mut nanos = 0;
        for pid in self.pids() {
            let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for task in tasks.filter_map(Result::ok) {
                let stat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
                nanos += stat.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        Duration::from_nanos(nanos).as_secs_f64()
    }

    /// Seconds on a CPU so far of each thread that has used any, by its name.
    pub(crate) fn cpu_of_threads(&self) -> Vec<(String, f64)> {
        let mut threads = Vec::new();
        for pid in self.pids() {
            let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for task in tasks.filter_map(Result::ok) {
                let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
                let stat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
                let nanos = stat.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
                threads.push((name.trim().to_owned(), Duration::from_nanos(nanos).as_secs_f64()));
            }
        }
        threads
    }

    /// Its share of the memory it maps, which counts what processes share once.
    pub(crate) fn memory_kib(&self) -> f64 {
        let pss = |pid: u32| -> Option<f64> {
            let smaps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
            let line = smaps.lines().find_map(|line| line.strip_prefix("Pss:"))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        };
        self.pids().into_iter().filter_map(pss).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for pid in self.pids() {
            // It may have ended by itself, which the next measurement would have shown.
            let _ended = Command::new("kill").args(["-9", &pid.to_string()]).output();
        }
        let _status = self.process.wait();
    }
}

fn free_ports() -> [u16; 5] {
    let listeners = [(); 5].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn certificate(directory: &Path) {
    let [cert, key, both] = ["cert.pem", "key.pem", "both.pem"].map(|name| directory.join(name));
    let subject = ["-subj", "/CN=bench.test", "-addext", "subjectAltName=DNS:bench.test"];
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(subject)
        .arg("-out")
        .arg(&cert)
        .arg("-keyout")
        .arg(&key)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::write(both, [fs::read(cert).unwrap(), fs::read(key).unwrap()].concat()).unwrap();
}

fn flotilla(setting: &Setting<'_>) -> Command {
    let Setting { directory, targets, ports, workers, can } = setting;
    let mut command = Command::new(FLOTILLA);
    command.args(["-q", "proxy", "--max-connections-per-source", "0", "--workers", &workers.to_string()]);
    let mut listen = |protocol: &str, port: u16, to: &[SocketAddr], is_first: bool| {
        if !is_first {
            command.arg("--and");
        }
        command.arg("--listen").arg(format!("{protocol}:127.0.0.1:{port}"));
        for target in to {
            command.arg("--to").arg(target.to_string());
        }
        if protocol == "https" {
            command.arg("--cert").arg(directory.join("cert.pem"));
            command.arg("--key").arg(directory.join("key.pem"));
        }
    };
    listen("http", ports.http, &targets.http, true);
    listen("tcp", ports.echo, &targets.echo, false);
    listen("tcp", ports.source, &targets.source, false);
    if can.h2c {
        listen("h2c", ports.h2c, &targets.http, false);
    }
    if can.tls {
        listen("https", ports.tls, &targets.http, false);
    }
    command
}

fn nginx(setting: &Setting<'_>) -> Command {
    let Setting { directory, targets, ports, workers, can } = setting;
    let at = directory.display();
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {at};"));
    let servers = |to: &[SocketAddr]| to.iter().map(|to| format!("server {to}; ")).collect::<String>();
    let [http, echo, source] = [&targets.http, &targets.echo, &targets.source].map(|to| servers(to));
    // Debian builds the stream module apart.
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let module = if Path::new(module).exists() { format!("load_module {module};") } else { String::new() };
    let mut also = String::new();
    if can.h2c {
        also += &format!("listen 127.0.0.1:{} http2 reuseport backlog=4096;", ports.h2c);
    }
    if can.tls {
        also += &format!(
            "listen 127.0.0.1:{} ssl reuseport backlog=4096; ssl_protocols TLSv1.3;
             ssl_certificate {at}/cert.pem; ssl_certificate_key {at}/key.pem; ssl_session_cache shared:s:4m;",
            ports.tls
        );
    }
    let config = format!(
        "daemon off; user root; pid {at}/pid; error_log {at}/error.log error; {module}
        worker_processes {workers}; worker_rlimit_nofile 20000;
        events {{ worker_connections 19900; multi_accept on; }}
        http {{
          access_log off; tcp_nodelay on; server_tokens off; keepalive_requests 1000000000;
          keepalive_timeout 300s; {}
          upstream app {{
            random two least_conn; {http}
            keepalive 512; keepalive_requests 1000000000; keepalive_timeout 300s;
          }}
          server {{
            listen 127.0.0.1:{} reuseport backlog=4096; {also}
            location / {{
              proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection \"\";
              proxy_buffer_size 8k; proxy_buffers 8 32k; proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0;
            }}
          }}
        }}
        stream {{
          access_log off;
          upstream echo {{ random two least_conn; {echo} }}
          upstream source {{ random two least_conn; {source} }}
          server {{
            listen 127.0.0.1:{} reuseport backlog=4096; proxy_pass echo; tcp_nodelay on; proxy_buffer_size 16k;
          }}
          server {{ listen 127.0.0.1:{} reuseport backlog=4096; proxy_pass source; proxy_buffer_size 64k; }}
        }}\n",
        temporary.concat(),
        ports.http,
        ports.echo,
        ports.source,
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, config).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-e").arg(directory.join("early.log")).arg("-c").arg(file);
    command
}

fn haproxy(setting: &Setting<'_>) -> Command {
    let Setting { directory, targets, ports, workers, can } = setting;
    let servers = |to: &[SocketAddr]| {
        let line = |(n, to): (usize, &SocketAddr)| format!(" server s{n} {to}\n");
        to.iter().enumerate().map(line).collect::<String>()
    };
    let mut also = String::new();
    if can.h2c {
        also += &format!(" bind 127.0.0.1:{} proto h2 backlog 4096\n", ports.h2c);
    }
    if can.tls {
        let both = directory.join("both.pem");
        also +=
            &format!(" bind 127.0.0.1:{} ssl crt {} alpn http/1.1 backlog 4096\n", ports.tls, both.display());
    }
    let tcp = |name: &str, port: u16, to: &[SocketAddr]| {
        format!(
            "listen {name}\n mode tcp\n option splice-request\n option splice-response\n \
             bind 127.0.0.1:{port} backlog 4096\n{}",
            servers(to)
        )
    };
    let config = format!(
        "global\n nbthread {workers}\n maxconn 9700\n maxpipes 64\n ssl-default-bind-options ssl-min-ver TLSv1.3\n\
         defaults\n mode http\n http-reuse always\n balance random(2)\n timeout connect 5s\n timeout client 300s\n \
         timeout server 300s\n timeout http-keep-alive 300s\n timeout http-request 300s\n\
         listen app\n bind 127.0.0.1:{} backlog 4096\n{also} option http-no-delay\n{}{}{}",
        ports.http,
        servers(&targets.http),
        tcp("echo", ports.echo, &targets.echo),
        tcp("source", ports.source, &targets.source),
    );
    let file = directory.join("haproxy.cfg");
    fs::write(&file, config).unwrap();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(file);
    command
}
