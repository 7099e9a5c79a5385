//! The HTTP port: health for load balancers and people, metrics for Prometheus.
//!
//! `/livez` never depends on quorum; `/readyz` turns 503 as soon as the node is asked to stop.

use axum::{
    Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use flotilla_proxy::Phase;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{metrics::Exporter, node::Shared};

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
}

async fn readyz(State(admin): State<Admin>, Query(query): Query<ReadyQuery>) -> (StatusCode, String) {
    let not_ready = |why: String| (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n"));
    if admin.shared.stopping.is_cancelled() {
        return not_ready("the node is stopping".to_owned());
    }
    if admin.shared.replica.borrow().is_none() {
        return not_ready("the node belongs to no cluster".to_owned());
    }
    if let Some(app) = query.app {
        let serves = admin.shared.proxy.status().iter().any(|generation| {
            *generation.app == *app
                && generation.phase == Phase::Serving
                && generation
                    .targets
                    .iter()
                    .any(|target| target.endpoints.iter().any(|endpoint| endpoint.available == Some(true)))
        });
        if !serves {
            return not_ready(format!("app `{app}` does not serve here, or has no available target"));
        }
    }
    (StatusCode::OK, "ready\n".to_owned())
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    if let Some(replica) = admin.shared.replica.borrow().clone() {
        crate::metrics::observe(&replica);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.exporter.render())
}
