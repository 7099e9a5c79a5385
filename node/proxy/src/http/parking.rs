//! Idle connections that have no task.
//!
//! A task and a place in the runtime's reactor are above a KiB, and most of the connections that clients keep alive
//! wait for minutes. One that has waited for [`AFTER`] is parked: a socket in a set that the kernel watches, and a
//! quarter of a KiB here. It goes on as a task when its client says something or hangs up, and when it has to look at
//! where it stands: its time is over, or it is asked to go.

use std::{
    cell::{OnceCell, RefCell},
    io, mem,
    rc::Rc,
    time::Duration,
};

use mio::{Events, Interest, Poll, Registry, Token};
use slab::Slab;
use tokio::{
    io::unix::AsyncFd,
    net::TcpStream,
    task::{spawn_local, yield_now},
};

use super::{
    connection::{Client, Connection},
    deadline::Deadline,
    go_on,
    headers::Seen,
};
use crate::{metrics::AppCells, port::At, session::Admitted, stream::Stream, worker::Worker};

/// Short, so that memory follows the number of clients that do something. Longer than the pauses of one that asks once a
/// second: to park and to bring back are four system calls, an allocation and a task.
pub(crate) const AFTER: Duration = Duration::from_secs(2);
/// Connections brought back before others get their turn.
const BATCH: usize = 256;

/// The parked connections of one worker.
#[derive(Default)]
pub(crate) struct Parking {
    /// There is one once there was a connection to be parked.
    watched: OnceCell<Registry>,
    slots: RefCell<Slab<Slot>>,
}

/// What is looked at of each, so that looking around reads little memory.
struct Slot {
    /// When it has been idle for too long, milliseconds of the worker's clock.
    until: u64,
    lot: u16,
    parked: Box<Parked>,
}

struct Parked {
    stream: mio::net::TcpStream,
    at: At,
    seen: Seen,
    requests: u32,
    /// Of the app, as of the latest request.
    cells: Rc<AppCells>,
    admitted: Admitted,
}

/// Parks a connection of which nothing is held. One that cannot be parked goes on with a task.
pub(super) fn park<C: Client>(connection: Connection<C>, admitted: Admitted) {
    let Connection { io, worker, at, seen, deadline, cells, requests, lot, .. } = connection;
    let Some(Stream::Plain(stream)) = io.into_stream() else { return };
    let until = deadline.latest();
    drop(deadline);
    let stream = match stream.into_std() {
        Ok(stream) => mio::net::TcpStream::from_std(stream),
        Err(error) => return tracing::warn!(%error, "park a connection"),
    };
    let slot = Slot { until, lot, parked: Box::new(Parked { stream, at, seen, requests, cells, admitted }) };
    worker.parking.add(&worker, slot);
}

impl Parking {
    fn add(&self, worker: &Rc<Worker>, mut slot: Slot) {
        let mut slots = self.slots.borrow_mut();
        let place = slots.vacant_entry();
        let token = Token(place.key());
        let registered = self
            .watch(worker)
            .and_then(|watched| watched.register(&mut slot.parked.stream, token, Interest::READABLE));
        match registered {
            Ok(()) => {
                slot.parked.cells.parked.up();
                place.insert(slot);
            }
            Err(error) => {
                tracing::debug!(%error, "watch a parked connection");
                bring_back(worker, slot);
            }
        }
    }

    fn watch(&self, worker: &Rc<Worker>) -> io::Result<&Registry> {
        if let Some(watched) = self.watched.get() {
            return Ok(watched);
        }
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        // SAFETY: a `Poll` owns its descriptor, and it stays the same one.
        #[expect(
            unsafe_code,
            reason = "mio says who owns the descriptor, but not by the trait that asks for it"
        )]
        let poll = unsafe { AsyncFd::register_with_interest(poll, tokio::io::Interest::READABLE) }?;
        spawn_local(attend(Rc::clone(worker), poll));
        Ok(self.watched.get_or_init(|| registry))
    }

    /// Brings those back that have to look at where they stand.
    pub(crate) fn look_around(&self, worker: &Rc<Worker>) {
        let now = worker.clock.now();
        let is_due = |slot: &Slot| slot.until <= now || worker.asks_to_go(slot.lot);
        let due: Vec<usize> =
            self.slots.borrow().iter().filter(|(_, slot)| is_due(slot)).map(|(key, _)| key).collect();
        due.into_iter().for_each(|key| self.wake(worker, key));
    }

    /// Brings all of them back.
    pub(crate) fn wake_all(&self, worker: &Rc<Worker>) {
        let all: Slab<Slot> = mem::take(&mut *self.slots.borrow_mut());
        all.into_iter().for_each(|(_, slot)| self.unwatch(worker, slot));
    }

    fn wake(&self, worker: &Rc<Worker>, key: usize) {
        let slot = self.slots.borrow_mut().try_remove(key);
        if let Some(slot) = slot {
            self.unwatch(worker, slot);
        }
    }

    fn unwatch(&self, worker: &Rc<Worker>, mut slot: Slot) {
        slot.parked.cells.parked.down();
        if let Some(watched) = self.watched.get()
            && let Err(error) = watched.deregister(&mut slot.parked.stream)
        {
            tracing::warn!(%error, "forget a parked connection");
        }
        bring_back(worker, slot);
    }
}

/// Brings back whoever's client did something, for ever.
async fn attend(worker: Rc<Worker>, mut poll: AsyncFd<Poll>) {
    let mut events = Events::with_capacity(BATCH);
    // It fails when the runtime goes down.
    while let Ok(mut ready) = poll.readable_mut().await {
        let polled = ready.get_inner_mut().poll(&mut events, Some(Duration::ZERO));
        if let Err(error) = &polled {
            tracing::warn!(%error, "look at parked connections");
        }
        if polled.is_err() || events.is_empty() {
            ready.clear_ready();
            continue;
        }
        events.iter().for_each(|event| worker.parking.wake(&worker, event.token().0));
        yield_now().await;
    }
}

fn bring_back(worker: &Rc<Worker>, slot: Slot) {
    let Slot { until, lot, parked } = slot;
    let Parked { stream, at, seen, requests, admitted, .. } = *parked;
    let stream = match TcpStream::from_std(stream.into()) {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!(%error, "bring a parked connection back"),
    };
    let serving = at.home.look(worker);
    let mut connection =
        Connection::on(stream, Deadline::new(&worker.clock), Rc::clone(worker), at, &serving, seen);
    connection.resume(requests, lot, until);
    spawn_local(go_on(connection, None, admitted));
}
