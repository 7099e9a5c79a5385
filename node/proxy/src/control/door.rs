//! A private way in to one generation: a listener on the loopback that leads to it whoever serves its
//! ports. What comes in there is accepted, routed and balanced as a client of the app is, and is in its metrics.
//! It is in no [`crate::Tally`] and begins no session of [`crate::AppLoad`]: what rollouts compare, what scales an app
//! and what a drain waits for is what clients do.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwapOption;

use super::State;
use crate::{
    config::Protocol,
    generation::Serving,
    port::{Slot, Tenant, Tenants},
    socket::PortSockets,
};

/// One worker takes the few who come in by a door.
pub(crate) const DOOR_WORKER: usize = 0;

pub(crate) struct Opened {
    pub(crate) slot: Arc<Slot>,
    pub(crate) sockets: Arc<PortSockets>,
    pub(crate) address: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    #[error(transparent)]
    UnknownGeneration(#[from] super::UnknownGeneration),
    #[error("the generation has no {}", wanted(*.port, *.protocol))]
    NoSuchPort { port: Option<u16>, protocol: Option<Protocol> },
    #[error("open a door: {0}")]
    Io(#[from] io::Error),
}

fn wanted(port: Option<u16>, protocol: Option<Protocol>) -> String {
    let protocol = match protocol {
        Some(Protocol::Http) => "HTTP ",
        Some(Protocol::Tcp) => "TCP ",
        None => "",
    };
    match port {
        Some(port) => format!("{protocol}port {port}"),
        None => format!("{protocol}port"),
    }
}

impl State {
    /// Behind the first port of the generation that is `port` and speaks `protocol`, where given.
    pub(crate) fn open_door(
        &mut self,
        app: &str,
        number: u64,
        port: Option<u16>,
        protocol: Option<Protocol>,
    ) -> Result<Opened, DoorError> {
        let entry = self.entry(app, number).ok_or(super::UnknownGeneration(number))?;
        let fits = |known: &&crate::config::PortConfig| {
            port.is_none_or(|port| port == known.port)
                && protocol.is_none_or(|protocol| protocol == known.protocol)
        };
        let config = entry.generation.config.ports.iter().find(fits);
        let config = config.ok_or(DoorError::NoSuchPort { port, protocol })?;
        let serving = Serving {
            generation: Arc::clone(&entry.generation),
            protocol: config.protocol,
            max_connections: 0,
            // Who comes in here speaks plainly, and comes from this node.
            edge: None,
            visitors: None,
            redirect: None,
            closing: false,
            split: None,
            is_door: true,
        };
        let label = config.port;
        let sockets = PortSockets::bind(IpAddr::V4(Ipv4Addr::LOCALHOST), 0, 1)?;
        sockets.set(&config.socket)?;
        sockets.listen(config.socket.backlog)?;
        let address = sockets.local_address()?;
        self.last_id += 1;
        let tenant = Tenant::new(&serving.generation.config.app);
        tenant.serving.store(Some(Arc::new(serving)));
        let slot = Slot {
            id: self.last_id,
            address: address.ip(),
            // The port it stands for: a label of metrics, of which a door is not to make new ones.
            port: label,
            tenants: Arc::new(ArcSwapOption::from_pointee(Tenants::alone(&Arc::new(tenant)))),
        };
        Ok(Opened { slot: Arc::new(slot), sockets: Arc::new(sockets), address })
    }
}
