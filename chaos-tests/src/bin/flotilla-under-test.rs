//! The `flotilla` program itself, built where tests of this crate find it, and bound to their life.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use flotilla_node::faults::Moment;
use nix::sys::{prctl::set_pdeathsig, signal::Signal};

/// A label of a spec asks for one of these. No other program knows them.
fn misbehave(moment: Moment, labels: &BTreeMap<String, String>, stall: &dyn Fn()) {
    match (moment, labels.get("fault").map(String::as_str)) {
        (Moment::Serve, Some("abort")) => std::process::abort(),
        (Moment::Serve, Some("stall")) => stall(),
        (Moment::Compile, Some("panic")) => panic!("asked to"),
        (Moment::Compile, Some("slow")) => sleep_for_ever(),
        _ => {}
    }
}

#[allow(clippy::disallowed_methods, reason = "a compilation without end is what is wanted")]
fn sleep_for_ever() {
    std::thread::sleep(Duration::from_secs(3600));
}

fn main() -> ExitCode {
    // A test that is killed has no chance to clean up; the kernel does.
    if std::env::var_os("FLOTILLA_UNDER_TEST").is_some() {
        set_pdeathsig(Signal::SIGKILL).expect("Linux tells us");
        flotilla_node::faults::install(misbehave);
    }
    flotilla_cli::main()
}
