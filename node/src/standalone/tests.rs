use std::{net::TcpListener as Holder, path::Path};

use flotilla_spec::Format;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixListener},
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
