//! Compiles the protocol without a protoc binary: protox is a compiler in Rust.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/flotilla/v1/balancer.proto",
        "proto/flotilla/v1/fleet.proto",
        "proto/flotilla/v1/peer.proto",
        "proto/envoy/discovery.proto",
        "proto/envoy/endpoint.proto",
        "proto/envoy/endpoint_service.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
