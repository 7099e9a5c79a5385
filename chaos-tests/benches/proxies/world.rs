//! Everything around a proxy in one thread: the targets behind it and the clients before it.
//!
//! One thread, because it shares one core with nobody: a client that spins for its next request then takes
//! time from no target, and a request costs this side fewer wake-ups than it costs the proxy, so the proxy
//! is what is measured. Nothing is repeated; what fails is counted.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};

use crate::client::{Clients, Load, Result};

/// Tokens of clients begin here; below are the targets.
const CLIENTS: usize = 1 << 30;
/// Bytes a source writes before others get their turn.
const TURN_BYTES: usize = 1 << 20;
/// A hundredth of the latencies that are of interest where a load naps.
const NAP: Duration = Duration::from_micros(30);
pub(crate) const LARGE: usize = 64 * 1024;
pub(crate) const HUGE: usize = 1024 * 1024;

/// What a target does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `/` = 11 bytes, `/64k`, `/1m`. Requests have no body.
    Http,
    /// Sends back what it gets.
    Echo,
    /// Sends for ever.
    Source,
}

pub(crate) struct World {
    poll: Poll,
    slots: BTreeMap<usize, Slot>,
    last: usize,
    /// Had its turn, and has more to do.
    again: Vec<usize>,
    bodies: Bodies,
    scratch: Vec<u8>,
}

enum Slot {
    Listener(TcpListener, Target),
    Connection(Connection),
}

struct Bodies {
    small: Rc<[u8]>,
    large: Rc<[u8]>,
    huge: Rc<[u8]>,
    endless: Rc<[u8]>,
}

/// One connection to a target.
struct Connection {
    stream: TcpStream,
    target: Target,
    head: Vec<u8>,
    /// What is being sent, and how much of it is.
    sending: Option<(Rc<[u8]>, usize)>,
}

enum Turn {
    Waits,
    HasMore,
    Over,
}

impl World {
    pub(crate) fn new() -> World {
        let answer = |len: usize| -> Rc<[u8]> {
            let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n").into_bytes();
            answer.resize(answer.len() + len, b'x');
            answer.into()
        };
        let endless = vec![b'y'; 256 * 1024].into();
        World {
            poll: Poll::new().unwrap(),
            slots: BTreeMap::new(),
            last: 0,
            again: Vec::new(),
            bodies: Bodies { small: answer(11), large: answer(LARGE), huge: answer(HUGE), endless },
            scratch: vec![0; 64 * 1024],
        }
    }

    /// Starts `count` targets of one kind.
    pub(crate) fn targets(&mut self, target: Target, count: usize) -> Vec<SocketAddr> {
        (0..count)
            .map(|_| {
                let mut listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
                let address = listener.local_addr().unwrap();
                let token = self.token();
                self.poll.registry().register(&mut listener, token, Interest::READABLE).unwrap();
                self.slots.insert(token.0, Slot::Listener(listener, target));
                address
            })
            .collect()
    }

    /// Runs `load` for so long. Operations under way at the end are dropped.
    pub(crate) fn drive(&mut self, load: &Load, duration: Duration) -> Result {
        let start = Instant::now();
        self.drive_until(load, || start.elapsed() >= duration)
    }

    pub(crate) fn drive_until(&mut self, load: &Load, is_over: impl FnMut() -> bool) -> Result {
        self.go_on(Clients::new(load, CLIENTS), is_over)
    }

    /// The same with clients that were there before.
    pub(crate) fn go_on(&mut self, mut clients: Clients, mut is_over: impl FnMut() -> bool) -> Result {
        let start = Instant::now();
        while !is_over() {
            clients.begin_due(self.poll.registry());
            // A millisecond, the resolution of a poll, is too coarse for a load with a rate: it spins, or
            // where the CPU is not its own, naps.
            let wait =
                if clients.load.per_second.is_some() { Duration::ZERO } else { Duration::from_millis(20) };
            if clients.load.naps {
                std::thread::sleep(NAP);
            }
            self.turn(wait, Some(&mut clients));
        }
        clients.finish(start.elapsed())
    }

