//! Millions of connections over a thousand shifts: not one fails, and each answer is checked.
//!
//! `CONNECTIONS` and `SHIFTS` say how many, and with `TOTALS=FILE` what was counted is kept after each
//! shift, so that a run that was stopped goes on where it stood.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what goes wrong fails the test, and what it measured is said"
)]

use std::{env, fmt, fs, path::PathBuf};

use flotilla_chaos_tests::{
    client::whoami,
    load::{Load, Report, Running},
    origin,
    poll::eventually,
    process::{SOON, TestFleet},
    spec,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");
const NAMES: [&str; 2] = ["blue", "green"];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    connections: u64,
    failed: u64,
    shifts: u64,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.connections += report.total();
        self.failed += report.failed();
    }

    /// As [`fmt::Display`] wrote it.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
        Some(Self { connections: numbers.next()?, failed: numbers.next()?, shifts: numbers.next()? })
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, failed, shifts } = self;
        write!(f, "{connections} connections, {failed} failed, over {shifts} shifts")
    }
}

/// New TCP connections and new HTTP connections, half of each, as fast as the machine opens them; and on
/// each shift both apps move to the other targets. `file`: where `totals` are from, and go.
async fn run(goal: Totals, mut totals: Totals, file: Option<PathBuf>) -> Totals {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let echoes = NAMES.map(origin::Echo::start);
    let https = NAMES.map(origin::Http::start);
    let specs = |shift: u64| {
        let turn = usize::try_from(shift % 2).unwrap();
        let more = format!("description = \"{shift}\"");
        spec::app("raw", "9000", &[echoes[turn].address()], &more)
            + &spec::app("web", "\"http:8080\"", &[https[turn].address()], &more)
    };
    fleet.apply(&specs(totals.shifts)).await.exits(0);
    while totals.shifts < goal.shifts {
        let left = goal.connections.saturating_sub(totals.connections);
        let share = left.div_ceil(goal.shifts - totals.shifts);
        let loads = [
            Load::tcp(fleet.port(9000)).clients(8).start(),
            Load::http(fleet.port(8080), "/").clients(8).start(),
        ];
        let shift = totals.shifts + 1;
        // In hours a leader may change, and an apply that was not answered is made again: it changes nothing
        // twice.
        eventually(&format!("shift {shift} is made"), SOON * 4, async || {
            let applied = fleet.apply(&specs(shift)).await;
            if applied.code == Some(0) { Ok(()) } else { Err(applied) }
        })
        .await;
        let name = NAMES[usize::try_from(shift % 2).unwrap()];
        for address in fleet.port(9000) {
            assert_eq!(whoami(address).await.unwrap(), name, "after shift {shift} at {address}");
        }
        eventually("the share of this shift is done", SOON * 100, async || {
            let finished: u64 = loads.iter().map(Running::finished).sum();
            if finished >= share { Ok(()) } else { Err(format!("{finished} of {share}")) }
        })
        .await;
        totals.shifts = shift;
        for load in loads {
            let report = load.stop().await;
            totals.add(&report);
            if report.failed() > 0 {
                eprintln!("{report}");
            }
        }
        eprintln!("{totals}");
        if let Some(file) = &file {
            fs::write(file, totals.to_string()).unwrap();
        }
    }
    totals
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.replace('_', "").parse().expect("a number"))
}

#[tokio::test]
async fn a_short_run_counts_what_it_does_and_goes_on_where_it_stood() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("totals");
    let before = Totals { connections: 1_000, failed: 0, shifts: 5 };
    let goal = Totals { connections: 2_000, failed: 0, shifts: 7 };
    let totals = run(goal, before, Some(file.clone())).await;
    assert!(totals.connections >= 2_000 && totals.shifts == 7 && totals.failed == 0, "{totals}");
    assert_eq!(Totals::parse(&fs::read_to_string(file).unwrap()), Some(totals));
}

/// `TOTALS=totals cargo test --release -p flotilla-chaos-tests --test long_run -- --ignored --nocapture`
#[tokio::test]
#[ignore = "hours"]
async fn ten_million_connections_over_a_thousand_shifts() {
    let file = env::var_os("TOTALS").map(PathBuf::from);
    let text = file.as_ref().and_then(|file| fs::read_to_string(file).ok());
    let before = text.map_or(Totals::default(), |text| Totals::parse(&text).expect("totals"));
    let (connections, shifts) = (number("CONNECTIONS", 10_000_000), number("SHIFTS", 1_000));
    let totals = run(Totals { connections, failed: 0, shifts }, before, file).await;
    eprintln!("done: {totals}");
    assert_eq!(totals.failed, 0, "{totals}");
}
