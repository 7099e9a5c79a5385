//! A child that does not outlive its parent, however the parent ends.
#![allow(
    unsafe_code,
    reason = "`pre_exec` runs between fork and exec, which only unsafe code can promise to survive"
)]

use tokio::process::Command;

/// Asks the kernel to kill the child when the thread that starts it ends. The thread must live as
/// long as the parent: here it is the main thread.
#[cfg(target_os = "linux")]
pub(super) fn die_with_parent(command: &mut Command) {
    use nix::{
        errno::Errno,
        sys::{prctl::set_pdeathsig, signal::Signal},
        unistd::{Pid, getppid},
    };
    let parent = Pid::this();
    let ask = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have ended before it was asked for.
        if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: `ask` makes two system calls and allocates nothing, so it is async-signal-safe.
    unsafe { command.pre_exec(ask) };
}

/// Elsewhere there is no such promise; Ctrl-C and SIGTERM stop the children all the same.
#[cfg(not(target_os = "linux"))]
pub(super) fn die_with_parent(_command: &mut Command) {}
