//! Generated policies and requests, carried out by a real process and judged by Cedar's own authorizer: what
//! the kernel lets go is what the authorizer permits, and what it refuses names one of its reasons.
//!
//! They speak of paths, labels, contents, addresses and host names. Everything lies on an ext4, so that contents
//! are known; and since a name is known from its answer on, the same connection may end in two ways.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cedar_policy::{
    Authorizer, Context as Circumstances, Decision, Entities, Entity, EntityUid, PolicyId,
    PolicySet, Request, RestrictedExpression,
};
use serde_json::{Value, json};

use super::programs::{on_disk, program};
use super::{Case, case};
use crate::actor::EPERM;
use crate::events::DENIED;
use crate::name_server::Zone;
use crate::policy::{on_peer, with_base};
use crate::world::{World, file, listener};

/// Policy sets, and requests under each: together those that are carried out.
const SETS: u64 = 10;
const REQUESTS: usize = 200;

/// Where everything lies that is asked for.
const PLACE: &str = "/ground/disk/carried";
const FOLDERS: [&str; 5] = ["a", "a/deep", "ab", "b", "b/deep"];
const FILES: [&str; 7] =
    ["a/one", "a/two.pem", "a/deep/three", "a/deep/four.pem", "ab/five", "b/one", "b/deep/six.pem"];
/// Programs, and what tells the contents of some from others'.
const TOOLS: [(&str, &str); 3] = [("a/tool", "one"), ("b/tool", "two"), ("b/deep/tool", "one")];
/// Patterns that are no wider than the place.
const PATTERNS: [&str; 8] =
    ["/a/*", "/a*", "/*.pem", "/*e*", "/b/*/tool", "/*/deep/*", "/a/*o*", "/*tool"];

const LABELS: [&str; 3] = ["red", "green", "blue"];
/// Where names are asked for, which is no peer of a connection.
const SERVER: &str = "127.77.0.55";
/// What each name leads to; other peers have none.
const NAMES: [(&str, &str); 3] =
    [("near.test", "127.0.0.2"), ("www.far.test", "127.0.0.5"), ("six.far.test", "::1")];
/// What policies may speak of beside paths and addresses, as their texts have it. Each decides some requests.
const SPOKEN_OF: [&str; 3] = ["abel", ".sha256", " host"];

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("two_thousand_requests_end_as_cedar_says", || on_disk(all))
            .alone()
            .within(Duration::from_secs(120)),
    ]
}

fn all(world: &World) -> Result<()> {
    for path in FILES {
        file(&Path::new(PLACE).join(path), "text")?;
    }
    let mut place = Place { server: serve()?, digests: HashMap::new() };
    for (path, content) in TOOLS {
        let (path, digest) = program(&format!("carried/{path}"), content)?;
        place.digests.insert(path, digest);
    }
    place.make_contents_known(world)?;
    let mut decided = [0; SPOKEN_OF.len()];
    for seed in 0..SETS {
        carry_out(world, &place, seed, &mut decided)?;
    }
    for (what, times) in SPOKEN_OF.iter().zip(decided) {
        ensure!(times >= 20, "policies that speak of `{what}` decided {times} requests");
    }
    Ok(())
}

/// A name server that knows [`NAMES`].
fn serve() -> Result<String> {
    let named = |zone: Zone, (name, address): (&str, &str)| zone.address(name, 300, address);
    NAMES.into_iter().try_fold(Zone::default(), named)?.serve(SERVER)
}

/// What is the same for all policy sets.
struct Place {
    /// The name server.
    server: String,
    /// The SHA-256 of each program, by its path.
    digests: HashMap<String, String>,
}

impl Place {
    /// Runs each program until the daemon has read it, so that from then on its content is known.
    fn make_contents_known(&self, world: &World) -> Result<()> {
        let digests: Vec<String> = self.digests.values().map(|own| format!("{own:?}")).collect();
        let policy = with_base(&format!(
            "permit (principal, action == Action::\"exec\", resource in Dir::{PLACE:?}) when {{ \
             resource has sha256 && [{}].contains(resource.sha256) }};\n",
            digests.join(", ")
        ));
        let agent = world.agent("carried-known").policy(&policy)?;
        for path in self.digests.keys() {
            agent.act(&["run-soon", path, "nothing"])?.expect("run-soon", 0)?;
        }
        Ok(())
    }

