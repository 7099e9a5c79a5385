//! Servers behind the fleet: they say who they are and what they received.
//!
//! Each runs on a thread of its own until it is dropped, on a loopback port that the kernel picked.

use std::{io, net::SocketAddr};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::background::Background;

mod echo;
mod files;
mod http;
pub mod pattern;

pub use echo::Echo;
pub use files::Files;
pub use http::Http;

/// A listener, and the thread that serves what it accepts.
#[derive(Debug)]
struct Server {
    address: SocketAddr,
    #[expect(dead_code, reason = "ends the thread when dropped")]
    thread: Background<()>,
}

impl Server {
    fn start<F>(name: &str, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // A restarted origin may ask for the port it had, so the address is an argument.
        Self::start_at(name, SocketAddr::from(([127, 0, 0, 1], 0)), serve).expect("a free port")
    }

    fn start_at<F>(
        name: &str,
        address: SocketAddr,
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener =
            socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        listener.set_reuse_address(true)?;
        listener.set_nonblocking(true)?;
        listener.bind(&address.into())?;
        // Thousands of connections arrive while the machine is busy with something else.
        listener.listen(4096)?;
        let listener = std::net::TcpListener::from(listener);
        let address = listener.local_addr()?;
        let thread = Background::start(name, move |stop| async move {
            let listener = TcpListener::from_std(listener).expect("in a runtime");
            accept(&listener, serve, &stop).await;
        });
        Ok(Self { address, thread })
    }
}

async fn accept<F>(listener: &TcpListener, serve: impl Fn(TcpStream) -> F, stop: &CancellationToken)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut sessions = JoinSet::new();
    loop {
        // All three are cancel-safe by their documentation.
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    drop(stream.set_nodelay(true));
                    sessions.spawn(serve(stream));
                }
                Err(err) => eprintln!("origin: accept: {err}"),
            },
            Some(ended) = sessions.join_next() => ended.expect("an origin's session does not panic"),
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests;
