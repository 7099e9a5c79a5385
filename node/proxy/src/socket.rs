//! Owns every listening socket of the process.
//!
//! A port is a fixed set of `SO_REUSEPORT` sockets, one per worker, made once and never grown or
//! shrunk by a shift. Workers accept through duplicates of these descriptors, so a worker task
//! that dies cannot close a socket: only [`PortSockets`] going away does.
//!
//! Which port is served by what, and when one may close, is decided in `control`.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

#[cfg(target_os = "linux")]
use socket2::SockFilter;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{SocketOptions, TcpKeepalive};

pub(crate) mod owner;

/// The sockets of one port, in worker order.
#[derive(Debug)]
pub(crate) struct PortSockets {
    sockets: Vec<Socket>,
}

impl PortSockets {
    /// Binds without listening: until [`PortSockets::listen`] a client is refused, not kept waiting.
    pub(crate) fn bind(address: IpAddr, port: u16, workers: usize) -> io::Result<PortSockets> {
        let address = usable(address);
        let wanted = SocketAddr::new(address, port);
        // With SO_REUSEPORT the kernel would let us share the port with any process of the same
        // user, and each would get a part of the connections. Without it, it tells us.
        drop(open(wanted, false)?);
        Self::bind_beside(address, port, workers)
    }

    /// The same where this process has the port already, at another address: that may include this one, and each
    /// connection goes to the closest (ip(7)).
    pub(crate) fn bind_beside(address: IpAddr, port: u16, workers: usize) -> io::Result<PortSockets> {
        let wanted = SocketAddr::new(usable(address), port);
        let sockets = (0..workers.max(1)).map(|_| open(wanted, true)).collect::<io::Result<_>>()?;
        Ok(PortSockets { sockets })
    }

    /// Where the first socket is; the kernel has chosen the port when 0 was asked for.
    pub(crate) fn local_address(&self) -> io::Result<SocketAddr> {
        let address = self.sockets[0].local_addr()?.as_socket();
        address.ok_or_else(|| io::Error::other("a listening socket has no address"))
    }

    /// Also of sockets that listen already: those keep what waits in their backlog.
    pub(crate) fn listen(&self, backlog: u32) -> io::Result<()> {
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        self.sockets.iter().try_for_each(|socket| socket.listen(backlog))
    }

    /// Accepted connections inherit all of it, which saves the system calls for each.
    pub(crate) fn set(&self, options: &SocketOptions) -> io::Result<()> {
        let SocketOptions { backlog: _, nodelay, keepalive, user_timeout, receive_buffer, send_buffer } =
            options;
        for socket in &self.sockets {
            socket.set_tcp_nodelay(*nodelay)?;
            match keepalive.as_ref().and_then(TcpKeepalive::of_socket) {
                Some(keepalive) => socket.set_tcp_keepalive(&keepalive)?,
                None => socket.set_keepalive(false)?,
            }
            #[cfg(target_os = "linux")]
            socket.set_tcp_user_timeout(Some(*user_timeout))?;
            #[cfg(not(target_os = "linux"))]
            let _not_there = user_timeout;
            set_buffers(socket, *receive_buffer, *send_buffer)?;
        }
        Ok(())
    }

    /// From now on no client begins to connect; those who have begun may finish. Their SYNs are
    /// dropped, not refused: each comes again after a second (RFC 6298 §2.1) and meets whoever has
    /// the port then. Without this, a connection whose last packet arrives between the last accept and
    /// the close is reset after its client was told that it stands.
    pub(crate) fn turn_away(&self) {
        for socket in &self.sockets {
            if let Err(error) = drop_syns(socket) {
                tracing::warn!(%error, "closing a port may reset its last connections");
            }
        }
    }

    /// A duplicate of the socket of `worker` to accept on.
    pub(crate) fn accept_on(&self, worker: usize) -> io::Result<TcpListener> {
        Ok(self.sockets[worker].try_clone()?.into())
    }
}

/// What was never set is left to the kernel, which lets it grow; what was set is set back to what a fresh socket has,
/// and stays there. The kernel doubles what it is told (socket(7)).
fn set_buffers(socket: &Socket, receive: usize, send: usize) -> io::Result<()> {
    let fresh = open_any(socket)?;
    let (usual_receive, usual_send) = (fresh.recv_buffer_size()?, fresh.send_buffer_size()?);
    match receive {
        0 if socket.recv_buffer_size()? == usual_receive => {}
        0 => socket.set_recv_buffer_size(usual_receive / 2)?,
        bytes => socket.set_recv_buffer_size(bytes)?,
    }
    match send {
        0 if socket.send_buffer_size()? == usual_send => Ok(()),
        0 => socket.set_send_buffer_size(usual_send / 2),
        bytes => socket.set_send_buffer_size(bytes),
    }
}

fn open_any(like: &Socket) -> io::Result<Socket> {
    let domain = if like.local_addr()?.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
}

