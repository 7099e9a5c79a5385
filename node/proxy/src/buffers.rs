//! What a worker lends its sessions and connections, and only while they have something to do with it.

use std::cell::{Cell, RefCell};

/// Bytes in flight per direction of a session.
pub(crate) const BUFFER_BYTES: usize = 32 * 1024;
/// Free ones kept for the next session (8 MiB of buffers per worker); more are given back to the allocator.
const FREE_MAX: usize = 256;

#[derive(Default)]
pub(crate) struct Buffers(Free<Box<[u8]>>);

impl Buffers {
    pub(crate) fn take(&self) -> Box<[u8]> {
        self.0.take().unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
    }

    /// One that was made larger than all others is not kept.
    pub(crate) fn give(&self, buffer: Box<[u8]>) {
        if buffer.len() == BUFFER_BYTES {
            self.0.give(buffer);
        }
    }

    pub(crate) fn shrink(&self) {
        self.0.shrink();
    }
}

/// Things that are used for a moment and worth keeping for the next one.
pub(crate) struct Spares<T>(Free<Box<T>>);

impl<T> Default for Spares<T> {
    fn default() -> Self {
        Spares(Free::default())
    }
}

impl<T: Default> Spares<T> {
    pub(crate) fn take(&self) -> Box<T> {
        self.0.take().unwrap_or_default()
    }

    pub(crate) fn give(&self, spare: Box<T>) {
        self.0.give(spare);
    }

    pub(crate) fn shrink(&self) {
        self.0.shrink();
    }
}

struct Free<T> {
    free: RefCell<Vec<T>>,
    /// Of them, those that nobody has needed since the last [`Free::shrink`].
    unused: Cell<usize>,
}

impl<T> Default for Free<T> {
    fn default() -> Self {
        Free { free: RefCell::default(), unused: Cell::new(0) }
    }
}

impl<T> Free<T> {
    fn take(&self) -> Option<T> {
        let mut free = self.free.borrow_mut();
        let one = free.pop();
        self.unused.set(self.unused.get().min(free.len()));
        one
    }

    fn give(&self, one: T) {
        let mut free = self.free.borrow_mut();
        if free.len() < FREE_MAX {
            free.push(one);
        }
    }

    /// Lets go of three quarters of what was not needed since the last time: after a burst nothing of it is left within
    /// three seconds, and one that follows at once finds some of it.
    fn shrink(&self) {
        let mut free = self.free.borrow_mut();
        let left = free.len() - (self.unused.get() * 3).div_ceil(4);
        free.truncate(left);
        self.unused.set(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_kept_and_the_rest_is_let_go_by_and_by() {
        let free = Free::default();
        let is_left = || free.free.borrow().len();
        (0..300).for_each(|one| free.give(one));
        assert_eq!(is_left(), FREE_MAX);
        // The first look only learns how many there are.
        free.shrink();
        assert_eq!(is_left(), 256);
        let mut left = Vec::new();
        for _ in 0..5 {
            // Two are in use again and again.
            for one in [free.take().unwrap(), free.take().unwrap()] {
                free.give(one);
            }
            free.shrink();
            left.push(is_left());
        }
        assert_eq!(left, [65, 17, 5, 2, 2]);
        (0..4).for_each(|_| free.shrink());
        assert_eq!(is_left(), 0);
    }
}
