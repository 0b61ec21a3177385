//! Why an action is allowed or denied: the verdict as the kernel half gives it, the policies that
//! gave it by Cedar's own authorizer, and, when no policy permits it, those that come nearest.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use agent_ebpf::{
    Action, Config, Decision, Facet, PATH_MAX, PathHash, Peer, PlaceKey, PlaceKind, Privilege,
    RULE_PROTECTED, Reason, SocketKind, decide_numbered, decide_path, decide_peer, decide_socket,
    protocol,
};
use cedar_policy::{Authorizer, Entities, PolicySet};
use serde::Serialize;

use super::atoms::{Addresses, Atoms};
use super::content::Digest;
use super::formula::Test;
use super::labels::Held;
use super::model::{self, ModelError, Target};
use super::peers::Net;
use super::rule::{Agent, AgentName, Effect, Protected, RuleInfo};
use super::{Collision, HashedTables, KnownBy, Lowered, Policies, PolicyError, WithContent, hosts};

/// Literals of one kind that are tried in search of what comes near.
const TRIED: usize = 32;
/// Policies that come near, of which there may be many.
const SHOWN: usize = 3;

/// One agent's tables, asked here as the kernel half asks them.
#[derive(Debug)]
pub struct Judge {
    subject: Agent,
    lowered: Arc<Lowered>,
    tables: HashedTables,
    secrets: Config,
    /// What the program contains that is asked about, if that is known.
    content: Option<Digest>,
}

/// Why an agent has no tables to be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JudgeError {
    /// The policies that are for it need more room than there is.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Two paths share a key.
    #[error(transparent)]
    Collision(#[from] Collision),
}

impl Judge {
    /// Lowers the policies for an agent.
    ///
    /// # Errors
    /// The policies need more room for this agent than there is; or [`Collision`], under three pairs of
    /// secrets one after the other.
    pub fn new(
        policies: &Policies,
        subject: Agent,
        protected: &[Protected],
    ) -> Result<Self, JudgeError> {
        let lowered = policies.lower(&subject, protected)?;
        let mut result = Err(Collision);
        // Nobody attacks these tables, so the secrets need not be secret.
        for hash_seed in [0x1234_5678_9abc_def1, 0x0fed_cba9_8765_4321, 0x5555_aaaa_3333_cccc] {
            let secrets =
                Config { hash_seed, hash_factor: 0x9e37_79b9_7f4a_7c15, ..Config::default() };
            result = HashedTables::new(&lowered, &secrets).map(|tables| (tables, secrets));
            if result.is_ok() {
                break;
            }
        }
        let (tables, secrets) = result?;
        Ok(Self { subject, lowered, tables, secrets, content: None })
    }

    /// Whether policies ask for the content of programs.
    #[must_use]
    pub fn asks_contents(&self) -> bool {
        self.lowered.asks_contents()
    }

    /// From now on a program is asked about that contains this.
    pub fn set_content(&mut self, content: Option<Digest>) {
        self.content = content;
    }

    /// Whether a policy names this content.
    fn names(&self, digest: Digest) -> bool {
        self.lowered.places.contains_key(&(PlaceKind::Content, digest.0.to_vec()))
    }

    /// The verdict on an action; what it cannot be about is not judged and not permitted.
    #[must_use]
    pub fn decide(&self, action: Action, target: &Target) -> Decision {
        let (secrets, tables) = (&self.secrets, &self.tables);
        if !fits(action, target) {
            return Decision::because(Reason::NoPermit);
        }
        match target {
            Target::File { path, .. } | Target::UnixSocket(path)
                if path.as_os_str().len() >= PATH_MAX =>
            {
                Decision::because(Reason::PathUnresolved)
            }
            Target::File { path, is_dir } => match Facet::of(action, *is_dir) {
                Some(facet) => {
                    let key = |one: Digest| PathHash::of(secrets, PlaceKind::Content, &one.0);
                    let tables = &WithContent { tables, content: self.content.map(key) };
                    decide_path(secrets, facet, path.as_os_str().as_bytes(), tables)
                }
                None => Decision::because(Reason::NoPermit),
            },
            Target::UnixSocket(name) => match Facet::of_socket(action) {
                Some(facet) => decide_socket(secrets, facet, name.as_os_str().as_bytes(), tables),
                None => Decision::because(Reason::NoPermit),
            },
            Target::Peer { peer, host } => {
                let known = KnownBy::new(&self.lowered.hosts, peer, host);
                decide_peer(action, peer, tables, &known)
            }
            Target::Socket(kind) => decide_numbered(&PlaceKey::socket(*kind), tables),
            Target::Privilege(one) => decide_numbered(&PlaceKey::privilege(*one), tables),
        }
    }

