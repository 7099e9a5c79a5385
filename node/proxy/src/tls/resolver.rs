//! Which certificate a client gets.

use std::{collections::HashMap, sync::Arc};

use rustls::{
    SignatureScheme,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::certificates::Certificate;

/// Certificates by name. One name may have several: for clients that know only some kinds of keys.
#[derive(Debug)]
pub(super) struct Resolver {
    exact: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    /// `*.example.com`, by `example.com`.
    wildcard: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    default: Vec<Arc<CertifiedKey>>,
}

impl Resolver {
    pub(super) fn new(certificates: Vec<Certificate>) -> Resolver {
        let mut resolver = Resolver { exact: HashMap::new(), wildcard: HashMap::new(), default: Vec::new() };
        let first_names = certificates.first().map(|first| first.names.clone()).unwrap_or_default();
        for certificate in certificates {
            // The first one, and those that are for the same names with other keys.
            if resolver.default.is_empty() || certificate.names == first_names {
                resolver.default.push(Arc::clone(&certificate.key));
            }
            for name in &certificate.names {
                let (name, list) = match name.strip_prefix("*.") {
                    Some(suffix) => (suffix, &mut resolver.wildcard),
                    None => (name.as_str(), &mut resolver.exact),
                };
                list.entry(name.into()).or_default().push(Arc::clone(&certificate.key));
            }
        }
        resolver
    }

    /// `name` in lower case, as rustls hands it over.
    fn find(&self, name: Option<&str>) -> &[Arc<CertifiedKey>] {
        let named = name.and_then(|name| {
            let name = name.strip_suffix('.').unwrap_or(name);
            // RFC 6125 §6.4.3: a wildcard stands for one whole label.
            let by_suffix = || self.wildcard.get(name.split_once('.')?.1);
            self.exact.get(name).or_else(by_suffix)
        });
        named.unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        choose(self.find(hello.server_name()), hello.signature_schemes())
    }
}

fn choose(candidates: &[Arc<CertifiedKey>], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
    let usable = candidates.iter().find(|candidate| candidate.key.choose_scheme(schemes).is_some());
    // With none that fits, the handshake fails with the alert that says so.
    usable.or(candidates.first()).cloned()
}
