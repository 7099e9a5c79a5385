//! Where a rollout is shown while it goes on: redrawn on a terminal, line by line in a log.

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use flotilla_api::v1::Rollout;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use jiff::Timestamp;

use super::render::{body, changes, head};
use crate::{exit::Failure, output::Output, view::clock};

/// The elapsed time is redrawn although nothing happens.
const TICK: Duration = Duration::from_millis(250);

pub(super) struct Screen {
    output: Output,
    shown: RefCell<BTreeMap<String, Shown>>,
    /// Present on a terminal.
    live: Option<MultiProgress>,
}

struct Shown {
    rollout: Rollout,
    bar: Option<ProgressBar>,
}

impl Screen {
    pub(super) fn new(output: &Output) -> Self {
        let live = (output.stderr.animate && !output.quiet)
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self { output: *output, shown: RefCell::default(), live }
    }

    pub(super) fn show(&self, rollout: &Rollout) {
        let mut shown = self.shown.borrow_mut();
        let before = shown.get(&rollout.app);
        let bar = match (&self.live, before) {
            (None, _) => {
                let time = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                for line in changes(before.map(|before| &before.rollout), rollout, &time) {
                    self.output.note(line);
                }
                None
            }
            (Some(_), Some(Shown { bar, .. })) => bar.clone(),
            (Some(live), None) => Some(live.add(bar())),
        };
        if let Some(bar) = &bar {
            bar.set_prefix(head(rollout, self.output.stderr));
            bar.set_message(body(rollout, self.output.stderr));
        }
        shown.insert(rollout.app.clone(), Shown { rollout: rollout.clone(), bar });
    }

    /// Takes the progress of `app` away and lets `say` write above what is still moving.
    pub(super) fn finished(
        &self,
        app: &str,
        say: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if let Some(Shown { bar: Some(bar), .. }) = self.shown.borrow_mut().remove(app) {
            bar.finish_and_clear();
        }
        match &self.live {
            Some(live) => live.suspend(say),
            None => say(),
        }
    }

    /// Gives the terminal back.
    pub(super) fn clear(&self) {
        for (_, shown) in std::mem::take(&mut *self.shown.borrow_mut()) {
            if let Some(bar) = shown.bar {
                bar.finish_and_clear();
            }
        }
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix}   {clock}\n{msg}")
        .expect("the template is a constant")
        .with_key("clock", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            // A terminal that takes no more text shows none.
            out.write_str(&clock(state.elapsed())).ok();
        });
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(TICK);
    bar
}
