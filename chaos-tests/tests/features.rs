//! What apps may ask of the proxy, all of it at once and through the cluster: TLS, HTTP/2 and gRPC on a port that two apps
//! share, in front of a socket file; and that changes of each class reach what is open and close nothing.

#![allow(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use flotilla_chaos_tests::{
    origin,
    poll::eventually,
    process::{SOON, TestFleet},
    spec,
};
use futures_util::{future::join_all, stream};
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Frame, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use jsonwebtoken::{EncodingKey, Header, encode};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

/// Where both apps listen, and where one of them does alone.
const SHARED: u16 = 8443;
const ALONE: u16 = 8080;
const SECRET: &[u8] = b"a key that tokens are signed with";
/// A machine under load is ten times slower.
const PATIENCE: Duration = Duration::from_secs(30);

/// An authority, and where its certificates are.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Authority {
    fn new(directory: &Path) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Authority { issuer, directory: directory.to_owned() }
    }

    fn path(&self, file: &str) -> String {
        self.directory.join(file).to_str().unwrap().to_owned()
    }

    /// A certificate for `host` in `FILE.pem` and `FILE.key`, which are replaced if they are there.
    fn issue(&self, file: &str, host: &str) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        for (extension, content) in [("key", key.serialize_pem()), ("pem", certificate.pem())] {
            let fresh = self.path("fresh");
            std::fs::write(&fresh, content).unwrap();
            std::fs::rename(&fresh, self.path(&format!("{file}.{extension}"))).unwrap();
        }
        certificate.der().clone()
    }

    fn connector(&self, alpn: &str) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![alpn.into()];
        Arc::new(config).into()
    }
}

/// HTTP/1.1 behind a socket file: it says which path it was asked for, in text that is worth compressing. The answer to
/// `/held` ends when it is let go.
struct FileOrigin {
    requests: Arc<AtomicUsize>,
    /// Connections that are open now.
    open: Arc<AtomicUsize>,
    let_go: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

type Body = BoxBody<Bytes, Infallible>;

impl FileOrigin {
    fn start(path: &Path) -> FileOrigin {
        let listener = UnixListener::bind(path).unwrap();
        let (requests, open) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (let_go, held) = watch::channel(false);
        let (count, is_open) = (Arc::clone(&requests), Arc::clone(&open));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut sessions = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (count, is_open, held) = (Arc::clone(&count), Arc::clone(&is_open), held.clone());
                sessions.spawn(async move {
                    is_open.fetch_add(1, SeqCst);
                    let service = service_fn(|request: Request<hyper::body::Incoming>| {
                        count.fetch_add(1, SeqCst);
                        let answer = Self::answer(request.uri().path(), held.clone());
                        async { Ok::<_, Infallible>(answer) }
                    });
                    // A node that goes away breaks it off.
                    let _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    is_open.fetch_sub(1, SeqCst);
                });
            }
        });
        FileOrigin { requests, open, let_go, _tasks: tasks }
    }

    fn answer(path: &str, held: watch::Receiver<bool>) -> Response<Body> {
        let body = match path {
            "/held" => {
                let parts = stream::unfold((held, 0), |(mut held, part)| async move {
                    if part == 1 {
                        held.wait_for(|let_go| *let_go).await.ok()?;
                    }
                    let said = *["begun ", "and ended"].get(part)?;
                    Some((Ok(Frame::data(Bytes::from_static(said.as_bytes()))), (held, part + 1)))
                });
                StreamBody::new(parts).boxed()
            }
            _ => Full::from(format!("{path} from a file, ").repeat(100)).boxed(),
        };
        Response::builder().header("content-type", "text/plain").body(body).unwrap()
    }
}