    /// Opens the connections of `load`, has each do one operation, and keeps them.
    pub(crate) fn open(&mut self, load: &Load) -> Clients {
        let mut clients = Clients::new(load, CLIENTS);
        clients.is_once = true;
        let start = Instant::now();
        while !clients.is_done() {
            assert!(start.elapsed() < Duration::from_secs(60), "{} do not finish", clients.unfinished());
            clients.begin_due(self.poll.registry());
            self.turn(Duration::from_millis(100), Some(&mut clients));
        }
        clients
    }

    /// Serves the targets until `is_over`, which is asked some hundred times a second.
    pub(crate) fn serve_until(&mut self, mut is_over: impl FnMut() -> bool) {
        while !is_over() {
            self.turn(Duration::from_millis(5), None);
        }
    }

    pub(crate) fn serve_for(&mut self, duration: Duration) {
        let start = Instant::now();
        self.serve_until(|| start.elapsed() >= duration);
    }

    fn token(&mut self) -> Token {
        self.last += 1;
        Token(self.last)
    }

    fn turn(&mut self, wait: Duration, mut clients: Option<&mut Clients>) {
        let mut events = Events::with_capacity(512);
        let wait = if self.again.is_empty() { wait } else { Duration::ZERO };
        if let Err(error) = self.poll.poll(&mut events, Some(wait)) {
            assert_eq!(error.kind(), io::ErrorKind::Interrupted, "{error}");
            return;
        }
        let again = std::mem::take(&mut self.again);
        for token in again {
            self.target(token);
        }
        for event in &events {
            let token = event.token().0;
            if token < CLIENTS {
                self.target(token);
            } else if let Some(clients) = &mut clients {
                clients.ready(token, event, self.poll.registry());
            }
        }
    }

    fn target(&mut self, token: usize) {
        match self.slots.get_mut(&token) {
            Some(Slot::Listener(..)) => self.accept(token),
            Some(Slot::Connection(connection)) => {
                match connection.turn(&self.bodies, &mut self.scratch) {
                    Ok(Turn::Waits) => {}
                    Ok(Turn::HasMore) => self.again.push(token),
                    // A proxy may end a connection as it likes.
                    Ok(Turn::Over) | Err(_) => drop(self.slots.remove(&token)),
                }
            }
            None => {}
        }
    }

    fn accept(&mut self, listener: usize) {
        loop {
            let Some(Slot::Listener(socket, target)) = self.slots.get(&listener) else { return };
            let target = *target;
            let Ok((mut stream, _)) = socket.accept() else { return };
            stream.set_nodelay(true).unwrap();
            let token = self.token();
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, token, interest).unwrap();
            let connection = Connection { stream, target, head: Vec::new(), sending: None };
            self.slots.insert(token.0, Slot::Connection(connection));
        }
    }
}

impl Connection {
    fn turn(&mut self, bodies: &Bodies, scratch: &mut [u8]) -> io::Result<Turn> {
        let mut moved = 0;
        loop {
            if self.sending.is_none() && self.target == Target::Source {
                self.sending = Some((Rc::clone(&bodies.endless), 0));
            }
            if let Some((body, sent)) = &mut self.sending {
                match self.stream.write(&body[*sent..]) {
                    Ok(n) => {
                        *sent += n;
                        moved += n;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Waits),
                    Err(error) => return Err(error),
                }
                if *sent == body.len() {
                    self.sending = None;
                }
                if moved > TURN_BYTES {
                    return Ok(Turn::HasMore);
                }
                continue;
            }
            let n = match self.stream.read(scratch) {
                Ok(0) => return Ok(Turn::Over),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Waits),
                Err(error) => return Err(error),
            };
            if self.target == Target::Echo {
                self.sending = Some((scratch[..n].into(), 0));
            } else {
                self.head.extend_from_slice(&scratch[..n]);
                if self.head.ends_with(b"\r\n\r\n") {
                    let body = match self.head.get(4..8) {
                        Some(b"/64k") => &bodies.large,
                        Some(b"/1m ") => &bodies.huge,
                        _ => &bodies.small,
                    };
                    self.sending = Some((Rc::clone(body), 0));
                    self.head.clear();
                }
            }
        }
    }
}
