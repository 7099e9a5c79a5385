//! From PEM files to certificates that can be used, with the names they are good for.

use std::sync::Arc;

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use super::files::{self, Found};
use crate::{config::TlsConfig, file};

pub(super) struct Certificate {
    pub(super) name: String,
    /// DNS names in lower case; `*.example.com` stands for one label.
    pub(super) names: Vec<String>,
    /// Seconds since 1970.
    pub(super) not_after: i64,
    pub(super) key: Arc<CertifiedKey>,
}

/// All that `config` names, or what is wrong with the first that cannot be used.
pub(super) fn load(config: &TlsConfig, provider: &CryptoProvider) -> Result<Vec<Certificate>, String> {
    files::find(config)?.iter().map(|found| load_one(found, provider)).collect()
}

fn load_one(found: &Found, provider: &CryptoProvider) -> Result<Certificate, String> {
    let Found { name, chain: chain_path, key: key_path } = found;
    let in_chain = |error: String| format!("{}: {error}", chain_path.display());
    let chain_pem = file::read(chain_path)?;
    let chain = chain(&chain_pem).map_err(in_chain)?;
    let key_path = key_path.as_ref().unwrap_or(chain_path);
    let key = PrivateKeyDer::from_pem_slice(&file::read(key_path)?)
        .map_err(|error| format!("{}: no private key: {error}", key_path.display()))?;
    let about = About::of(&chain[0]).map_err(in_chain)?;
    let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            format!("{} is not the key of {}", key_path.display(), chain_path.display())
        }
        error => format!("{}: {error}", key_path.display()),
    })?;
    Ok(Certificate { name: name.clone(), names: about.names, not_after: about.not_after, key: Arc::new(key) })
}

fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if chain.is_empty() { Err("no certificate in there".to_owned()) } else { Ok(chain) }
}

/// Authorities to verify others by.
pub(super) fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(pem)? {
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}

struct About {
    names: Vec<String>,
    not_after: i64,
}

impl About {
    fn of(certificate: &CertificateDer<'_>) -> Result<About, String> {
        let (_, certificate) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        let extension = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
        let names = extension.into_iter().flat_map(|names| &names.value.general_names);
        let dns = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        Ok(About { names: dns.collect(), not_after: certificate.validity().not_after.timestamp() })
    }
}
