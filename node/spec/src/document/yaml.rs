//! YAML 1.2 from the events of its parser: one document, without anchors and tags.
//!
//! An alias repeats a value, and a few lines of aliases of aliases are gigabytes; a spec needs none.

use std::ops::Range;

use granit_parser::{Event, Marker, Options, Parser, ScalarStyle, Span};

use super::{Entry, MAX_DEPTH, Node, SyntaxError, Value, duplicate_key, too_deep};

/// A list or table whose end was not seen yet.
enum Open {
    List(Range<usize>, Vec<Node>),
    Table(Range<usize>, Vec<Entry>, Option<(String, Range<usize>)>),
}

pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    let mut open: Vec<Open> = Vec::new();
    let mut root: Option<Node> = None;
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| {
            let at = offset(text, error.marker());
            SyntaxError { message: error.info(), span: at..at }
        })?;
        let span = range(text, &span);
        let done = match event {
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, _, Some(_))
            | Event::MappingStart(_, _, Some(_)) => return Err(refuse("tags (`!`) are not supported", span)),
            Event::Alias(_) => {
                return Err(refuse("aliases (`*`) are not supported: write the value out", span));
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= MAX_DEPTH => {
                return Err(too_deep(span));
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(span, Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Table(span, Vec::new(), None));
                continue;
            }
            Event::Scalar(scalar, ScalarStyle::Plain, ..) => {
                Node::new(Value::Plain(scalar.into_owned()), span)
            }
            Event::Scalar(scalar, ..) => Node::new(Value::Text(scalar.into_owned()), span),
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(start, items)) => Node::new(Value::List(items), start.start..span.end),
                Some(Open::Table(start, entries, _)) => match duplicate_key(&entries) {
                    None => Node::new(Value::Table(entries), start.start..span.end),
                    Some(error) => return Err(error),
                },
                None => continue,
            },
            Event::DocumentStart(..) if root.is_some() => {
                return Err(refuse("more than one document in the file", span));
            }
            // Presentation only; the enum is open, so the rest is not ours to name.
            _ => continue,
        };
        match open.last_mut() {
            None => root = Some(done),
            Some(Open::List(_, items)) => items.push(done),
            Some(Open::Table(_, _, waiting @ None)) => *waiting = Some(key(done)?),
            Some(Open::Table(_, entries, waiting @ Some(_))) => {
                entries.extend(waiting.take().map(|(key, key_span)| Entry { key, key_span, value: done }));
            }
        }
    }
    Ok(root.unwrap_or_else(|| Node::new(Value::Table(Vec::new()), 0..0)))
}

fn key(node: Node) -> Result<(String, Range<usize>), SyntaxError> {
    match node.value {
        Value::Plain(key) | Value::Text(key) => Ok((key, node.span)),
        _ => Err(refuse("a key must be text", node.span)),
    }
}

fn refuse(message: &str, span: Range<usize>) -> SyntaxError {
    SyntaxError { message: message.to_owned(), span }
}

fn range(text: &str, span: &Span) -> Range<usize> {
    let (start, end) = (offset(text, &span.start), offset(text, &span.end));
    // The end of a block is where the next one begins: do not underline the space between.
    let end = start + text[start..end.max(start)].trim_end().len();
    start..end
}

fn offset(text: &str, marker: &Marker) -> usize {
    marker.byte_offset().filter(|&at| text.is_char_boundary(at)).unwrap_or(text.len()).min(text.len())
}
