//! The lowered tables against Cedar's own authorizer: the same verdict on the same request, and a
//! reported rule that is one of the authorizer's reasons, always the first.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use agent_ebpf::{Action, JoinKey, Pair, PeerKey, PlaceKind, Reason};
use cedar_policy::{Authorizer, Entities, Entity, EntityUid, PolicySet};

use super::super::{
    Agent, AgentName, Effect, HashedTables, Hosts, Lowered, Severity, Target, model,
};
use super::generate::{self, AGENTS, GROUPS, Random};
use super::{CONFIG, check_with, decide, decide_known};

/// What may stand in a policy, by a text that stands nowhere else; each must be met often.
const FORMS: [&str; 57] = [
    " when {",
    " unless {",
    " && ",
    " || ",
    "!(",
    "if ",
    "principal == Agent",
    "principal in [",
    "principal.name like",
    "principal has",
    "principal.labels.contains(",
    "principal.labels.containsAny(",
    "principal.labels.containsAll(",
    "].contains(principal.name)",
    "action == Action",
    "resource has path",
    "resource has port",
    "resource in Dir",
    "resource in [Dir",
    "resource in Label",
    "resource in [Label",
    "resource is File in Label",
    "resource.labels.contains(",
    "resource.labels.containsAny(",
    "resource.labels.containsAll(",
    "resource == File",
    "resource != Program",
    "resource is Dir in",
    "resource.path ==",
    "!= resource.path",
    "].contains(resource.path)",
    "resource.path like",
    "isInRange",
    "isLoopback",
    "isMulticast",
    "isIpv4",
    "resource.ip !=",
    "resource.port <",
    "<= resource.port",
    "resource.port >",
    "].contains(resource.port)",
    "resource.protocol !=",
    "resource has host",
    "resource.host ==",
    "!= resource.host",
    "].contains(resource.host)",
    "resource.host like",
    "[\"protocol\"] like",
    "resource == UnixSocket",
    "resource != UnixSocket",
    "resource.path like \"@",
    "resource.path == \"@",
    "resource == SocketFamily",
    "resource != Privilege",
    "resource has sha256",
    "resource.sha256 !=",
    "].contains(resource.sha256)",
];

/// What a run met, so that a run that meets nothing is seen.
#[derive(Default)]
struct Met {
    pairs: usize,
    permitted: usize,
    forbidden: usize,
    no_permit: usize,
    /// Requests about an address with several names.
    several: usize,
    /// Programs whose verdict depends on their content.
    by_content: usize,
    forms: BTreeMap<&'static str, usize>,
    /// Kinds of cells, and whether rules joined dimensions.
    tables: BTreeMap<&'static str, usize>,
}

impl Met {
    fn add(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.permitted += other.permitted;
        self.forbidden += other.forbidden;
        self.no_permit += other.no_permit;
        self.several += other.several;
        self.by_content += other.by_content;
        for (name, count) in &other.forms {
            *self.forms.entry(name).or_default() += count;
        }
        for (name, count) in &other.tables {
            *self.tables.entry(name).or_default() += count;
        }
    }
}

/// An agent with its tables.
struct Bounded {
    agent: Agent,
    lowered: Lowered,
    hashed: HashedTables,
}

/// One set of policies with everything that requests about it need.
struct World {
    text: String,
    policies: PolicySet,
    agents: Vec<Bounded>,
    /// What is asked for; and the same under its other names.
    attempts: Vec<(Action, Target, Vec<Target>)>,
    entities: Entities,
    /// What the content of programs depends on, besides their paths.
    salt: usize,
}

