//! The gRPC port: what people say to the fleet, how nodes join it, and what members say to each other.

use std::time::Duration;

use flotilla_api::v1::{cluster_server::ClusterServer, fleet_server::FleetServer, peer_server::PeerServer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};

use crate::{node::Shared, peer::MESSAGE_BYTES_MAX};

mod cluster;
pub(crate) mod convert;
pub(crate) mod error;
mod fleet;
mod forward;
mod nodes;
mod peers;

const STREAMS_MAX: u32 = 64;
/// A client that vanished without a FIN is noticed after this.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Apps come in one message; 10,000 of them do not fit into tonic's 4 MiB.
const APPLY_BYTES_MAX: usize = 64 << 20;

/// The connections of a server. Its own setting is not for those that it is given: without this an answer, which is
/// several frames, waits for the peer's delayed acknowledgement, 40 ms.
pub(crate) fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

pub(crate) async fn serve(
    listener: TcpListener,
    shared: Shared,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let fleet = FleetServer::new(fleet::Service { shared: shared.clone() })
        .max_decoding_message_size(APPLY_BYTES_MAX)
        .max_encoding_message_size(APPLY_BYTES_MAX);
    let peers = PeerServer::new(peers::Service { shared: shared.clone() })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS_MAX)
        .add_service(fleet)
        .add_service(ClusterServer::new(cluster::Service { shared }))
        .add_service(peers)
        .serve_with_incoming_shutdown(incoming(listener), stop.cancelled_owned())
        .await?;
    Ok(())
}
