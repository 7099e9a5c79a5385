//! The app spec: what users write, parsed and checked once.
//!
//! One set of types serves the file (TOML, YAML, JSON), the log and the API, so a new field is
//! written down in one place. A spec travels as its canonical JSON (`AppSpec::to_json`): fields in a
//! fixed order, defaults left out, so equal specs are equal bytes on every node.
//!
//! This crate decides nothing about the fleet and opens no socket.

mod canonical;
mod decode;
mod diagnostic;
mod document;
mod form;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod name;
mod parse;
mod reference;
mod sharing;
mod spec;
mod text;
mod units;
mod unsupported;
mod validate;

pub use canonical::Malformed;
pub use diagnostic::{Diagnostic, explain};
pub use document::Format;
pub use name::{AppName, InvalidName};
pub use parse::{conflicts, parse, place};
pub use reference::REFERENCE;
pub use sharing::{ANY_HOST, claims, differ};
pub use spec::*;
pub use text::{file_to_toml, to_toml};
pub use validate::{Violation, validate};
