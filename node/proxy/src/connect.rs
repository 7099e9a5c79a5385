//! Reaching an endpoint: attempts against one endpoint after the other until a shared deadline.

use std::{io, rc::Rc};

use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::Instant,
};

use crate::{
    clock::{Clock, Expired, Timer},
    generation::{LocalPool, View},
    pool::{InFlight, LocalEndpoint},
    worker::Worker,
};

/// Why nothing was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// Everybody who could be tried refused.
    Failed,
    Timeout,
    Cut,
}

/// The endpoints one session or request has tried, and until when it may go on.
pub(crate) struct Attempts<'a> {
    pool: &'a LocalPool,
    view: Rc<View>,
    /// Stays unallocated until the first attempt has failed.
    tried: Vec<u32>,
    deadline: u64,
}

/// A chosen endpoint.
pub(crate) struct Chosen {
    pub(crate) in_flight: InFlight,
    index: u32,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(worker: &Worker, pool: &'a LocalPool, deadline: u64) -> Attempts<'a> {
        Attempts { pool, view: pool.view(worker), tried: Vec::new(), deadline }
    }

    pub(crate) fn choose(&self, worker: &Worker) -> Option<Chosen> {
        let index = self.pool.pick(&self.view, &self.tried, worker.random())?;
        Some(Chosen { in_flight: InFlight::new(&self.view.endpoints[index as usize]), index })
    }

    /// Connects to `chosen`, or to others if that fails; `chosen` becomes the one it was.
    pub(crate) async fn connect(
        &mut self,
        worker: &Worker,
        timer: &Rc<Timer>,
        chosen: &mut Chosen,
    ) -> Result<TcpStream, Unreachable> {
        loop {
            let until = self.share_of_time(worker.clock.now());
            let mut why = match connect(&worker.clock, timer, until, &chosen.in_flight.0).await {
                Ok(stream) => return Ok(stream),
                Err(Failure::Refused) => Unreachable::Failed,
                Err(Failure::Expired(Expired::Deadline)) => Unreachable::Timeout,
                Err(Failure::Expired(Expired::Cut)) => return Err(Unreachable::Cut),
            };
            if worker.clock.now() >= self.deadline {
                why = Unreachable::Timeout;
            } else if let Some(next) = self.instead_of(worker, chosen) {
                *chosen = next;
                continue;
            }
            return Err(why);
        }
    }

    /// Another endpoint than all before.
    fn instead_of(&mut self, worker: &Worker, failed: &Chosen) -> Option<Chosen> {
        self.tried.push(failed.index);
        self.choose(worker)
    }

    /// An endpoint that does not answer at all must leave time for the others: half of what is left
    /// while there is another one.
    fn share_of_time(&self, now: u64) -> u64 {
        let others = self.view.set.available.len().saturating_sub(self.tried.len() + 1);
        if others == 0 || self.deadline == crate::clock::NEVER {
            return self.deadline;
        }
        now + self.deadline.saturating_sub(now).div_ceil(2)
    }
}

enum Failure {
    Refused,
    Expired(Expired),
}

async fn connect(
    clock: &Clock,
    timer: &Rc<Timer>,
    until: u64,
    endpoint: &LocalEndpoint,
) -> Result<TcpStream, Failure> {
    let cells = &endpoint.cells;
    let start = Instant::now();
    match clock.within(timer, until, dial(endpoint)).await {
        Ok(Ok(stream)) => {
            cells.connects_ok.one();
            cells.connect_duration.record(start.elapsed());
            Ok(stream)
        }
        Ok(Err(error)) => {
            cells.connects_failed.one();
            tracing::debug!(endpoint = %endpoint.address, %error, "connect failed");
            Err(Failure::Refused)
        }
        Err(expired) => {
            cells.connects_timeout.one();
            Err(Failure::Expired(expired))
        }
    }
}

async fn dial(endpoint: &LocalEndpoint) -> io::Result<TcpStream> {
    let socket = match endpoint.address {
        std::net::SocketAddr::V4(_) => TcpSocket::new_v4()?,
        std::net::SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    if let Some(keepalive) = &endpoint.settings.keepalive() {
        SockRef::from(&socket).set_tcp_keepalive(keepalive)?;
    }
    socket.connect(endpoint.address).await
}