    /// One digest of a program, or of none.
    fn digest(&self, random: &mut Random) -> String {
        let (tool, _) = random.one(&TOOLS);
        match self.digests.get(&format!("{PLACE}/{tool}")) {
            Some(digest) if random.below(5) > 0 => digest.clone(),
            _ => "0".repeat(64),
        }
    }
}

/// Which labels places have, and labels: the entities beside the policies.
struct Labels(Vec<(&'static str, String, Vec<&'static str>)>);

impl Labels {
    fn random(random: &mut Random) -> Self {
        let mut given = Vec::new();
        // In a label that comes before it, so that none is in itself.
        let [first, second, third] = LABELS;
        if random.below(2) == 0 {
            given.push(("Label", third.to_owned(), vec![random.one(&[first, second])]));
        }
        let tools = TOOLS.map(|(path, _)| path);
        for (kinds, paths) in [
            (&["Dir"][..], &FOLDERS[..]),
            (&["File"], &FILES),
            // Whichever of the two it is given as, it holds for both.
            (&["File", "Program"], &tools),
        ] {
            for path in paths {
                if random.below(4) == 0 {
                    let mut labels = vec![random.one(&LABELS)];
                    labels.extend((random.below(4) == 0).then(|| random.one(&LABELS)));
                    labels.dedup();
                    given.push((random.one(kinds), format!("{PLACE}/{path}"), labels));
                }
            }
        }
        Self(given)
    }

    fn json(&self) -> String {
        let entity = |(kind, id, labels): &(&str, String, Vec<&str>)| {
            let label = |label: &&str| json!({ "type": "Label", "id": label });
            let parents: Vec<Value> = labels.iter().map(label).collect();
            json!({ "uid": { "type": kind, "id": id }, "attrs": {}, "parents": parents })
        };
        Value::Array(self.0.iter().map(entity).collect()).to_string()
    }

    /// What this is in itself; a file and a program are one thing.
    fn of(&self, kind: &str, id: &str) -> impl Iterator<Item = &'static str> {
        let one = |kind| if kind == "Program" { "File" } else { kind };
        let own = self.0.iter().filter(move |(other, at, _)| one(*other) == one(kind) && at == id);
        own.flat_map(|(.., labels)| labels.iter().copied())
    }

    /// The same with what these are in.
    fn through(&self, own: impl Iterator<Item = &'static str>) -> HashSet<&'static str> {
        own.flat_map(|label| self.of("Label", label).chain([label])).collect()
    }

    fn entities(&self) -> Result<Vec<Entity>> {
        let entity = |label: &&str| {
            let parents = self.of("Label", label).map(|other| uid("Label", other));
            Ok(Entity::new_no_attrs(uid("Label", label)?, parents.collect::<Result<_>>()?))
        };
        LABELS.iter().map(entity).collect()
    }
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
    /// A TCP connection, and the name that the address is known by at the time.
    Peer(SocketAddr, Option<&'static str>),
    /// A question to the name server, by datagram.
    Name(&'static str, SocketAddr),
}

impl Asked {
    fn random(random: &mut Random, peers: &[SocketAddr], server: SocketAddr) -> Self {
        let at = |name: &str| format!("{PLACE}/{name}");
        match random.below(20) {
            0..7 => {
                let action = random.one(&["read", "write"]);
                Self::Place { action, kind: "File", path: at(random.one(&FILES)) }
            }
            7..9 => Self::Place { action: "read", kind: "Dir", path: at(random.one(&FOLDERS)) },
            9..13 => {
                let path = at(random.one(&TOOLS).0);
                Self::Place { action: "exec", kind: "Program", path }
            }
            13 => Self::Name(random.one(&NAMES).0, server),
            _ => Self::Peer(random.one(peers), None),
        }
    }

    /// The actor's step.
    fn step(&self) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Place { action: "read", path, .. } => &["open-read", path],
            Self::Place { action: "write", path, .. } => &["open-write", path],
            Self::Place { path, .. } => &["run", path, "nothing"],
            Self::Peer(peer, _) => &["connect", "tcp", &peer.to_string()],
            Self::Name(name, server) => {
                let ask = if name.starts_with("six") { "ask6" } else { "ask" };
                &[ask, "udp", &server.to_string(), name]
            }
        };
        words.iter().map(ToString::to_string).collect()
    }

    fn action(&self) -> &'static str {
        match self {
            Self::Place { action, .. } => action,
            Self::Peer(..) | Self::Name(..) => "connect",
        }
    }

    /// As an event names it: a path or `address:port`.
    fn name(&self) -> String {
        match self {
            Self::Place { path, .. } => path.clone(),
            Self::Peer(peer, _) | Self::Name(_, peer) => peer.to_string(),
        }
    }

    /// The entity that the request is about, with all that it is in.
    fn entities(&self, place: &Place, labels: &Labels) -> Result<(EntityUid, Vec<Entity>)> {
        match self {
            Self::Place { kind, path, .. } => {
                let own = uid(kind, path)?;
                let mut all = labels.entities()?;
                let mut within: HashSet<EntityUid> = HashSet::new();
                let mut known: HashSet<&str> = HashSet::new();
                let mut put = |of: &EntityUid, kind, path: &str, within: &HashSet<EntityUid>| {
                    let own = labels.of(kind, path).map(|label| uid("Label", label));
                    let mut within = within.clone();
                    for label in own {
                        within.insert(label?);
                    }
                    known.extend(labels.through(labels.of(kind, path)));
                    let attributes = attributes(path, &known, place.digests.get(path));
                    all.push(Entity::new(of.clone(), attributes, within)?);
                    anyhow::Ok(())
                };
                let mut folders: Vec<&Path> = Path::new(path).ancestors().collect();
                folders.reverse();
                for folder in folders {
                    let folder = folder.display().to_string();
                    let dir = uid("Dir", &folder)?;
                    if dir != own {
                        put(&dir, "Dir", &folder, &within)?;
                        within.insert(dir);
                    }
                }
                put(&own, kind, path, &within)?;
                Ok((own, all))
            }
            Self::Peer(peer, host) => peer_entity(*peer, "tcp", *host),
            Self::Name(_, server) => peer_entity(*server, "udp", None),
        }
    }
}

