//! How a verb ends: the exit codes, and the failures that lead to them.
//!
//! The one place where a gRPC status becomes something for people and scripts.

use std::{fmt, io, process::ExitCode};

use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::output::Style;

/// Codes are a promise to scripts; a number never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    /// The operation was carried out or refused, and did not succeed: a rollout rolled back.
    Failed = 1,
    /// The command line or a spec is invalid (clap's own code too).
    Usage = 2,
    Unreachable = 3,
    NoLeader = 4,
    Conflict = 5,
    NotFound = 6,
    /// `app plan --exit-code`: changes are pending.
    Pending = 10,
    /// 128 + SIGINT, as shells count.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What, why, what to do.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// As in `flotilla explain CODE`.
    pub(crate) code: Option<String>,
    pub(crate) message: String,
    pub(crate) help: Vec<String>,
}

/// Metadata keys under which a node sends its error code and its advice. The advice is UTF-8 and
/// gRPC's text metadata is ASCII, hence a binary key.
const CODE_KEY: &str = "flotilla-code";
const HELP_KEY: &str = "flotilla-help";
const HELP_KEY_BINARY: &str = "flotilla-help-bin";

/// The code of "no leader, or no quorum to follow it".
const NO_LEADER: &str = "E0401";

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, code: None, message: message.into(), help: Vec::new() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// The verb ended before its work, without anything to say: stdout was closed.
    fn silent() -> Self {
        Self::new(Exit::Done, "")
    }

    pub(crate) fn code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.message.is_empty()
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "code": self.code, "message": self.message, "help": self.help, "exit": self.exit as u8 })
    }

    pub(crate) fn render(&self, style: Style) -> String {
        let head = match &self.code {
            Some(code) => format!("error[{code}]"),
            None => "error".to_owned(),
        };
        let mut text = format!("{}: {}\n", style.red(&style.bold(&head)), self.message);
        for help in &self.help {
            text += &format!("  {} {}\n", style.bold("help:"), help.trim_end().replace('\n', "\n        "));
        }
        text
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(Style::PLAIN).trim_end())
    }
}

impl From<io::Error> for Failure {
    fn from(err: io::Error) -> Self {
        match err.kind() {
            io::ErrorKind::BrokenPipe => Self::silent(),
            _ => Self::new(Exit::Failed, err.to_string()),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(err: anyhow::Error) -> Self {
        Self::new(Exit::Failed, format!("{err:#}"))
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let code = server_code(&status).map(str::to_owned);
        Self {
            exit: exit_of(&status),
            message: message_of(&status),
            help: server_help(&status).into_iter().collect(),
            code,
        }
    }
}

/// What the node itself calls the error; absent when the answer did not come from a node.
pub(crate) fn server_code(status: &Status) -> Option<&str> {
    status.metadata().get(CODE_KEY).and_then(|value| value.to_str().ok())
}

/// The call may succeed at another node, or at the same one in a while.
pub(crate) fn is_transient(status: &Status) -> bool {
    matches!(exit_of(status), Exit::Unreachable | Exit::NoLeader)
}

fn exit_of(status: &Status) -> Exit {
    match status.code() {
        Code::Ok => Exit::Done,
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::NotFound => Exit::NotFound,
        Code::Aborted => Exit::Conflict,
        Code::Unavailable if server_code(status) == Some(NO_LEADER) => Exit::NoLeader,
        Code::Unavailable | Code::DeadlineExceeded => Exit::Unreachable,
        // hyper reports a connection that broke in the middle of a call in these ways.
        Code::Cancelled | Code::Unknown if server_code(status).is_none() => Exit::Unreachable,
        Code::Cancelled
        | Code::Unknown
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => Exit::Failed,
    }
}

fn message_of(status: &Status) -> String {
    match status.message() {
        "" => format!("the node answered `{}`", status.code()),
        message => message.to_owned(),
    }
}

fn server_help(status: &Status) -> Option<String> {
    let metadata = status.metadata();
    if let Some(binary) = metadata.get_bin(HELP_KEY_BINARY) {
        return binary.to_bytes().ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    }
    metadata.get(HELP_KEY).and_then(|value| value.to_str().ok()).map(percent_decode)
}

/// RFC 3986 §2.1. What is not an escape stays as it is.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = match (first, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escape {
            Some((high, low)) => {
                bytes.push(high * 16 + low);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tonic::metadata::{MetadataMap, MetadataValue};

    use super::*;

    fn status(code: Code, flotilla_code: Option<&'static str>) -> Status {
        let mut metadata = MetadataMap::new();
        if let Some(value) = flotilla_code {
            metadata.insert(CODE_KEY, MetadataValue::from_static(value));
        }
        Status::with_metadata(code, "no", metadata)
    }

    #[test]
    fn every_status_has_its_exit_code() {
        for (code, flotilla_code, exit) in [
            (Code::InvalidArgument, Some("E0105"), 2),
            (Code::NotFound, Some("E0301"), 6),
            (Code::Aborted, Some("E0302"), 5),
            (Code::Unavailable, Some("E0401"), 4),
            (Code::Unavailable, None, 3),
            (Code::DeadlineExceeded, None, 3),
            (Code::Unknown, None, 3),
            (Code::Unknown, Some("E0501"), 1),
            (Code::AlreadyExists, Some("E0201"), 1),
            (Code::FailedPrecondition, Some("E0203"), 1),
            (Code::Internal, None, 1),
        ] {
            assert_eq!(
                Failure::from(status(code, flotilla_code)).exit as u8,
                exit,
                "{code:?} {flotilla_code:?}"
            );
        }
    }

    #[test]
    fn the_advice_of_a_node_is_shown_with_its_code() {
        let mut refused = status(Code::AlreadyExists, Some("E0201"));
        refused.metadata_mut().insert(HELP_KEY, MetadataValue::from_static("pick%20another%3A 100%"));
        assert_eq!(Failure::from(refused).to_string(), "error[E0201]: no\n  help: pick another: 100%");
    }

    #[test]
    fn advice_in_a_binary_key_is_utf_8() {
        let mut refused = status(Code::NotFound, None);
        refused.metadata_mut().insert_bin(HELP_KEY_BINARY, MetadataValue::from_bytes("→ `web`".as_bytes()));
        assert_eq!(Failure::from(refused).help, ["→ `web`"]);
    }

    #[test]
    fn a_closed_pipe_is_silent_and_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(failure.is_silent());
        assert_eq!(failure.exit, Exit::Done);
    }
}
