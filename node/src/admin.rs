//! The HTTP port: health for load balancers and people, metrics for Prometheus.
//!
//! `/livez` never depends on quorum; `/readyz` turns 503 as soon as the node is asked to stop.

use axum::{
    Router,
    extract::{Query, State as AxumState},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use flotilla_spec::AppName;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{balancer::standing::Standing, metrics::Exporter, node::Shared};

#[derive(Clone)]
struct Admin {
    shared: Shared,
    exporter: Exporter,
}

pub(crate) async fn serve(
    listener: TcpListener,
    shared: Shared,
    exporter: Exporter,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Admin { shared, exporter });
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await?;
    Ok(())
}

#[derive(Deserialize)]
struct ReadyQuery {
    /// Ready only if this app serves here.
    app: Option<String>,
    /// `ok`: a node that drains is still ready. For balancers that reset the sessions of a target whose check
    /// fails; all others should see a drain as early as they can.
    draining: Option<String>,
    /// Lists the apps too.
    verbose: Option<String>,
}

async fn readyz(AxumState(admin): AxumState<Admin>, Query(query): Query<ReadyQuery>) -> (StatusCode, String) {
    let Some(replica) = admin.shared.replica.borrow().clone() else {
        return not_ready("the node belongs to no cluster");
    };
    let drain_is_ok = query.draining.as_deref() == Some("ok");
    let standings = replica.standings.borrow().clone();
    if let Some(app) = query.app {
        let standing = AppName::parse(&app).ok().and_then(|app| standings.get(&app).copied());
        return match standing {
            Some(Standing::Ready) => ready(),
            Some(Standing::Drain) if drain_is_ok => ready(),
            Some(Standing::Drain) => not_ready(&format!("app `{app}` drains here")),
            Some(Standing::Down) => not_ready(&format!("app `{app}` has no available target")),
            None => not_ready(&format!("app `{app}` does not serve here")),
        };
    }
    let drain = replica.fleet().members.get(&replica.me()).and_then(|member| member.drain);
    let (status, mut text) = match drain {
        _ if drain_is_ok => ready(),
        _ if admin.shared.stopping.is_cancelled() => not_ready("the node is stopping"),
        // For balancers that take this for "send nothing new"; the ports of the apps stay open.
        Some(drain) => not_ready(&format!("the node gives its traffic up: {}", drain.phase)),
        None => ready(),
    };
    if query.verbose.is_some() {
        for (app, standing) in &*standings {
            let word = match standing {
                Standing::Ready => "ready",
                Standing::Drain => "drains",
                Standing::Down => "has no available target",
            };
            text += &format!("app {app}: {word}\n");
        }
    }
    (status, text)
}

fn ready() -> (StatusCode, String) {
    (StatusCode::OK, "ready\n".to_owned())
}

fn not_ready(why: &str) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n"))
}

async fn metrics(AxumState(admin): AxumState<Admin>) -> impl IntoResponse {
    if let Some(replica) = admin.shared.replica.borrow().clone() {
        crate::metrics::observe(&replica);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.exporter.render())
}