/// Sends every message of a call back as it comes, and ends with a status.
struct Calls {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Calls {
    async fn start() -> Calls {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut sessions = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                sessions.spawn(Self::session(stream));
            }
        });
        Calls { address, _tasks: tasks }
    }

    async fn session(stream: TcpStream) {
        // A check only connects.
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        let mut calls = JoinSet::new();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            calls.spawn(async move {
                let response =
                    Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                let mut send = respond.send_response(response, false).unwrap();
                let mut messages = request.into_body();
                while let Some(Ok(message)) = messages.data().await {
                    messages.flow_control().release_capacity(message.len()).unwrap();
                    send.send_data(message, false).unwrap();
                }
                let status = [("grpc-status".parse().unwrap(), "0".parse().unwrap())];
                let _gone = send.send_trailers(status.into_iter().collect());
            });
        }
    }
}

async fn tls(connector: &TlsConnector, address: SocketAddr, host: &'static str) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(host).unwrap();
    timeout(PATIENCE, connector.connect(name, stream)).await.expect("a handshake in time").unwrap()
}

/// One connection in HTTP/2, which is watched.
struct Client {
    send: SendRequest<Bytes>,
    certificate: CertificateDer<'static>,
    host: &'static str,
    connection: JoinSet<Result<(), h2::Error>>,
}

/// Whoever has not asked before, so that no rate is exceeded.
fn nobody() -> String {
    static LAST: AtomicUsize = AtomicUsize::new(0);
    format!("nobody-{}", LAST.fetch_add(1, SeqCst))
}

/// What was answered, whole.
struct Answer {
    status: StatusCode,
    fields: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(|value| value.to_str().unwrap())
    }
}

impl Client {
    async fn connect(connector: &TlsConnector, address: SocketAddr, host: &'static str) -> Client {
        let stream = tls(connector, address, host).await;
        let session = stream.get_ref().1;
        assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
        let certificate = session.peer_certificates().unwrap()[0].clone().into_owned();
        let (send, running) = h2::client::handshake(stream).await.unwrap();
        let mut connection = JoinSet::new();
        connection.spawn(running);
        Client { send, certificate, host, connection }
    }

    async fn begin(
        &self,
        method: Method,
        path: &str,
        fields: &[(&str, &str)],
        is_whole: bool,
    ) -> (Response<RecvStream>, SendStream<Bytes>) {
        let mut request = Request::builder().method(method).uri(format!("https://{}{path}", self.host));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        if !fields.iter().any(|(name, _)| *name == "x-client") {
            request = request.header("x-client", nobody());
        }
        let mut send = self.send.clone().ready().await.unwrap();
        let (response, body) = send.send_request(request.body(()).unwrap(), is_whole).unwrap();
        (timeout(PATIENCE, response).await.expect("an answer in time").unwrap(), body)
    }

    async fn get(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let (response, _) = self.begin(Method::GET, path, fields, true).await;
        let (head, mut body) = response.into_parts();
        let mut read = Vec::new();
        while let Some(data) = timeout(PATIENCE, body.data()).await.expect("a body in time") {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            read.extend_from_slice(&data);
        }
        Answer { status: head.status, fields: head.headers, body: read }
    }

    fn assert_open(&mut self, when: &str) {
        let ended = self.connection.try_join_next();
        assert!(ended.is_none(), "{when}: the connection has ended: {ended:?}");
    }
}

/// Connections at one node, with something under way on each.
struct Held {
    shop: Client,
    download: RecvStream,
    old: TlsStream<TcpStream>,
    alone: TcpStream,
    api: Client,
    call: SendStream<Bytes>,
    messages: RecvStream,
}

