//! Who may ask: passwords, tokens, services that decide, and signatures.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use flotilla_proxy::{
    AppConfig, Extensions, Proxy, ProxyConfig, Sign, Signers, Unsigned,
    config::{
        AccessConfig, BasicConfig, ForwardAuthConfig, GrpcAuthConfig, JwtAlgorithm, JwtConfig, PoolConfig,
        Protocol::{Http, Tcp},
        UpstreamProtocol,
    },
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use prost::Message;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls::pki_types::{PrivatePkcs1KeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::{secure::Authority, support::*};

/// Answers with what it was sent.
async fn mirror() -> Origin {
    Origin::new(|mut stream| {
        Box::pin(async move {
            while let Ok(head) = head(&mut stream).await {
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
                send(&mut stream, answer).await;
            }
        })
    })
    .await
}

async fn guarded(change: impl FnOnce(&mut AppConfig)) -> (Proxy, Origin, SocketAddr) {
    let (proxy, origin) = (proxy(), mirror().await);
    let (mut config, listen) = app(Http, &[origin.address]);
    change(&mut config);
    serve(&proxy, &config).await;
    (proxy, origin, listen)
}

/// Asks with some field lines.
async fn ask(client: &mut TcpStream, fields: &str) -> (u16, String, String) {
    send(client, format!("GET /a?b HTTP/1.1\r\nhost: web.test\r\n{fields}\r\n")).await;
    let (head, body) = response(client).await;
    (status(&head), head, body)
}

#[tokio::test]
async fn a_password_lets_a_client_in() {
    let users = [("ann".to_owned(), bcrypt::hash("secret", 4).unwrap())].into();
    let (_proxy, _origin, listen) =
        guarded(|app| app.access.basic = Some(BasicConfig { users, ..BasicConfig::default() })).await;
    let basic = |text: &str| format!("authorization: Basic {}\r\n", STANDARD.encode(text));
    let mut client = connect(listen).await;
    for _again in 0..2 {
        let (status, head, _) = ask(&mut client, "").await;
        assert_eq!(status, 401);
        let challenge = field(&head, "www-authenticate");
        assert_eq!(challenge, Some("Basic realm=\"restricted\", charset=\"UTF-8\""));
        assert_eq!(ask(&mut client, &basic("ann:guess")).await.0, 401);
        assert_eq!(ask(&mut client, &basic("eve:secret")).await.0, 401);
        assert_eq!(ask(&mut client, &basic("ann:secret")).await.0, 200, "on the same connection");
    }
}

#[tokio::test]
async fn hashes_in_a_file_count_and_what_is_none_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let hash = bcrypt::hash("secret", 4).unwrap();
    std::fs::write(file.path(), format!("# staff\n\nann:{hash}\n")).unwrap();
    let basic = BasicConfig { file: Some(file.path().to_owned()), ..BasicConfig::default() };
    let (proxy, _origin, listen) = guarded(|app| app.access.basic = Some(basic)).await;
    let mut client = connect(listen).await;
    let field = format!("authorization: Basic {}\r\n", STANDARD.encode("ann:secret"));
    assert_eq!(ask(&mut client, &field).await.0, 200);
    let (mut other, _) = app(Http, &["127.0.0.1:1".parse().unwrap()]);
    other.app = "other".into();
    let users = [("bob".to_owned(), "secret".to_owned())].into();
    other.access.basic = Some(BasicConfig { users, ..BasicConfig::default() });
    let refused = proxy.prepare(other).await.unwrap_err().to_string();
    assert!(refused.contains("user `bob`: not a bcrypt hash"), "{refused}");
    // Nobody would ask who connects to a TCP port.
    let (mut plain, _) = app(Tcp, &["127.0.0.1:1".parse().unwrap()]);
    plain.app = "plain".into();
    plain.access.signer = Some("s".to_owned());
    let refused = proxy.prepare(plain).await.unwrap_err().to_string();
    assert!(refused.contains("only requests can be looked at"), "{refused}");
}

