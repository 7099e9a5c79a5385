//! A file as a tree of values that know where they stand in the text.
//!
//! TOML, YAML and JSON become the same tree, so everything after this module - types, messages, spans -
//! is written once.

use std::{cell::Cell, collections::HashSet, ops::Range};

mod json;
mod toml;
mod yaml;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Toml,
    Yaml,
    Json,
}

/// Deeper than any spec; a file that nests further is refused before it can exhaust the stack.
const MAX_DEPTH: usize = 32;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) span: Range<usize>,
    /// Left out while reading, because it is already known to be wrong.
    pub(crate) is_skipped: Cell<bool>,
}

#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    /// An unquoted YAML scalar: what it is depends on what is asked for, so `NO` can be a country.
    Plain(String),
    /// A TOML date or time; nothing in a spec is one.
    Date,
    List(Vec<Node>),
    Table(Vec<Entry>),
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Range<usize>,
    pub(crate) value: Node,
}

/// Why a text is not even a document.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub(crate) message: String,
    pub(crate) span: Range<usize>,
}

impl Node {
    pub(crate) fn parse(text: &str, format: Format) -> Result<Self, Vec<SyntaxError>> {
        match format {
            Format::Toml => toml::parse(text),
            Format::Yaml => yaml::parse(text).map_err(|error| vec![error]),
            Format::Json => json::parse(text).map_err(|error| vec![error]),
        }
    }

    fn new(value: Value, span: Range<usize>) -> Self {
        Self { value, span, is_skipped: Cell::new(false) }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Table(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
            _ => None,
        }
    }

    /// Where the value at `path` (`listen[0].port`, `labels.team`) stands; for a default or a short form
    /// the closest value around it that is in the text.
    pub(crate) fn locate(&self, path: &str) -> Range<usize> {
        let path = path.strip_prefix('.').unwrap_or(path);
        let ends = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
        let found = match &self.value {
            Value::List(items) => path
                .strip_prefix('[')
                .and_then(|path| path.split_once(']'))
                .and_then(|(index, rest)| Some((items.get(index.parse::<usize>().ok()?)?, rest))),
            // Keys may hold dots themselves, so each is tried as a whole.
            Value::Table(entries) => entries.iter().find_map(|entry| {
                let rest = path.strip_prefix(spelled(&entry.key))?;
                ends(rest).then_some((&entry.value, rest))
            }),
            _ => None,
        };
        match found {
            Some((node, rest)) => node.locate(rest),
            None => self.span.clone(),
        }
    }
}

/// The name of a field that is written the way fproxy writes it.
fn spelled(key: &str) -> &str {
    match key {
        "Apps" => "app",
        "Name" => "name",
        "Ports" => "listen",
        "Targets" => "targets",
        key => key,
    }
}

/// `Plain` text as the YAML core schema reads it (YAML 1.2.2 §10.3.2).
pub(crate) fn resolve_plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if !text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) => {
            Value::Text(text.to_owned())
        }
        _ => match (text.parse(), text.parse()) {
            (Ok(integer), _) => Value::Integer(integer),
            (_, Ok(float)) => Value::Float(float),
            _ => Value::Text(text.to_owned()),
        },
    }
}

fn too_deep(span: Range<usize>) -> SyntaxError {
    SyntaxError { message: format!("nested more than {MAX_DEPTH} levels deep"), span }
}

/// TOML's parser looks for them itself.
fn duplicate_key(entries: &[Entry]) -> Option<SyntaxError> {
    let mut keys = HashSet::with_capacity(entries.len());
    let second = entries.iter().find(|entry| !keys.insert(entry.key.as_str()))?;
    let message = format!("duplicate key `{}`", second.key);
    Some(SyntaxError { message, span: second.key_span.clone() })
}