impl Held {
    async fn open(stage: &Stage, node: usize) -> Held {
        let (shared, alone) = (stage.fleet.port(SHARED)[node], stage.fleet.port(ALONE)[node]);
        let shop = Client::connect(&stage.h2, shared, "shop.test").await;
        let (response, _) = shop.begin(Method::GET, "/held", &[("authorization", &stage.ann)], true).await;
        let mut download = response.into_body();
        let begun = timeout(PATIENCE, download.data()).await.expect("a body in time").unwrap().unwrap();
        assert_eq!(begun, "begun ");
        let api = Client::connect(&stage.h2, shared, "api.test").await;
        let fields =
            [("authorization", &*stage.bearer), ("content-type", "application/grpc"), ("te", "trailers")];
        let (response, call) = api.begin(Method::POST, "/test.Talk/Chat", &fields, false).await;
        assert_eq!(response.status(), 200);
        let old = tls(&stage.h1, shared, "shop.test").await;
        let alone = TcpStream::connect(alone).await.unwrap();
        let mut held = Held { shop, download, old, alone, api, call, messages: response.into_body() };
        held.assert_well(stage, "at first").await;
        held
    }

    /// Every connection goes on with what is under way, and takes a further request where that is its way.
    async fn assert_well(&mut self, stage: &Stage, when: &str) {
        self.call.send_data(Bytes::copy_from_slice(when.as_bytes()), false).unwrap();
        let back = timeout(PATIENCE, self.messages.data()).await.expect("a message in time");
        assert_eq!(back.unwrap().unwrap(), when);
        let answer = self.shop.get("/h2", &[("authorization", &stage.ann)]).await;
        assert_eq!((answer.status.as_u16(), &answer.body[..4]), (200, &b"/h2 "[..]), "{when}");
        assert_eq!(get(&mut self.old, "shop.test", &stage.ann).await, 200, "{when}");
        assert_eq!(get(&mut self.alone, "shop.test", &stage.ann).await, 200, "{when}");
        self.shop.assert_open(when);
        self.api.assert_open(when);
    }

    async fn finish(mut self) {
        let ended = timeout(PATIENCE, self.download.data()).await.expect("a body in time");
        assert_eq!(ended.unwrap().unwrap(), "and ended");
        assert!(self.download.data().await.is_none());
        self.call.send_data(Bytes::new(), true).unwrap();
        assert!(timeout(PATIENCE, self.messages.data()).await.expect("an end in time").is_none());
        let status = self.messages.trailers().await.unwrap().unwrap();
        assert_eq!(status["grpc-status"], "0");
    }
}

