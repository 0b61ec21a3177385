//! `/metrics` and `/healthz`.

use std::sync::Arc;

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

/// Serves what `metrics` gives when it is asked, until the task is dropped.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<dyn Fn() -> Vec<u8> + Send + Sync>,
) -> std::io::Result<()> {
    let text = move || {
        let metrics = metrics.clone();
        async move {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            match tokio::task::spawn_blocking(move || metrics()).await {
                Ok(text) => ([(CONTENT_TYPE, kind)], text).into_response(),
                Err(error) => {
                    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
                }
            }
        }
    };
    let router =
        Router::new().route("/metrics", get(text)).route("/healthz", get(|| async { "ok\n" }));
    axum::serve(listener, router).await
}