/// What a place has: its path, the names of its labels and, if it is a program, its digest.
fn attributes(
    path: &str,
    labels: &HashSet<&str>,
    digest: Option<&String>,
) -> HashMap<String, RestrictedExpression> {
    let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let labels = RestrictedExpression::new_set(labels.iter().map(|label| text(label)));
    let mut all = HashMap::from([("path".to_owned(), text(path)), ("labels".to_owned(), labels)]);
    all.extend(digest.map(|digest| ("sha256".to_owned(), text(digest))));
    all
}

fn peer_entity(
    peer: SocketAddr,
    protocol: &str,
    host: Option<&str>,
) -> Result<(EntityUid, Vec<Entity>)> {
    let own = uid("Peer", &peer.to_string())?;
    let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let mut attributes = HashMap::from([
        ("ip".to_owned(), RestrictedExpression::new_ip(peer.ip().to_string())),
        ("port".to_owned(), RestrictedExpression::new_long(peer.port().into())),
        ("protocol".to_owned(), text(protocol)),
    ]);
    attributes.extend(host.map(|host| ("host".to_owned(), text(host))));
    Ok((own.clone(), vec![Entity::new(own, attributes, HashSet::new())?]))
}

fn uid(kind: &str, id: &str) -> Result<EntityUid> {
    EntityUid::from_str(&format!("{kind}::{id:?}")).with_context(|| format!("{kind} {id}"))
}

/// One term about a path.
fn place_term(random: &mut Random) -> String {
    let label = random.one(&LABELS);
    match random.below(9) {
        6 => format!("resource in Label::\"{label}\""),
        7 => format!("resource has labels && resource.labels.contains(\"{label}\")"),
        8 => format!("!(resource in Label::\"{label}\")"),
        0 => format!("resource.path == \"{PLACE}/{}\"", random.one(&FILES)),
        1 => format!("resource in Dir::\"{PLACE}/{}\"", random.one(&FOLDERS)),
        2 => format!("!(resource in Dir::\"{PLACE}/{}\")", random.one(&FOLDERS)),
        _ => format!("resource.path like \"{PLACE}{}\"", random.one(&PATTERNS)),
    }
}