impl World {
    fn new(random: &mut Random, requests: usize) -> Self {
        // What cannot be meant (exec of a Dir) is refused, and left out.
        let mut lines: Vec<String> = (0..1 + random.below(24))
            .map(|n| format!("@id(\"p{n}\") {}\n", generate::policy(random)))
            .collect();
        let labels = generate::entities(random);
        if let Err(error) = check_with(&lines.concat(), &labels) {
            for problem in error.diagnostics() {
                if problem.severity == Severity::Error
                    && let Some(span) = &problem.span
                {
                    lines[span.line - 1] = "\n".to_owned();
                }
            }
        }
        lines.push(
            "@id(\"last\") permit(principal == Agent::\"nobody\", action, resource);".to_owned(),
        );
        let text = lines.concat();
        let policies = check_with(&text, &labels);
        let policies = policies.unwrap_or_else(|error| panic!("{text}\n{labels}\n{error}"));
        let mut entities: HashMap<EntityUid, Entity> = HashMap::new();
        let mut agents = Vec::new();
        for name in AGENTS {
            let name = AgentName::parse(name).unwrap();
            let mut groups: Vec<String> = GROUPS.iter().map(|one| (*one).to_owned()).collect();
            groups.retain(|_| random.chance(40));
            let agent = Agent { name, groups, attributes: generate::attributes(random) };
            let lowered =
                policies.lower(&agent, &[]).unwrap_or_else(|error| panic!("{text}\n{error}"));
            let hashed = HashedTables::new(&lowered, &CONFIG).unwrap();
            for entity in model::agent(&agent).unwrap() {
                entities.insert(entity.uid(), entity);
            }
            agents.push(Bounded { agent, lowered: lowered.as_ref().clone(), hashed });
        }
        let salt = random.below(usize::from(u16::MAX));
        let attempts: Vec<_> = (0..requests).map(|_| generate::asked(random)).collect();
        let each = attempts.iter().flat_map(|(action, target, more)| {
            std::iter::once((action, target)).chain(more.iter().map(move |other| (action, other)))
        });
        for (action, target) in each {
            if !entities.contains_key(&model::resource_uid(*action, target).unwrap()) {
                let content = generate::content(target, salt);
                let labels = &policies.labels;
                let found = model::resource_with(*action, target, labels, Some(content)).unwrap();
                entities.extend(found.into_iter().map(|entity| (entity.uid(), entity)));
            }
        }
        let hierarchy = model::labels(&policies.labels).unwrap();
        entities.extend(hierarchy.into_iter().map(|entity| (entity.uid(), entity)));
        let entities = Entities::from_entities(entities.into_values(), None).unwrap();
        let policies = policies.cedar().unwrap();
        let text = format!("{text}{labels}");
        Self { text, policies, agents, attempts, entities, salt }
    }

    /// Compares every request, each for one agent.
    fn compare(&self, random: &mut Random) -> Result<Met, String> {
        let mut met = Met::default();
        for form in FORMS {
            let count = self.text.lines().filter(|line| line.contains(form)).count();
            *met.forms.entry(form).or_default() += count;
        }
        for Bounded { lowered, .. } in &self.agents {
            for (kind, _) in lowered.places.keys() {
                *met.tables.entry(kind.name()).or_default() += 1;
            }
            *met.tables.entry("joins").or_default() += lowered.joins.len();
        }
        for (action, target, more) in &self.attempts {
            self.compare_one(random.one(&self.agents), *action, target, more, &mut met)?;
        }
        Ok(met)
    }

