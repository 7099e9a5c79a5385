use std::{process::Command, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{pattern::Pattern, *};

async fn exchange(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    answer
}

async fn get(address: SocketAddr, path: &str) -> (String, Vec<u8>) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-token: 7\r\n\r\n");
    let answer = exchange(address, request.as_bytes()).await;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    (String::from_utf8(answer[..end].to_vec()).unwrap(), answer[end..].to_vec())
}

#[tokio::test]
async fn an_echo_says_its_name_when_asked_and_echoes_the_rest() {
    let echo = Echo::start("e1");
    for (sent, received) in [
        ("whoami\n", "e1\n"),
        ("whoami\nwhoami\nwho", "e1\ne1\nwho"),
        ("hello\n", "hello\n"),
        ("whoareyou\nwhoami\n", "whoareyou\nwhoami\n"),
        ("whoami\nthen\nwhoami\n", "e1\nthen\nwhoami\n"),
        ("", ""),
    ] {
        assert_eq!(String::from_utf8(exchange(echo.address(), sent.as_bytes()).await).unwrap(), received);
    }
}

#[tokio::test]
async fn an_http_origin_names_itself_and_the_request() {
    let http = Http::start("h1");
    let (head, body) = get(http.address(), "/").await;
    assert!(
        head.starts_with("HTTP/1.1 200 OK") && head.contains("x-target: h1") && head.contains("x-token: 7"),
        "{head}"
    );
    assert_eq!(body, b"h1\n");

    http.fail_with(::http::StatusCode::SERVICE_UNAVAILABLE);
    assert!(get(http.address(), "/healthz").await.0.starts_with("HTTP/1.1 503"));
    http.recover();
    assert!(get(http.address(), "/healthz").await.0.starts_with("HTTP/1.1 200"));
    assert_eq!(http.requests(), 3);
}

#[tokio::test]
async fn an_http_origin_streams_bytes_down_and_checks_bytes_that_come_up() {
    let http = Http::start("h1");
    let (head, body) = get(http.address(), "/bytes/300000").await;
    assert!(head.contains("content-length: 300000"), "{head}");
    assert_eq!(Pattern::default().check(&body), Ok(()));

    let upload = async |body: &[u8]| {
        let head = format!(
            "POST /upload HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        String::from_utf8(exchange(http.address(), &[head.as_bytes(), body].concat()).await).unwrap()
    };
    let crc = crc32fast::hash(&body);
    assert!(upload(&body).await.ends_with(&format!("\r\n\r\n300000 {crc:08x}\n")));
    assert!(upload(&body[1..]).await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn an_upgraded_connection_is_an_echo() {
    let http = Http::start("h1");
    let mut stream = TcpStream::connect(http.address()).await.unwrap();
    stream
        .write_all(b"GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: websocket"), "{head}");
    for frame in [b"ping", b"pong"] {
        stream.write_all(frame).await.unwrap();
        let mut echoed = [0; 4];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, frame);
    }
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "the end is passed on");
}

#[tokio::test]
async fn a_served_directory_can_be_fetched_as_a_whole() {
    let Some(wget) = crate::peers::program("wget") else { return };
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("deep/deeper")).unwrap();
    for (name, text) in [("a.txt", "a"), ("deep/b.txt", "b"), ("deep/deeper/c.txt", "c")] {
        std::fs::write(root.path().join(name), text).unwrap();
    }
    let files = Files::start(root.path());
    let fetched = tempfile::tempdir().unwrap();
    let mut command = Command::new(wget);
    command.args(["--quiet", "--recursive", "--no-host-directories", "--no-parent", "--reject=index.html*"]);
    let status =
        command.arg(format!("http://{}/", files.address())).current_dir(fetched.path()).status().unwrap();
    assert!(status.success());
    let same = Command::new("diff").arg("-r").args([root.path(), fetched.path()]).output().unwrap();
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    assert!(get(files.address(), "/../etc/passwd").await.0.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_dropped_origin_no_longer_listens() {
    let echo = Echo::start("e1");
    let address = echo.address();
    drop(echo);
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(exchange(Echo::start_at("e2", address).unwrap().address(), b"whoami\n").await, b"e2\n");
}
