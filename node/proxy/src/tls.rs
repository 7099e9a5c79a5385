//! TLS that ends here: certificates by the name a client asks for, read again when their files change.
//!
//! A change of certificates swaps what the next handshake uses; sessions that run keep what they agreed on. Session
//! tickets are shared by all workers and outlive certificates and generations. Reading files is the control
//! side's work; a worker loads one pointer per handshake.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig, SupportedProtocolVersion,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier},
};

use crate::{
    config::{TlsConfig, TlsVersion},
    file::{self, Print},
    metrics,
};

mod certificates;
mod files;
mod resolver;
pub(crate) mod upstream;

use resolver::Resolver;

/// TLS of one port.
pub(crate) struct Tls {
    pub(crate) config: TlsConfig,
    current: ArcSwap<ServerConfig>,
    loaded: Mutex<Loaded>,
}

/// What the current configuration was made from.
struct Loaded {
    prints: Vec<Print>,
    /// Clients were verified against these authorities. A ticket says that they were, so it must not be
    /// good for others.
    client_ca: Option<Vec<u8>>,
    tickets: Arc<dyn ProducesTickets>,
}

impl Tls {
    /// Reads what `config` names. `before`: the same port of an earlier generation, whose tickets stay good.
    pub(crate) fn load(config: &TlsConfig, before: Option<&Tls>) -> Result<Tls, String> {
        let before = before.map(|tls| tls.loaded.lock().unwrap_or_else(PoisonError::into_inner));
        let (current, loaded) = load(config, before.as_deref())?;
        Ok(Tls {
            config: config.clone(),
            current: ArcSwap::from_pointee(current),
            loaded: Mutex::new(loaded),
        })
    }

    /// For the handshake that begins now.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Reads the files again if they have changed. What is wrong with them changes nothing.
    pub(crate) fn refresh(&self) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let now = files::prints(&self.config);
        if now == loaded.prints {
            return;
        }
        // Remembered before it is known to be good, so that a bad file is reported once.
        loaded.prints = now;
        match load(&self.config, Some(&loaded)) {
            Ok((current, fresh)) => {
                self.current.store(Arc::new(current));
                *loaded = fresh;
                metrics::certificates_reloaded("ok");
                tracing::info!("certificates read again");
            }
            Err(error) => {
                metrics::certificates_reloaded("failed");
                tracing::error!(error, "certificates not read again: the ones before stay");
            }
        }
    }
}

fn load(config: &TlsConfig, before: Option<&Loaded>) -> Result<(ServerConfig, Loaded), String> {
    // Before reading: a change in between is then found by the next look.
    let prints = files::prints(config);
    let provider = provider();
    let certificates = certificates::load(config, &provider)?;
    for certificate in &certificates {
        metrics::certificate(&certificate.name, certificate.not_after);
    }
    let client_ca = match &config.client_ca {
        Some(path) => Some(file::read(path)?),
        None => None,
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions(config.min_version))
        .map_err(|error| error.to_string())?;
    let builder = match &client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let roots = Arc::new(certificates::roots(pem)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| format!("client_ca: {error}"))?)
        }
    };
    let mut server = builder.with_cert_resolver(Arc::new(Resolver::new(certificates)));
    server.alpn_protocols = config.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    // Everything that a resumption needs is in the client's ticket; nothing grows here.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    let tickets = match before {
        Some(before) if before.client_ca == client_ca => Arc::clone(&before.tickets),
        Some(_) | None => rustls::crypto::ring::Ticketer::new().map_err(|error| error.to_string())?,
    };
    server.ticketer = Arc::clone(&tickets);
    Ok((server, Loaded { prints, client_ca, tickets }))
}

/// The one provider of cryptography, whatever the process has installed.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn versions(min: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    const V13_ONLY: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
    match min {
        TlsVersion::V12 => rustls::ALL_VERSIONS,
        TlsVersion::V13 => V13_ONLY,
    }
}