    /// The id of the policy that decided, or why none did, in brackets.
    #[must_use]
    pub fn decider(&self, decision: Decision) -> String {
        match self.lowered.rule_name(decision.rule) {
            Some(id) => id.to_owned(),
            None => format!("({})", decision.reason.name()),
        }
    }

    /// Where a policy stands in the order by which one is reported.
    fn number(&self, id: &str) -> Option<usize> {
        self.lowered.rules.iter().position(|rule| rule.id == id)
    }
}

/// Whether an action can be about a target.
fn fits(action: Action, target: &Target) -> bool {
    match target {
        Target::File { is_dir, .. } => Facet::of(action, *is_dir).is_some(),
        Target::UnixSocket(_) => Facet::of_socket(action).is_some(),
        Target::Peer { host, .. } => match action {
            Action::Connect => true,
            Action::Bind | Action::Listen => host.is_none(),
            Action::Exec | Action::Read | Action::Write | Action::Socket | Action::Privilege => {
                false
            }
        },
        Target::Socket(_) => action == Action::Socket,
        Target::Privilege(_) => action == Action::Privilege,
    }
}

/// What an action is done to, as people write it: an absolute path, one that ends with `/` being a
/// folder; or an address and a port: `192.0.2.7:443`, `[2001:db8::1]:53/udp`; tcp is meant where no
/// protocol is named, and an address that is known by a name is written with it:
/// `api.example.com=192.0.2.7:443`; or a unix socket by its path or `@` and its abstract address; or the name of a
/// kind of socket or of a privilege.
///
/// # Errors
/// What is wrong with it, and what to write.
pub fn parse_target(action: Action, text: &str) -> Result<Target, String> {
    match action {
        Action::Exec | Action::Read | Action::Write => {
            if !text.starts_with('/') {
                return Err(format!("`{text}` is no absolute path: begin with `/`"));
            }
            if text.contains('\0') || text.split('/').any(|part| part == "." || part == "..") {
                return Err(format!("`{text}`: write the path without `.`, `..` and NUL in it"));
            }
            let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
            let is_dir = text.ends_with('/');
            Ok(Target::File { path: format!("/{}", parts.join("/")).into(), is_dir })
        }
        Action::Connect | Action::Bind if text.starts_with(['/', '@']) => {
            Ok(Target::UnixSocket(text.into()))
        }
        Action::Connect | Action::Bind | Action::Listen => peer(text, action == Action::Connect),
        Action::Socket => named(text, SocketKind::ALL, SocketKind::name).map(Target::Socket),
        Action::Privilege => named(text, Privilege::ALL, Privilege::name).map(Target::Privilege),
    }
}

fn named<T: Copy>(text: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T, String> {
    all.iter().copied().find(|one| name(*one) == text).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|one| name(*one)).collect();
        format!("there is no `{text}`; there are {}", names.join(", "))
    })
}

fn peer(text: &str, destination: bool) -> Result<Target, String> {
    let (place, protocol) = match text.rsplit_once('/') {
        Some((place, "tcp")) => (place, protocol::TCP),
        Some((place, "udp")) => (place, protocol::UDP),
        Some((place, number)) => match number.parse() {
            Ok(number) => (place, number),
            Err(_) => {
                return Err(format!("`{number}` is no protocol: write tcp, udp or its number"));
            }
        },
        None => (text, protocol::TCP),
    };
    let (host, place) = match place.split_once('=') {
        Some((host, place)) => (Some(host), place),
        None => (None, place),
    };
    if let Some(host) = host {
        hosts::lawful(host).map_err(|why| format!("no host is called `{host}`: {why}"))?;
        if !destination {
            return Err(format!("`{text}`: only what is connected to is known by a name"));
        }
    }
    let parsed: std::net::SocketAddr = place.parse().map_err(|_| {
        format!(
            "`{place}` is no address and port: write as in `192.0.2.7:443` or `[2001:db8::1]:443`; with the \
             name that the address is known by, as in `api.example.com=192.0.2.7:443`"
        )
    })?;
    let peer = with_address(protocol, parsed.ip(), parsed.port(), destination);
    Ok(Target::Peer { peer, host: host.map(str::to_owned) })
}

