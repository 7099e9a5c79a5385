//! Collects violations, and words the ones that every field can have.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use super::Violation;
use crate::{
    diagnostic::{OUT_OF_RANGE, WRONG_VALUE},
    units::duration_text,
};

#[derive(Default)]
pub(super) struct Findings(Vec<Violation>);

/// The violation just added, for what else there is to say about it.
pub(super) struct Added<'a>(&'a mut Violation);

impl Added<'_> {
    pub(super) fn help(self, help: &str) {
        self.0.help = Some(help.to_owned());
    }
}

impl Findings {
    pub(super) fn add(&mut self, path: &str, code: &'static str, message: impl Into<String>) -> Added<'_> {
        self.0.push(Violation { path: path.to_owned(), code, message: message.into(), help: None });
        Added(self.0.last_mut().expect("one was just pushed"))
    }

    pub(super) fn number<N: PartialOrd + Display>(&mut self, path: &str, value: N, range: RangeInclusive<N>) {
        if !range.contains(&value) {
            let (min, max) = range.into_inner();
            self.add(path, OUT_OF_RANGE, format!("`{path}` must be from {min} to {max}, not {value}"));
        }
    }

    pub(super) fn duration(&mut self, path: &str, value: Duration, range: RangeInclusive<Duration>) {
        if !range.contains(&value) {
            let (min, max) = (duration_text(*range.start()), duration_text(*range.end()));
            let message = format!("`{path}` must be from {min} to {max}, not {}", duration_text(value));
            self.add(path, OUT_OF_RANGE, message);
        } else {
            self.whole_millis(path, value);
        }
    }

    pub(super) fn duration_or_off(&mut self, path: &str, value: Duration, max: Duration) {
        let min = Duration::from_millis(1);
        if !value.is_zero() && !(min..=max).contains(&value) {
            let (max, value) = (duration_text(max), duration_text(value));
            let message = format!("`{path}` must be from 1ms to {max}, or \"0s\" for off, not {value}");
            self.add(path, OUT_OF_RANGE, message);
        } else {
            self.whole_millis(path, value);
        }
    }

    /// Milliseconds are what the cluster stores and sends.
    fn whole_millis(&mut self, path: &str, value: Duration) {
        if !value.subsec_nanos().is_multiple_of(1_000_000) {
            let message = format!("`{path}` must be whole milliseconds, not {}", duration_text(value));
            self.add(path, WRONG_VALUE, message);
        }
    }
}

impl From<Findings> for Vec<Violation> {
    fn from(findings: Findings) -> Self {
        findings.0
    }
}
