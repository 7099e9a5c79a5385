//! The `Date` of responses that come without one, written once a second.

use std::{
    cell::{Cell, RefCell},
    time::SystemTime,
};

/// `Sun, 06 Nov 1994 08:49:37 GMT`
const BYTES: usize = 29;

pub(crate) struct Date {
    text: RefCell<[u8; BYTES]>,
    /// The second of the worker's clock that it was written in.
    second: Cell<u64>,
}

impl Default for Date {
    fn default() -> Self {
        Date { text: RefCell::new([b' '; BYTES]), second: Cell::new(u64::MAX) }
    }
}

impl Date {
    /// `now`: milliseconds of the worker's clock.
    pub(crate) fn at(&self, now: u64) -> [u8; BYTES] {
        if self.second.replace(now / 1000) != now / 1000 {
            #[allow(clippy::disallowed_methods, reason = "the time of day is what is asked for")]
            let time = SystemTime::now();
            let text = httpdate::fmt_http_date(time);
            self.text.borrow_mut().copy_from_slice(text.as_bytes());
        }
        *self.text.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_as_http_wants_it_and_again_only_in_another_second() {
        let date = Date::default();
        let first = date.at(1500);
        assert!(httpdate::parse_http_date(std::str::from_utf8(&first).unwrap()).is_ok());
        date.text.borrow_mut()[0] = b'x';
        assert_eq!(date.at(1999)[0], b'x');
        assert_ne!(date.at(2000)[0], b'x');
    }
}
