//! How others ask: the control socket, metrics, health.

pub mod control;
pub mod doctor;
mod http;
mod metrics;

pub use http::serve;
pub use metrics::Metrics;