fn with_address(protocol: u8, address: IpAddr, port: u16, destination: bool) -> Peer {
    let port = port.to_be_bytes();
    match address {
        IpAddr::V4(v4) => Peer::v4(protocol, v4.octets(), port, destination),
        IpAddr::V6(v6) => {
            let [a, b, c, d] = {
                let bits = u128::from(v6);
                [bits >> 96, bits >> 64, bits >> 32, bits].map(|word| (word as u32).to_be())
            };
            Peer::v6(protocol, [a, b, c, d], port, destination)
        }
    }
}

/// A target as [`parse_target`] reads it.
#[must_use]
pub fn describe(target: &Target) -> String {
    match target {
        Target::File { path, is_dir } => {
            let slash = if *is_dir && path.as_os_str() != "/" { "/" } else { "" };
            format!("{}{slash}", path.display())
        }
        Target::UnixSocket(name) => name.display().to_string(),
        Target::Socket(kind) => kind.name().to_owned(),
        Target::Privilege(one) => one.name().to_owned(),
        Target::Peer { peer, host } => {
            let port = u16::from_be_bytes(peer.port);
            let socket = std::net::SocketAddr::new(model::address(peer), port);
            let name = host.as_ref().map(|host| format!("{host}=")).unwrap_or_default();
            format!("{name}{socket}/{}", model::protocol_name(peer.protocol))
        }
    }
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// Cedar has no such question.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Cedar refused the policies.
    #[error("Cedar refused the policies, which it took before: {0}")]
    Policies(String),
    /// Cedar refused the entities.
    #[error("Cedar refused the entities: {0}")]
    Entities(String),
    /// The tables and Cedar do not say the same.
    #[error(
        "internal error: the tables say {tables}, and Cedar's authorizer says {cedar}; this is a \
         fault in Ambit: please report it, with the policy and the question"
    )]
    Disagreement {
        /// What the kernel half says.
        tables: String,
        /// What Cedar says.
        cedar: String,
    },
}

/// A verdict and its reasons.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// What was asked for.
    pub action: &'static str,
    /// What it was judged on.
    pub target: String,
    /// Whether it goes ahead.
    pub allowed: bool,
    /// Why, by the name that events use.
    pub reason: &'static str,
    /// The id that events report.
    pub reported: Option<String>,
    /// The SHA-256 of the program's content, where policies ask for it and it is known.
    pub sha256: Option<String>,
    /// Whether a policy names that content.
    pub content_is_named: bool,
    /// Every policy that gave this verdict; the first is the one that is reported.
    pub decided: Vec<RuleInfo>,
    /// Permits that match and are of no use, because something forbids it.
    pub overruled: Vec<RuleInfo>,
    /// The target's labels of which these policies speak.
    pub labels: Vec<Held>,
    /// When nothing permits it: what would, and how that differs.
    pub nearest: Vec<Near>,
}

/// A permit that comes near.
#[derive(Clone, Debug, Serialize)]
pub struct Near {
    /// Which.
    pub policy: RuleInfo,
    /// What it permits instead.
    pub permits: String,
}

