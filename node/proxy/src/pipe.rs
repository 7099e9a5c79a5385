//! Pipes that carry bulk data from one socket to another inside the kernel (splice(2)).
//!
//! Lent to one direction of a session while it has much to move, and given back as soon as it goes
//! quiet, so a worker needs about as many as it has busy bulk streams. A pipe that cannot be had is no
//! error: the session copies. When to use one is decided in `tcp`.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::BorrowedFd,
    rc::Rc,
};

/// What a pipe should hold: as much as an unprivileged user may ask for (`fs.pipe-max-size`). With 16
/// streams a GiB costs 0.29 CPU-seconds through 1 MiB, 0.55 through 256 KiB.
const PIPE_BYTES: usize = 1024 * 1024;
/// What it holds unasked. A user with too much in pipes (`fs.pipe-user-pages-soft`, 64 MiB) gets one or
/// two pages instead; copying is better than those.
const PIPE_BYTES_MIN: usize = 64 * 1024;
/// Pipes of one worker, lent and free: 128 descriptors, and at most 64 MiB where nobody reads. While
/// all are lent, the next session copies.
const PIPES_MAX: usize = 64;

/// The pipes of one worker.
#[derive(Default)]
pub(crate) struct Pipes {
    free: RefCell<Vec<Pipe>>,
    /// Pipes that exist, wherever they are.
    made: Rc<Cell<usize>>,
    /// The kernel would not give another one; not asked again before the next [`Pipes::try_again`].
    is_refused: Cell<bool>,
}

/// A pipe, and how much is in it.
pub(crate) struct Pipe {
    ends: kernel::Ends,
    held: usize,
    made: Rc<Cell<usize>>,
}

impl Pipes {
    /// An empty pipe, unless there are too many already.
    pub(crate) fn take(&self) -> Option<Pipe> {
        if let Some(pipe) = self.free.borrow_mut().pop() {
            return Some(pipe);
        }
        if self.is_refused.get() || self.made.get() >= PIPES_MAX {
            return None;
        }
        match kernel::open(PIPE_BYTES, PIPE_BYTES_MIN) {
            Ok(ends) => {
                self.made.set(self.made.get() + 1);
                Some(Pipe { ends, held: 0, made: Rc::clone(&self.made) })
            }
            Err(error) => {
                tracing::debug!(%error, "open a pipe");
                self.is_refused.set(true);
                None
            }
        }
    }

    /// One with bytes left in it is closed: nobody else may see those.
    pub(crate) fn give(&self, pipe: Pipe) {
        if pipe.held == 0 {
            self.free.borrow_mut().push(pipe);
        }
    }

    #[cfg(test)]
    pub(crate) fn made_and_free(&self) -> (usize, usize) {
        (self.made.get(), self.free.borrow().len())
    }

    /// Descriptors or pages may be there again.
    pub(crate) fn try_again(&self) {
        self.is_refused.set(false);
    }
}

impl Pipe {
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Moves what the socket has into the pipe, which must be empty. Neither 0 nor `WouldBlock` mean
    /// what they mean for a read, see the caller.
    pub(crate) fn fill(&mut self, from: BorrowedFd<'_>) -> io::Result<usize> {
        self.fill_at_most(from, PIPE_BYTES)
    }

    /// The same, for a stretch that ends after `max` bytes.
    pub(crate) fn fill_at_most(&mut self, from: BorrowedFd<'_>, max: usize) -> io::Result<usize> {
        debug_assert_eq!(self.held, 0, "a full pipe and an empty socket look the same");
        let n = kernel::fill(&self.ends, from, max.min(PIPE_BYTES))?;
        self.held = n;
        Ok(n)
    }

    /// Moves what the socket takes out of the pipe. May take less than all.
    pub(crate) fn drain(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let n = kernel::drain(&self.ends, to, self.held)?;
        self.held -= n;
        Ok(n)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.made.set(self.made.get() - 1);
    }
}

#[cfg(target_os = "linux")]
mod kernel {
    use std::{
        io,
        os::fd::{BorrowedFd, OwnedFd},
    };

    use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};

    pub(super) struct Ends {
        read: OwnedFd,
        write: OwnedFd,
    }

    pub(super) fn open(size: usize, size_min: usize) -> io::Result<Ends> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused above `fs.pipe-max-size` and the user's limits; then it stays as it is.
        if fcntl_setpipe_size(&write, size).is_err() && fcntl_getpipe_size(&write)? < size_min {
            return Err(io::Error::other("the user has too many pages in pipes"));
        }
        Ok(Ends { read, write })
    }

    pub(super) fn fill(ends: &Ends, from: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        Ok(splice(from, None, &ends.write, None, len, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?)
    }

    pub(super) fn drain(ends: &Ends, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        Ok(splice(&ends.read, None, to, None, len, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?)
    }
}

/// Where there is no splice, everything is copied.
#[cfg(not(target_os = "linux"))]
mod kernel {
    use std::{convert::Infallible, io, os::fd::BorrowedFd};

    pub(super) type Ends = Infallible;

    pub(super) fn open(_: usize, _: usize) -> io::Result<Ends> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn fill(ends: &Ends, _: BorrowedFd<'_>, _: usize) -> io::Result<usize> {
        match *ends {}
    }

    pub(super) fn drain(ends: &Ends, _: BorrowedFd<'_>, _: usize) -> io::Result<usize> {
        match *ends {}
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::TcpStream, os::fd::AsFd};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn an_empty_pipe_is_lent_again_and_one_with_bytes_in_it_never() {
        let pipes = Pipes::default();
        let pipe = pipes.take().unwrap();
        pipes.give(pipe);
        assert_eq!(pipes.made_and_free(), (1, 1));
        let mut pipe = pipes.take().unwrap();
        assert_eq!(pipes.made_and_free(), (1, 0));
        let (mut one, other) = pair();
        one.write_all(b"secret").unwrap();
        // Blocks until they are there: only the pipe is non-blocking.
        while pipe.fill(other.as_fd()).is_err() {}
        assert_eq!(pipe.held(), 6);
        pipes.give(pipe);
        assert_eq!(pipes.made_and_free(), (0, 0));
    }

    #[test]
    fn there_are_never_more_pipes_than_the_bound_and_a_lost_one_makes_room() {
        let pipes = Pipes::default();
        let mut lent: Vec<_> = (0..PIPES_MAX).map(|_| pipes.take().unwrap()).collect();
        assert!(pipes.take().is_none());
        drop(lent.pop());
        assert!(pipes.take().is_some());
    }

    #[test]
    fn a_refusal_of_the_kernel_is_remembered_until_the_next_round() {
        let pipes = Pipes::default();
        pipes.is_refused.set(true);
        assert!(pipes.take().is_none());
        pipes.try_again();
        assert!(pipes.take().is_some());
    }
}
