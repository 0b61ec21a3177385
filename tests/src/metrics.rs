//! The daemon's HTTP side, read with a few lines of HTTP/1.0.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Gets a document; returns its status and body.
pub fn get(address: &str, path: &str) -> Result<(u16, String)> {
    let to: SocketAddr = address.parse().with_context(|| format!("`{address}` is no address"))?;
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&to, limit)
        .with_context(|| format!("nothing answers at {address}"))?;
    stream.set_read_timeout(Some(limit))?;
    // Of 1.0, so that no answer comes in chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    match (status, answer.split_once("\r\n\r\n")) {
        (Some(status), Some((_, body))) => Ok((status, body.to_owned())),
        _ => bail!("{address} does not speak HTTP: {answer:?}"),
    }
}

/// The values of a metrics page.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// Reads them all at once.
    pub fn read(address: &str) -> Result<Self> {
        match get(address, "/metrics")? {
            (200, body) => Ok(Self(body)),
            (status, _) => bail!("/metrics answers {status}"),
        }
    }

    /// The sum of a metric over all series with these labels; none if there is no such series.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let values: Vec<f64> = self
            .0
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(series, _)| {
                let (own, found) = series.split_once('{').unwrap_or((series, ""));
                own == name && labels.iter().all(|label| found.contains(label.as_str()))
            })
            .filter_map(|(_, value)| value.parse().ok())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}
