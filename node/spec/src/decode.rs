//! Reads serde types from a document and collects every wrong value, not only the first.
//!
//! serde stops at its first error. So the value that caused it is set aside and the document is read
//! again, until what is left reads well or a table cannot do without what was set aside.

use std::{fmt, ops::Range, slice};

use serde::{
    Deserialize, Deserializer,
    de::{
        self, DeserializeSeed, Error as _, Expected, IntoDeserializer as _, MapAccess, SeqAccess, Unexpected,
        Visitor, value::StrDeserializer,
    },
    forward_to_deserialize_any,
};

use crate::{
    document::{Entry, Node, Value, resolve_plain},
    unsupported,
};

/// More than anybody corrects in one go; it also bounds how often a document is read again.
const MAX_FAULTS: usize = 100;

#[derive(Debug)]
pub(crate) struct Misfit {
    pub(crate) fault: Fault,
    pub(crate) span: Option<Range<usize>>,
    /// The value at fault was set aside; the rest can still be read.
    is_set_aside: bool,
    /// It follows from a fault that is already known.
    is_consequence: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    UnknownField { table: String, field: String, expected: &'static [&'static str] },
    UnknownWord { word: String, expected: &'static [&'static str] },
    Missing(&'static str),
    WrongType { found: String, expected: String },
    WrongValue(String),
}

pub(crate) fn decode<'de, T: Deserialize<'de>>(document: &'de Node) -> Result<T, Vec<Misfit>> {
    let mut misfits = Vec::new();
    loop {
        match T::deserialize(At { node: document, table: "" }) {
            Ok(value) if misfits.is_empty() => return Ok(value),
            Ok(_) => return Err(misfits),
            Err(misfit) => {
                let can_go_on = misfit.is_set_aside;
                if !misfit.is_consequence {
                    misfits.push(misfit);
                }
                if !can_go_on || misfits.len() >= MAX_FAULTS {
                    return Err(misfits);
                }
            }
        }
    }
}

/// A value and the key that leads to it; items of a list share the key of the list.
#[derive(Clone, Copy)]
struct At<'de> {
    node: &'de Node,
    table: &'de str,
}

impl<'de> At<'de> {
    fn visit<V: Visitor<'de>>(self, visitor: V, value: &'de Value) -> Result<V::Value, Misfit> {
        match value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(fact) => visitor.visit_bool(*fact),
            Value::Integer(number) => match u64::try_from(*number) {
                Ok(number) => visitor.visit_u64(number),
                Err(_) => visitor.visit_i64(*number),
            },
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::Date => Err(Misfit::invalid_type(Unexpected::Other("a date"), &visitor)),
            Value::Plain(text) => match resolve_plain(text) {
                Value::Null => visitor.visit_unit(),
                Value::Bool(fact) => visitor.visit_bool(fact),
                Value::Integer(number) => match u64::try_from(number) {
                    Ok(number) => visitor.visit_u64(number),
                    Err(_) => visitor.visit_i64(number),
                },
                Value::Float(number) => visitor.visit_f64(number),
                _ => visitor.visit_borrowed_str(text),
            },
            Value::List(items) => visitor.visit_seq(Items { items: items.iter(), table: self.table }),
            Value::Table(entries) => {
                let fields = Fields { entries: entries.iter(), current: None, table: self.table };
                visitor.visit_map(fields).map_err(|mut misfit| {
                    // Under its own name, misspelt, or as something that this version cannot do instead.
                    let was_set_aside = |field: &str| {
                        entries.iter().any(|entry| {
                            entry.value.is_skipped.get()
                                && (alike(&entry.key, field) || unsupported::is_field(self.table, &entry.key))
                        })
                    };
                    misfit.is_consequence |=
                        matches!(misfit.fault, Fault::Missing(field) if was_set_aside(field));
                    misfit
                })
            }
        }
        .map_err(|misfit| misfit.at(&self.node.span))
    }
}

impl<'de> Deserializer<'de> for At<'de> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.visit(visitor, &self.node.value)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match &self.node.value {
            Value::Plain(text) => {
                visitor.visit_borrowed_str(text).map_err(|misfit: Misfit| misfit.at(&self.node.span))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_some(self)
    }

    /// serde would also read a struct from a list, by position.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match &self.node.value {
            Value::Table(_) => self.deserialize_any(visitor),
            other => {
                let fault = Fault::WrongType { found: other.to_string(), expected: "a table".to_owned() };
                Err(Misfit::new(fault).at(&self.node.span))
            }
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let word = match &self.node.value {
            Value::Plain(text) | Value::Text(text) => {
                let word: StrDeserializer<'_, Misfit> = text.as_str().into_deserializer();
                visitor.visit_enum(word)
            }
            _ => Err(Misfit::new(Fault::WrongType {
                found: self.node.value.to_string(),
                expected: one_of(words),
            })),
        };
        word.map_err(|misfit| misfit.at(&self.node.span))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct seq tuple
        tuple_struct map ignored_any
    }
}

