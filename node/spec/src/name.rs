use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// The name of an app: a DNS label (RFC 1123 §2.1), lower case, at most 63 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppName(Arc<str>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not an app name: {why}")]
pub struct InvalidName {
    pub name: String,
    pub why: &'static str,
}

impl AppName {
    pub fn parse(name: &str) -> Result<Self, InvalidName> {
        let why = match name.as_bytes() {
            [] => "it is empty",
            bytes if bytes.len() > 63 => "it is longer than 63 bytes",
            [b'-', ..] | [.., b'-'] => "it begins or ends with `-`",
            bytes if !bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) => {
                "only a-z, 0-9 and `-` are allowed"
            }
            _ => return Ok(Self(name.into())),
        };
        Err(InvalidName { name: name.to_owned(), why })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for AppName {
    type Error = InvalidName;
    fn try_from(name: String) -> Result<Self, InvalidName> {
        Self::parse(&name)
    }
}

impl From<AppName> for String {
    fn from(name: AppName) -> String {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for AppName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AppName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
