//! Specs as the TOML that a person would have written: without what is the default anyway.

use std::slice;

use serde::Serialize;

use crate::AppSpec;

/// A whole file with one app; reads back as the same value.
pub fn to_toml(spec: &AppSpec) -> String {
    file_to_toml(slice::from_ref(spec))
}

/// A whole file: `version` and an `[[app]]` each.
pub fn file_to_toml(app: &[AppSpec]) -> String {
    #[derive(Serialize)]
    struct File<'a> {
        version: u32,
        app: &'a [AppSpec],
    }
    toml::to_string_pretty(&File { version: 1, app }).expect("every value of a spec has a form in TOML")
}
