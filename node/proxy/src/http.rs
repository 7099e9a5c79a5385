//! L7: one HTTP/1.1 client connection.
//!
//! Everything about a connection happens in its one task: its requests are read in [`connection`], sent to an
//! endpoint and answered in [`forward`], and nothing is buffered for it while it is idle. This file is how it
//! begins and ends. The generation is chosen for each request, so old connections see new routes without being
//! closed.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::{
    admission::Place,
    edge,
    generation::LocalServing,
    port::At,
    relay,
    session::{Admitted, End},
    worker::Worker,
};

pub(crate) mod ask;
pub(crate) mod body;
mod compress;
pub(crate) mod connection;
pub(crate) mod date;
pub(crate) mod deadline;
#[cfg(test)]
mod differential;
mod edit;
pub(crate) mod forward;
pub(crate) mod guard;
pub(crate) mod h2;
pub(crate) mod head;
pub(crate) mod headers;
mod hedge;
pub(crate) mod held;
mod layered;
pub(crate) mod link;
pub(crate) mod mirror;
mod own;
pub(crate) mod parking;
mod refusal;
pub(crate) mod reply;
pub mod route;
mod splice;
mod turn;

use connection::{Client, Close, Connection, Tunnel};
use forward::Parts;
use headers::Seen;

/// How long and how much is read from a client after the last answer, so that the answer is not
/// destroyed by a reset for bytes nobody read (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// Serves one accepted connection to its end.
pub(crate) fn serve<C: Client>(
    worker: Rc<Worker>,
    at: At,
    serving: Rc<LocalServing>,
    stream: C,
    seen: Seen,
    admitted: Admitted,
) -> impl Future<Output = ()> {
    // From here on each request brings its own generation.
    let connection = Connection::new(stream, worker, at, &serving, seen);
    go_on(connection, None, admitted)
}

/// The same on a port that several apps share: the first request says whose the connection is. `serving`: of one of
/// them.
pub(crate) async fn serve_shared(
    worker: Rc<Worker>,
    at: At,
    serving: Rc<LocalServing>,
    stream: TcpStream,
    seen: Seen,
    client: SocketAddr,
    place: Place,
) {
    let mut connection = Connection::new(stream, Rc::clone(&worker), at, &serving, seen);
    drop(serving);
    let (first, close) = match poll_fn(|cx| connection.poll_request(cx)).await {
        Ok(parts) => (Some(parts), None),
        Err(close) => (None, Some(close)),
    };
    let serving = match (&first, &close) {
        (Some(parts), _) => connection.choose(&parts.request),
        // Each of its requests chooses for itself; for the connection somebody has to stand.
        (None, Some(Close::Http2)) => Ok(connection.at.home.choose(&worker, client.ip())),
        (None, _) => Err(close.unwrap_or(Close::Done)),
    };
    let serving = match serving {
        Ok(serving) => serving,
        Err(close) => {
            end(&mut connection, close).await;
            return;
        }
    };
    match edge::enter(&connection.at.home, &serving, place, client) {
        Ok(admitted) if first.is_none() => {
            drop(serving);
            let mut admitted = admitted;
            admitted.end(Box::pin(http2(connection)).await);
        }
        Ok(admitted) => {
            drop(serving);
            Box::pin(go_on(connection, first, admitted)).await;
        }
        Err(refused) => {
            edge::refuse(&worker, &serving, refused);
            end(&mut connection, Close::Answer(if refused.is_for_good() { FORBIDDEN } else { OVER_LIMIT }))
                .await;
        }
    }
}

#[expect(clippy::manual_async_fn, reason = "that has room for its arguments twice")]
fn go_on<C: Client>(
    mut connection: Connection<C>,
    first: Option<Box<Parts>>,
    mut admitted: Admitted,
) -> impl Future<Output = ()> {
    async move {
        let end = match connection.run(first).await {
            Close::Tunnel(tunnel) => Box::pin(self::tunnel(connection, tunnel)).await,
            Close::Http2 => Box::pin(http2(connection)).await,
            Close::Park => return parking::park(connection, admitted),
            close => Box::pin(end(&mut connection, close)).await,
        };
        admitted.end(end);
    }
}

