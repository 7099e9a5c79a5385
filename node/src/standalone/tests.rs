use std::{net::TcpListener as Holder, path::Path};

use flotilla_spec::Format;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener},
    task::JoinSet,
};

use super::*;

fn apps(text: &str) -> Vec<AppSpec> {
    flotilla_spec::parse(text, Format::Toml).unwrap_or_else(|wrong| panic!("{wrong:?}"))
}

/// A port that was free a moment ago.
fn port() -> u16 {
    Holder::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Says where it is reached, and closes.
fn greeter(path: &Path, greeting: &'static str) -> JoinSet<()> {
    let listener = UnixListener::bind(path).unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Checks go away without listening.
            let _gone = stream.write_all(greeting.as_bytes()).await;
        }
    });
    task
}

/// Answers each request on a connection with its name.
async fn web(name: &'static str) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut sessions = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            sessions.spawn(async move {
                let mut head = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    head.push(byte);
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{name}");
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                }
            });
        }
    });
    (address, tasks)
}

/// Asks for a host on a new connection: the status and the one byte that our servers answer.
async fn ask(port: u16, host: &str) -> (String, String) {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        (answer[9..12].to_owned(), answer[answer.len() - 1..].to_owned())
    };
    tokio::time::timeout(Duration::from_secs(20), asked).await.expect("an answer in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_moves_from_one_app_to_another_in_one_step() {
    let ((a, _a), (b, _b)) = (web("a").await, web("b").await);
    let port = port();
    let app = |name: &str, hosts: &str, target: &str| {
        format!(
            "[[app]]\nname = \"{name}\"\ntargets = [\"{target}\"]\ncheck = \"none\"\n\
             listen = [{{ port = {port}, address = \"127.0.0.1\", protocol = \"http\", hosts = [{hosts}] }}]\n"
        )
    };
    let config = ProxyConfig { workers: 1, ..ProxyConfig::default() };
    let mut proxy = Standalone::start(config, "/certificates".into()).unwrap();
    let before = app("a", "\"a.test\", \"x.test\"", &a) + &app("b", "\"b.test\"", &b);
    let after = app("a", "\"a.test\"", &a) + &app("b", "\"b.test\", \"x.test\"", &b);
    let alone = app("c", "\"a.test\", \"b.test\", \"x.test\"", &a);
    proxy.apply(apps(&before)).await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut clients = JoinSet::new();
    for (host, answers) in [("x.test", "ab"), ("a.test", "a"), ("b.test", "ab")] {
        let stopped = stopped.clone();
        clients.spawn(async move {
            let mut asked = 0;
            while !*stopped.borrow() {
                let (status, answer) = ask(port, host).await;
                assert!(status == "200" && answers.contains(&answer), "{host}: {status} {answer}");
                asked += 1;
            }
            asked
        });
    }
    for round in 0..10 {
        for (spec, want) in [(&after, "b"), (&before, "a")] {
            proxy.apply(apps(spec)).await.unwrap();
            assert_eq!(ask(port, "x.test").await, ("200".into(), want.into()), "in round {round}");
        }
        // Apps that go give what they have to one that comes.
        let applied = proxy.apply(apps(&alone)).await.unwrap();
        assert_eq!((applied.changed.len(), applied.removed.len()), (1, 2));
        proxy.apply(apps(&before)).await.unwrap();
    }
    stop.send_replace(true);
    assert!(clients.join_all().await.iter().sum::<u32>() > 30);
    // An exchange takes two steps, and is refused without a change.
    let exchange = app("a", "\"b.test\", \"x.test\"", &a) + &app("b", "\"a.test\"", &b);
    let refused = proxy.apply(apps(&exchange)).await.unwrap_err().to_string();
    assert!(refused.contains("belongs to app"), "{refused}");
    for (host, want) in [("a.test", "a"), ("b.test", "b"), ("x.test", "a")] {
        assert_eq!(ask(port, host).await, ("200".into(), want.into()));
    }
    proxy.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_spec_may_name_socket_files_and_move_from_one_to_the_next() {
    let directory = tempfile::TempDir::new().unwrap();
    let paths = ["one.sock", "two.sock"].map(|name| directory.path().join(name));
    let [one, two] = &paths;
    let _origins = [greeter(one, "one"), greeter(two, "two")];
    let port = port();
    let spec = |path: &Path| {
        let path = path.display();
        apps(&format!(
            "[[app]]\nname = \"files\"\nlisten = [{{ port = {port}, address = \"127.0.0.1\" }}]\n\
             targets = [\"unix:{path}\"]\ncheck = \"tcp\"\n"
        ))
    };
    let config = ProxyConfig { workers: 1, ..ProxyConfig::default() };
    let mut proxy = Standalone::start(config, directory.path().to_owned()).unwrap();
    for (path, greeting) in [(one, "one"), (two, "two")] {
        proxy.apply(spec(path)).await.unwrap();
        let greeted = async {
            loop {
                let mut said = String::new();
                // Until the first check is back there is nobody, and the session is reset.
                if let Ok(mut client) = TcpStream::connect(("127.0.0.1", port)).await
                    && client.read_to_string(&mut said).await.is_ok()
                    && !said.is_empty()
                {
                    break said;
                }
            }
        };
        let said = tokio::time::timeout(Duration::from_secs(20), greeted).await.expect("a greeting in time");
        assert_eq!(said, greeting);
    }
    proxy.stop(Duration::ZERO).await;
}
