//! Where words go and how they look, decided once per stream.
//!
//! Data goes to stdout; progress, hints and errors go to stderr. A stream is coloured or animated
//! only when *that stream* is a terminal, so `flotilla app list 2>log | less` does the right thing
//! on both ends. What the words are is decided by the verbs.

use std::{
    env,
    io::{self, IsTerminal, Write},
};

use serde_json::{Value, json};

use crate::exit::Failure;

/// The promise that a JSON document makes about its fields: they are only added.
const API_VERSION: &str = "flotilla/v1";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Wide,
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ColorChoice {
    #[default]
    Auto,
    Always,
    Never,
}

/// How one stream is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    pub(crate) color: bool,
    /// The cursor may move back over what was written.
    pub(crate) animate: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) format: Format,
    /// No progress and no hints; data and errors remain.
    pub(crate) quiet: bool,
    /// Tables begin with the names of their columns.
    pub(crate) headers: bool,
    pub(crate) stdout: Style,
    pub(crate) stderr: Style,
}

impl Output {
    pub(crate) fn new(format: Format, quiet: bool, headers: bool, choice: ColorChoice) -> Self {
        let no_color = env::var("NO_COLOR").is_ok_and(|value| !value.is_empty());
        let dumb = env::var("TERM").is_ok_and(|value| value == "dumb");
        Self {
            format,
            quiet,
            headers,
            stdout: decide(choice, io::stdout().is_terminal(), no_color, dumb),
            stderr: decide(choice, io::stderr().is_terminal(), no_color, dumb),
        }
    }

    /// One answer: a JSON document of `kind`, or text for people.
    pub(crate) fn emit(
        &self,
        kind: &str,
        json: impl FnOnce() -> Value,
        text: impl FnOnce(Style) -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.print(&document(kind, json())),
            Format::Table | Format::Wide => self.print(&text(self.stdout)),
        }
    }

    /// A JSON document when JSON was asked for; people were told already.
    pub(crate) fn json(&self, kind: &str, json: impl FnOnce() -> Value) -> Result<(), Failure> {
        self.emit(kind, json, |_| String::new())
    }

    /// Data, to stdout. A reader that went away (`| head`) is the end of the verb, not a panic.
    pub(crate) fn print(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        if !text.is_empty() && !text.ends_with('\n') {
            stdout.write_all(b"\n")?;
        }
        Ok(stdout.flush()?)
    }

    /// Progress and hints, to stderr. Nobody reading them is no reason to stop.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            to_stderr(text.as_ref());
        }
    }

    /// What went wrong, to stderr, even with `--quiet`.
    pub(crate) fn complain(&self, text: &str) {
        to_stderr(text);
    }

    /// Why the verb failed, to stderr; as one JSON line when JSON was asked for.
    pub(crate) fn error(&self, failure: &Failure) {
        match self.format {
            Format::Json => to_stderr(&line("Error", failure.json())),
            Format::Table | Format::Wide => to_stderr(&failure.render(self.stderr)),
        }
    }
}

impl Style {
    pub(crate) const PLAIN: Self = Self { color: false, animate: false };

    pub(crate) fn bold(self, text: &str) -> String {
        self.sgr("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.sgr("2", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.sgr("31", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.sgr("32", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.sgr("33", text)
    }

    /// ECMA-48 §8.3.117, Select Graphic Rendition.
    fn sgr(self, code: &str, text: &str) -> String {
        if self.color && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// `NO_COLOR` (no-color.org) and `TERM=dumb` take colour from a terminal; `--color` overrules both.
/// Nothing makes a stream that is not a terminal animate.
fn decide(choice: ColorChoice, terminal: bool, no_color: bool, dumb: bool) -> Style {
    let color = match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => terminal && !no_color && !dumb,
    };
    Style { color, animate: terminal && !dumb }
}

/// A JSON document for a file or a program: the envelope first, then the fields of `body`.
pub(crate) fn document(kind: &str, body: Value) -> String {
    let mut text = serde_json::to_string_pretty(&envelope(kind, body)).expect("a Value has string keys");
    text.push('\n');
    text
}

/// The same on one line, for streams of documents.
pub(crate) fn line(kind: &str, body: Value) -> String {
    envelope(kind, body).to_string()
}

fn envelope(kind: &str, body: Value) -> Value {
    let mut whole = json!({ "apiVersion": API_VERSION, "kind": kind });
    match body {
        Value::Object(fields) => whole.as_object_mut().expect("made as an object").extend(fields),
        items => whole["items"] = items,
    }
    whole
}

fn to_stderr(text: &str) {
    let mut stderr = io::stderr().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    // Nothing is left to say it to.
    drop(write!(stderr, "{text}{newline}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_needs_a_terminal_that_can_and_a_user_who_wants() {
        use ColorChoice::{Always, Auto, Never};
        let check = |choice, terminal, no_color, dumb, color, animate| {
            let style = decide(choice, terminal, no_color, dumb);
            assert_eq!(
                style,
                Style { color, animate },
                "{choice:?} terminal={terminal} no_color={no_color} dumb={dumb}"
            );
        };
        //    choice  terminal no_color dumb  -> color  animate
        check(Auto, true, false, false, true, true);
        check(Auto, true, true, false, false, true);
        check(Auto, true, false, true, false, false);
        check(Auto, false, false, false, false, false);
        check(Always, false, false, false, true, false);
        check(Always, true, true, true, true, false);
        check(Never, true, false, false, false, true);
    }

    #[test]
    fn a_document_names_its_version_and_kind_and_keeps_the_fields() {
        let document: Value = serde_json::from_str(&document("AppList", json!({ "items": [] }))).unwrap();
        assert_eq!(document, json!({ "apiVersion": "flotilla/v1", "kind": "AppList", "items": [] }));
    }

    #[test]
    fn plain_text_has_no_escapes() {
        assert_eq!(Style::PLAIN.red("x"), "x");
        assert_eq!(Style { color: true, animate: false }.red("x"), "\x1b[31mx\x1b[0m");
    }
}
