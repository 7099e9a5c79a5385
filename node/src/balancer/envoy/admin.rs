//! What an Envoy really has, from its admin interface: `GET /clusters?format=json`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::balancer::status::{Seen, Server};

const TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: u64 = 32 << 20;

/// By the name of the service, hosts with what Envoy makes of them.
pub(super) type Clusters = BTreeMap<String, BTreeMap<SocketAddr, Seen>>;

pub(super) async fn clusters(address: &str) -> Result<Clusters, String> {
    match tokio::time::timeout(TIMEOUT, get(address)).await {
        Ok(Ok(body)) => parse(&body),
        Ok(Err(err)) => Err(err.to_string()),
        Err(_) => Err(format!("no answer within {TIMEOUT:?}")),
    }
}

/// Envoy answers HTTP/1.1 with a length or in chunks; a connection that it shall close ends either.
async fn get(address: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let request =
        format!("GET /clusters?format=json HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    let malformed = || std::io::Error::other("the answer is not HTTP");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(malformed)?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    if !head.starts_with("http/1.1 200") {
        return Err(std::io::Error::other(head.lines().next().unwrap_or_default().to_owned()));
    }
    let body = &answer[end + 4..];
    match head.contains("transfer-encoding: chunked") {
        true => unchunk(body).ok_or_else(malformed),
        false => Ok(body.to_vec()),
    }
}

/// RFC 9112 §7.1.
fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    cluster_statuses: Vec<Cluster>,
}

#[derive(Deserialize)]
struct Cluster {
    name: String,
    #[serde(default)]
    eds_service_name: String,
    #[serde(default)]
    host_statuses: Vec<Host>,
}

#[derive(Deserialize)]
struct Host {
    address: Address,
    #[serde(default)]
    health_status: Health,
}

#[derive(Deserialize)]
struct Address {
    socket_address: Option<Socket>,
}

#[derive(Deserialize)]
struct Socket {
    address: IpAddr,
    port_value: u16,
}

#[derive(Default, Deserialize)]
struct Health {
    #[serde(default)]
    eds_health_status: String,
    #[serde(default)]
    failed_active_health_check: bool,
    #[serde(default)]
    failed_outlier_check: bool,
}

fn parse(body: &[u8]) -> Result<Clusters, String> {
    let answer: Answer = serde_json::from_slice(body).map_err(|err| err.to_string())?;
    let mut clusters = Clusters::new();
    for cluster in answer.cluster_statuses {
        let service =
            if cluster.eds_service_name.is_empty() { cluster.name } else { cluster.eds_service_name };
        let hosts = clusters.entry(service).or_default();
        for host in cluster.host_statuses {
            let Some(socket) = host.address.socket_address else { continue };
            let seen = match host.health_status.eds_health_status.as_str() {
                "DRAINING" => Seen::Drain,
                "UNHEALTHY" | "TIMEOUT" => Seen::Maint,
                _ if host.health_status.failed_active_health_check
                    || host.health_status.failed_outlier_check =>
                {
                    Seen::Failing
                }
                _ => Seen::Ready,
            };
            hosts.insert(SocketAddr::new(socket.address, socket.port_value), seen);
        }
    }
    Ok(clusters)
}

/// What was acknowledged gives way to what is there, in the one that is furthest behind.
pub(super) fn overrule(servers: &mut [Server], clusters: &Clusters) {
    for server in servers {
        let Some(hosts) = clusters.get(&server.service) else { continue };
        let seen = hosts.get(&server.address).copied().unwrap_or(Seen::Absent);
        let really = Server { seen, ..server.clone() };
        if server.is_as_wanted() {
            *server = really;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_as_envoy_means_them() {
        let body = br#"{"cluster_statuses":[
            {"name":"web_cluster","eds_service_name":"web","host_statuses":[
                {"address":{"socket_address":{"address":"10.0.0.1","port_value":8080}},
                 "health_status":{"eds_health_status":"HEALTHY"},"weight":100},
                {"address":{"socket_address":{"address":"10.0.0.2","port_value":8080}},
                 "health_status":{"eds_health_status":"DRAINING"}},
                {"address":{"socket_address":{"address":"10.0.0.3","port_value":8080}},
                 "health_status":{"failed_active_health_check":true,"eds_health_status":"HEALTHY"}}]},
            {"name":"xds"}]}"#;
        let clusters = parse(body).unwrap();
        let seen: Vec<Seen> = clusters["web"].values().copied().collect();
        assert_eq!(seen, [Seen::Ready, Seen::Drain, Seen::Failing]);
        assert!(clusters["xds"].is_empty());
        parse(b"{").expect_err("half a document");
    }

    #[test]
    fn a_body_in_chunks_is_put_together() {
        assert_eq!(unchunk(b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n").unwrap(), b"abc0123456789");
        assert_eq!(unchunk(b"3\r\nab"), None);
    }
}
