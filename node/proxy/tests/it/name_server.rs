//! A name server whose answers a test changes. Unit tests include this file as well.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{net::UdpSocket, task::JoinSet};

/// A name server for the tests: answers A and AAAA from a table that can be changed.
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    table: Arc<Mutex<HashMap<String, Reply>>>,
    questions: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

#[derive(Clone)]
enum Reply {
    Addresses(Vec<IpAddr>),
    /// Priority, weight and port, and the host.
    Service(Vec<([u16; 3], String)>),
    ServerFailure,
}

impl NameServer {
    pub(crate) async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (table, questions) =
            (Arc::<Mutex<HashMap<String, Reply>>>::default(), Arc::<AtomicUsize>::default());
        let (answers, count) = (table.clone(), questions.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut packet = [0; 512];
            loop {
                let (length, client) = socket.recv_from(&mut packet).await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let reply = Self::reply(&packet[..length], &answers.lock().unwrap());
                socket.send_to(&reply, client).await.unwrap();
            }
        });
        Self { address, table, questions, _task: task }
    }

    pub(crate) fn set(&self, name: &str, addresses: &str) {
        let addresses = addresses.split_whitespace().map(|ip| ip.parse().unwrap()).collect();
        self.table.lock().unwrap().insert(name.to_owned(), Reply::Addresses(addresses));
    }

    /// `priority weight port host` each.
    pub(crate) fn set_service(&self, name: &str, records: &[&str]) {
        let record = |record: &&str| {
            let [priority, weight, port, host] = record.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{record}")
            };
            ([priority, weight, port].map(|number| number.parse().unwrap()), host.to_owned())
        };
        let records = records.iter().map(record).collect();
        self.table.lock().unwrap().insert(name.to_owned(), Reply::Service(records));
    }

    pub(crate) fn fail(&self, name: &str) {
        self.table.lock().unwrap().insert(name.to_owned(), Reply::ServerFailure);
    }

    pub(crate) fn questions(&self) -> usize {
        self.questions.load(Ordering::Relaxed)
    }

    /// RFC 1035 §4: header, the question as it came, and one record of TTL 1 per address of the asked type.
    fn reply(packet: &[u8], table: &HashMap<String, Reply>) -> Vec<u8> {
        let (mut at, mut labels) = (12, Vec::new());
        while packet[at] != 0 {
            let end = at + 1 + usize::from(packet[at]);
            labels.push(String::from_utf8_lossy(&packet[at + 1..end]).to_lowercase());
            at = end;
        }
        let (wants_v6, question_end) = (packet[at + 2] == 28, at + 5);
        let mut services = Vec::new();
        let (code, addresses) = match table.get(&labels.join(".")) {
            Some(Reply::Service(all)) => {
                services.clone_from(all);
                (0, Vec::new())
            }
            Some(Reply::Addresses(all)) => {
                (0, all.iter().copied().filter(|ip| ip.is_ipv6() == wants_v6).collect())
            }
            Some(Reply::ServerFailure) => (2, Vec::new()),
            None => (3, Vec::new()),
        };
        let count = u8::try_from(addresses.len() + services.len()).unwrap();
        let mut reply = vec![packet[0], packet[1], 0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0];
        reply.extend(&packet[12..question_end]);
        for address in addresses {
            let octets = match address {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let (kind, length) = if wants_v6 { (28, 16) } else { (1, 4) };
            reply.extend([0xC0, 12, 0, kind, 0, 1, 0, 0, 0, 1, 0, length]);
            reply.extend(octets);
        }
        for (numbers, host) in services {
            let mut data: Vec<u8> = numbers.into_iter().flat_map(u16::to_be_bytes).collect();
            for label in host.split('.').filter(|label| !label.is_empty()) {
                data.push(u8::try_from(label.len()).unwrap());
                data.extend(label.bytes());
            }
            data.push(0);
            reply.extend([0xC0, 12, 0, 33, 0, 1, 0, 0, 0, 1, 0, u8::try_from(data.len()).unwrap()]);
            reply.extend(data);
        }
        reply
    }
}