/// Explains the verdict on one action.
///
/// # Errors
/// The path cannot be named in Cedar, or the tables and Cedar disagree.
pub fn explain(
    policies: &Policies,
    judge: &Judge,
    action: Action,
    target: &Target,
) -> Result<Explanation, ExplainError> {
    let decision = judge.decide(action, target);
    let cedar = Cedar { policies, judge, set: policies.cedar().map_err(ExplainError::Policies)? };
    let reported = judge.lowered.rule_name(decision.rule).map(str::to_owned);
    let built_in = decision.rule == RULE_PROTECTED;
    // Cedar knows nothing of the built-in forbids, nor of what cannot be resolved.
    let decided = if built_in || decision.reason.is_unresolved() {
        Vec::new()
    } else {
        let (allowed, decided) = cedar.ask(&cedar.set, &judge.subject, action, target)?;
        let first = decided.first().map(|rule| rule.id.clone());
        // Of an unknown content Cedar takes what is asked for not to be so; the verdict is the same for all.
        let is_known = action != Action::Exec || judge.content.is_some() || !judge.asks_contents();
        if decision.allows() != allowed || is_known && reported != first {
            let told = |allowed: bool, by: &Option<String>| {
                let verdict = if allowed { "allowed" } else { "denied" };
                format!("{verdict} by {}", by.as_deref().unwrap_or("no policy"))
            };
            return Err(ExplainError::Disagreement {
                tables: told(decision.allows(), &reported),
                cedar: told(allowed, &first),
            });
        }
        decided
    };
    let content = judge.content.filter(|_| action == Action::Exec && judge.asks_contents());
    let permits = || cedar.permits();
    let overruled = if decision.reason == Reason::Forbidden {
        cedar.ask(&permits(), &judge.subject, action, target)?.1
    } else {
        Vec::new()
    };
    let nearest = if decision.reason == Reason::NoPermit {
        cedar.nearest(&permits(), action, target)?
    } else {
        Vec::new()
    };
    let labels = labels(policies, action, target, decided.iter().chain(&overruled));
    Ok(Explanation {
        action: action.name(),
        target: describe(target),
        allowed: decision.allows(),
        reason: decision.reason.name(),
        reported,
        sha256: content.map(|digest| digest.to_string()),
        content_is_named: content.is_some_and(|digest| judge.names(digest)),
        decided,
        overruled,
        labels,
        nearest,
    })
}

/// The labels of a target of which these policies speak.
fn labels<'a>(
    policies: &Policies,
    action: Action,
    target: &Target,
    told: impl Iterator<Item = &'a RuleInfo>,
) -> Vec<Held> {
    let (name, is_dir) = match target {
        Target::File { path, is_dir } => (path.to_str(), *is_dir && action != Action::Exec),
        Target::UnixSocket(name) => (name.to_str(), false),
        Target::Peer { .. } | Target::Socket(_) | Target::Privilege(_) => (None, false),
    };
    let Some(name) = name else {
        return Vec::new();
    };
    let mut found = policies.labels.of(name, is_dir);
    if found.is_empty() {
        return found;
    }
    let mut spoken = BTreeSet::new();
    let told: BTreeSet<&str> = told.map(|rule| rule.id.as_str()).collect();
    for rule in policies.rules.iter().filter(|rule| told.contains(rule.info.id.as_str())) {
        rule.each_test(&mut |test| {
            if let Test::Labelled(label) = test {
                spoken.insert(label.label.clone());
            }
        });
    }
    found.retain(|held| spoken.contains(&held.label));
    found
}

impl Explanation {
    /// The explanation for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let shown = |rule: &RuleInfo| {
            let effect = match rule.effect {
                Effect::Permit => "permit",
                Effect::Forbid => "forbid",
            };
            let reason = rule.notes().reason();
            let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("{effect} {} ({}){reason}", rule.id, rule.place)
        };
        let verdict = if self.allowed { "allowed" } else { "DENIED" };
        let by = match &self.reported {
            Some(id) => format!(" by {id}"),
            None => format!(" ({})", self.reason),
        };
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "{verdict}  {} {}{by}", self.action, self.target);
        if let Some(digest) = &self.sha256 {
            let named = if self.content_is_named { "a policy names" } else { "no policy names" };
            let _ = writeln!(text, "  its SHA-256 is {digest}, which {named}");
        }
        for (index, rule) in self.decided.iter().enumerate() {
            let note = match (index, self.decided.len()) {
                (0, 1) => "",
                (0, _) => "; it stands first, so events name it",
                _ => "; it matches as well",
            };
            let _ = writeln!(text, "  {}{note}", shown(rule));
        }
        if self.decided.is_empty() && self.reported.is_some() {
            let _ = writeln!(text, "  built in: it is Ambit's own, and no policy can open it");
        }
        for rule in &self.overruled {
            let _ = writeln!(text, "  {}: of no use, a forbid beats every permit", shown(rule));
        }
        for held in &self.labels {
            let through: Vec<&str> = held.through.iter().map(String::as_str).collect();
            let (by, place) = (&held.by, &held.place);
            let _ = writeln!(
                text,
                "  it is in the label {}, given to {by} ({place})",
                through.join(" in ")
            );
        }
        if self.reason == Reason::NoPermit.name() {
            let _ = match self.nearest.as_slice() {
                [] => writeln!(text, "  no permit matches, and none comes near"),
                near => {
                    let _ = writeln!(text, "  no permit matches; the nearest:");
                    near.iter().try_for_each(|near| {
                        let (id, place) = (&near.policy.id, &near.policy.place);
                        writeln!(text, "    {id} ({place}) permits {}", near.permits)
                    })
                }
            };
        }
        text
    }
}

