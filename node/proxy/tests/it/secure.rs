//! Certificates, and clients that speak TLS, for tests.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use flotilla_proxy::config::{CertificateSource, TlsConfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore, ServerConfig,
    SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use crate::support::{PATIENCE, connect};

/// An authority, and a directory of what it has issued: `NAME.pem` and `NAME.key`.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub(crate) directory: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Authority { issuer, directory: TempDir::new().unwrap() }
    }

    /// Issues a certificate for `names`. Issued again it is another one.
    pub(crate) fn issue(&self, file: &str, names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        // The key first and both by renaming, as a careful operator does.
        for (extension, content) in [("key", key.serialize_pem()), ("pem", certificate.pem())] {
            let fresh = self.directory.path().join("fresh");
            std::fs::write(&fresh, content).unwrap();
            std::fs::rename(&fresh, self.directory.path().join(format!("{file}.{extension}"))).unwrap();
        }
        certificate.der().clone()
    }

    pub(crate) fn named(&self, name: &str) -> CertificateSource {
        CertificateSource::Named { directory: self.directory.path().to_owned(), name: name.to_owned() }
    }

    /// The authority's own certificate as a file, outside of the directory.
    pub(crate) fn root_file(&self) -> (TempDir, PathBuf) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("ca.pem");
        std::fs::write(&path, self.issuer.pem()).unwrap();
        (directory, path)
    }

    /// TLS with these certificates.
    pub(crate) fn tls(&self, names: &[&str]) -> TlsConfig {
        TlsConfig {
            certificates: names.iter().map(|name| self.named(name)).collect(),
            ..TlsConfig::default()
        }
    }

    /// Of a server that shows this certificate.
    pub(crate) fn acceptor(&self, name: &str) -> TlsAcceptor {
        self.acceptor_with(name, &[])
    }

    /// The same, which agrees on one of these protocols.
    pub(crate) fn acceptor_with(&self, name: &str, alpn: &[&str]) -> TlsAcceptor {
        let (chain, key) = self.identity(name);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config).into()
    }

    pub(crate) fn client(&self) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        Client { roots, versions: rustls::ALL_VERSIONS, alpn: Vec::new(), identity: None }
    }

    fn identity(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let path = self.directory.path().join(name);
        let chain = CertificateDer::from_pem_file(path.with_extension("pem")).unwrap();
        (vec![chain], PrivateKeyDer::from_pem_file(path.with_extension("key")).unwrap())
    }
}

/// What a client offers.
pub(crate) struct Client {
    roots: RootCertStore,
    versions: &'static [&'static SupportedProtocolVersion],
    alpn: Vec<Vec<u8>>,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl Client {
    pub(crate) fn only(mut self, versions: &'static [&'static SupportedProtocolVersion]) -> Client {
        self.versions = versions;
        self
    }

    pub(crate) fn alpn(mut self, names: &[&str]) -> Client {
        self.alpn = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        self
    }

    /// Shows a certificate that `authority` has issued.
    pub(crate) fn shows(mut self, authority: &Authority, name: &str) -> Client {
        self.identity = Some(authority.identity(name));
        self
    }

    /// Connections made with the same connector resume each other's sessions.
    pub(crate) fn connector(self) -> TlsConnector {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(self.roots);
        let mut config = match self.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        };
        config.alpn_protocols = self.alpn;
        Arc::new(config).into()
    }
}

pub(crate) async fn tls_over(
    connector: &TlsConnector,
    stream: TcpStream,
    name: &str,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    tokio::time::timeout(PATIENCE, connector.connect(name, stream)).await.expect("a handshake in time")
}

pub(crate) async fn tls(
    connector: &TlsConnector,
    address: SocketAddr,
    name: &str,
) -> io::Result<TlsStream<TcpStream>> {
    tls_over(connector, connect(address).await, name).await
}

pub(crate) fn certificate(stream: &TlsStream<TcpStream>) -> &CertificateDer<'static> {
    &session(stream).peer_certificates().unwrap()[0]
}

pub(crate) fn version(stream: &TlsStream<TcpStream>) -> ProtocolVersion {
    session(stream).protocol_version().unwrap()
}

/// What was agreed on.
pub(crate) fn alpn(stream: &TlsStream<TcpStream>) -> String {
    String::from_utf8(session(stream).alpn_protocol().unwrap_or_default().to_vec()).unwrap()
}

pub(crate) fn is_resumed(stream: &TlsStream<TcpStream>) -> bool {
    session(stream).handshake_kind() == Some(HandshakeKind::Resumed)
}

fn session(stream: &TlsStream<TcpStream>) -> &ClientConnection {
    stream.get_ref().1
}
