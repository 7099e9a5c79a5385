//! Signatures of the user's code: fields that are put on a request right before it is sent.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// A request as it goes on.
pub struct Unsigned<'a> {
    pub method: &'a [u8],
    /// Path and query.
    pub target: &'a str,
    pub host: &'a str,
    pub client: IpAddr,
    pub(crate) head: &'a crate::http::head::Head,
}

impl Unsigned<'_> {
    /// Its fields, in their order.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.head.iter().map(|field| (field.name, field.value))
    }
}

/// What signs. Called on the hot path of every worker: it must neither wait nor take long.
pub trait Sign: Send + Sync {
    /// The fields to put on the request, in place of those of the same names. Names that frame the message or are
    /// about the connection are left out. `Err` says why there is no signature, and the request is not sent.
    fn sign(&self, request: &Unsigned<'_>) -> Result<Vec<(String, String)>, String>;
}

/// What a configuration may name, see [`crate::config::AccessConfig::signer`].
#[derive(Clone, Default)]
pub struct Signers(BTreeMap<String, Arc<dyn Sign>>);

impl Signers {
    /// A name that is there already gets the new meaning, for generations prepared from now on.
    pub fn register(&mut self, name: impl Into<String>, signer: impl Sign + 'static) {
        self.0.insert(name.into(), Arc::new(signer));
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<dyn Sign>> {
        self.0.get(name).map(Arc::clone)
    }
}
