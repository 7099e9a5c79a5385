//! Puts user code around every request: one tower layer that tags requests, and one that asks for a password.
//!
//! ```sh
//! cargo run --example layers -- 127.0.0.1:8080 10.0.0.11:3000
//! curl -H 'authorization: open sesame' http://127.0.0.1:8080/
//! ```

use std::{env, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use flotilla_proxy::{
    AppConfig, Extensions, Layers, Proxy, ProxyConfig,
    layers::{Content, Next},
};
use http::{HeaderValue, Request, Response, StatusCode, header::AUTHORIZATION};
use tower::{BoxError, Service, layer::layer_fn, service_fn, util::MapRequestLayer};

fn layers() -> Layers {
    let mut layers = Layers::default();
    let tag = |mut request: Request<()>| {
        request.headers_mut().insert("x-tagged-by", HeaderValue::from_static("example"));
        request
    };
    layers.register("tag", MapRequestLayer::new(tag));
    layers.register(
        "password",
        layer_fn(|inner: Next| {
            service_fn(move |request: Request<()>| {
                let mut inner = inner.clone();
                async move {
                    if request.headers().get(AUTHORIZATION).is_some_and(|word| word == "open sesame") {
                        return inner.call(request).await;
                    }
                    let mut response = Response::new(Content::Own(Bytes::from_static(b"who are you?\n")));
                    *response.status_mut() = StatusCode::UNAUTHORIZED;
                    Ok::<_, BoxError>(response)
                }
            })
        }),
    );
    layers
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let mut args = env::args().skip(1);
    let listen = args.next().context("usage: layers LISTEN UPSTREAM...")?.parse()?;

    let names = ["password", "tag"].map(str::to_owned).to_vec();
    let app = AppConfig { layers: names, ..AppConfig::http("layers", listen, args) };

    let proxy =
        Proxy::start_with(ProxyConfig::default(), Extensions { layers: layers(), ..Extensions::default() })?;
    proxy.shift(app).await?;
    tokio::signal::ctrl_c().await?;
    proxy.shutdown(Duration::from_secs(10)).await;
    Ok(())
}