    fn compare_one(
        &self,
        Bounded { agent, lowered, hashed }: &Bounded,
        action: Action,
        target: &Target,
        more: &[Target],
        met: &mut Met,
    ) -> Result<(), String> {
        let content = generate::content(target, self.salt);
        let known = |content| match target {
            Target::Peer { peer, host } => {
                let others = more.iter().filter_map(|other| match other {
                    Target::Peer { host, .. } => host.as_ref(),
                    _ => None,
                });
                decide_known(hashed, lowered, action, peer, host.iter().chain(others))
            }
            _ => decide(hashed, lowered, action, target, content),
        };
        let (decision, unknown) = (known(Some(content)), known(None));
        // One request for each name; any forbid denies, else any permit allows.
        let mut by_effect: BTreeMap<Effect, Vec<&str>> = BTreeMap::new();
        let mut errors: Vec<String> = Vec::new();
        for target in std::iter::once(target).chain(more) {
            let request = model::request(&agent.name, action, target).unwrap();
            let answer = Authorizer::new().is_authorized(&request, &self.policies, &self.entities);
            for id in answer.diagnostics().reason() {
                let id: &str = id.as_ref();
                let rule = lowered.rules.iter().find(|rule| rule.id == id).unwrap();
                let found = by_effect.entry(rule.effect).or_default();
                if !found.contains(&rule.id.as_str()) {
                    found.push(&rule.id);
                }
            }
            errors.extend(answer.diagnostics().errors().map(|error| error.to_string()));
        }
        let forbids = by_effect.remove(&Effect::Forbid).unwrap_or_default();
        let permits = by_effect.remove(&Effect::Permit).unwrap_or_default();
        let allowed = forbids.is_empty() && !permits.is_empty();
        let mut reasons = if forbids.is_empty() { permits } else { forbids };
        reasons.sort_by_key(|id| lowered.rules.iter().position(|rule| rule.id == *id));
        let reported = lowered.rule_name(decision.rule);
        if !errors.is_empty()
            || (decision.reason == Reason::Permitted) != allowed
            || (decision.reason == Reason::NoPermit) != reasons.is_empty()
            || reported != reasons.first().copied()
            // What is said of a program without its content holds of every content.
            || unknown.reason != Reason::HashUnknown && unknown.allows() != allowed
            || unknown.reason == Reason::HashUnknown && action != Action::Exec
        {
            return Err(format!(
                "the tables say {decision:?} ({reported:?}; {unknown:?} of any content), Cedar {allowed} for {reasons:?} {errors:?}\n\
                 {agent:?} {} {target:?} {more:?}\n{}",
                action.name(),
                self.text
            ));
        }
        met.pairs += 1;
        met.several += usize::from(!more.is_empty());
        met.by_content += usize::from(unknown.reason == Reason::HashUnknown);
        match decision.reason {
            Reason::Permitted => met.permitted += 1,
            Reason::Forbidden => met.forbidden += 1,
            _ => met.no_permit += 1,
        }
        Ok(())
    }
}

/// Compares this many requests for each seed; each seed is another set of policies.
fn run(seeds: Range<u64>, requests: usize) -> Met {
    let mut met = Met::default();
    for seed in seeds {
        let mut random = Random::new(seed);
        let world = World::new(&mut random, requests);
        match world.compare(&mut random) {
            Ok(found) => met.add(&found),
            Err(told) => panic!("seed {seed}: {told}"),
        }
    }
    met
}

/// Half of the seeds on each of two threads.
fn run_on_two(seeds: Range<u64>, requests: usize) -> Met {
    let middle = seeds.start.midpoint(seeds.end);
    std::thread::scope(|scope| {
        let other = scope.spawn(move || run(middle..seeds.end, requests));
        let mut met = run(seeds.start..middle, requests);
        met.add(&other.join().unwrap());
        met
    })
}

/// Every form of policy and every kind of table was met, and every verdict often.
fn assert_complete(met: &Met) {
    for (what, count) in [
        ("permitted", met.permitted),
        ("forbidden", met.forbidden),
        ("without permit", met.no_permit),
        ("about several names", met.several * 4),
    ] {
        assert!(count > met.pairs / 10, "only {count} of {} {what}", met.pairs);
    }
    assert!(met.by_content > met.pairs / 500, "only {} by content", met.by_content);
    for form in FORMS {
        let count = met.forms.get(form).copied().unwrap_or_default();
        assert!(count > met.pairs / 20_000, "`{form}` stands in only {count} policies");
    }
    for kind in PlaceKind::ALL.iter().map(|kind| kind.name()).chain(["joins"]) {
        let count = met.tables.get(kind).copied().unwrap_or_default();
        assert!(count > met.pairs / 5_000, "only {count} cells of kind {kind}");
    }
}

#[test]
fn tables_say_what_cedar_says() {
    let met = run_on_two(1..501, 400);
    assert_eq!(met.pairs, 200_000);
    assert_complete(&met);
}