/// One term about what is run.
fn program_term(random: &mut Random, place: &Place) -> String {
    match random.below(6) {
        0..3 => format!("resource has sha256 && resource.sha256 == \"{}\"", place.digest(random)),
        3 => format!(
            "resource has sha256 && [\"{}\", \"{}\"].contains(resource.sha256)",
            place.digest(random),
            place.digest(random)
        ),
        _ => place_term(random),
    }
}

/// One term about a peer.
fn peer_term(random: &mut Random, peers: &[SocketAddr]) -> String {
    let peer = random.one(peers);
    let port = peer.port();
    let name = random.one(&NAMES).0;
    match random.below(13) {
        8 => format!("resource has host && resource.host == \"{name}\""),
        9 => "resource has host && resource.host like \"*.far.test\"".to_owned(),
        10 => format!("resource has host && [\"{name}\", \"x.test\"].contains(resource.host)"),
        11 => "resource has host".to_owned(),
        12 => "!(resource has host)".to_owned(),
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
fn policy(
    random: &mut Random,
    number: usize,
    agent: &str,
    peers: &[SocketAddr],
    place: &Place,
) -> String {
    let effect = if random.below(100) < 65 { "permit" } else { "forbid" };
    let who = match random.below(3) {
        0 => format!("principal == Agent::\"{agent}\""),
        1 => "principal is Agent".to_owned(),
        _ => "principal".to_owned(),
    };
    let keyword = random.one(&["when", "unless"]);
    let kind = random.below(5);
    if kind < 2 {
        let condition = expression(random, &mut |random| peer_term(random, peers));
        return format!(
            "@id(\"p{number}\") {effect} ({who}, action == Action::\"connect\", resource is Peer) \
             {keyword} {{ {condition} }};\n"
        );
    }
    let within = match random.below(6) {
        0..2 => format!("Dir::\"{PLACE}\""),
        2 => format!("Label::\"{}\"", random.one(&LABELS)),
        _ => format!("Dir::\"{PLACE}/{}\"", random.one(&FOLDERS)),
    };
    if kind == 2 {
        let condition = expression(random, &mut |random| program_term(random, place));
        return format!(
            "@id(\"p{number}\") {effect} ({who}, action == Action::\"exec\", resource in {within}) \
             {keyword} {{ {condition} }};\n"
        );
    }
    let action = random.one(&[
        "action in [Action::\"read\", Action::\"write\"]",
        "action == Action::\"read\"",
        "action == Action::\"exec\"",
        "action in [Action::\"read\", Action::\"exec\"]",
    ]);
    let head = format!("@id(\"p{number}\") {effect} ({who}, {action}, resource in {within})");
    match random.below(3) {
        0 => format!("{head};\n"),
        _ => format!("{head} {keyword} {{ {} }};\n", expression(random, &mut place_term)),
    }
}

fn carry_out(
    world: &World,
    place: &Place,
    seed: u64,
    decided: &mut [usize; SPOKEN_OF.len()],
) -> Result<()> {
    let mut random = Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut peers: Vec<SocketAddr> = Vec::new();
    for address in ["127.0.0.1:0", "127.0.0.1:0", "127.0.0.2:0", "127.0.0.5:0", "[::1]:0"] {
        peers.push(listener(address)?.parse()?);
    }
    let agent = format!("carried-{seed}");
    let labels = Labels::random(&mut random);
    let entities = format!("/etc/ambit/runs/{agent}.entities.json");
    let count = 4 + random.below(16);
    let asking = on_peer("ask", "permit", "connect", "udp", &place.server)
        + "@id(\"own\") permit (principal, action == Action::\"bind\", resource is Peer) \
           when { resource.port == 0 };\n";
    let texts: Vec<String> =
        (0..count).map(|number| policy(&mut random, number, &agent, &peers, place)).collect();
    let text = with_base(&(asking + &texts.concat()));
    let server = place.server.parse()?;
    let mut asked: Vec<Asked> =
        (0..REQUESTS).map(|_| Asked::random(&mut random, &peers, server)).collect();
    let steps: Vec<Vec<String>> = asked.iter().map(Asked::step).collect();
    let joined: Vec<&str> = steps
        .iter()
        .enumerate()
        .flat_map(|(at, step)| {
            (at > 0).then_some("then").into_iter().chain(step.iter().map(String::as_str))
        })
        .collect();

    let events = world.events();
    let run = world.agent(&agent).policy(&text)?.option("--policy").option(&entities);
    std::fs::write(&entities, labels.json())?;
    let output = run.act(&joined)?;
    let told = output.steps();
    ensure!(told.len() == asked.len(), "the actor stopped: {}\n{text}", output.whole());
    let shown = format!("{text}{}", labels.json());
    let mut cedar = Oracle::new(&text, &agent, place, labels)?;
    let mut reasons: HashMap<(&str, String), Vec<Vec<String>>> = HashMap::new();
    let mut names: HashMap<IpAddr, &'static str> = HashMap::new();
    for (asked, told) in asked.iter_mut().zip(&told) {
        if let Asked::Peer(peer, host) = asked {
            *host = names.get(&peer.ip()).copied();
        }
        let (allowed, why) = cedar.ask(asked)?;
        let errno = told["errno"].as_i64();
        ensure!(
            errno == Some(if allowed { 0 } else { EPERM }),
            "seed {seed}: {asked:?} ended with errno {errno:?}, and Cedar says {allowed} because of \
             {why:?}\n{shown}"
        );
        if let (Asked::Name(name, _), true) = (&*asked, allowed) {
            let (name, address) = NAMES.iter().find(|(own, _)| own == name).context("a name")?;
            names.insert(address.parse()?, name);
        }
        for (times, what) in decided.iter_mut().zip(SPOKEN_OF) {
            let speaks = |id: &String| {
                let number = id.strip_prefix('p').and_then(|number| number.parse::<usize>().ok());
                number.is_some_and(|number| texts[number].contains(what))
            };
            *times += usize::from(why.iter().any(speaks));
        }
        reasons.entry((asked.action(), asked.name())).or_default().push(why);
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
        let is_reason = |why: &Vec<String>| match event.policy() {
            "" => why.is_empty(),
            policy => why.iter().any(|id| id == policy),
        };
        ensure!(
            why.iter().any(is_reason),
            "seed {seed}: Cedar's reasons are {why:?}: {}\n{shown}",
            event.brief()
        );
    }
    Ok(())
}

/// Cedar's authorizer with one policy set, for one agent.
struct Oracle<'a> {
    policies: PolicySet,
    agent: EntityUid,
    entity: Entity,
    place: &'a Place,
    labels: Labels,
    /// What it has said: many requests come several times.
    said: HashMap<Asked, (bool, Vec<String>)>,
}

impl<'a> Oracle<'a> {
    fn new(text: &str, agent: &str, place: &'a Place, labels: Labels) -> Result<Self> {
        let parsed = PolicySet::from_str(text)?;
        // The parser numbers policies; people, and events, name them by their annotation.
        let mut policies = PolicySet::new();
        for policy in parsed.policies() {
            let id = policy.annotation("id").context("a policy without an id")?;
            policies.add(policy.new_id(PolicyId::new(id)))?;
        }
        let name = RestrictedExpression::new_string(agent.to_owned());
        let none = RestrictedExpression::new_set([]);
        let agent = uid("Agent", agent)?;
        let attributes = HashMap::from([("name".to_owned(), name), ("labels".to_owned(), none)]);
        let entity = Entity::new(agent.clone(), attributes, HashSet::new())?;
        Ok(Self { policies, agent, entity, place, labels, said: HashMap::new() })
    }

    /// Whether it is permitted, and by which policies' word.
    fn ask(&mut self, asked: &Asked) -> Result<(bool, Vec<String>)> {
        if let Some(said) = self.said.get(asked) {
            return Ok(said.clone());
        }
        let (resource, mut entities) = asked.entities(self.place, &self.labels)?;
        entities.push(self.entity.clone());
        let action = uid("Action", asked.action())?;
        let request =
            Request::new(self.agent.clone(), action, resource, Circumstances::empty(), None)?;
        let entities = Entities::from_entities(entities, None)?;
        let answer = Authorizer::new().is_authorized(&request, &self.policies, &entities);
        let errors: Vec<String> = answer.diagnostics().errors().map(ToString::to_string).collect();
        ensure!(errors.is_empty(), "Cedar cannot evaluate {asked:?}: {errors:?}");
        let why = answer.diagnostics().reason().map(ToString::to_string).collect();
        let said = (answer.decision() == Decision::Allow, why);
        self.said.insert(asked.clone(), said.clone());
        Ok(said)
    }
}
