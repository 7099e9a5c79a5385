//! The rest of a large response, moved inside the kernel (splice(2)) where neither side is inside TLS.
//!
//! Only whole stretches of a body of known length: whatever must be looked at is read and written by `body`. It takes
//! turns with that: an empty socket and its end are told apart by a real read alone.

use std::{
    io,
    os::fd::AsFd,
    task::{Context, Poll, ready},
};

use tokio::{io::Interest, net::TcpStream};

use super::body::{BodyError, Incoming, MoveError, Outgoing};
use crate::{metrics::Count, pipe::Pipe, pipe::Pipes};

/// Less is copied: two system calls and a pipe cost about as much as copying this.
pub(super) const BYTES_MIN: u64 = 24 * 1024;
/// Bytes that one response moves before others get their turn.
const TURN_BYTES: u64 = 1024 * 1024;

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    All,
    /// What comes next must be read.
    Some,
}

pub(super) struct Splice<'a> {
    pub(super) pipes: &'a Pipes,
    pub(super) from: &'a TcpStream,
    pub(super) to: &'a TcpStream,
    pub(super) received: &'a Count,
    pub(super) sent: &'a Count,
}

impl Splice<'_> {
    /// Moves on as far as possible. `pipe` is there only while there is something in it.
    pub(super) fn poll(
        &self,
        cx: &mut Context<'_>,
        pipe: &mut Option<Pipe>,
        body: &mut Incoming,
        out: &mut Outgoing,
    ) -> Poll<Result<Moved, MoveError>> {
        let turn = out.moved() + TURN_BYTES;
        loop {
            if let Some(full) = pipe {
                ready!(self.poll_drain(cx, full, out))?;
                if let Some(empty) = pipe.take() {
                    self.pipes.give(empty);
                }
            }
            let left = body.left();
            if left == 0 {
                return Poll::Ready(Ok(Moved::All));
            }
            if left < BYTES_MIN {
                return Poll::Ready(Ok(Moved::Some));
            }
            if out.moved() >= turn {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let Some(mut fresh) = self.pipes.take() else { return Poll::Ready(Ok(Moved::Some)) };
            let filled = self.fill(cx, &mut fresh, left);
            if fresh.held() == 0 {
                self.pipes.give(fresh);
            } else {
                *pipe = Some(fresh);
            }
            match ready!(filled) {
                Ok(n) if n > 0 => {
                    self.received.add(n as u64);
                    body.pass(n as u64);
                }
                Ok(_) => return Poll::Ready(Ok(Moved::Some)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Ok(Moved::Some));
                }
                Err(_) => return Poll::Ready(Err(MoveError::Source(BodyError::BrokeOff))),
            }
        }
    }

    fn fill(&self, cx: &mut Context<'_>, pipe: &mut Pipe, left: u64) -> Poll<io::Result<usize>> {
        ready!(self.from.poll_read_ready(cx))?;
        let max = usize::try_from(left).unwrap_or(usize::MAX);
        Poll::Ready(self.from.try_io(Interest::READABLE, || pipe.fill_at_most(self.from.as_fd(), max)))
    }

    fn poll_drain(
        &self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
        out: &mut Outgoing,
    ) -> Poll<Result<(), MoveError>> {
        while pipe.held() > 0 {
            if ready!(self.to.poll_write_ready(cx)).is_err() {
                return Poll::Ready(Err(MoveError::Target));
            }
            match self.to.try_io(Interest::WRITABLE, || pipe.drain(self.to.as_fd())) {
                Ok(n) if n > 0 => {
                    self.sent.add(n as u64);
                    out.passed(n as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => return Poll::Ready(Err(MoveError::Target)),
            }
        }
        Poll::Ready(Ok(()))
    }
}
