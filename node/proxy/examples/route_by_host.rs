//! Chooses the upstreams by the host of each request: `api.*` goes to one pool, everything else to another.
//!
//! ```sh
//! cargo run --example route_by_host -- 127.0.0.1:8080 10.0.0.11:3000 10.0.0.21:3000,10.0.0.22:3000
//! curl -H 'Host: api.example.com' http://127.0.0.1:8080/
//! ```

use std::{env, time::Duration};

use anyhow::bail;
use flotilla_proxy::{
    AppConfig, Proxy, ProxyConfig,
    config::{PoolConfig, RouteConfig},
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let args: Vec<String> = env::args().skip(1).collect();
    let [listen, api, frontend] = &args[..] else {
        bail!("usage: route_by_host LISTEN API[,API...] FRONTEND[,FRONTEND...]");
    };

    // What no route claims goes to the pool the app is made with.
    let mut app = AppConfig::http("site", listen.parse()?, frontend.split(','));
    app.pools.insert("api".to_owned(), PoolConfig::new(api.split(',')));
    app.routes.push(RouteConfig::hosts("api", ["api.*"], "api"));

    let proxy = Proxy::start(ProxyConfig::default())?;
    proxy.shift(app).await?;
    tokio::signal::ctrl_c().await?;
    proxy.shutdown(Duration::from_secs(10)).await;
    Ok(())
}
