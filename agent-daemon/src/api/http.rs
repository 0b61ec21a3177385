//! `/metrics` and `/healthz`.

use std::sync::Arc;

use axum::{Router, http::header::CONTENT_TYPE, response::IntoResponse, routing::get};
use tokio::net::TcpListener;

use super::Metrics;

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) -> std::io::Result<()> {
    let text = move || {
        let metrics = metrics.clone();
        async move {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            ([(CONTENT_TYPE, kind)], metrics.text()).into_response()
        }
    };
    let router =
        Router::new().route("/metrics", get(text)).route("/healthz", get(|| async { "ok\n" }));
    axum::serve(listener, router).await
}
