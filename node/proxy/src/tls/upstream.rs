//! TLS with endpoints: whom we believe, and what we show.

use std::sync::Arc;

use rustls::{ClientConfig, pki_types::ServerName};

use super::{certificates, files, provider};
use crate::config::{CertificateSource, PoolConfig, TlsConfig, UpstreamProtocol, UpstreamTls};

/// How connections to the endpoints of a pool begin.
pub(crate) struct Transport {
    /// What it was made from, and by which it is the same as another.
    tls_config: Option<UpstreamTls>,
    pub(crate) protocol: UpstreamProtocol,
    tls: Option<Arc<ClientConfig>>,
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
        let tls = tls_config.as_ref().map(|tls| client(tls, *protocol, is_http)).transpose()?;
        let name = tls_config.as_ref().and_then(|tls| tls.server_name.as_ref());
        let server_name = name.map(|name| server_name(name)).transpose()?;
        let transport = Transport { tls_config: tls_config.clone(), protocol: *protocol, tls, server_name };
        Ok(Some(Arc::new(transport)))
    }

    /// What a handshake with an endpoint of `target`, as the user wrote it, needs.
    pub(crate) fn tls(
        &self,
        target: &str,
    ) -> Result<Option<(Arc<ClientConfig>, ServerName<'static>)>, String> {
        let Some(config) = &self.tls else { return Ok(None) };
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => {
                let host = target.rsplit_once(':').map_or(target, |(host, _)| host);
                server_name(host.trim_start_matches('[').trim_end_matches(']'))?
            }
        };
        Ok(Some((Arc::clone(config), name)))
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.tls.is_some()
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_owned()).map_err(|_| format!("`{name}` is not the name of a server"))
}

fn client(tls: &UpstreamTls, protocol: UpstreamProtocol, is_http: bool) -> Result<Arc<ClientConfig>, String> {
    let provider = provider();
    let roots =
        certificates::roots(&files::read(&tls.ca)?).map_err(|why| format!("{}: {why}", tls.ca.display()))?;
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some(source) => builder.with_client_cert_resolver(Arc::new(Identity(identity(source, &provider)?))),
    };
    config.alpn_protocols = match (is_http, protocol) {
        (false, _) => Vec::new(),
        (true, UpstreamProtocol::Auto) => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        (true, UpstreamProtocol::Http1) => vec![b"http/1.1".to_vec()],
        (true, UpstreamProtocol::Http2) => vec![b"h2".to_vec()],
    };
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
