//! TLS with endpoints: whom we believe, and what we show. Read again when the files change; connections that are there
//! keep what they agreed on.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{ClientConfig, pki_types::ServerName};

use super::{certificates, files, provider};
use crate::{
    address,
    config::{CertificateSource, PoolConfig, TlsConfig, UpstreamProtocol, UpstreamTls},
    file::{self, Known, Print},
    metrics,
};

/// How connections to the endpoints of a pool begin.
pub(crate) struct Transport {
    /// What it was made from, and by which it is the same as another.
    tls_config: Option<UpstreamTls>,
    pub(crate) protocol: UpstreamProtocol,
    tls: Option<ArcSwap<ClientConfig>>,
    /// What is offered inside it.
    alpn: Vec<Vec<u8>>,
    known: Known,
    server_name: Option<ServerName<'static>>,
}

impl PartialEq for Transport {
    fn eq(&self, other: &Transport) -> bool {
        self.tls_config == other.tls_config && self.protocol == other.protocol
    }
}

impl Eq for Transport {}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.protocol, self.tls_config)
    }
}

impl Transport {
    /// `None`: HTTP/1.1 or bytes, in the clear.
    pub(crate) fn compile(pool: &PoolConfig, is_http: bool) -> Result<Option<Arc<Transport>>, String> {
        let PoolConfig { protocol, tls: tls_config, .. } = pool;
        if tls_config.is_none() && *protocol != UpstreamProtocol::Http2 {
            return Ok(None);
        }
        let alpn = alpn(*protocol, is_http);
        let known = Known::new(tls_config.as_ref().map(prints).unwrap_or_default());
        let tls = tls_config.as_ref().map(|tls| client(tls, &alpn)).transpose()?;
        let name = tls_config.as_ref().and_then(|tls| tls.server_name.as_ref());
        let server_name = name.map(|name| server_name(name)).transpose()?;
        Ok(Some(Arc::new(Transport {
            tls_config: tls_config.clone(),
            protocol: *protocol,
            tls: tls.map(ArcSwap::new),
            alpn,
            known,
            server_name,
        })))
    }

    /// Reads the files again if they have changed. What is wrong with them changes nothing.
    pub(crate) fn refresh(&self) {
        let (Some(config), Some(tls)) = (&self.tls_config, &self.tls) else { return };
        if !self.known.differ(prints(config)) {
            return;
        }
        match client(config, &self.alpn) {
            Ok(fresh) => {
                tls.store(fresh);
                metrics::certificates_reloaded("ok");
                tracing::info!("authorities of endpoints read again");
            }
            Err(error) => {
                metrics::certificates_reloaded("failed");
                tracing::error!(error, "authorities of endpoints not read again: the ones before stay");
            }
        }
    }

    /// What a handshake with an endpoint of `target`, as the user wrote it, needs.
    pub(crate) fn tls(
        &self,
        target: &str,
    ) -> Result<Option<(Arc<ClientConfig>, ServerName<'static>)>, String> {
        let Some(config) = &self.tls else { return Ok(None) };
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None if address::is_file(target) => {
                return Err(format!("`{target}` has no name to expect in a certificate: set `server_name`"));
            }
            None => {
                let host = target.rsplit_once(':').map_or(target, |(host, _)| host);
                server_name(host.trim_start_matches('[').trim_end_matches(']'))?
            }
        };
        Ok(Some((config.load_full(), name)))
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.tls.is_some()
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_owned()).map_err(|_| format!("`{name}` is not the name of a server"))
}

fn prints(tls: &UpstreamTls) -> Vec<Print> {
    let certificates = tls.identity.iter().cloned().collect();
    files::prints(&TlsConfig { certificates, client_ca: Some(tls.ca.clone()), ..TlsConfig::default() })
}

fn alpn(protocol: UpstreamProtocol, is_http: bool) -> Vec<Vec<u8>> {
    match (is_http, protocol) {
        (false, _) => Vec::new(),
        (true, UpstreamProtocol::Auto) => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        (true, UpstreamProtocol::Http1) => vec![b"http/1.1".to_vec()],
        (true, UpstreamProtocol::Http2) => vec![b"h2".to_vec()],
    }
}

/// For a server whose certificate is of one of the authorities in this PEM file.
pub(crate) fn client_for(ca: &std::path::Path) -> Result<Arc<ClientConfig>, String> {
    let tls = UpstreamTls { server_name: None, ca: ca.to_owned(), identity: None };
    client(&tls, &alpn(UpstreamProtocol::Http1, true))
}

fn client(tls: &UpstreamTls, alpn: &[Vec<u8>]) -> Result<Arc<ClientConfig>, String> {
    let provider = provider();
    let roots =
        certificates::roots(&file::read(&tls.ca)?).map_err(|why| format!("{}: {why}", tls.ca.display()))?;
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some(source) => builder.with_client_cert_resolver(Arc::new(Identity(identity(source, &provider)?))),
    };
    config.alpn_protocols = alpn.to_vec();
    Ok(Arc::new(config))
}

fn identity(
    source: &CertificateSource,
    provider: &rustls::crypto::CryptoProvider,
) -> Result<Arc<rustls::sign::CertifiedKey>, String> {
    let config = TlsConfig { certificates: vec![source.clone()], ..TlsConfig::default() };
    let first = certificates::load(&config, provider)?.into_iter().next();
    Ok(first.ok_or("no certificate to show")?.key)
}

/// Shown to whoever asks.
#[derive(Debug)]
struct Identity(Arc<rustls::sign::CertifiedKey>);

impl rustls::client::ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
