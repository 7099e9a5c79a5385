//! The form in which a spec is stored and sent: JSON, fields in declaration order, defaults left out.

use crate::AppSpec;

#[derive(Debug, thiserror::Error)]
#[error("not an app spec: {0}")]
pub struct Malformed(#[from] serde_json::Error);

impl AppSpec {
    /// Equal specs are equal bytes.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("string keys and plain values are always JSON")
    }

    /// Shape only; what the values mean together is `validate`'s matter.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Malformed> {
        Ok(serde_json::from_slice(bytes)?)
    }
}
