//! What must hold of the parsers whatever a stranger sends: the targets that `chaos-tests/fuzz` runs for minutes, and
//! the tests here over its corpus. Not compiled otherwise.
//!
//! Each takes any bytes, and panics where something is wrong. Where it can, it compares with a second reading that
//! shares no code with the first.

pub(crate) mod body;
mod edge;
mod head;
mod meter;
mod route;

pub use body::chunked_body;
pub use edge::{client_hello, proxy_header};
pub use head::http_head;
pub use meter::h2_meter;
pub use route::{http_route, route_rule};

/// Choices made of the bytes of an input; zeroes once there are no more.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Once in so many times.
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    /// Some bytes as text, as far as they are any.
    fn text(&mut self) -> &'a str {
        let length = self.below(48).min(self.0.len());
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        std::str::from_utf8(text).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "../../../chaos-tests/fuzz/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::{replay::replay, *};

    #[test]
    fn proxy_headers_are_read_alike_however_they_arrive() {
        replay("proxy_header", 3_000, proxy_header);
    }

    #[test]
    fn the_name_in_a_hello_is_the_one_that_a_server_would_see() {
        replay("client_hello", 3_000, client_hello);
    }

    #[test]
    fn what_goes_on_is_the_message_that_came() {
        replay("http_head", 3_000, http_head);
    }

    #[test]
    fn a_body_in_chunks_is_the_same_for_a_slower_reader() {
        replay("chunked_body", 3_000, chunked_body);
    }

    #[test]
    fn a_route_is_the_one_that_trying_all_of_them_finds() {
        replay("http_route", 3_000, http_route);
    }

    #[test]
    fn any_rule_is_refused_or_can_be_asked() {
        replay("route_rule", 3_000, route_rule);
    }

    #[test]
    fn frames_are_counted_alike_in_any_pieces() {
        replay("h2_meter", 3_000, h2_meter);
    }
}
