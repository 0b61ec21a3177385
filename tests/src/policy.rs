//! The Cedar texts of the tests.

/// What any program needs to start: the system's programs and libraries, and the harmless devices.
/// Folders stand both with and without `/usr`, as systems differ in which of them are links.
pub const BASE: &str = r#"
@id("base-exec") permit (principal, action == Action::"exec", resource in Dir::"/usr");
@id("base-exec-bin") permit (principal, action == Action::"exec", resource in Dir::"/bin");
@id("base-exec-lib") permit (principal, action == Action::"exec", resource in Dir::"/lib");
@id("base-exec-lib64") permit (principal, action == Action::"exec", resource in Dir::"/lib64");
@id("base-read") permit (principal, action == Action::"read", resource in Dir::"/usr");
@id("base-read-bin") permit (principal, action == Action::"read", resource in Dir::"/bin");
@id("base-read-lib") permit (principal, action == Action::"read", resource in Dir::"/lib");
@id("base-read-lib64") permit (principal, action == Action::"read", resource in Dir::"/lib64");
@id("base-read-etc") permit (principal, action == Action::"read", resource in Dir::"/etc");
@id("base-read-proc") permit (principal, action == Action::"read", resource in Dir::"/proc");
@id("base-read-sys") permit (principal, action == Action::"read", resource in Dir::"/sys");
@id("base-read-dev") permit (principal, action == Action::"read", resource in Dir::"/dev");
@id("base-write-dev") permit (principal, action == Action::"write", resource in Dir::"/dev");
"#;

/// The base with more policies.
#[must_use]
pub fn with_base(more: &str) -> String {
    format!("{BASE}{more}\n")
}

/// A policy on a path: `how` is permit or forbid, `kind` File, Dir or Program.
#[must_use]
pub fn on_path(id: &str, how: &str, action: &str, kind: &str, path: &str) -> String {
    let relation = if kind == "Dir" { "in" } else { "==" };
    format!(
        "@id({id:?}) {how} (principal, action == Action::{action:?}, \
         resource {relation} {kind}::{path:?});\n"
    )
}

/// A policy on a peer; the address is `ip:port`, with brackets around IPv6.
#[must_use]
pub fn on_peer(id: &str, how: &str, action: &str, protocol: &str, address: &str) -> String {
    let (ip, port) = address.rsplit_once(':').unwrap_or((address, "0"));
    let ip = ip.trim_start_matches('[').trim_end_matches(']');
    format!(
        "@id({id:?}) {how} (principal, action == Action::{action:?}, resource is Peer) when {{ \
         resource.ip == ip({ip:?}) && resource.port == {port} && \
         resource.protocol == {protocol:?} }};\n"
    )
}