/// Classic BPF over the TCP header: a SYN without ACK is dropped, everything else passes.
#[cfg(target_os = "linux")]
fn drop_syns(socket: &Socket) -> io::Result<()> {
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FLAGS_AT: u32 = 13;
    const SYN: u32 = 0x02;
    const SYN_OR_ACK: u32 = 0x12;
    socket.attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_AT),
        SockFilter::new(AND, 0, 0, SYN_OR_ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

#[cfg(not(target_os = "linux"))]
fn drop_syns(_: &Socket) -> io::Result<()> {
    Ok(())
}

/// How long a closing port keeps accepting when the configuration does not say.
///
/// A half-open connection whose SYN came before the port was unwanted lives until its last
/// SYN-ACK retry: 1 + 2 + 4 + ... s over `tcp_synack_retries` retries, then one wait more than the
/// last. (63 s for the default of 5; one second is added for the clock.)
pub(crate) fn kernel_horizon() -> Duration {
    const DEFAULT_RETRIES: u32 = 5;
    let retries = fs::read_to_string("/proc/sys/net/ipv4/tcp_synack_retries")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(DEFAULT_RETRIES);
    horizon_of(retries)
}

fn horizon_of(retries: u32) -> Duration {
    // More than 10 retries would be over half an hour; the sysctl allows 255.
    let doublings = (retries + 1).min(11);
    Duration::from_secs((1 << doublings) - 1 + 1)
}

/// `::` means dual stack; without IPv6 in the kernel that leaves IPv4.
fn usable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if v6.is_unspecified() && !has_ipv6() => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V4(_) | IpAddr::V6(_) => address,
    }
}

fn has_ipv6() -> bool {
    Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).is_ok()
}

fn open(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier run in TIME_WAIT must not keep the port from us.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_horizon_is_the_sum_of_all_waits_plus_one_second() {
        for (retries, seconds) in [(0, 2), (1, 4), (5, 64), (255, 2048)] {
            assert_eq!(horizon_of(retries), Duration::from_secs(seconds), "{retries}");
        }
    }

    #[test]
    fn a_port_of_someone_else_is_refused_and_named() {
        // The other one shares its port as we do: only the probe can notice.
        let other = open("127.0.0.1:0".parse().unwrap(), true).unwrap();
        other.listen(1).unwrap();
        let port = other.local_addr().unwrap().as_socket().unwrap().port();
        let refused = PortSockets::bind("127.0.0.1".parse().unwrap(), port, 2).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        let owner = owner::of_port(port).expect("our own process is visible to us");
        assert!(owner.contains(&format!("pid {}", std::process::id())), "{owner}");
    }

    #[test]
    fn accepted_connections_have_the_options_of_their_listener_as_of_then() {
        let sockets = PortSockets::bind("127.0.0.1".parse().unwrap(), 0, 1).unwrap();
        let accepted = || {
            let _client = std::net::TcpStream::connect(sockets.local_address().unwrap()).unwrap();
            Socket::from(loop {
                match sockets.accept_on(0).unwrap().accept() {
                    Ok((stream, _)) => break stream,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            })
        };
        sockets.set(&SocketOptions::default()).unwrap();
        sockets.listen(16).unwrap();
        let usual = accepted();
        assert_eq!((usual.tcp_nodelay().unwrap(), usual.keepalive().unwrap()), (true, false));
        let second = Duration::from_secs(1);
        let options = SocketOptions {
            backlog: 7,
            nodelay: false,
            keepalive: Some(TcpKeepalive { idle: 70 * second, interval: 5 * second, count: 3 }),
            user_timeout: 9 * second,
            receive_buffer: 65_536,
            send_buffer: 32_768,
        };
        sockets.set(&options).unwrap();
        sockets.listen(options.backlog).unwrap();
        let other = accepted();
        assert_eq!((other.tcp_nodelay().unwrap(), other.keepalive().unwrap()), (false, true));
        assert_eq!(other.tcp_keepalive_time().unwrap(), 70 * second);
        assert_eq!(other.tcp_keepalive_retries().unwrap(), 3);
        #[cfg(target_os = "linux")]
        assert_eq!(other.tcp_user_timeout().unwrap(), Some(9 * second));
        // The kernel doubles it (socket(7)).
        assert_eq!((other.recv_buffer_size().unwrap(), other.send_buffer_size().unwrap()), (131_072, 65_536));
        assert!(usual.tcp_nodelay().unwrap(), "what was there before stays as it is");
        sockets.set(&SocketOptions::default()).unwrap();
        let back = accepted();
        assert_eq!((back.tcp_nodelay().unwrap(), back.keepalive().unwrap()), (true, false));
    }

    #[test]
    fn a_bound_port_refuses_until_it_listens() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let sockets = PortSockets::bind("127.0.0.1".parse().unwrap(), port, 2).unwrap();
        let refused = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        sockets.listen(16).unwrap();
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    }
}
