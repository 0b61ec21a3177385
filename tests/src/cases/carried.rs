//! Generated policies and requests, carried out by a real process and judged by Cedar's own authorizer: what
//! the kernel lets go is what the authorizer permits, and what it refuses names one of its reasons.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cedar_policy::{
    Authorizer, Context as Circumstances, Decision, Entities, Entity, EntityUid, PolicyId,
    PolicySet, Request, RestrictedExpression,
};

use super::{Case, case, shared};
use crate::actor::EPERM;
use crate::events::DENIED;
use crate::policy::with_base;
use crate::world::{World, file, ground, listener, tool};

/// Policy sets, and requests under each: together those that are carried out.
const SETS: u64 = 10;
const REQUESTS: usize = 200;

/// Where everything lies that is asked for.
const PLACE: &str = "/ground/carried";
const FOLDERS: [&str; 5] = ["a", "a/deep", "ab", "b", "b/deep"];
const FILES: [&str; 7] =
    ["a/one", "a/two.pem", "a/deep/three", "a/deep/four.pem", "ab/five", "b/one", "b/deep/six.pem"];
const TOOLS: [&str; 3] = ["a/tool", "b/tool", "b/deep/tool"];
/// Patterns that are no wider than the place.
const PATTERNS: [&str; 8] =
    ["/a/*", "/a*", "/*.pem", "/*e*", "/b/*/tool", "/*/deep/*", "/a/*o*", "/*tool"];

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("two_thousand_requests_end_as_cedar_says", || {
            shared(|world| (0..SETS).try_for_each(|seed| carry_out(world, seed)))
        })
        .within(Duration::from_secs(120)),
    ]
}

/// xorshift64*: the same seed asks the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let next = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        usize::try_from(next).unwrap_or(0) % bound
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// Something that the agent tries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Asked {
    /// An action on what lies at a path: a `File`, `Dir` or `Program`.
    Place { action: &'static str, kind: &'static str, path: String },
    /// A TCP connection.
    Peer(SocketAddr),
}

impl Asked {
    fn random(random: &mut Random, peers: &[SocketAddr]) -> Self {
        let at = |name: &str| format!("{PLACE}/{name}");
        match random.below(10) {
            0..4 => {
                let action = random.one(&["read", "write"]);
                Self::Place { action, kind: "File", path: at(random.one(&FILES)) }
            }
            4 => Self::Place { action: "read", kind: "Dir", path: at(random.one(&FOLDERS)) },
            5 => Self::Place { action: "exec", kind: "Program", path: at(random.one(&TOOLS)) },
            _ => Self::Peer(random.one(peers)),
        }
    }

    /// The actor's step.
    fn step(&self) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Place { action: "read", path, .. } => &["open-read", path],
            Self::Place { action: "write", path, .. } => &["open-write", path],
            Self::Place { path, .. } => &["run", path, "nothing"],
            Self::Peer(peer) => &["connect", "tcp", &peer.to_string()],
        };
        words.iter().map(ToString::to_string).collect()
    }

    fn action(&self) -> &'static str {
        match self {
            Self::Place { action, .. } => action,
            Self::Peer(_) => "connect",
        }
    }

    /// As an event names it: a path or `address:port`.
    fn name(&self) -> String {
        match self {
            Self::Place { path, .. } => path.clone(),
            Self::Peer(peer) => peer.to_string(),
        }
    }

    /// The entity that the request is about, with all that it is in.
    fn entities(&self) -> Result<(EntityUid, Vec<Entity>)> {
        match self {
            Self::Place { kind, path, .. } => {
                let own = uid(kind, path)?;
                let mut all = Vec::new();
                let mut within: HashSet<EntityUid> = HashSet::new();
                let mut folders: Vec<&Path> = Path::new(path).ancestors().collect();
                folders.reverse();
                for folder in folders {
                    let folder = folder.display().to_string();
                    let dir = uid("Dir", &folder)?;
                    if dir != own {
                        all.push(Entity::new(dir.clone(), named(&folder), within.clone())?);
                    }
                    within.insert(dir);
                }
                within.remove(&own);
                all.push(Entity::new(own.clone(), named(path), within)?);
                Ok((own, all))
            }
            Self::Peer(peer) => {
                let own = uid("Peer", &peer.to_string())?;
                let attributes = HashMap::from([
                    ("ip".to_owned(), RestrictedExpression::new_ip(peer.ip().to_string())),
                    ("port".to_owned(), RestrictedExpression::new_long(peer.port().into())),
                    ("protocol".to_owned(), RestrictedExpression::new_string("tcp".to_owned())),
                ]);
                Ok((own.clone(), vec![Entity::new(own, attributes, HashSet::new())?]))
            }
        }
    }
}

