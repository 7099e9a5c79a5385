//! JSON by serde_json, whose raw values are slices of the text and so tell where they stand.

use std::{fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{Entry, MAX_DEPTH, Node, SyntaxError, Value, duplicate_key, too_deep};

pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| syntax_error(text, &error))?;
    node(text, raw.get(), 0)
}

fn node(text: &str, raw: &str, depth: usize) -> Result<Node, SyntaxError> {
    let span = range_of(text, raw);
    let wrong = |error: serde_json::Error| SyntaxError { message: reason(&error), span: span.clone() };
    if depth > MAX_DEPTH {
        return Err(too_deep(span));
    }
    let value = match raw.as_bytes().first() {
        Some(b'{') => {
            let Pairs(pairs) = serde_json::from_str(raw).map_err(wrong)?;
            Value::Table(entries(text, pairs, &span, depth)?)
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(raw).map_err(wrong)?;
            Value::List(
                items.into_iter().map(|item| node(text, item.get(), depth + 1)).collect::<Result<_, _>>()?,
            )
        }
        Some(b'"') => Value::Text(serde_json::from_str(raw).map_err(wrong)?),
        Some(b't' | b'f') => Value::Bool(serde_json::from_str(raw).map_err(wrong)?),
        Some(b'n') => Value::Null,
        _ => match serde_json::from_str(raw) {
            Ok(integer) => Value::Integer(integer),
            Err(_) => Value::Float(serde_json::from_str(raw).map_err(wrong)?),
        },
    };
    Ok(Node::new(value, span))
}

fn entries(
    text: &str,
    pairs: Vec<(Key<'_>, &RawValue)>,
    table: &Range<usize>,
    depth: usize,
) -> Result<Vec<Entry>, SyntaxError> {
    let mut entries: Vec<Entry> = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let (key, key_span) = match key {
            Key::Borrowed(key) => (key.to_owned(), range_of(text, key)),
            // A key with escapes is a copy; the table is the closest known place.
            Key::Owned(key) => (key, table.clone()),
        };
        entries.push(Entry { key, key_span, value: node(text, value.get(), depth + 1)? });
    }
    match duplicate_key(&entries) {
        None => Ok(entries),
        Some(error) => Err(error),
    }
}

/// `part` is a slice of `text`.
fn range_of(text: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr() - text.as_ptr().addr();
    start..start + part.len()
}

fn syntax_error(text: &str, error: &serde_json::Error) -> SyntaxError {
    let line_start: usize =
        text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    let start = (line_start + error.column().saturating_sub(1)).min(text.len());
    let start = (0..=start).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    SyntaxError { message: reason(error), span: start..start }
}

/// Without the ` at line 1 column 2` that serde_json appends.
fn reason(error: &serde_json::Error) -> String {
    let whole = error.to_string();
    match whole.rsplit_once(" at line ") {
        Some((reason, _)) => reason.to_owned(),
        None => whole,
    }
}

enum Key<'a> {
    Borrowed(&'a str),
    Owned(String),
}

struct Pairs<'a>(Vec<(Key<'a>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key<'de>, E> {
                Ok(Key::Borrowed(key))
            }
            fn visit_str<E>(self, key: &str) -> Result<Key<'de>, E> {
                Ok(Key::Owned(key.to_owned()))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

impl<'de> Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Pairs<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}
