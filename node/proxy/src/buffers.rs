//! What a worker lends its sessions and connections, and only while they have something to do with it.

use std::cell::RefCell;

/// Bytes in flight per direction of a session.
pub(crate) const BUFFER_BYTES: usize = 32 * 1024;
/// Free buffers kept for the next session (8 MiB per worker); more are given back to the allocator.
const FREE_MAX: usize = 256;

#[derive(Default)]
pub(crate) struct Buffers(RefCell<Vec<Box<[u8]>>>);

impl Buffers {
    pub(crate) fn take(&self) -> Box<[u8]> {
        self.0.borrow_mut().pop().unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
    }

    /// One that was made larger than all others is not kept.
    pub(crate) fn give(&self, buffer: Box<[u8]>) {
        let mut free = self.0.borrow_mut();
        if free.len() < FREE_MAX && buffer.len() == BUFFER_BYTES {
            free.push(buffer);
        }
    }
}

/// Things that are used for a moment and worth keeping for the next one.
pub(crate) struct Spares<T>(RefCell<Vec<Box<T>>>);

impl<T> Default for Spares<T> {
    fn default() -> Self {
        Spares(RefCell::default())
    }
}

impl<T: Default> Spares<T> {
    pub(crate) fn take(&self) -> Box<T> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    pub(crate) fn give(&self, spare: Box<T>) {
        let mut free = self.0.borrow_mut();
        if free.len() < FREE_MAX {
            free.push(spare);
        }
    }
}
