//! The answers we give ourselves: which error is which status.

use bytes::Bytes;
use http::StatusCode;

use super::headers::BadRequest;
use crate::connect::Unreachable;

/// Why there is no response of an endpoint to forward.
pub(crate) enum Refusal {
    Bad(BadRequest),
    TooLarge,
    NoRoute,
    NoTarget,
    Unreachable,
    ConnectTimeout,
    /// The endpoint broke off, or answered with something that cannot be forwarded.
    Upstream(&'static str),
    ResponseTimeout,
    UploadTimeout,
    /// The client broke off or the request was cut: nobody reads the answer.
    Gone,
}

impl Refusal {
    pub(crate) fn answer(&self) -> (StatusCode, Bytes) {
        let (status, text) = match *self {
            Refusal::Bad(bad) => return (bad.status(), format!("{bad}\n").into()),
            Refusal::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "request body too large\n"),
            Refusal::NoRoute => (StatusCode::NOT_FOUND, "no route\n"),
            Refusal::NoTarget => (StatusCode::SERVICE_UNAVAILABLE, "no endpoint available\n"),
            Refusal::Unreachable => (StatusCode::BAD_GATEWAY, "no endpoint could be reached\n"),
            Refusal::ConnectTimeout => {
                (StatusCode::GATEWAY_TIMEOUT, "no endpoint could be reached in time\n")
            }
            Refusal::Upstream(reason) => (StatusCode::BAD_GATEWAY, reason),
            Refusal::ResponseTimeout => {
                (StatusCode::GATEWAY_TIMEOUT, "the endpoint did not answer in time\n")
            }
            Refusal::UploadTimeout => (StatusCode::REQUEST_TIMEOUT, "request body came too slow\n"),
            Refusal::Gone => (StatusCode::BAD_GATEWAY, "cut\n"),
        };
        (status, Bytes::from_static(text.as_bytes()))
    }

    /// What was read of the request can no longer be trusted to end where it seems to.
    pub(crate) fn ends_connection(&self) -> bool {
        match self {
            Refusal::Bad(_) | Refusal::TooLarge | Refusal::UploadTimeout | Refusal::Gone => true,
            Refusal::NoRoute
            | Refusal::NoTarget
            | Refusal::Unreachable
            | Refusal::ConnectTimeout
            | Refusal::Upstream(_)
            | Refusal::ResponseTimeout => false,
        }
    }
}

impl From<Unreachable> for Refusal {
    fn from(unreachable: Unreachable) -> Refusal {
        match unreachable {
            Unreachable::Failed => Refusal::Unreachable,
            Unreachable::Timeout => Refusal::ConnectTimeout,
            Unreachable::Cut => Refusal::Gone,
        }
    }
}
