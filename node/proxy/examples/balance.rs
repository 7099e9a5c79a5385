//! Spreads HTTP requests over upstreams: of two picked at random, the one with fewer requests in flight.
//!
//! ```sh
//! cargo run --example balance -- 127.0.0.1:8080 10.0.0.11:3000 10.0.0.12:3000 web.internal:3000
//! ```

use std::{env, time::Duration};

use anyhow::Context;
use flotilla_proxy::{AppConfig, Proxy, ProxyConfig, config::PoolConfig};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let mut args = env::args().skip(1);
    let listen = args.next().context("usage: balance LISTEN UPSTREAM...")?.parse()?;

    let mut app = AppConfig::http("balance", listen, args);
    // `p2c` is the default; said aloud here because it is what this example shows.
    app.pools
        .entry("default".to_owned())
        .and_modify(|pool: &mut PoolConfig| pool.balance.strategy = "p2c".to_owned());

    let proxy = Proxy::start(ProxyConfig::default())?;
    proxy.shift(app).await?;
    tokio::signal::ctrl_c().await?;
    proxy.shutdown(Duration::from_secs(10)).await;
    Ok(())
}
