//! Copy buffers of one worker, lent to a session only while it has bytes to move.

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

    pub(crate) fn give(&self, buffer: Box<[u8]>) {
        let mut free = self.0.borrow_mut();
        if free.len() < FREE_MAX {
            free.push(buffer);
        }
    }
}
