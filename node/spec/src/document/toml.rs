//! TOML, with every syntax error of the text.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Entry, Node, SyntaxError, Value};

pub(super) fn parse(text: &str) -> Result<Node, Vec<SyntaxError>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut errors: Vec<_> = errors
        .into_iter()
        .map(|error| SyntaxError { message: error.message().to_owned(), span: error.span().unwrap_or(0..0) })
        .collect();
    let root = Node::new(table(document.get_ref(), &mut errors), document.span());
    if errors.is_empty() { Ok(root) } else { Err(errors) }
}

fn table(table: &DeTable<'_>, errors: &mut Vec<SyntaxError>) -> Value {
    let mut entries: Vec<_> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().clone().into_owned(),
            key_span: key.span(),
            value: node(value, errors),
        })
        .collect();
    entries.sort_by_key(|entry| entry.key_span.start);
    Value::Table(entries)
}

/// Depth is bounded by the parser itself.
fn node(value: &Spanned<DeValue<'_>>, errors: &mut Vec<SyntaxError>) -> Node {
    let span = value.span();
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.clone().into_owned()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => {
                let message = format!("`{number}` is too large a number");
                errors.push(SyntaxError { message, span: span.clone() });
                Value::Null
            }
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(fact) => Value::Bool(*fact),
        DeValue::Datetime(_) => Value::Date,
        DeValue::Array(items) => Value::List(items.iter().map(|item| node(item, errors)).collect()),
        DeValue::Table(inner) => table(inner, errors),
    };
    Node::new(value, span)
}