#[tokio::test]
async fn passwords_in_a_file_are_read_again_when_it_changes() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("users");
    let write = |content: &str| {
        let fresh = directory.path().join("fresh");
        std::fs::write(&fresh, content).unwrap();
        std::fs::rename(&fresh, &path).unwrap();
    };
    let line = |name: &str, password: &str| format!("{name}:{}\n", bcrypt::hash(password, 4).unwrap());
    write(&line("ann", "old"));
    let basic = BasicConfig { file: Some(path.clone()), ..BasicConfig::default() };
    let (proxy, origin, listen) = guarded(|app| app.access.basic = Some(basic.clone())).await;
    let mut client = connect(listen).await;
    let says = |text: &str| format!("authorization: Basic {}\r\n", STANDARD.encode(text));
    assert_eq!(ask(&mut client, &says("ann:old")).await.0, 200);
    assert_eq!(ask(&mut client, &says("bob:new")).await.0, 401);
    // What is known of a password goes with its hash, on connections that are there.
    write(&line("bob", "new"));
    let mut becomes = async |text: &str, status: u16| {
        let deadline = tokio::time::Instant::now() + 3 * PATIENCE;
        while ask(&mut client, &says(text)).await.0 != status {
            assert!(tokio::time::Instant::now() < deadline, "{text} never {status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    becomes("bob:new", 200).await;
    becomes("ann:old", 401).await;
    // A file that is none changes nothing.
    write("rubbish\n");
    let (mut app, _) = app(Http, &[origin.address]);
    (app.generation, app.access.basic) = (2, Some(basic));
    let refused = proxy.prepare(app.clone()).await.unwrap_err().to_string();
    assert!(refused.contains("users:1: not `name:hash`"), "{refused}");
    let looked_at = tokio::time::Instant::now() + Duration::from_millis(2_500);
    while tokio::time::Instant::now() < looked_at {
        becomes("bob:new", 200).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    write(&[line("ann", "old"), line("bob", "new")].concat());
    becomes("ann:old", 200).await;
    becomes("bob:new", 200).await;
}

/// A server of keys: the secrets it has now, and how often it was asked.
async fn key_server() -> (Origin, Arc<Mutex<Vec<(&'static str, &'static str)>>>, Arc<AtomicUsize>) {
    let keys = Arc::new(Mutex::new(vec![("one", "first")]));
    let asked = Arc::<AtomicUsize>::default();
    let (known, count) = (Arc::clone(&keys), Arc::clone(&asked));
    let origin = Origin::new(move |mut stream| {
        let (known, count) = (Arc::clone(&known), Arc::clone(&count));
        Box::pin(async move {
            let Ok(_) = head(&mut stream).await else { return };
            count.fetch_add(1, SeqCst);
            let keys: Vec<_> = known
                .lock()
                .unwrap()
                .iter()
                .map(|(kid, secret)| {
                    let k = URL_SAFE_NO_PAD.encode(secret);
                    json!({ "kty": "oct", "kid": kid, "k": k })
                })
                .collect();
            let body = json!({ "keys": keys }).to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            send(&mut stream, head).await;
        })
    })
    .await;
    (origin, keys, asked)
}

fn bearer(kid: &str, secret: &str, expires: u64) -> String {
    let header = Header { kid: Some(kid.to_owned()), ..Header::default() };
    let claims = json!({ "iss": "id", "aud": "web", "exp": expires });
    let token = encode(&header, &claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap();
    format!("authorization: Bearer {token}\r\n")
}

#[tokio::test]
async fn tokens_are_checked_with_keys_that_are_fetched_when_they_are_new() {
    let (server, keys, asked) = key_server().await;
    let jwt = JwtConfig {
        jwks: format!("http://{}/keys", server.address),
        issuer: Some("id".to_owned()),
        audience: vec!["web".to_owned()],
        algorithms: vec![JwtAlgorithm::Hs256],
        refresh_floor: Duration::from_millis(50),
        timeout: PATIENCE,
        ..JwtConfig::default()
    };
    let (proxy, _origin, listen) = guarded(|app| app.access.jwt = Some(jwt.clone())).await;
    let mut client = connect(listen).await;
    let later = jsonwebtoken::get_current_timestamp() + 600;
    // The first request waits for the first keys.
    assert_eq!(ask(&mut client, &bearer("one", "first", later)).await.0, 200);
    let before = asked.load(SeqCst);
    assert_eq!(ask(&mut client, &bearer("one", "other", later)).await.0, 401);
    assert_eq!(ask(&mut client, &bearer("one", "first", later - 1200)).await.0, 401);
    let (code, head, _) = ask(&mut client, "").await;
    assert_eq!((code, field(&head, "www-authenticate")), (401, Some("Bearer")));
    assert_eq!(asked.load(SeqCst), before, "no newer key would help");
    // A key that is new is fetched for the first token that names it.
    keys.lock().unwrap().push(("two", "second"));
    assert_eq!(ask(&mut client, &bearer("two", "second", later)).await.0, 200);
    assert_eq!(ask(&mut client, &bearer("three", "third", later)).await.0, 401);
    // Without keys nobody comes in, and it says so.
    let (mut other, listen) = app(Http, &["127.0.0.1:1".parse().unwrap()]);
    other.app = "other".into();
    let jwks = "http://127.0.0.1:1/keys".to_owned();
    other.access.jwt = Some(JwtConfig { jwks, timeout: Duration::from_millis(200), ..jwt });
    serve(&proxy, &other).await;
    let mut client = connect(listen).await;
    assert_eq!(ask(&mut client, &bearer("one", "first", later)).await.0, 503);
}

/// A pair of keys: what tokens are signed with, and what the set says of it.
struct Signer {
    algorithm: Algorithm,
    private: EncodingKey,
    public: Value,
}

impl Signer {
    /// PKCS #1, as `openssl genrsa -traditional 2048` writes it.
    fn rsa(pem: &[u8]) -> Signer {
        let key = PrivatePkcs1KeyDer::from_pem_slice(pem).unwrap();
        let der = key.secret_pkcs1_der();
        // RFC 8017 §A.1.2: a sequence of the version, a modulus of 257 bytes of which the first is 0, the exponent.
        assert_eq!((&der[4..12], &der[268..273]), (&[2, 1, 0, 2, 0x82, 1, 1, 0][..], &[2, 3, 1, 0, 1][..]));
        let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let public = json!({ "kty": "RSA", "n": b64(&der[12..268]), "e": b64(&[1, 0, 1]) });
        Signer { algorithm: Algorithm::RS256, private: EncodingKey::from_rsa_der(der), public }
    }

    fn curve() -> Signer {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let (x, y) = key.der_bytes()[1..].split_at(32);
        let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let public = json!({ "kty": "EC", "crv": "P-256", "x": b64(x), "y": b64(y) });
        Signer {
            algorithm: Algorithm::ES256,
            private: EncodingKey::from_ec_der(&key.serialize_der()),
            public,
        }
    }

    /// In a set, under that name.
    fn named(&self, kid: &str) -> Value {
        let mut public = self.public.clone();
        public["kid"] = kid.into();
        public
    }

    fn bearer(&self, kid: &str) -> String {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(self.algorithm) };
        let claims = json!({ "exp": jsonwebtoken::get_current_timestamp() + 600 });
        format!("authorization: Bearer {}\r\n", encode(&header, &claims, &self.private).unwrap())
    }
}

#[tokio::test]
async fn keys_come_over_https_from_whom_the_authority_vouches_for_and_change_while_they_are_used() {
    let first = Signer::rsa(include_bytes!("../testdata/rsa-1.pem"));
    let second = Signer::rsa(include_bytes!("../testdata/rsa-2.pem"));
    let (curve, other_curve) = (Signer::curve(), Signer::curve());
    let authority = Authority::new();
    authority.issue("keys", &["127.0.0.1"]);
    let acceptor = authority.acceptor("keys");
    let keys = Arc::new(Mutex::new(vec![first.named("a"), curve.named("c")]));
    let known = Arc::clone(&keys);
    let server = Origin::new(move |stream| {
        let (acceptor, known) = (acceptor.clone(), Arc::clone(&known));
        Box::pin(async move {
            // Some do not believe it.
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                request.push(byte);
            }
            let body = json!({ "keys": *known.lock().unwrap() }).to_string();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            // The proxy is gone by now, or goes.
            let _gone = stream.shutdown().await;
        })
    })
    .await;
    let (_directory, known_ca) = authority.root_file();
    let jwt = JwtConfig {
        jwks: format!("https://{}/keys", server.address),
        ca: Some(known_ca.clone()),
        refresh_floor: Duration::from_millis(50),
        timeout: PATIENCE,
        ..JwtConfig::default()
    };
    let (proxy, origin, listen) = guarded(|app| app.access.jwt = Some(jwt.clone())).await;
    let mut client = connect(listen).await;
    for (what, fields, expected) in [
        ("RS256", first.bearer("a"), 200),
        ("ES256", curve.bearer("c"), 200),
        ("RS256, another key", second.bearer("a"), 401),
        ("ES256, another key", other_curve.bearer("c"), 401),
        ("RS256 for a key of ES256", first.bearer("c"), 401),
        ("ES256 for a key of RS256", curve.bearer("a"), 401),
        ("a key that is not there yet", second.bearer("b"), 401),
    ] {
        assert_eq!(ask(&mut client, &fields).await.0, expected, "{what}");
    }
    // One comes, and later the other goes.
    *keys.lock().unwrap() = vec![second.named("b"), first.named("a")];
    assert_eq!(ask(&mut client, &second.bearer("b")).await.0, 200);
    assert_eq!(ask(&mut client, &first.bearer("a")).await.0, 200, "both are good while they change");
    *keys.lock().unwrap() = vec![second.named("b")];
    // Whatever is not known has the set fetched anew.
    assert_eq!(ask(&mut client, &curve.bearer("c")).await.0, 401);
    assert_eq!(ask(&mut client, &first.bearer("a")).await.0, 401, "it was taken back");
    assert_eq!(ask(&mut client, &second.bearer("b")).await.0, 200);
    // A server that another authority vouches for is not listened to.
    let (directory, stranger) = Authority::new().root_file();
    let (mut other, listen) = app(Http, &[origin.address]);
    other.app = "other".into();
    let jwt = JwtConfig { ca: Some(stranger.clone()), timeout: Duration::from_millis(200), ..jwt };
    other.access.jwt = Some(jwt);
    serve(&proxy, &other).await;
    let mut client = connect(listen).await;
    assert_eq!(ask(&mut client, &second.bearer("b")).await.0, 503);
    // Until its own is in the file, which is read again.
    let replace = |content: &str| {
        let fresh = directory.path().join("fresh");
        std::fs::write(&fresh, content).unwrap();
        std::fs::rename(&fresh, &stranger).unwrap();
    };
    replace(&std::fs::read_to_string(&known_ca).unwrap());
    let believed = async {
        loop {
            match ask(&mut client, &second.bearer("b")).await.0 {
                200 => break,
                status => assert_eq!(status, 503),
            }
        }
    };
    tokio::time::timeout(PATIENCE, believed).await.expect("the keys are fetched");
    // One that is no use is not prepared; what serves goes on with those before.
    replace("no certificate");
    other.generation += 1;
    assert!(proxy.prepare(other).await.unwrap_err().to_string().contains("ca.pem"));
    assert_eq!(ask(&mut client, &second.bearer("b")).await.0, 200);
}

/// A service that lets those pass who say so, sends others elsewhere, and does not answer whoever asks for silence.
async fn authority() -> Origin {
    Origin::new(|mut stream| {
        Box::pin(async move {
            while let Ok(head) = head(&mut stream).await {
                let uri = field(&head, "x-forwarded-uri").unwrap_or_default();
                let method = field(&head, "x-forwarded-method").unwrap_or_default();
                let answer = match field(&head, "x-say") {
                    Some("pass") => format!(
                        "HTTP/1.1 200 OK\r\nx-user: ann\r\nx-asked: {method} {uri}\r\ncontent-length: 2\r\n\r\nok"
                    ),
                    Some("silence") => return hold(stream).await,
                    Some("error") => "nonsense\r\n\r\n".to_owned(),
                    _ => "HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 5\r\n\r\nlogin".to_owned(),
                };
                send(&mut stream, answer).await;
            }
        })
    })
    .await
}

#[tokio::test]
async fn a_service_decides_about_requests_and_names_who_asks() {
    let authority = authority().await;
    let forward = ForwardAuthConfig {
        pool: "auth".to_owned(),
        path: "/verify".to_owned(),
        copy: vec!["x-user".to_owned(), "x-asked".to_owned()],
        timeout: Duration::from_millis(400),
    };
    let (_proxy, _origin, listen) = guarded(|app| {
        app.pools.insert("auth".to_owned(), pool(&[authority.address]));
        app.access.forward = Some(forward);
    })
    .await;
    let mut client = connect(listen).await;
    for _again in 0..2 {
        let (status, _, seen) = ask(&mut client, "x-say: pass\r\nx-user: root\r\n").await;
        assert_eq!(status, 200);
        assert_eq!(field(&seen, "x-user"), Some("ann"), "{seen}");
        assert!(!seen.contains("root"), "{seen}");
        assert_eq!(field(&seen, "x-asked"), Some("GET /a?b"), "{seen}");
        let (status, head, body) = ask(&mut client, "").await;
        assert_eq!((status, field(&head, "location"), body.as_str()), (302, Some("/login"), "login"));
    }
    assert_eq!(authority.accepted(), 1, "one connection is enough");
    for say in ["silence", "error"] {
        let (status, head, _) = ask(&mut client, &format!("x-say: {say}\r\n")).await;
        assert_eq!((status, field(&head, "retry-after")), (503, Some("1")), "{say}");
    }
    // The body of the client comes after the verdict, and goes to the endpoint alone.
    send(&mut client, "POST / HTTP/1.1\r\nhost: a\r\nx-say: pass\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(status(&response(&mut client).await.0), 200);
}

#[tokio::test]
async fn a_service_that_is_not_there_lets_nobody_in() {
    let forward =
        ForwardAuthConfig { pool: "auth".to_owned(), path: "/".to_owned(), copy: vec![], timeout: PATIENCE };
    let (proxy, origin, listen) = guarded(|app| {
        app.pools.insert("auth".to_owned(), pool(&["127.0.0.1:1".parse().unwrap()]));
        app.access.forward = Some(forward.clone());
    })
    .await;
    let mut client = connect(listen).await;
    assert_eq!(ask(&mut client, "").await.0, 503);
    assert_eq!(origin.accepted(), 0);
    let (mut other, _) = app(Http, &[origin.address]);
    other.app = "other".into();
    other.access.forward = Some(forward);
    let refused = proxy.prepare(other).await.unwrap_err().to_string();
    assert!(refused.contains("no pool `auth`"), "{refused}");
}

/// What is used of Envoy's messages, with the numbers of their fields.
#[derive(Clone, PartialEq, Message)]
struct Verdict {
    #[prost(message, optional, tag = "1")]
    status: Option<Number>,
    #[prost(message, optional, tag = "2")]
    denied: Option<Denied>,
    #[prost(message, optional, tag = "3")]
    ok: Option<Allowed>,
}

#[derive(Clone, PartialEq, Message)]
struct Number {
    #[prost(int32, tag = "1")]
    value: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Denied {
    #[prost(message, optional, tag = "1")]
    status: Option<Number>,
    #[prost(string, tag = "3")]
    body: String,
}

#[derive(Clone, PartialEq, Message)]
struct Allowed {
    #[prost(message, repeated, tag = "2")]
    headers: Vec<Option1>,
}

#[derive(Clone, PartialEq, Message)]
struct Option1 {
    #[prost(message, optional, tag = "1")]
    header: Option<Pair>,
}

#[derive(Clone, PartialEq, Message)]
struct Pair {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// Lets those pass whose request has `x-say: pass` in it, and breaks the call for `x-say: error`.
async fn grpc_authority() -> Origin {
    Origin::new(|stream| {
        Box::pin(async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let mut calls = JoinSet::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                calls.spawn(async move {
                    assert_eq!(request.uri().path(), "/envoy.service.auth.v3.Authorization/Check");
                    assert_eq!(request.headers()["content-type"], "application/grpc");
                    let mut body = request.into_body();
                    let mut bytes = Vec::new();
                    while let Some(Ok(data)) = body.data().await {
                        let _ended = body.flow_control().release_capacity(data.len());
                        bytes.extend_from_slice(&data);
                    }
                    let says = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
                    assert!(says("/a?b") && says("web.test"), "{}", bytes.escape_ascii());
                    let (verdict, code) = if says("pass") {
                        let pair = Pair { key: "x-user".to_owned(), value: "ann".to_owned() };
                        let ok = Allowed { headers: vec![Option1 { header: Some(pair) }] };
                        let status = Some(Number { value: 0 });
                        (Verdict { status, denied: None, ok: Some(ok) }, "0")
                    } else {
                        let denied =
                            Denied { status: Some(Number { value: 451 }), body: "not here".to_owned() };
                        let status = Some(Number { value: 7 });
                        (
                            Verdict { status, denied: Some(denied), ok: None },
                            if says("error") { "14" } else { "0" },
                        )
                    };
                    let message = verdict.encode_to_vec();
                    let mut framed = vec![0];
                    framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
                    framed.extend_from_slice(&message);
                    let response = http::Response::builder().header("content-type", "application/grpc");
                    let mut send = respond.send_response(response.body(()).unwrap(), false).unwrap();
                    send.send_data(framed.into(), false).unwrap();
                    let trailers = [("grpc-status".parse().unwrap(), code.parse().unwrap())];
                    send.send_trailers(trailers.into_iter().collect()).unwrap();
                });
            }
        })
    })
    .await
}

#[tokio::test]
async fn a_service_decides_over_grpc_as_well() {
    let authority = grpc_authority().await;
    let (_proxy, _origin, listen) = guarded(|app| {
        let grpc = PoolConfig { protocol: UpstreamProtocol::Http2, ..pool(&[authority.address]) };
        app.pools.insert("authz".to_owned(), grpc);
        app.access.grpc = Some(GrpcAuthConfig { pool: "authz".to_owned(), timeout: PATIENCE });
    })
    .await;
    let mut client = connect(listen).await;
    for _again in 0..2 {
        let (status, _, seen) = ask(&mut client, "x-say: pass\r\nx-user: root\r\n").await;
        assert_eq!((status, field(&seen, "x-user")), (200, Some("ann")), "{seen}");
        assert!(!seen.contains("root"), "{seen}");
        let (status, _, body) = ask(&mut client, "").await;
        assert_eq!((status, body.as_str()), (451, "not here"));
    }
    assert_eq!(ask(&mut client, "x-say: error\r\n").await.0, 503);
    assert_eq!(authority.accepted(), 1, "one connection is enough");
}

#[tokio::test]
async fn a_client_in_http_2_is_looked_at_in_the_same_way() {
    let users = [("ann".to_owned(), bcrypt::hash("secret", 4).unwrap())].into();
    let (_proxy, _origin, listen) =
        guarded(|app| app.access.basic = Some(BasicConfig { users, ..BasicConfig::default() })).await;
    let (send, connection) = h2::client::handshake(connect(listen).await).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let mut statuses = Vec::new();
    for text in ["ann:guess", "ann:secret"] {
        let request = http::Request::get("http://web.test/")
            .header("authorization", format!("Basic {}", STANDARD.encode(text)))
            .body(())
            .unwrap();
        let mut send = send.clone().ready().await.unwrap();
        let (response, _) = send.send_request(request, true).unwrap();
        let response = tokio::time::timeout(PATIENCE, response).await.expect("in time").unwrap();
        statuses.push(response.status().as_u16());
    }
    assert_eq!(statuses, [401, 200]);
}

struct Sum;

impl Sign for Sum {
    fn sign(&self, request: &Unsigned<'_>) -> Result<Vec<(String, String)>, String> {
        if request.target.contains("secret") {
            return Err("it is not to be signed".to_owned());
        }
        let fields = request.fields().count();
        let said = format!("{} {} {}", request.method.escape_ascii(), request.target, request.host);
        Ok(vec![
            ("x-signature".to_owned(), format!("{said} {}", fields > 1)),
            ("host".to_owned(), "evil".to_owned()),
        ])
    }
}

#[tokio::test]
async fn code_of_the_user_signs_what_goes_on() {
    let mut signers = Signers::default();
    signers.register("sum", Sum);
    let config = ProxyConfig { workers: 1, ..ProxyConfig::default() };
    let proxy = Proxy::start_with(config, Extensions { signers, ..Extensions::default() }).unwrap();
    let origin = mirror().await;
    let (mut config, listen) = app(Http, &[origin.address]);
    config.access = AccessConfig { signer: Some("sum".to_owned()), ..AccessConfig::default() };
    serve(&proxy, &config).await;
    let mut client = connect(listen).await;
    let (status, _, seen) = ask(&mut client, "x-signature: forged\r\n").await;
    assert_eq!((status, field(&seen, "x-signature")), (200, Some("GET /a?b web.test true")), "{seen}");
    assert!(!seen.contains("forged") && !seen.contains("evil"), "{seen}");
    assert_eq!(get(&mut client, "/secret").await.0, 503);
    config.generation = 2;
    config.access.signer = Some("nobody".to_owned());
    let refused = proxy.prepare(config).await.unwrap_err().to_string();
    assert!(refused.contains("no signer `nobody`"), "{refused}");
}
