//! The Cedar lines that would have permitted what was denied: one for each object, or one for a
//! folder once many objects of that folder were asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use agent_ebpf::{Action, Peer};

use super::model::{Target, address, protocol_name};
use super::rule::AgentName;

/// From this many objects of one folder on, the folder is suggested instead.
const MANY: usize = 8;

/// Something that an agent tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Who.
    pub agent: AgentName,
    /// What.
    pub action: Action,
    /// To what.
    pub target: Target,
}

/// Actions in the order of their codes.
type Actions = BTreeSet<Action>;

/// How a peer is spoken of.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum At {
    Host(String),
    Address(IpAddr),
}

/// What one agent was denied.
#[derive(Default)]
struct Wishes {
    /// By path and entity type.
    places: BTreeMap<(String, &'static str), Actions>,
    /// What has a name of its own, by entity type and name.
    names: BTreeMap<(&'static str, &'static str), Actions>,
    /// By name or address, port and protocol.
    peers: BTreeMap<(At, u16, u8), Actions>,
    /// What no policy can say, each with the reason.
    unsayable: BTreeSet<String>,
}

/// Cedar lines that would have permitted these attempts, each with an `@id`, as a file that can be
/// used as it is. Where a line permits more than was tried, a comment before it says so; where no
/// line can permit it, a comment says why. Nothing tried, nothing said: the text is then empty.
///
/// The lines can permit only what no policy forbids.
#[must_use]
pub fn suggest(denied: &[Attempt]) -> String {
    let mut agents: BTreeMap<&AgentName, Wishes> = BTreeMap::new();
    for attempt in denied {
        agents.entry(&attempt.agent).or_default().add(attempt);
    }
    let mut lines = String::new();
    for (agent, wishes) in agents {
        wishes.write(agent, &mut lines);
    }
    lines
}

impl Wishes {
    fn add(&mut self, attempt: &Attempt) {
        let action = attempt.action;
        match &attempt.target {
            Target::Socket(kind) => {
                self.names.entry(("SocketFamily", kind.name())).or_default().insert(action);
            }
            Target::Privilege(one) => {
                self.names.entry(("Privilege", one.name())).or_default().insert(action);
            }
            Target::UnixSocket(name) => match name.to_str() {
                Some(text) => {
                    let key = (text.to_owned(), "UnixSocket");
                    self.places.entry(key).or_default().insert(action);
                }
                None => {
                    self.unsayable.insert(unsayable(name));
                }
            },
            Target::File { path, is_dir } => match path.to_str() {
                Some(text) if text.starts_with('/') && !text.contains('\0') => {
                    let kind = match (action, is_dir) {
                        (Action::Exec, _) => "Program",
                        (_, true) => "Dir",
                        (_, false) => "File",
                    };
                    let key = (text.to_owned(), kind);
                    self.places.entry(key).or_default().insert(action);
                }
                _ => {
                    self.unsayable.insert(unsayable(path));
                }
            },
            Target::Peer { peer, host } => {
                // A name outlives its addresses.
                let at = host.clone().map_or_else(|| At::Address(address(peer)), At::Host);
                let key = (at, port(peer), peer.protocol);
                self.peers.entry(key).or_default().insert(action);
            }
        }
    }

    /// Folders of which [`MANY`] objects were asked for in the same way, with these actions.
    fn folders(&self) -> BTreeMap<String, Actions> {
        let mut asked: BTreeMap<(&str, Action), usize> = BTreeMap::new();
        // An abstract address is in no folder.
        for ((path, _), actions) in
            self.places.iter().filter(|((path, _), _)| path.starts_with('/'))
        {
            for action in actions {
                *asked.entry((folder(path), *action)).or_default() += 1;
            }
        }
        let mut found: BTreeMap<String, Actions> = BTreeMap::new();
        for ((folder, action), count) in asked {
            // Never the root folder: that would be everything.
            if count >= MANY && folder != "/" {
                found.entry(folder.to_owned()).or_default().insert(action);
            }
        }
        found
    }

