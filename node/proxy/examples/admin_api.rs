//! Adds and removes upstreams over an HTTP API while serving. Every change is a new generation of the app; no
//! connection breaks, and requests of open connections go to the new set from their next one on.
//!
//! ```sh
//! cargo run --example admin_api -- 127.0.0.1:8080 127.0.0.1:9000 10.0.0.11:3000
//! curl http://127.0.0.1:9000/upstreams
//! curl -X POST http://127.0.0.1:9000/upstreams/10.0.0.12:3000
//! curl -X DELETE http://127.0.0.1:9000/upstreams/10.0.0.11:3000
//! ```

use std::{collections::BTreeSet, env, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use flotilla_proxy::{AppConfig, Proxy, ProxyConfig};
use tokio::{net::TcpListener, sync::Mutex};

const APP: &str = "web";

struct Admin {
    proxy: Proxy,
    listen: SocketAddr,
    /// One change at a time; generations come in order.
    serving: Mutex<Serving>,
}

#[derive(Clone)]
struct Serving {
    generation: u64,
    upstreams: BTreeSet<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let mut args = env::args().skip(1);
    let usage = "usage: admin_api LISTEN ADMIN UPSTREAM...";
    let listen = args.next().context(usage)?.parse()?;
    let admin_address: SocketAddr = args.next().context(usage)?.parse()?;

    let proxy = Proxy::start(ProxyConfig::default())?;
    let first = Serving { generation: 1, upstreams: args.collect() };
    proxy.shift(app(listen, &first)).await?;

    let admin = Arc::new(Admin { proxy: proxy.clone(), listen, serving: Mutex::new(first) });
    let api = Router::new()
        .route("/upstreams", get(list))
        .route("/upstreams/{address}", post(add).delete(remove))
        .with_state(admin);
    axum::serve(TcpListener::bind(admin_address).await?, api)
        .with_graceful_shutdown(async { tokio::signal::ctrl_c().await.unwrap_or_default() })
        .await?;
    proxy.shutdown(Duration::from_secs(10)).await;
    Ok(())
}

fn app(listen: SocketAddr, serving: &Serving) -> AppConfig {
    AppConfig { generation: serving.generation, ..AppConfig::http(APP, listen, serving.upstreams.clone()) }
}

async fn list(State(admin): State<Arc<Admin>>) -> Json<BTreeSet<String>> {
    Json(admin.serving.lock().await.upstreams.clone())
}

async fn add(admin: State<Arc<Admin>>, Path(address): Path<String>) -> (StatusCode, String) {
    admin.change(|upstreams| upstreams.insert(address), StatusCode::CREATED, StatusCode::OK).await
}

async fn remove(admin: State<Arc<Admin>>, Path(address): Path<String>) -> (StatusCode, String) {
    admin.change(|upstreams| upstreams.remove(&address), StatusCode::NO_CONTENT, StatusCode::NOT_FOUND).await
}

impl Admin {
    /// Answers `changed` once the new set serves, and `same` when `edit` had nothing to change.
    async fn change(
        &self,
        edit: impl FnOnce(&mut BTreeSet<String>) -> bool,
        changed: StatusCode,
        same: StatusCode,
    ) -> (StatusCode, String) {
        let mut serving = self.serving.lock().await;
        let mut next = serving.clone();
        if !edit(&mut next.upstreams) {
            return (same, String::new());
        }
        next.generation += 1;
        match self.proxy.shift(app(self.listen, &next)).await {
            Ok(()) => {
                *serving = next;
                (changed, String::new())
            }
            Err(err) => (StatusCode::UNPROCESSABLE_ENTITY, err.to_string()),
        }
    }
}
