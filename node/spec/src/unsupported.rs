//! What the spec language knows and this version does not do yet. Asking for it is refused by name
//! rather than as a typing error. The one place to take a line out of when it becomes real.

/// By the key of the table they stand in.
const FIELDS: [(&str, &[&str]); 2] = [("app", &["log", "trace", "metrics", "filter"]), ("tls", &["acme"])];

/// Values of fields that take one of a few words.
const WORDS: [&str; 0] = [];

pub(crate) fn is_field(table: &str, field: &str) -> bool {
    FIELDS.iter().any(|(name, fields)| *name == table && fields.contains(&field))
}

pub(crate) fn is_word(word: &str) -> bool {
    WORDS.contains(&word)
}
