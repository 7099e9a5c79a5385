//! The answers we give ourselves: which error is which status.

use std::{borrow::Cow, sync::Arc};

use http::StatusCode;

use super::{headers::BadRequest, reply::Answer};
use crate::{connect::Unreachable, rate::TooOften};

/// Why there is no response of an endpoint to forward.
pub(crate) enum Refusal {
    Bad(BadRequest),
    TooLarge,
    /// The body is not framed as it says.
    Framing,
    NoRoute,
    NoTarget,
    /// As much is in flight as may be, and nobody left in time.
    Busy,
    /// Its client asks too often.
    TooOften(TooOften),
    /// The client may not connect to the app any more.
    Denied,
    Unreachable,
    ConnectTimeout,
    /// The endpoint has done nothing with it, and says so.
    Refused,
    /// The endpoint broke off, or answered with something that cannot be forwarded.
    Upstream(&'static str),
    ResponseTimeout,
    UploadTimeout,
    /// The client broke off: nobody reads the answer.
    Gone,
    Cut,
    /// User code could not do with the request what it should.
    Layer,
    /// Who it is from could not be found out.
    Unverified,
    /// Nothing is wrong: this is what the route, or somebody who was asked, answers.
    Answer(Arc<Answer>),
}

impl Refusal {
    pub(crate) fn answer(&self) -> (u16, Cow<'static, str>) {
        let (status, text) = match *self {
            Refusal::Bad(bad) => return (bad.status(), format!("{bad}\n").into()),
            Refusal::TooLarge => (413, "request body too large\n"),
            Refusal::Framing => (400, "malformed request body\n"),
            Refusal::NoRoute => (404, "no route\n"),
            Refusal::NoTarget => (503, "no endpoint available\n"),
            Refusal::Busy => (503, "too many requests at once\n"),
            Refusal::TooOften(_) => (429, "too many requests\n"),
            Refusal::Denied => (403, "not for this address\n"),
            Refusal::Unreachable => (502, "no endpoint could be reached\n"),
            Refusal::Refused => (503, "the endpoint takes no more requests\n"),
            Refusal::ConnectTimeout => (504, "no endpoint could be reached in time\n"),
            Refusal::Upstream(reason) => (502, reason),
            Refusal::ResponseTimeout => (504, "the endpoint did not answer in time\n"),
            Refusal::UploadTimeout => (408, "request body came too slow\n"),
            Refusal::Unverified => (503, "access could not be checked\n"),
            Refusal::Gone | Refusal::Cut => (502, "cut\n"),
            Refusal::Layer => (500, "a layer failed\n"),
            Refusal::Answer(ref answer) => (answer.status, ""),
        };
        (status, text.into())
    }

    /// What was read of the request can no longer be trusted to end where it seems to.
    pub(crate) fn ends_connection(&self) -> bool {
        match self {
            Refusal::Bad(_)
            | Refusal::TooLarge
            | Refusal::Framing
            | Refusal::UploadTimeout
            | Refusal::Denied
            | Refusal::Gone
            | Refusal::Cut => true,
            Refusal::NoRoute
            | Refusal::NoTarget
            | Refusal::Busy
            | Refusal::Refused
            | Refusal::TooOften(_)
            | Refusal::Unreachable
            | Refusal::ConnectTimeout
            | Refusal::Upstream(_)
            | Refusal::Unverified
            | Refusal::ResponseTimeout
            | Refusal::Layer
            | Refusal::Answer(_) => false,
        }
    }

    pub(crate) fn answer_with(answer: Answer) -> Refusal {
        Refusal::Answer(Arc::new(answer))
    }

    /// Seconds until it may be worth another try.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        match self {
            Refusal::Busy | Refusal::Unverified | Refusal::Refused => Some(1),
            Refusal::TooOften(TooOften { wait }) => Some(wait.as_secs() + 1),
            Refusal::Bad(_)
            | Refusal::TooLarge
            | Refusal::Framing
            | Refusal::NoRoute
            | Refusal::NoTarget
            | Refusal::Denied
            | Refusal::Unreachable
            | Refusal::ConnectTimeout
            | Refusal::Upstream(_)
            | Refusal::ResponseTimeout
            | Refusal::UploadTimeout
            | Refusal::Gone
            | Refusal::Cut
            | Refusal::Layer
            | Refusal::Answer(_) => None,
        }
    }

    /// What an answer says about the connection to the client, if anything.
    pub(crate) fn connection(is_http10: bool, goes_on: bool) -> Option<&'static str> {
        match (goes_on, is_http10) {
            (false, _) => Some("close"),
            (true, true) => Some("keep-alive"),
            (true, false) => None,
        }
    }

    /// Writes an answer; how many bytes of it are the head.
    pub(crate) fn write(
        status: u16,
        is_http10: bool,
        goes_on: bool,
        retry_after: Option<u64>,
        text: &str,
        out: &mut Vec<u8>,
    ) -> usize {
        let retry_after = retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n"));
        let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let connection = match Self::connection(is_http10, goes_on) {
            Some(connection) => format!("Connection: {connection}\r\n"),
            None => String::new(),
        };
        let head = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{}{connection}\r\n",
            reason.unwrap_or_default(),
            text.len(),
            retry_after.unwrap_or_default(),
        );
        out.extend_from_slice(head.as_bytes());
        let head = out.len();
        out.extend_from_slice(text.as_bytes());
        head
    }
}

impl From<Unreachable> for Refusal {
    fn from(unreachable: Unreachable) -> Refusal {
        match unreachable {
            Unreachable::Failed => Refusal::Unreachable,
            Unreachable::Timeout => Refusal::ConnectTimeout,
            Unreachable::Cut => Refusal::Cut,
        }
    }
}