/// Questions to Cedar's authorizer.
struct Cedar<'a> {
    policies: &'a Policies,
    judge: &'a Judge,
    set: PolicySet,
}

impl Cedar<'_> {
    /// The decision, and the policies that are its reasons, in the order by which one is reported.
    fn ask(
        &self,
        set: &PolicySet,
        subject: &Agent,
        action: Action,
        target: &Target,
    ) -> Result<(bool, Vec<RuleInfo>), ExplainError> {
        let mut entities = HashMap::new();
        let labels = &self.policies.labels;
        let resource = model::resource_with(action, target, labels, self.judge.content)?;
        for entity in
            model::agent(subject)?.into_iter().chain(resource).chain(model::labels(labels)?)
        {
            entities.insert(entity.uid(), entity);
        }
        let entities = Entities::from_entities(entities.into_values(), None)
            .map_err(|error| ExplainError::Entities(error.to_string()))?;
        let request = model::request(&subject.name, action, target)?;
        let answer = Authorizer::new().is_authorized(&request, set, &entities);
        let ids: BTreeSet<&str> =
            answer.diagnostics().reason().map(|id| -> &str { id.as_ref() }).collect();
        let mut reasons: Vec<RuleInfo> = self
            .policies
            .rules
            .iter()
            .filter(|rule| ids.contains(rule.info.id.as_str()))
            .map(|rule| rule.info.as_ref().clone())
            .collect();
        reasons.sort_by_key(|rule| self.judge.number(&rule.id));
        Ok((answer.decision() == cedar_policy::Decision::Allow, reasons))
    }

    fn permits(&self) -> PolicySet {
        let mut permits = PolicySet::new();
        for policy in self.set.policies() {
            if policy.effect() == cedar_policy::Effect::Permit {
                // Their ids differ, as they did in the set that they come from.
                let _ = permits.add(policy.clone());
            }
        }
        permits
    }

    /// The permits that match when one thing about the request is another: what is asked for first,
    /// then the target, then who asks.
    fn nearest(
        &self,
        permits: &PolicySet,
        action: Action,
        target: &Target,
    ) -> Result<Vec<Near>, ExplainError> {
        let atoms = Atoms::of(permits, &self.policies.labels);
        let subject = &self.judge.subject;
        let mut near: Vec<Near> = Vec::new();
        let mut note = |(_, rules): (bool, Vec<RuleInfo>),
                        permits: &dyn Fn(&RuleInfo) -> String| {
            for policy in rules {
                if near.iter().all(|known| known.policy.id != policy.id) && near.len() < SHOWN {
                    near.push(Near { permits: permits(&policy), policy });
                }
            }
        };
        for other in Action::ALL.iter().filter(|other| **other != action) {
            if fits(*other, target) {
                let found = self.ask(permits, subject, *other, target)?;
                let name = other.name();
                note(found, &|_| format!("{name} of it, not {}", action.name()));
            }
        }
        for (other, how) in variations(&atoms, target) {
            let found = self.ask(permits, subject, action, &other)?;
            note(found, &|policy| match &how {
                Some(how) => how.clone(),
                None => self.place(policy, action, &other),
            });
        }
        for group in atoms.groups.iter().filter(|group| !subject.groups.contains(group)) {
            let mut other = subject.clone();
            other.groups.push(group.clone());
            let found = self.ask(permits, &other, action, target)?;
            note(found, &|_| format!("it to agents in the group {group}"));
        }
        for name in atoms.agents.iter().filter(|name| *name != subject.name.as_str()).take(TRIED) {
            if let Ok(name) = AgentName::parse(name) {
                let other = Agent::named(name);
                let found = self.ask(permits, &other, action, target)?;
                note(found, &|_| format!("it to the agent {}", other.name));
            }
        }
        Ok(near)
    }

    /// A place that a policy permits, and whether what lies beneath is permitted too.
    fn place(&self, policy: &RuleInfo, action: Action, target: &Target) -> String {
        use cedar_policy::ResourceConstraint as Constraint;
        let id = cedar_policy::PolicyId::new(&policy.id);
        let constraint = self.set.policy(&id).map(|one| one.resource_constraint());
        let beneath = match constraint {
            Some(Constraint::In(of) | Constraint::IsIn(_, of))
                if of.type_name().to_string() == "Dir" =>
            {
                " and beneath"
            }
            Some(_) | None => "",
        };
        format!("{} of {}{beneath}", action.name(), describe(target))
    }
}

