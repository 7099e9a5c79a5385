//! How long a traffic thread runs at a time where others want its processor.
//!
//! The scheduler gives every thread its share; who runs for a shorter time at once has its turn sooner (EEVDF, since
//! Linux 6.12 with the slice of a thread's own choice in `sched_setattr(2)`). Traffic has little to do at a time and
//! somebody waits for it; what decides about thousands of apps runs for milliseconds.

use std::{io, mem, time::Duration};

/// A tenth of what a thread has that asks for nothing.
const SLICE: Duration = Duration::from_micros(300);

/// For the calling thread; nothing else about it changes. Older kernels take the wish and do nothing with it.
#[cfg(target_os = "linux")]
pub(crate) fn shorten() {
    // Threads of other classes have an order of their own, which somebody has chosen.
    let ours = attributes().ok().filter(|now| i32::try_from(now.sched_policy) == Ok(libc::SCHED_OTHER));
    let Some(now) = ours else { return };
    let nanos = u64::try_from(SLICE.as_nanos()).unwrap_or_default();
    if let Err(error) = set(&libc::sched_attr { sched_runtime: nanos, ..now }) {
        tracing::debug!(%error, "a traffic thread keeps the slice that it has");
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn shorten() {}

#[cfg(target_os = "linux")]
fn attributes() -> io::Result<libc::sched_attr> {
    let size = mem::size_of::<libc::sched_attr>();
    // SAFETY: all of it are numbers, for which zero is a value.
    #[expect(unsafe_code, reason = "a structure of C")]
    let mut now: libc::sched_attr = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes no more than `size` bytes, and there are as many.
    #[expect(unsafe_code, reason = "a system call without a binding")]
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut now, size, 0) };
    if result == 0 { Ok(now) } else { Err(io::Error::last_os_error()) }
}

#[cfg(target_os = "linux")]
fn set(wanted: &libc::sched_attr) -> io::Result<()> {
    // SAFETY: the kernel only reads, as many bytes as the structure says that it has.
    #[expect(unsafe_code, reason = "a system call without a binding")]
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *wanted, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_a_shorter_slice_and_is_else_as_it_was() {
        std::thread::spawn(|| {
            let before = attributes().unwrap();
            shorten();
            let now = attributes().unwrap();
            assert_eq!(now.sched_policy, before.sched_policy);
            assert_eq!(now.sched_nice, before.sched_nice);
            // An older kernel says 0.
            assert!([0, 300_000].contains(&now.sched_runtime), "{} ns", now.sched_runtime);
        })
        .join()
        .unwrap();
    }
}
