//! The `flotilla` program itself, built where tests of this crate find it, and bound to their life.

use std::process::ExitCode;

use nix::sys::{prctl::set_pdeathsig, signal::Signal};

/// As in the real program: what a test measures of a process's memory depends on it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A test that is killed has no chance to clean up; the kernel does.
    if std::env::var_os("FLOTILLA_UNDER_TEST").is_some() {
        set_pdeathsig(Signal::SIGKILL).expect("Linux tells us");
    }
    flotilla_cli::main()
}
