//! The contract of a node: every message and service, generated from `proto/`.

/// Version 1 of the protocol. Fields are only added, tags never reused.
#[allow(unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("flotilla.v1");
}

/// What an Envoy says to a node that tells it endpoints: the part of Envoy's public API that this needs,
/// under Envoy's own package names, because they are the paths of the calls.
#[allow(unreachable_pub, clippy::all)]
pub mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                tonic::include_proto!("envoy.config.core.v3");
            }
        }
        pub mod endpoint {
            pub mod v3 {
                tonic::include_proto!("envoy.config.endpoint.v3");
            }
        }
    }
    pub mod service {
        pub mod discovery {
            pub mod v3 {
                tonic::include_proto!("envoy.service.discovery.v3");
            }
        }
        pub mod endpoint {
            pub mod v3 {
                tonic::include_proto!("envoy.service.endpoint.v3");
            }
        }
    }
}