/// `GET /h1` on a connection that stays: the status.
async fn get<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, host: &str, authorization: &str) -> u16 {
    let client = nobody();
    let request = format!(
        "GET /h1 HTTP/1.1\r\nhost: {host}\r\nauthorization: {authorization}\r\nx-client: {client}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, stream.read_u8()).await.expect("a head in time").unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(!head.contains("connection: close"), "{head}");
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    let mut body = vec![0; length.unwrap_or_else(|| panic!("no length: {head}")).parse().unwrap()];
    timeout(PATIENCE, stream.read_exact(&mut body)).await.expect("a body in time").unwrap();
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

struct Stage {
    fleet: TestFleet,
    authority: Authority,
    h1: TlsConnector,
    h2: TlsConnector,
    /// Values of `Authorization`.
    ann: String,
    bearer: String,
    file: FileOrigin,
    canary: origin::Http,
    shadow: origin::Http,
    calls: Calls,
}

/// What changes of the first app.
#[derive(Clone, Copy)]
struct Shop {
    /// What `x-beta` must be for the canary.
    beta: &'static str,
    certificate: &'static str,
    nodelay: bool,
}

impl Stage {
    async fn new() -> Stage {
        let fleet = TestFleet::start(PROGRAM, 3).await;
        let directory = fleet.directory().join("certificates");
        std::fs::create_dir(&directory).unwrap();
        let authority = Authority::new(&directory);
        let file = FileOrigin::start(&fleet.directory().join("app.sock"));
        let key = serde_json::json!({ "kty": "oct", "kid": "one", "k": URL_SAFE_NO_PAD.encode(SECRET) });
        fleet.file("keys.json", &serde_json::json!({ "keys": [key] }).to_string());
        // 2100-01-01.
        let claims = serde_json::json!({ "iss": "id", "aud": "api", "exp": 4_102_444_800_u64 });
        let header = Header { kid: Some("one".to_owned()), ..Header::default() };
        let token = encode(&header, &claims, &EncodingKey::from_secret(SECRET)).unwrap();
        Stage {
            h1: authority.connector("http/1.1"),
            h2: authority.connector("h2"),
            fleet,
            authority,
            ann: format!("Basic {}", STANDARD.encode("ann:secret")),
            bearer: format!("Bearer {token}"),
            file,
            canary: origin::Http::start("canary"),
            shadow: origin::Http::start("shadow"),
            calls: Calls::start().await,
        }
    }

    fn listen(&self, host: &str, certificate: &str) -> String {
        let (cert, key) = (
            self.authority.path(&format!("{certificate}.pem")),
            self.authority.path(&format!("{certificate}.key")),
        );
        format!(
            "{{ port = {SHARED}, protocol = \"http\", hosts = [\"{host}\"], \
             tls = {{ certificate = {{ cert = \"{cert}\", key = \"{key}\" }} }} }}"
        )
    }

    fn shop(&self, Shop { beta, certificate, nodelay }: Shop) -> String {
        let alone = format!("{{ port = {ALONE}, protocol = \"http\", socket = {{ nodelay = {nodelay} }} }}");
        let listen = format!("{}, {alone}", self.listen("shop.test", certificate));
        let target = format!("unix:{}", self.fleet.directory().join("app.sock").display());
        let (canary, shadow) = (self.canary.address(), self.shadow.address());
        let hash = bcrypt::hash("secret", 4).unwrap();
        let more = format!(
            r#"
[app.pool.canary]
targets = ["{canary}"]
[app.pool.shadow]
targets = ["{shadow}"]
[[app.route]]
name = "beta"
pool = "canary"
[app.route.match]
expr = 'request.headers["x-beta"] == "{beta}"'
[[app.route]]
name = "copied"
pool = "default"
mirror = {{ pool = "shadow" }}
[app.route.match]
path = "/copied"
[app.compression]
[app.limits.rate]
key = "header:x-client"
per_second = 1
burst = 2
[app.access.basic]
users = {{ ann = "{hash}" }}
[app.upstream]
warm = 2
"#
        );
        spec::app("shop", &listen, &[target], &more)
    }

    fn api(&self) -> String {
        let more = format!(
            r#"
[app.upstream]
protocol = "http2"
[app.access.jwt]
jwks = "{}"
issuer = "id"
audience = ["api"]
algorithms = ["hs256"]
"#,
            self.fleet.directory().join("keys.json").display()
        );
        spec::app("api", &self.listen("api.test", "api"), &[self.calls.address], &more)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn features_work_together_through_the_cluster_and_changes_close_nothing() {
    let stage = Stage::new().await;
    let first = stage.authority.issue("shop", "shop.test");
    stage.authority.issue("api", "api.test");
    let shop = Shop { beta: "1", certificate: "shop", nodelay: true };
    stage.fleet.apply(&(stage.shop(shop) + &stage.api())).await.exits(0);

    eventually("connections are opened ahead", SOON, async || {
        let open = stage.file.open.load(SeqCst);
        if open >= 6 { Ok(()) } else { Err(format!("{open} are open")) }
    })
    .await;
    assert_eq!(stage.file.requests.load(SeqCst), 0, "and nobody has asked");

    let ann = ("authorization", &*stage.ann);
    for (node, address) in stage.fleet.port(SHARED).into_iter().enumerate() {
        let client = Client::connect(&stage.h2, address, "shop.test").await;
        assert_eq!(client.certificate, first);
        // Who may ask, how often, for what.
        assert_eq!(client.get("/", &[]).await.status, 401);
        let answer = client.get("/a", &[ann]).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, "/a from a file, ".repeat(100).as_bytes()));
        let eager = [ann, ("x-client", &*format!("eager-{node}"))];
        let answers = join_all((0..20).map(|_| client.get("/", &eager))).await;
        let count = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
        assert!(count(200) >= 2 && count(429) >= 1 && count(200) + count(429) == 20, "{}", count(200));
        let answer = client.get("/gzip", &[ann, ("accept-encoding", "gzip")]).await;
        assert_eq!((answer.status.as_u16(), answer.field("content-encoding")), (200, Some("gzip")));
        assert_eq!(&answer.body[..2], b"\x1f\x8b");
        let answer = client.get("/", &[ann, ("x-beta", "1")]).await;
        assert_eq!((answer.status.as_u16(), answer.field("x-target")), (200, Some("canary")));
        let answer = client.get("/", &[ann, ("x-beta", "2")]).await;
        assert_eq!((answer.status.as_u16(), answer.field("x-target")), (200, None));
        let copies = stage.shadow.requests();
        assert_eq!(client.get("/copied", &[ann]).await.status, 200);
        eventually("the copy arrives", SOON, async || {
            if stage.shadow.requests() == copies + 1 { Ok(()) } else { Err("none") }
        })
        .await;
        // The other app, by the name in the hello and by the host of a request.
        let client = Client::connect(&stage.h2, address, "api.test").await;
        assert_ne!(client.certificate, first);
        assert_eq!(client.get("/", &[]).await.status, 401);
        assert_eq!(client.get("/", &[ann]).await.status, 401);
        let answer = client.get("/", &[("authorization", &stage.bearer)]).await;
        assert_eq!((answer.status.as_u16(), answer.field("content-type")), (200, Some("application/grpc")));
        // Nobody has this name.
        let stranger = Client { host: "nobody.test", ..client };
        assert_eq!(stranger.get("/", &[]).await.status, 421);
    }

    let mut held = Vec::new();
    for node in 0..3 {
        held.push(Held::open(&stage, node).await);
    }
    // C0: a route, which reaches connections that are there.
    let shop = Shop { beta: "2", ..shop };
    stage.fleet.apply(&stage.shop(shop)).await.exits(0);
    for held in &mut held {
        let answer = held.shop.get("/", &[ann, ("x-beta", "2")]).await;
        assert_eq!((answer.status.as_u16(), answer.field("x-target")), (200, Some("canary")));
        let answer = held.shop.get("/", &[ann, ("x-beta", "1")]).await;
        assert_eq!((answer.status.as_u16(), answer.field("x-target")), (200, None));
        held.assert_well(&stage, "after a change of routes").await;
    }
    // C1: another certificate, by the spec and then by the file.
    let other = stage.authority.issue("other", "shop.test");
    let shop = Shop { certificate: "other", ..shop };
    stage.fleet.apply(&stage.shop(shop)).await.exits(0);
    for (address, held) in stage.fleet.port(SHARED).into_iter().zip(&mut held) {
        assert_eq!(Client::connect(&stage.h2, address, "shop.test").await.certificate, other);
        held.assert_well(&stage, "after a change of certificates").await;
    }
    let renewed = stage.authority.issue("other", "shop.test");
    for (address, held) in stage.fleet.port(SHARED).into_iter().zip(&mut held) {
        eventually("the renewed certificate is shown", SOON, async || {
            let shown = Client::connect(&stage.h2, address, "shop.test").await.certificate;
            if shown == renewed { Ok(()) } else { Err("another one is") }
        })
        .await;
        held.assert_well(&stage, "after a renewal").await;
    }
    // C2: an option of the listening sockets.
    let shop = Shop { nodelay: false, ..shop };
    let file = stage.fleet.file("shop.toml", &stage.shop(shop));
    stage.fleet.cli(["app", "plan", "-f", &file, "--exit-code"]).await.exits(10).says("C2");
    stage.fleet.cli(["app", "apply", "-f", &file]).await.exits(0);
    for held in &mut held {
        held.assert_well(&stage, "after a change of a socket option").await;
    }
    // What was under way all the time ends as it should have.
    stage.file.let_go.send_replace(true);
    for held in held {
        held.finish().await;
    }
}
