//! `--watch`: asks again and again, and shows the answer when it has changed.

use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use crate::{
    exit::{Exit, Failure},
    output::{Format, Output, line},
};

const INTERVAL: Duration = Duration::from_secs(1);
/// ECMA-48: cursor home, erase to the end of the page.
const HOME_AND_ERASE: &str = "\x1b[H\x1b[J";

/// One answer in both forms.
pub(crate) struct Answer {
    pub(crate) kind: &'static str,
    pub(crate) json: Value,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn print(self, output: &Output) -> Result<Exit, Failure> {
        output.emit(self.kind, || self.json, |_| self.text)?;
        Ok(Exit::Done)
    }
}

/// Shows answers until the user has seen enough. A terminal shows the present, anything else the
/// history. Once there was an answer, a silent fleet is a state like any other.
pub(crate) async fn watch(
    output: &Output,
    ask: impl AsyncFn() -> Result<Answer, Failure>,
) -> Result<Exit, Failure> {
    let mut shown = String::new();
    loop {
        let text = match ask().await {
            Ok(answer) if output.format == Format::Json => line(answer.kind, answer.json),
            Ok(answer) => answer.text,
            Err(failure) if shown.is_empty() => return Err(failure),
            Err(failure) if output.format == Format::Json => line("Error", failure.json()),
            Err(failure) => failure.render(output.stdout),
        };
        if text != shown {
            let erase = output.stdout.animate && output.format != Format::Json;
            output.print(&format!("{}{text}", if erase { HOME_AND_ERASE } else { "" }))?;
            shown = text;
        }
        sleep(INTERVAL).await;
    }
}