/// What `cargo xtask prove` runs: as many pairs as `AMBIT_PROVE_PAIRS` says, on sets of policies that
/// the test above does not see.
#[test]
#[ignore = "takes minutes; cargo xtask prove runs it"]
fn prove() {
    const REQUESTS: usize = 500;
    const STEP: u64 = 200;
    let pairs: usize = std::env::var("AMBIT_PROVE_PAIRS").unwrap().parse().unwrap();
    let last = 1_000_000 + pairs.div_ceil(REQUESTS) as u64;
    let mut met = Met::default();
    let mut first = 1_000_000;
    while first < last {
        let next = last.min(first + STEP);
        met.add(&run_on_two(first..next, REQUESTS));
        first = next;
        println!("{} of {pairs} pairs", met.pairs);
    }
    assert_complete(&met);
    println!(
        "{} pairs on {} sets of policies: {} permitted, {} forbidden, {} without permit, {} by content, no disagreement",
        met.pairs,
        last - 1_000_000,
        met.permitted,
        met.forbidden,
        met.no_permit,
        met.by_content
    );
}

/// Labels that Cedar knows and the tables do not are found out.
#[test]
fn labels_matter() {
    let found = (1..60).any(|seed| {
        let mut random = Random::new(seed);
        let mut world = World::new(&mut random, 100);
        let known = world.entities.iter().cloned().map(|entity| {
            let (uid, attributes, mut parents) = entity.into_inner();
            parents.retain(|parent| parent.type_name().to_string() != "Label");
            Entity::new(uid, attributes, parents).unwrap()
        });
        world.entities = Entities::from_entities(known.collect::<Vec<_>>(), None).unwrap();
        world.compare(&mut random).is_err()
    });
    assert!(found, "nobody saw that labels were missing");
}

/// A table that is wrong is found out: the comparison above sees what it is meant to see.
#[test]
fn every_table_matters() {
    type Spoil = fn(&mut Lowered);
    let spoils: [(&str, Spoil); 14] = [
        ("objects", |tables| tables.places.retain(|(kind, _), _| *kind != PlaceKind::Object)),
        ("folders", |tables| tables.places.retain(|(kind, _), _| *kind != PlaceKind::Beneath)),
        ("prefixes", |tables| tables.places.retain(|(kind, _), _| *kind != PlaceKind::Prefix)),
        ("suffixes", |tables| tables.places.retain(|(kind, _), _| *kind != PlaceKind::Suffix)),
        ("patterns", |tables| tables.places.retain(|(kind, _), _| *kind != PlaceKind::State)),
        ("sockets", |tables| tables.places.retain(|(kind, _), _| *kind != PlaceKind::Socket)),
        ("privileges", |tables| tables.places.retain(|(kind, _), _| *kind != PlaceKind::Privilege)),
        ("contents", |tables| tables.places.retain(|(kind, _), _| *kind != PlaceKind::Content)),
        ("what contents are asked for", |tables| {
            tables.joins.retain(|key, _| key.facet & JoinKey::CONTENTS == 0);
        }),
        ("peers", |tables| tables.peers.clear()),
        ("names", |tables| tables.hosts = Hosts::default()),
        ("what has no name", |tables| tables.peers.retain(|key, _| *key != PeerKey::NAMELESS)),
        ("joins", |tables| tables.joins.clear()),
        ("classes", |tables| {
            tables.joins.values_mut().for_each(|pair| *pair = Pair { forbid: 0, ..*pair });
        }),
    ];
    for (what, spoil) in spoils {
        let found = (1..150).any(|seed| {
            let mut random = Random::new(seed);
            let mut world = World::new(&mut random, 100);
            for one in &mut world.agents {
                spoil(&mut one.lowered);
                one.hashed = HashedTables::new(&one.lowered, &CONFIG).unwrap();
            }
            world.compare(&mut random).is_err()
        });
        assert!(found, "nobody saw that {what} were missing");
    }
}
