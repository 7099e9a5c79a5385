//! Accept loops of one worker: accept first, choose the generation second.
//!
//! A loop owns nothing but a duplicate of its socket. If its task dies it alone is started again;
//! the port, its backlog and every session go on.

use std::{
    collections::HashMap,
    future::poll_fn,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::{Id, JoinSet, spawn_local},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Protocol,
    edge,
    http::{self, headers::Seen},
    metrics,
    port::{At, LocalPort, Slot},
    socket::PortSockets,
    tcp,
    worker::Worker,
};

/// Connections accepted in one go before others get their turn.
const BATCH: usize = 64;
/// Pause after an accept that failed for want of descriptors or memory: trying at once would spin.
const PAUSE: Duration = Duration::from_millis(50);

/// The accept loops of one worker, by slot.
pub(crate) struct Listeners {
    worker: Rc<Worker>,
    ports: HashMap<u64, Listening>,
    tasks: JoinSet<()>,
    by_task: HashMap<Id, u64>,
}

struct Listening {
    port: Rc<LocalPort>,
    /// Only to make the next duplicate from; the control side decides how long the sockets live.
    sockets: Arc<PortSockets>,
    close: CancellationToken,
    done: Option<oneshot::Sender<()>>,
}

impl Listeners {
    pub(crate) fn new(worker: Rc<Worker>) -> Listeners {
        Listeners { worker, ports: HashMap::new(), tasks: JoinSet::new(), by_task: HashMap::new() }
    }

    pub(crate) fn listen(&mut self, slot: Arc<Slot>, sockets: Arc<PortSockets>) {
        let id = slot.id;
        let port = self.worker.port(slot);
        let close = CancellationToken::new();
        self.ports.insert(id, Listening { port, sockets, close, done: None });
        self.spawn(id);
    }

    /// `done` is answered once this worker holds nothing of the socket any more.
    pub(crate) fn close(&mut self, slot: u64, done: oneshot::Sender<()>) {
        if let Some(listening) = self.ports.get_mut(&slot) {
            listening.done = Some(done);
            listening.close.cancel();
        }
    }

    pub(crate) fn accepting(&self) -> Vec<u64> {
        self.ports.keys().copied().collect()
    }

    pub(crate) fn fail(&mut self, slot: u64) {
        if let Some(listening) = self.ports.get_mut(&slot) {
            listening.port.fails.set(true);
            std::mem::take(&mut listening.close).cancel();
        }
    }

    /// Waits for an accept task to end and starts it again unless it was asked to. Cancel-safe.
    pub(crate) async fn ended(&mut self) {
        let (id, died) = match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => (id, false),
            Some(Err(error)) => (error.id(), true),
            // No port yet: nothing will end.
            None => return std::future::pending().await,
        };
        let Some(slot) = self.by_task.remove(&id) else { return };
        let Some(listening) = self.ports.get(&slot) else { return };
        if listening.close.is_cancelled() {
            let listening = self.ports.remove(&slot).expect("it was there a line ago");
            drop(listening.sockets);
            if let Some(done) = listening.done {
                // Nobody waits any more when the whole proxy goes down.
                let _unheard = done.send(());
            }
            return;
        }
        if died {
            self.report(&listening.port.slot);
        }
        self.spawn(slot);
    }

    fn report(&self, slot: &Slot) {
        self.worker.shared.listener_restarts.fetch_add(1, Relaxed);
        tracing::error!(address = %slot.address, port = slot.port, "listener died, starting it again");
        if let Some(tenants) = slot.tenants.load().as_ref() {
            metrics::listener_restarted(&tenants.first.app);
        }
    }

    fn spawn(&mut self, slot: u64) {
        let Some(listening) = self.ports.get(&slot) else { return };
        let socket = listening.sockets.accept_on(self.worker.index).and_then(TcpListener::from_std);
        let (worker, port) = (Rc::clone(&self.worker), Rc::clone(&listening.port));
        let close = listening.close.clone();
        let task = self.tasks.spawn_local(async move {
            match socket {
                Ok(socket) => accept(worker, port, socket, close).await,
                Err(error) => {
                    // Out of descriptors. Ending is answered with a restart, so this tries again.
                    tracing::error!(port = port.slot.port, %error, "duplicate the listening socket");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
        self.by_task.insert(task.id(), slot);
    }
}

async fn accept(worker: Rc<Worker>, port: Rc<LocalPort>, listener: TcpListener, close: CancellationToken) {
    loop {
        // Both are cancel-safe: a connection is handed on inside the poll that accepted it.
        tokio::select! {
            biased;
            () = close.cancelled() => {
                assert!(!port.fails.take(), "asked to fail");
                return finish(&worker, &port, listener);
            }
            error = accept_some(&worker, &port, &listener) => {
                if is_about_one_connection(&error) {
                    continue;
                }
                tracing::warn!(port = port.slot.port, %error, "accept");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Accepts for ever, in batches. Returns when an accept fails.
async fn accept_some(worker: &Rc<Worker>, port: &Rc<LocalPort>, listener: &TcpListener) -> io::Error {
    poll_fn(|cx| {
        for _ in 0..BATCH {
            match listener.poll_accept(cx) {
                Poll::Ready(Ok((stream, peer))) => start(worker, port, stream, peer),
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// The last act of a port: what is in the backlog was promised a connection.
fn finish(worker: &Rc<Worker>, port: &Rc<LocalPort>, listener: TcpListener) {
    // Asking the kernel itself: the runtime may not have heard of the last arrivals yet.
    let Ok(listener) = listener.into_std() else { return };
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                match stream {
                    Ok(stream) => start(worker, port, stream, peer),
                    Err(error) => tracing::warn!(port = port.slot.port, %error, "register a connection"),
                }
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(_) => return,
        }
    }
}

/// Errors of a connection that ended before it was accepted (accept(2)); the next one is fine.
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied)
}

fn start(worker: &Rc<Worker>, port: &Rc<LocalPort>, stream: TcpStream, peer: SocketAddr) {
    let alone = port.alone();
    let is_shared = alone.is_none();
    let Some(tenant) = alone.or_else(|| port.first()) else {
        // A port listens only once something serves it and closes before that is taken away.
        tracing::error!(port = port.slot.port, "a listening port serves nothing");
        return;
    };
    let serving = tenant.choose(worker, peer.ip());
    if is_shared || serving.serving.edge.is_some() {
        let (worker, port) = (Rc::clone(worker), Rc::clone(port));
        spawn_local(edge::serve(worker, port, tenant, serving, stream, peer));
        return;
    }
    let Some(admitted) = edge::admit(worker, &tenant, &serving, &stream, peer) else { return };
    match serving.serving.protocol {
        Protocol::Tcp => {
            spawn_local(tcp::serve(Rc::clone(worker), serving, stream, admitted));
        }
        Protocol::Http => {
            let seen = Seen::new(peer, port.slot.port, false);
            let at = At { port: Rc::clone(port), home: tenant };
            spawn_local(http::serve(Rc::clone(worker), at, serving, stream, seen, admitted));
        }
    }
}
