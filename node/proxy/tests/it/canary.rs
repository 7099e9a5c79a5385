//! Under faults on both sides, no request is ever answered with the response to another one.
//!
//! Every request has a number. The origin answers with nothing but that number, or breaks the rules in one of many
//! ways; clients pipeline, give up and reset. `SEED=7` runs that one again.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use flotilla_proxy::config::Protocol::Http;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::JoinSet,
};

use crate::support::*;

const CLIENTS: u64 = 12;
const CONNECTIONS: u64 = 24;
const REQUESTS: u64 = 12;

/// What the origin does with a request; the client puts it into the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Length,
    Chunks,
    UntilClose,
    Interim,
    Later,
    CloseUnasked,
    ResetUnasked,
    CloseAfter,
    HalfHead,
    HalfBody,
    HalfChunk,
    /// Answers without having read the body, and closes.
    Early,
    /// Sends a second response that nobody asked for.
    Twice,
}

const DEEDS: [Deed; 13] = [
    Deed::Length,
    Deed::Chunks,
    Deed::UntilClose,
    Deed::Interim,
    Deed::Later,
    Deed::CloseUnasked,
    Deed::ResetUnasked,
    Deed::CloseAfter,
    Deed::HalfHead,
    Deed::HalfBody,
    Deed::HalfChunk,
    Deed::Early,
    Deed::Twice,
];

struct Random(u64);

impl Random {
    /// xorshift64* (Marsaglia 2003).
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }

    fn one_of<T: Copy, const N: usize>(&mut self, all: [T; N]) -> T {
        all[usize::try_from(self.below(N as u64)).unwrap()]
    }
}

/// `bytes` bytes that belong to nobody else.
fn text(number: u64, bytes: usize) -> String {
    format!("{number:08}").repeat(bytes.div_ceil(8))[..bytes].to_owned()
}

async fn body(stream: &mut (impl AsyncBufReadExt + Unpin), head: &str) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if field(head, "transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let size =
                usize::from_str_radix(line.trim_end(), 16).map_err(|_| std::io::ErrorKind::InvalidData)?;
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).await?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return Ok(body);
            }
        }
    }
    body.resize(field(head, "content-length").map_or(0, |length| length.parse().unwrap()), 0);
    stream.read_exact(&mut body).await?;
    Ok(body)
}

/// A head and nothing behind it; an error where the connection ends before.
async fn next_head(stream: &mut (impl AsyncBufReadExt + Unpin)) -> std::io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if tokio::time::timeout(PATIENCE, stream.read_line(&mut head)).await?? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

/// Serves one connection of the proxy. An error is the end of it.
async fn act(stream: TcpStream, mixed: &AtomicUsize) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let head = next_head(&mut stream).await?;
        let path: Vec<&str> = head.split(' ').nth(1).unwrap().split('/').collect();
        let (number, deed, bytes): (u64, usize, usize) =
            (path[1].parse().unwrap(), path[2].parse().unwrap(), path[3].parse().unwrap());
        let deed = DEEDS[deed];
        if deed != Deed::Early {
            let sent = body(&mut stream, &head).await?;
            if sent != text(number, sent.len()).as_bytes() {
                mixed.fetch_add(1, SeqCst);
            }
        }
        let own = text(number, bytes);
        let plain = format!("HTTP/1.1 200 OK\r\nx-number: {number}\r\ncontent-length: {bytes}\r\n\r\n{own}");
        let (first, rest) = own.split_at(bytes / 2);
        let chunked = format!("HTTP/1.1 200 OK\r\nx-number: {number}\r\ntransfer-encoding: chunked\r\n\r\n");
        let chunk = |part: &str| {
            if part.is_empty() { String::new() } else { format!("{:x}\r\n{part}\r\n", part.len()) }
        };
        let answer = match deed {
            Deed::Length | Deed::CloseAfter | Deed::Early => plain,
            Deed::Later => {
                tokio::time::sleep(std::time::Duration::from_millis(3)).await;
                plain
            }
            Deed::Chunks => format!("{chunked}{}{}0\r\n\r\n", chunk(first), chunk(rest)),
            Deed::UntilClose => format!("HTTP/1.0 200 OK\r\nx-number: {number}\r\n\r\n{own}"),
            Deed::Interim => format!("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n{plain}"),
            Deed::CloseUnasked => String::new(),
            Deed::ResetUnasked => {
                reset(stream.into_inner());
                return Ok(());
            }
            Deed::HalfHead => plain[..20].to_owned(),
            Deed::HalfBody => plain[..plain.len() - bytes / 2 - 1].to_owned(),
            Deed::HalfChunk => format!("{chunked}{}{:x}\r\n{first}", chunk(first), bytes + 1),
            Deed::Twice => format!("{plain}HTTP/1.1 200 OK\r\nx-number: 0\r\ncontent-length: 4\r\n\r\nevil"),
        };
        stream.write_all(answer.as_bytes()).await?;
        if !matches!(deed, Deed::Length | Deed::Later | Deed::Chunks | Deed::Interim | Deed::Twice) {
            return Ok(());
        }
    }
}

