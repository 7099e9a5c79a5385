//! What TCP sessions and HTTP connections have in common: their places, their counts, their end.

use std::{rc::Rc, time::Duration};

use socket2::SockRef;
use tokio::{net::TcpStream, time::Instant};

use crate::{
    admission::{Passed, Place},
    clock::Expired,
    generation::LocalServing,
    metrics::{AppCells, PortCells},
};

/// An accepted connection: counted, and its places taken, until it is dropped.
pub(crate) struct Admitted {
    cells: Rc<AppCells>,
    port: Rc<PortCells>,
    since: Instant,
    end: End,
    _places: (Place, Passed, Passed),
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    /// One side reset it, or broke off in the middle of something.
    Reset,
    Idle,
    Cut,
    NoTarget,
}

impl From<Expired> for End {
    fn from(expired: Expired) -> End {
        match expired {
            Expired::Deadline => End::Idle,
            Expired::Cut => End::Cut,
        }
    }
}

impl Admitted {
    pub(crate) fn new(serving: &LocalServing, place: Place, app: Passed, port: Passed) -> Admitted {
        serving.cells.opened.one();
        serving.cells.active.up();
        Admitted {
            cells: Rc::clone(&serving.local.cells),
            port: Rc::clone(&serving.cells),
            since: Instant::now(),
            end: End::Reset,
            _places: (place, app, port),
        }
    }

    /// Says how it ended; a task that dies without a word counts as reset.
    pub(crate) fn end(&mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.port.active.down();
        self.cells.connection_duration.record(self.since.elapsed());
        match self.end {
            End::Done => self.cells.closed_done.one(),
            End::Reset => self.cells.closed_reset.one(),
            End::Idle => self.cells.closed_idle.one(),
            End::Cut => self.cells.closed_cut.one(),
            End::NoTarget => self.cells.closed_no_target.one(),
        }
    }
}

/// Makes the coming close a reset, so that the peer cannot take it for a clean end.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    // It fails only where the peer has closed already.
    let _closed = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
