//! The allocator of every program that a node is part of.

use mimalloc::MiMalloc;

/// glibc's allocator keeps what a burst of connections needed; mimalloc gives it back.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Returns to the kernel what this thread has freed. By itself it does so only when it allocates again, which the
/// worker of ten thousand idle connections does not.
pub(crate) fn give_back() {
    // SAFETY: it may be called at any time by any thread, and looks at the heap of that one alone.
    #[expect(unsafe_code, reason = "a function of C without a safe binding")]
    unsafe {
        libmimalloc_sys::mi_collect(false);
    }
}