    fn write(&self, agent: &AgentName, lines: &mut String) {
        let folders = self.folders();
        let covered = |path: &str, action: Action| {
            Path::new(path).ancestors().any(|above| {
                let actions = above.to_str().and_then(|above| folders.get(above));
                actions.is_some_and(|actions| actions.contains(&action))
            })
        };
        for (path, actions) in &folders {
            // A folder within one that already gives as much needs no line.
            let new: Actions = match Path::new(path).parent().and_then(Path::to_str) {
                Some(above) => {
                    actions.iter().copied().filter(|one| !covered(above, *one)).collect()
                }
                None => actions.clone(),
            };
            if new.is_empty() {
                continue;
            }
            let count = self.places.iter().filter(|((place, _), tried)| {
                Path::new(place).starts_with(path) && tried.iter().any(|one| new.contains(one))
            });
            let _ = writeln!(
                lines,
                "// {} places in this folder were tried; this permits everything beneath it.",
                count.count()
            );
            let resource = format!("resource in Dir::\"{}\"", quoted(path));
            permit(lines, agent, &new, &format!("all of {path}"), &resource, "");
        }
        for ((path, kind), actions) in &self.places {
            let left: Actions =
                actions.iter().copied().filter(|one| !covered(path, *one)).collect();
            if left.is_empty() {
                continue;
            }
            let what = match *kind {
                "Dir" => format!("folder {path}"),
                _ => path.clone(),
            };
            let resource = format!("resource == {kind}::\"{}\"", quoted(path));
            permit(lines, agent, &left, &what, &resource, "");
        }
        for ((kind, name), actions) in &self.names {
            let resource = format!("resource == {kind}::\"{name}\"");
            permit(lines, agent, actions, name, &resource, "");
        }
        for ((at, port, protocol), actions) in &self.peers {
            let (at, shown) = match at {
                At::Address(ip) => (format!("resource.ip == ip(\"{ip}\")"), ip.to_string()),
                At::Host(name) => {
                    (format!("resource has host && resource.host == \"{name}\""), name.clone())
                }
            };
            let terms = [
                at,
                format!("resource.port == {port}"),
                format!("resource.protocol == \"{}\"", protocol_name(*protocol)),
            ];
            if *port == 0 {
                lines.push_str("// Port 0 is where the kernel chooses one.\n");
            }
            let what = format!("{shown} port {port} {}", protocol_name(*protocol));
            let when = format!(" when {{ {} }}", terms.join(" && "));
            permit(lines, agent, actions, &what, "resource is Peer", &when);
        }
        for reason in &self.unsayable {
            let _ = writeln!(lines, "// Not permitted by any line: {reason}");
        }
    }
}

fn unsayable(path: &Path) -> String {
    let shown = path.as_os_str().as_bytes().escape_ascii();
    format!(
        "{shown} cannot be named in Cedar; `resource in Dir::\"…\"` of a folder above it would permit it"
    )
}

fn folder(path: &str) -> &str {
    match path.rsplit_once('/') {
        None | Some(("", _)) => "/",
        Some((above, _)) => above,
    }
}

fn port(peer: &Peer) -> u16 {
    u16::from_be_bytes(peer.port)
}

/// As it stands within quotes in Cedar.
fn quoted(text: &str) -> String {
    text.escape_debug().to_string()
}

fn permit(
    lines: &mut String,
    agent: &AgentName,
    actions: &Actions,
    what: &str,
    resource: &str,
    when: &str,
) {
    let names: Vec<&str> = actions.iter().map(|action| action.name()).collect();
    let literals: Vec<String> = names.iter().map(|name| format!("Action::\"{name}\"")).collect();
    let action = match literals.as_slice() {
        [one] => format!("action == {one}"),
        several => format!("action in [{}]", several.join(", ")),
    };
    let _ = writeln!(
        lines,
        "@id(\"{agent} {}: {}\")\npermit(principal == Agent::\"{agent}\", {action}, {resource}){when};",
        names.join("+"),
        quoted(what),
    );
}