/// The same target with one thing about it changed to something that policies name, the nearest
/// first; and how it was changed, where that is not its place.
fn variations(atoms: &Atoms, target: &Target) -> Vec<(Target, Option<String>)> {
    let mut found = Vec::new();
    match target {
        Target::UnixSocket(_) | Target::Socket(_) | Target::Privilege(_) => {}
        Target::File { path, is_dir } => {
            let other = Target::File { path: path.clone(), is_dir: !is_dir };
            let kind = if *is_dir { "it when it is no folder" } else { "it when it is a folder" };
            found.push((other, Some(kind.to_owned())));
            let shared = |place: &&String| {
                let common = Path::new(place.as_str()).components().zip(path.components());
                common.take_while(|(one, other)| one == other).count()
            };
            // All paths share the root folder: that alone is not near.
            let mut places: Vec<&String> =
                atoms.places.iter().filter(|place| shared(place) > 1).collect();
            places.sort_by_key(|place| std::cmp::Reverse(shared(place)));
            for place in places.into_iter().take(TRIED) {
                for is_dir in [*is_dir, !*is_dir] {
                    found.push((Target::File { path: place.into(), is_dir }, None));
                }
            }
        }
        Target::Peer { peer, host } => {
            let with = |peer| Target::Peer { peer, host: host.clone() };
            let port = u16::from_be_bytes(peer.port);
            let mut ports: Vec<&u16> = atoms.ports.iter().collect();
            ports.sort_by_key(|other| other.abs_diff(port));
            for other in ports.into_iter().take(TRIED) {
                let changed = Peer { port: other.to_be_bytes(), ..*peer };
                found.push((with(changed), Some(format!("port {other}, not {port}"))));
            }
            for other in [protocol::TCP, protocol::UDP] {
                let changed = Peer { protocol: other, ..*peer };
                let (other, own) =
                    (model::protocol_name(other), model::protocol_name(peer.protocol));
                found.push((with(changed), Some(format!("{other}, not {own}"))));
            }
            let own = u128::from_be_bytes(peer.address);
            let mut nets: Vec<&Net> = atoms.nets.iter().collect();
            nets.sort_by_key(|net| {
                let same = net.family == peer.family;
                (!same, std::cmp::Reverse((net.address ^ own).leading_zeros()))
            });
            for net in nets.into_iter().take(TRIED) {
                let address = Addresses::of(*net).witness();
                let changed = Peer { family: net.family, address, ..*peer };
                found.push((with(changed), Some(format!("it to {net}"))));
            }
            for (name, shown) in atoms.host_witnesses().into_iter().take(TRIED) {
                let named = Target::Peer { peer: *peer, host: Some(name) };
                found.push((named, Some(format!("it where its address is known as {shown}"))));
            }
        }
    }
    found
}