/// A request of any kind.
fn request(number: u64, random: &mut Random) -> String {
    // Half of them behave, so that connections live long enough to be shared.
    let deed = if random.below(2) == 0 { random.below(2) } else { random.below(DEEDS.len() as u64) };
    let path = format!("/{number}/{deed}/{}", random.one_of([5, 600, 5000, 200_000]));
    let upload = text(number, random.one_of([0, 3, 3000, 50_000]));
    let length = upload.len();
    match random.below(3) {
        0 => format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"),
        1 => format!("PUT {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{upload}"),
        _ => {
            let chunk = if length == 0 { String::new() } else { format!("{length:x}\r\n{upload}\r\n") };
            format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n")
        }
    }
}

/// The next response, and the number in it where an origin sent it.
async fn hear(stream: &mut (impl AsyncBufReadExt + Unpin)) -> std::io::Result<(Option<u64>, Vec<u8>)> {
    let mut head = next_head(stream).await?;
    while status(&head) == 103 {
        head = next_head(stream).await?;
    }
    let body = body(stream, &head).await?;
    Ok((field(&head, "x-number").map(|number| number.parse().unwrap()), body))
}

/// One connection of a client. How many of its requests were answered by the origin.
async fn ask(listen: SocketAddr, random: &mut Random, next: &AtomicU64) -> usize {
    let (read, mut write) = connect(listen).await.into_split();
    let mut read = BufReader::new(read);
    let (mut answered, mut left) = (0, REQUESTS);
    let mut goes_on = true;
    while left > 0 && goes_on {
        let batch = (1 + random.below(3)).min(left);
        left -= batch;
        let numbers: Vec<u64> = (0..batch).map(|_| next.fetch_add(1, SeqCst)).collect();
        let requests: String = numbers.iter().map(|number| request(*number, random)).collect();
        // Some give up in the middle of what they say, some before they have heard the answer.
        let says = if random.below(8) == 0 { requests.len() / 2 } else { requests.len() };
        let hears = random.below(8) != 0;
        goes_on = says == requests.len() && hears;
        let writing = write.write_all(&requests.as_bytes()[..says]);
        let reading = async {
            let mut good = 0;
            for number in numbers.iter().filter(|_| hears) {
                let Ok((said, body)) = hear(&mut read).await else { return (good, false) };
                if let Some(said) = said {
                    assert_eq!(said, *number, "the answer to another request");
                    assert_eq!(body, text(said, body.len()).as_bytes(), "of {number}");
                    good += 1;
                }
            }
            (good, true)
        };
        let (good, heard_all) = if says == requests.len() {
            let (written, heard) = tokio::join!(writing, reading);
            (heard.0, heard.1 && written.is_ok())
        } else {
            // Half a request has no answer to wait for.
            let _gone = writing.await;
            (0, false)
        };
        answered += good;
        goes_on &= heard_all;
    }
    if random.below(2) == 0 {
        reset(read.into_inner().reunite(write).unwrap());
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stdout, reason = "the seed of a failure")]
async fn no_request_is_answered_with_the_response_to_another_whatever_breaks() {
    let seed: u64 =
        std::env::var("SEED").map_or_else(|_| std::process::id().into(), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mixed = Arc::new(AtomicUsize::new(0));
    let origin = {
        let mixed = Arc::clone(&mixed);
        Origin::new(move |stream| {
            let mixed = Arc::clone(&mixed);
            Box::pin(async move {
                let _ended = act(stream, &mixed).await;
            })
        })
        .await
    };
    let (proxy, listen) = serving(Http, &[origin.address]).await;
    let next = Arc::new(AtomicU64::new(1));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let next = Arc::clone(&next);
        clients.spawn(async move {
            let mut random = Random(seed.wrapping_mul(CLIENTS).wrapping_add(client) << 1 | 1);
            let mut answered = 0;
            for _ in 0..CONNECTIONS {
                answered += ask(listen, &mut random, &next).await;
            }
            answered
        });
    }
    let mut answered = 0;
    while let Some(client) = clients.join_next().await {
        answered += client.unwrap();
    }
    let asked = usize::try_from(next.load(SeqCst)).unwrap();
    assert_eq!(mixed.load(SeqCst), 0, "bodies that reached the origin under another number");
    assert!(answered * 4 > asked, "too few to mean anything: {answered} of {asked}");
    eventually("nothing is left", || proxy.status()[0].pins == 0 && proxy.connections() == 0).await;
}
