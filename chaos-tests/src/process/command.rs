//! Runs the `flotilla` command as a user does, and keeps what it said.

use std::{fmt, path::Path, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

/// Longer than any command of the tests may take; a command that hangs fails its test.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub struct Output {
    command: String,
    /// `None`: ended by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Fails the test, with all that was said, unless the exit code is this one.
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// Fails the test unless the text is on stdout or stderr.
    pub fn says(self, text: &str) -> Self {
        assert!(self.stdout.contains(text) || self.stderr.contains(text), "`{text}` is not said: {self}");
        self
    }

    /// What `-o json` printed.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|err| panic!("{err}: {self}"))
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, code, stdout, stderr } = self;
        write!(f, "$ flotilla {command}\n{stdout}{stderr}(exit {code:?})")
    }
}

pub(super) async fn run<'a>(
    program: &Path,
    directory: &Path,
    addresses: &str,
    arguments: impl IntoIterator<Item = &'a str>,
) -> Output {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let child = Command::new(program)
        .args(&arguments)
        .current_dir(directory)
        .env("FLOTILLA_ADDR", addresses)
        .env("FLOTILLA_UNDER_TEST", "1")
        .env("HOME", directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let command = arguments.join(" ");
    match timeout(LIMIT, child.wait_with_output()).await {
        Ok(ended) => {
            let ended = ended.unwrap();
            Output {
                command,
                code: ended.status.code(),
                stdout: String::from_utf8(ended.stdout).unwrap(),
                stderr: String::from_utf8(ended.stderr).unwrap(),
            }
        }
        Err(_) => panic!("`flotilla {command}` did not end within {LIMIT:?}"),
    }
}