fn uid(kind: &str, id: &str) -> Result<EntityUid> {
    EntityUid::from_str(&format!("{kind}::{id:?}")).with_context(|| format!("{kind} {id}"))
}

fn named(path: &str) -> HashMap<String, RestrictedExpression> {
    HashMap::from([("path".to_owned(), RestrictedExpression::new_string(path.to_owned()))])
}

/// One term about a path.
fn place_term(random: &mut Random) -> String {
    match random.below(6) {
        0 => format!("resource.path == \"{PLACE}/{}\"", random.one(&FILES)),
        1 => format!("resource in Dir::\"{PLACE}/{}\"", random.one(&FOLDERS)),
        2 => format!("!(resource in Dir::\"{PLACE}/{}\")", random.one(&FOLDERS)),
        _ => format!("resource.path like \"{PLACE}{}\"", random.one(&PATTERNS)),
    }
}

/// One term about a peer.
fn peer_term(random: &mut Random, peers: &[SocketAddr]) -> String {
    let peer = random.one(peers);
    let port = peer.port();
    match random.below(8) {
        0 => format!("resource.ip == ip(\"{}\")", peer.ip()),
        1 => "resource.ip.isInRange(ip(\"127.0.0.0/30\"))".to_owned(),
        2 => format!("resource.ip.{}()", random.one(&["isIpv4", "isIpv6"])),
        3 => format!("resource.port == {port}"),
        4 => format!("resource.port {} {port}", random.one(&["<", "<=", ">", ">="])),
        5 => format!("[{port}, 443].contains(resource.port)"),
        6 => "resource.protocol == \"tcp\"".to_owned(),
        _ => format!("resource.ip.isInRange(ip(\"{}/32\"))", "127.0.0.2"),
    }
}

/// Up to three terms, joined.
fn expression(random: &mut Random, term: &mut dyn FnMut(&mut Random) -> String) -> String {
    let mut text = term(random);
    for _ in 0..random.below(3) {
        let next = term(random);
        text = match random.below(3) {
            0 => format!("({text}) && {next}"),
            1 => format!("({text}) || {next}"),
            _ => format!("{next} && !({text})"),
        };
    }
    text
}

/// One policy about the place, or about peers.
fn policy(random: &mut Random, number: usize, agent: &str, peers: &[SocketAddr]) -> String {
    let effect = if random.below(100) < 65 { "permit" } else { "forbid" };
    let who = match random.below(3) {
        0 => format!("principal == Agent::\"{agent}\""),
        1 => "principal is Agent".to_owned(),
        _ => "principal".to_owned(),
    };
    let keyword = random.one(&["when", "unless"]);
    if random.below(2) == 0 {
        let condition = expression(random, &mut |random| peer_term(random, peers));
        return format!(
            "@id(\"p{number}\") {effect} ({who}, action == Action::\"connect\", resource is Peer) \
             {keyword} {{ {condition} }};\n"
        );
    }
    let action = random.one(&[
        "action in [Action::\"read\", Action::\"write\"]",
        "action == Action::\"read\"",
        "action == Action::\"exec\"",
        "action in [Action::\"read\", Action::\"exec\"]",
    ]);
    let folder = match random.below(3) {
        0 => PLACE.to_owned(),
        _ => format!("{PLACE}/{}", random.one(&FOLDERS)),
    };
    let head =
        format!("@id(\"p{number}\") {effect} ({who}, {action}, resource in Dir::\"{folder}\")");
    match random.below(3) {
        0 => format!("{head};\n"),
        _ => format!("{head} {keyword} {{ {} }};\n", expression(random, &mut place_term)),
    }
}

