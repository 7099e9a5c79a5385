//! What is wrong with a file, in words for the person who wrote it.

use std::ops::Range;

use crate::{
    decode::{Fault, Misfit, alike, likeness, one_of, quoted},
    document::SyntaxError,
    unsupported,
    validate::Violation,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// `E01xx`, see [`explain`].
    pub code: &'static str,
    pub message: String,
    pub help: Option<String>,
    /// Bytes of the text.
    pub span: Option<Range<usize>>,
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
}

pub(crate) const SYNTAX: &str = "E0101";
pub(crate) const UNKNOWN_FIELD: &str = "E0102";
pub(crate) const NOT_SUPPORTED: &str = "E0103";
pub(crate) const MISSING: &str = "E0104";
pub(crate) const WRONG_TYPE: &str = "E0105";
pub(crate) const WRONG_VALUE: &str = "E0106";
pub(crate) const WRONG_VERSION: &str = "E0107";
pub(crate) const OUT_OF_RANGE: &str = "E0110";
pub(crate) const DUPLICATE: &str = "E0111";
pub(crate) const UNKNOWN_NAME: &str = "E0112";
pub(crate) const CONTRADICTION: &str = "E0113";
pub(crate) const TOO_LARGE: &str = "E0114";

const EXPLANATIONS: [(&str, &str); 12] = [
    (SYNTAX, "The text is not TOML, YAML or JSON at the place shown, so nothing in it was read."),
    (
        UNKNOWN_FIELD,
        "A field that no spec has. It is refused rather than ignored: a misspelt limit would be no limit.",
    ),
    (
        NOT_SUPPORTED,
        "The spec language has this field or word, but this version does nothing with it. It is refused so \
         that nobody relies on it.",
    ),
    (MISSING, "A field that has no default was left out, or a list that must not be empty is empty."),
    (WRONG_TYPE, "The value is of another kind than the field: a number where a list belongs, say."),
    (
        WRONG_VALUE,
        "The value is of the right kind but cannot be read: a duration without its unit, an address without \
         its port, a name that is not a DNS label.",
    ),
    (
        WRONG_VERSION,
        "`version` at the top of the file is the version of the spec language; this one reads 1.",
    ),
    (OUT_OF_RANGE, "The value can be read but is outside the range that the message names."),
    (DUPLICATE, "Two apps, routes, or ports on one address would answer to the same name."),
    (UNKNOWN_NAME, "The spec refers to something by a name that nothing in it has, such as a pool."),
    (CONTRADICTION, "Two settings that are fine on their own cannot both hold."),
    (TOO_LARGE, "The spec is larger than what a cluster replicates: 1 MiB, or 10,000 targets."),
];

/// What a code stands for, in a sentence or two.
pub fn explain(code: &str) -> Option<&'static str> {
    EXPLANATIONS.iter().find(|(known, _)| *known == code).map(|(_, text)| *text)
}

impl Diagnostic {
    pub(crate) fn new(
        text: &str,
        span: Range<usize>,
        code: &'static str,
        message: String,
        help: Option<String>,
    ) -> Self {
        let before = &text[..span.start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            code,
            message,
            help,
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            span: Some(span),
        }
    }

    pub(crate) fn syntax(text: &str, error: SyntaxError) -> Self {
        Self::new(text, error.span, SYNTAX, error.message, None)
    }

    pub(crate) fn violation(text: &str, span: Range<usize>, violation: Violation) -> Self {
        Self::new(text, span, violation.code, violation.message, violation.help)
    }

    pub(crate) fn misfit(text: &str, misfit: Misfit) -> Self {
        let (code, message, help) = match misfit.fault {
            Fault::UnknownField { table, field, expected } => {
                let message = match unsupported::is_field(&table, &field) {
                    true => return Self::not_supported(text, misfit.span, &field, None),
                    false => format!("unknown field `{field}`"),
                };
                (UNKNOWN_FIELD, message, Some(suggestion(&field, expected)))
            }
            Fault::UnknownWord { word, expected } if unsupported::is_word(&word) => {
                let help = format!("this version has {}", quoted(expected));
                return Self::not_supported(text, misfit.span, &word, Some(help));
            }
            Fault::UnknownWord { word, expected } => {
                (WRONG_VALUE, format!("`{word}` is not known here"), Some(suggestion(&word, expected)))
            }
            Fault::Missing(field) => (MISSING, format!("missing field `{field}`"), None),
            Fault::WrongType { found, expected } => {
                (WRONG_TYPE, format!("expected {expected}, found {found}"), None)
            }
            Fault::WrongValue(message) => (WRONG_VALUE, message, None),
        };
        Self::new(text, misfit.span.unwrap_or(0..0), code, message, help)
    }

    fn not_supported(text: &str, span: Option<Range<usize>>, word: &str, help: Option<String>) -> Self {
        let message = format!("`{word}` is not supported yet");
        Self::new(text, span.unwrap_or(0..0), NOT_SUPPORTED, message, help)
    }
}

/// The closest of the known words, or all of them.
fn suggestion(word: &str, known: &[&str]) -> String {
    // The aliases for fproxy's keys begin with a capital; nobody should learn them here.
    let known: Vec<_> = known.iter().copied().filter(|word| !word.starts_with(char::is_uppercase)).collect();
    let closest = known.iter().max_by(|a, b| likeness(word, a).total_cmp(&likeness(word, b)));
    match closest {
        Some(known) if alike(word, known) => format!("did you mean `{known}`?"),
        _ => format!("expected {}", one_of(&known)),
    }
}