/// Goes on in HTTP/2, as the client began.
async fn http2<C: Client>(connection: Connection<C>) -> End {
    let Connection { io, held, worker, at, deadline, seen, .. } = connection;
    let begun = held.into_bytes(&worker.buffers);
    match io.into_stream() {
        Some(io) => h2::serve(worker, at, deadline.timer, seen, begun, io).await,
        None => End::Reset,
    }
}

/// Answers a connection that is over a limit. Best effort: it is closed right after.
pub(crate) fn refuse(stream: &TcpStream) {
    let _unheard = stream.try_write(OVER_LIMIT);
}

pub(crate) const FORBIDDEN: &[u8] =
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\
    Connection: close\r\n\r\nforbidden\n";
const OVER_LIMIT: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 21\r\n\
    Retry-After: 1\r\nConnection: close\r\n\r\ntoo many connections\n";

/// Ends a connection that stays HTTP.
async fn end<C: Client>(connection: &mut Connection<C>, close: Close) -> End {
    match close {
        Close::Done | Close::Tunnel(_) | Close::Http2 | Close::Park => {
            goodbye(connection).await;
            End::Done
        }
        Close::Idle => {
            goodbye(connection).await;
            End::Idle
        }
        Close::Politely => finish(connection).await,
        Close::Answer(answer) => {
            // A few bytes into an empty send buffer; a client that is gone does not want them.
            let write = poll_fn(|cx| Poll::Ready(Pin::new(&mut connection.io).poll_write(cx, answer)));
            let _unheard = write.await;
            finish(connection).await
        }
        Close::Reset(end) => {
            connection.io.reset();
            end
        }
    }
}

/// Ends a session inside TLS.
async fn goodbye<C: Client>(connection: &mut Connection<C>) {
    if !connection.io.says_goodbye() {
        return;
    }
    let Connection { io, worker, deadline, .. } = connection;
    let said = poll_fn(|cx| Pin::new(&mut *io).poll_shutdown(cx));
    // Nobody listens, or not for that long.
    let _unheard = worker.clock.within(&deadline.timer, worker.clock.after(LINGER), said).await;
}

/// Closes in a way that lets the last answer arrive.
async fn finish<C: Client>(connection: &mut Connection<C>) -> End {
    let Connection { io, held, worker, deadline, .. } = connection;
    let mut left = LINGER_BYTES_MAX;
    let mut is_shut = false;
    let drained = poll_fn(|cx| {
        if !is_shut {
            match ready!(Pin::new(&mut *io).poll_shutdown(cx)) {
                Ok(()) => is_shut = true,
                Err(_) => return Poll::Ready(()),
            }
        }
        // Until the client has closed as well or has said too much.
        loop {
            held.consume(held.bytes().len());
            match ready!(held.poll_fill(cx, &worker.buffers, io)) {
                Ok(n) if n > 0 && n < left => left -= n,
                _ => return Poll::Ready(()),
            }
        }
    });
    // Whoever goes on sending for longer than this gets the reset.
    let _expired = worker.clock.within(&deadline.timer, worker.clock.after(LINGER), drained).await;
    End::Done
}

async fn tunnel<C: Client>(connection: Connection<C>, tunnel: Box<Tunnel>) -> End {
    let Tunnel { upstream, early, idle, pin, in_flight: _in_flight, active: _active } = *tunnel;
    let Connection { io, held, worker, deadline, cells, .. } = connection;
    let Some(client) = io.into_stream() else { return End::Reset };
    deadline.timer.uses(pin.generation());
    let first: Bytes = held.into_bytes(&worker.buffers);
    relay::join(&worker, &deadline.timer, client, upstream, idle, &cells, [first, early]).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<A, B, C, D, E, F, R>(_: fn(A, B, C, D, E, F) -> R) -> usize {
        std::mem::size_of::<R>()
    }

    #[test]
    fn an_idle_connection_is_a_small_task() {
        let bytes = bytes(serve::<TcpStream>);
        assert!(bytes <= 1024, "{bytes}");
    }
}