fn carry_out(world: &World, seed: u64) -> Result<()> {
    let mut random = Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    ground("carried")?;
    for path in FILES {
        file(&Path::new(PLACE).join(path), "text")?;
    }
    for path in TOOLS {
        tool(&Path::new(PLACE).join(path))?;
    }
    let mut peers: Vec<SocketAddr> = Vec::new();
    for address in ["127.0.0.1:0", "127.0.0.1:0", "127.0.0.2:0", "127.0.0.5:0", "[::1]:0"] {
        peers.push(listener(address)?.parse()?);
    }
    let agent = format!("carried-{seed}");
    let count = 2 + random.below(14);
    let text = with_base(
        &(0..count).map(|number| policy(&mut random, number, &agent, &peers)).collect::<String>(),
    );
    let asked: Vec<Asked> = (0..REQUESTS).map(|_| Asked::random(&mut random, &peers)).collect();
    let steps: Vec<Vec<String>> = asked.iter().map(Asked::step).collect();
    let joined: Vec<&str> = steps
        .iter()
        .enumerate()
        .flat_map(|(at, step)| {
            (at > 0).then_some("then").into_iter().chain(step.iter().map(String::as_str))
        })
        .collect();

    let events = world.events();
    let output = world.agent(&agent).policy(&text)?.act(&joined)?;
    let told = output.steps();
    ensure!(told.len() == asked.len(), "the actor stopped: {}\n{text}", output.whole());
    let cedar = Oracle::new(&text, &agent)?;
    let mut reasons: HashMap<(&str, String), Vec<String>> = HashMap::new();
    for (asked, told) in asked.iter().zip(&told) {
        let (allowed, why) = cedar.ask(asked)?;
        let errno = told["errno"].as_i64();
        ensure!(
            errno == Some(if allowed { 0 } else { EPERM }),
            "seed {seed}: {asked:?} ended with errno {errno:?}, and Cedar says {allowed} because of \
             {why:?}\n{text}"
        );
        reasons.insert((asked.action(), asked.name()), why);
    }
    let refused = told.iter().filter(|told| told["errno"] == EPERM).count();
    let mut denials = Vec::new();
    world.wait(&format!("seed {seed}: each of {refused} denials is told"), || {
        denials = events.so_far()?;
        denials.retain(|event| event.agent() == agent && event.verdict() == DENIED);
        Ok(denials.len() >= refused)
    })?;
    ensure!(denials.len() == refused, "{} of {refused} denials were told", denials.len());
    for event in denials {
        let name = match event.path() {
            "" => event.peer(),
            path => path.to_owned(),
        };
        let why = reasons
            .get(&(event.action(), name))
            .with_context(|| format!("nobody asked for this: {}", event.brief()))?;
        let is_reason = why.iter().any(|id| id == event.policy());
        ensure!(
            is_reason || (why.is_empty() && event.policy().is_empty()),
            "seed {seed}: Cedar's reasons are {why:?}: {}\n{text}",
            event.brief()
        );
    }
    Ok(())
}

/// Cedar's authorizer with one policy set, for one agent.
struct Oracle {
    policies: PolicySet,
    agent: EntityUid,
    entity: Entity,
}

impl Oracle {
    fn new(text: &str, agent: &str) -> Result<Self> {
        let parsed = PolicySet::from_str(text)?;
        // The parser numbers policies; people, and events, name them by their annotation.
        let mut policies = PolicySet::new();
        for policy in parsed.policies() {
            let id = policy.annotation("id").context("a policy without an id")?;
            policies.add(policy.new_id(PolicyId::new(id)))?;
        }
        let name = RestrictedExpression::new_string(agent.to_owned());
        let labels = RestrictedExpression::new_set([]);
        let agent = uid("Agent", agent)?;
        let attributes = HashMap::from([("name".to_owned(), name), ("labels".to_owned(), labels)]);
        let entity = Entity::new(agent.clone(), attributes, HashSet::new())?;
        Ok(Self { policies, agent, entity })
    }

    /// Whether it is permitted, and by which policies' word.
    fn ask(&self, asked: &Asked) -> Result<(bool, Vec<String>)> {
        let (resource, mut entities) = asked.entities()?;
        entities.push(self.entity.clone());
        let action = uid("Action", asked.action())?;
        let request =
            Request::new(self.agent.clone(), action, resource, Circumstances::empty(), None)?;
        let entities = Entities::from_entities(entities, None)?;
        let answer = Authorizer::new().is_authorized(&request, &self.policies, &entities);
        let errors: Vec<String> = answer.diagnostics().errors().map(ToString::to_string).collect();
        ensure!(errors.is_empty(), "Cedar cannot evaluate {asked:?}: {errors:?}");
        let why = answer.diagnostics().reason().map(ToString::to_string).collect();
        Ok((answer.decision() == Decision::Allow, why))
    }
}