struct Fields<'de> {
    entries: slice::Iter<'de, Entry>,
    current: Option<&'de Entry>,
    table: &'de str,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        self.current = self.entries.by_ref().find(|entry| !entry.value.is_skipped.get());
        let Some(entry) = self.current else { return Ok(None) };
        let key: StrDeserializer<'_, Misfit> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|mut misfit| {
            if let Fault::UnknownField { table, .. } = &mut misfit.fault {
                self.table.clone_into(table);
            }
            misfit.at(&entry.key_span).set_aside(&entry.value)
        })
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Misfit> {
        let entry = self.current.expect("serde asks for a value after its key");
        let at = At { node: &entry.value, table: &entry.key };
        seed.deserialize(at).map_err(|misfit| misfit.at(&entry.value.span).set_aside(&entry.value))
    }
}

struct Items<'de> {
    items: slice::Iter<'de, Node>,
    table: &'de str,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Misfit;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Misfit> {
        let Some(node) = self.items.by_ref().find(|node| !node.is_skipped.get()) else { return Ok(None) };
        seed.deserialize(At { node, table: self.table })
            .map(Some)
            .map_err(|misfit| misfit.at(&node.span).set_aside(node))
    }
}

impl Misfit {
    fn new(fault: Fault) -> Self {
        Self { fault, span: None, is_set_aside: false, is_consequence: false }
    }

    /// The innermost place wins.
    fn at(mut self, span: &Range<usize>) -> Self {
        self.span.get_or_insert_with(|| span.clone());
        self
    }

    fn set_aside(mut self, node: &Node) -> Self {
        if !self.is_set_aside {
            node.is_skipped.set(true);
            self.is_set_aside = true;
        }
        self
    }
}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Fault::WrongValue(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Fault::WrongType {
            found: plain_words(&found.to_string()),
            expected: plain_words(&expected.to_string()),
        })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Fault::UnknownField { table: String::new(), field: field.to_owned(), expected })
    }

    fn unknown_variant(word: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Fault::UnknownWord { word: word.to_owned(), expected })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Fault::Missing(field))
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.fault)
    }
}

impl std::error::Error for Misfit {}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(fact) => write!(f, "`{fact}`"),
            Self::Integer(number) => write!(f, "the number `{number}`"),
            Self::Float(number) => write!(f, "the number `{number}`"),
            Self::Plain(text) if matches!(resolve_plain(text), Self::Null) => f.write_str("nothing"),
            Self::Text(text) | Self::Plain(text) => write!(f, "{text:?}"),
            Self::Date => f.write_str("a date"),
            Self::List(_) => f.write_str("a list"),
            Self::Table(_) => f.write_str("a table"),
        }
    }
}

/// serde's words for types, in the words of people who write TOML.
fn plain_words(text: &str) -> String {
    match text {
        "u16" => "a whole number from 0 to 65535".to_owned(),
        "u32" => "a whole number from 0 to 4294967295".to_owned(),
        "a boolean" => "`true` or `false`".to_owned(),
        "a sequence" | "sequence" => "a list".to_owned(),
        "a map" | "map" => "a table".to_owned(),
        "unit value" => "nothing".to_owned(),
        text if text.starts_with("struct ") => "a table".to_owned(),
        text => {
            let words = text.strip_prefix("integer ").or_else(|| text.strip_prefix("floating point "));
            match words {
                Some(number) => format!("the number {number}"),
                None => text
                    .strip_prefix("string ")
                    .or_else(|| text.strip_prefix("boolean "))
                    .unwrap_or(text)
                    .to_owned(),
            }
        }
    }
}

/// One is probably a misspelling of the other.
pub(crate) fn alike(a: &str, b: &str) -> bool {
    /// Below this similarity two words have little in common.
    const CLOSE: f64 = 0.8;
    likeness(a, b) >= CLOSE
}

pub(crate) fn likeness(a: &str, b: &str) -> f64 {
    strsim::jaro_winkler(&a.to_lowercase(), b)
}

pub(crate) fn one_of(words: &[&str]) -> String {
    match words {
        [word] => format!("`{word}`"),
        words => format!("one of {}", quoted(words)),
    }
}

pub(crate) fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}
