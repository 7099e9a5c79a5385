//! What TCP sessions and HTTP connections have in common: their places, their counts, their end.

use std::{rc::Rc, time::Duration};

use socket2::SockRef;
use tokio::{net::TcpStream, time::Instant};

use crate::{
    admission::{Passed, Place, SourcePlace},
    clock::Expired,
    config::Protocol,
    generation::LocalServing,
    metrics::{AppCells, PortCells},
    tally::LocalTally,
};

/// An accepted connection: counted, and its places taken, until it is dropped.
pub(crate) struct Admitted {
    cells: Rc<AppCells>,
    port: Rc<PortCells>,
    /// Of the generation that a TCP session has; an HTTP connection has none of its own.
    tally: Option<Rc<LocalTally>>,
    since: Instant,
    end: End,
    _places: Places,
}

/// What a connection takes up: of the node, of the app, of the port, and where the app counts clients, of those.
pub(crate) type Places = (Place, Passed, Passed, Option<SourcePlace>);

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    /// The client reset it, or broke off in the middle of something: as those do that only look whether
    /// somebody listens.
    Reset,
    /// The target did, or this proxy.
    Broken,
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
    pub(crate) fn new(serving: &LocalServing, places: Places) -> Admitted {
        serving.cells.opened.one();
        serving.cells.active.up();
        Admitted {
            cells: Rc::clone(&serving.local.cells),
            port: Rc::clone(&serving.cells),
            tally: serving.tally.clone().filter(|_| serving.serving.protocol == Protocol::Tcp),
            since: Instant::now(),
            end: End::Broken,
            _places: places,
        }
    }

    /// A TCP session has reached its target.
    pub(crate) fn reached(&self) {
        if let Some(tally) = &self.tally {
            tally.session(self.since.elapsed());
        }
    }

    /// Says how it ended; a task that dies without a word counts as broken.
    pub(crate) fn end(&mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.port.active.down();
        self.cells.connection_duration.record(self.since.elapsed());
        match (&self.tally, self.end) {
            (Some(tally), End::NoTarget) => tally.unreached(),
            (Some(tally), End::Broken) => tally.reset(),
            (Some(_), End::Done | End::Reset | End::Idle | End::Cut) | (None, _) => {}
        }
        match self.end {
            End::Done => self.cells.closed_done.one(),
            End::Reset | End::Broken => self.cells.closed_reset.one(),
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
