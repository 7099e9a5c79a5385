//! The wire of HAProxy's runtime API: a line of commands in, their answers out, one connection each.
//!
//! Answers are text for people. Each ends with an empty line, and one that has nothing to say is that
//! line alone (management.txt, section 9.3); only `del server` of HAProxy 2.6 leaves the line out.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

/// Of one line. HAProxy takes as much as its buffer holds (`tune.bufsize`, 16 KiB by default).
const LINE_BYTES_MAX: usize = 8 << 10;
/// Of one answer: the table of 100,000 servers has about half of it.
const ANSWER_BYTES_MAX: u64 = 32 << 20;
/// How answers begin that say that it was done.
const DONE: [&str; 4] =
    ["IP changed from", "no need to change", "port changed from", "New server registered"];

/// `address`: `host:port`, or the path of a unix socket.
pub(super) async fn exchange(address: &str, line: &str) -> io::Result<String> {
    match address.starts_with('/') {
        true => converse(UnixStream::connect(address).await?, line).await,
        false => converse(TcpStream::connect(address).await?, line).await,
    }
}

async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, line: &str) -> io::Result<String> {
    stream.write_all(format!("{line}\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// As many commands at a time as a line may have.
pub(super) fn lines(commands: &[String]) -> impl Iterator<Item = &[String]> {
    let mut rest = commands;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |command: &&String| {
            bytes += command.len() + 1;
            bytes <= LINE_BYTES_MAX
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (line, after) = rest.split_at(count);
        rest = after;
        (!line.is_empty()).then_some(line)
    })
}

/// The commands of a line that were not carried out, with what HAProxy said.
pub(super) fn refusals(commands: &[String], answers: &str) -> Vec<String> {
    let mut refused = Vec::new();
    let mut lines = answers.lines();
    for command in commands {
        let answer: Vec<&str> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        let Some(first) = answer.first() else { continue };
        if !DONE.iter().any(|done| first.starts_with(done)) {
            refused.push(format!("{command}: {}", answer.join(" ")));
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_haproxy_refuses_is_told_by_command() {
        let commands = ["set server web/s1 addr 127.0.0.5 port 8080", "set server web/s1 state ready"];
        let commands = commands.map(str::to_owned);
        for (answers, refused) in [
            ("IP changed from '127.0.0.1' to '127.0.0.5' by 'stats socket command'\n\n\n", &[][..]),
            ("no need to change the addr by 'stats socket command'\n\n\n", &[]),
            ("No such server.\n\nNo such server.\n\n", &[0, 1]),
            ("\nPermission denied\n\n", &[1]),
            ("", &[]),
        ] {
            let said = refusals(&commands, answers);
            assert_eq!(said.len(), refused.len(), "{answers:?}: {said:?}");
            assert!(refused.iter().zip(&said).all(|(&at, said)| said.starts_with(&commands[at])), "{said:?}");
        }
    }

    #[test]
    fn long_lists_of_commands_take_several_lines_and_lose_none() {
        let commands: Vec<String> = (0..1000).map(|n| format!("set server web/s{n} state ready")).collect();
        let lines: Vec<&[String]> = lines(&commands).collect();
        assert!(lines.len() > 3);
        assert!(lines.iter().all(|line| line.join(";").len() <= LINE_BYTES_MAX));
        assert_eq!(lines.concat(), commands);
    }
}
