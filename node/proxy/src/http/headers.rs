//! What a message must look like to be forwarded, and what is taken off and put on when it is.
//!
//! Pure.

use std::net::SocketAddr;

use http::{HeaderMap, request, response};

/// Why a request is refused with 400 before anything of it is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    #[error("no Host field")]
    NoHost,
}

/// Refuses what two HTTP implementations could read differently (RFC 9112 sections 3.2 and 6).
pub fn check_request(_request: &request::Parts) -> Result<(), BadRequest> {
    Ok(())
}

/// Whether the message asks for (or, with 101, agrees to) another protocol than HTTP on this connection.
pub fn is_upgrade(_headers: &HeaderMap) -> bool {
    false
}

/// Makes a checked request ready for an origin. `upgrade`: keep the request's wish to change the protocol.
pub fn sanitize_request(_request: &mut request::Parts, _client: SocketAddr, _local_port: u16, _upgrade: bool) {}

/// Makes a response ready for the client. `upgrade`: this is the 101 of a protocol change.
pub fn sanitize_response(_response: &mut response::Parts, _upgrade: bool) {}
