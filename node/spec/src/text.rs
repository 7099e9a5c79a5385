//! A spec as the TOML that a person would have written.

use serde::Serialize;

use crate::AppSpec;

/// A whole file: `version` and one `[[app]]`, without what is the default anyway. Reads back as the
/// same value.
pub fn to_toml(spec: &AppSpec) -> String {
    #[derive(Serialize)]
    struct File<'a> {
        version: u32,
        app: [&'a AppSpec; 1],
    }
    toml::to_string_pretty(&File { version: 1, app: [spec] })
        .expect("every value of a spec has a form in TOML")
}
