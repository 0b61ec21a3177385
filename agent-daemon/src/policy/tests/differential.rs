//! The lowered tables against Cedar's own authorizer: the same verdict on the same request, and a
//! reported rule that is one of the authorizer's reasons, always the first.

use std::cell::LazyCell;
use std::collections::HashMap;

use agent_ebpf::{Action, Reason};
use cedar_policy::{Authorizer, Entities, Entity, EntityUid};

use super::super::{AgentName, HashedTables, Lowered, Policies, Severity, Target, model};
use super::generate::{self, AGENTS, GROUPS, Random};
use super::{CONFIG, check, decide};

/// What a run met, so that a run that meets nothing is seen.
#[derive(Default)]
struct Met {
    pairs: usize,
    permitted: usize,
    forbidden: usize,
    no_permit: usize,
}

/// An agent with its tables.
type Bounded = (AgentName, Lowered, HashedTables);

/// One set of policies with everything that requests about it need.
struct World {
    text: String,
    policies: Policies,
    agents: Vec<Bounded>,
    attempts: Vec<(Action, Target)>,
    entities: Entities,
}

impl World {
    fn new(random: &mut Random, requests: usize) -> Self {
        // What cannot be meant (exec of a Dir) is refused, and left out.
        let mut lines: Vec<String> = (0..1 + random.below(32))
            .map(|n| format!("@id(\"p{n}\") {}\n", generate::policy(random)))
            .collect();
        if let Err(error) = check(&lines.concat()) {
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
        let policies = check(&text).unwrap_or_else(|error| panic!("{text}\n{error}"));
        let mut entities: HashMap<EntityUid, Entity> = HashMap::new();
        let mut agents = Vec::new();
        for name in AGENTS {
            let name = AgentName::parse(name).unwrap();
            let mut groups: Vec<String> = GROUPS.iter().map(|one| (*one).to_owned()).collect();
            groups.retain(|_| random.chance(40));
            let lowered = policies.lower(&name, &groups, &[]);
            let hashed = HashedTables::new(&lowered, &CONFIG).unwrap();
            for entity in model::agent(&name, &groups).unwrap() {
                entities.insert(entity.uid(), entity);
            }
            agents.push((name, lowered, hashed));
        }
        let attempts: Vec<_> = (0..requests).map(|_| generate::attempt(random)).collect();
        for (action, target) in &attempts {
            if !entities.contains_key(&model::resource_uid(*action, target).unwrap()) {
                let found = model::resource(*action, target).unwrap();
                entities.extend(found.into_iter().map(|entity| (entity.uid(), entity)));
            }
        }
        let entities = Entities::from_entities(entities.into_values(), None).unwrap();
        Self { text, policies, agents, attempts, entities }
    }

    fn compare(&self, random: &mut Random, met: &mut Met) {
        for (action, target) in &self.attempts {
            self.compare_one(random.one(&self.agents), *action, target, met);
        }
    }

    fn compare_one(&self, agent: &Bounded, action: Action, target: &Target, met: &mut Met) {
        let (name, lowered, hashed) = agent;
        let request = model::request(name, action, target).unwrap();
        let answer =
            Authorizer::new().is_authorized(&request, self.policies.cedar(), &self.entities);
        let decision = decide(hashed, action, target);
        let told = LazyCell::new(|| {
            let text = &self.text;
            format!("{decision:?} {name} {} {target:?}\n{text}", action.name())
        });

        assert_eq!(answer.diagnostics().errors().count(), 0, "{}", *told);
        let mut reasons: Vec<&str> =
            answer.diagnostics().reason().map(|id| -> &str { id.as_ref() }).collect();
        reasons.sort_by_key(|id| lowered.rules.iter().position(|rule| rule.id == *id));
        let allowed = answer.decision() == cedar_policy::Decision::Allow;
        assert_eq!(decision.reason == Reason::Permitted, allowed, "{}", *told);
        assert_eq!(decision.reason == Reason::NoPermit, reasons.is_empty(), "{}", *told);
        let reported = lowered.rule_name(decision.rule);
        assert_eq!(reported, reasons.first().copied(), "{reasons:?} {}", *told);
        met.pairs += 1;
        match decision.reason {
            Reason::Permitted => met.permitted += 1,
            Reason::Forbidden => met.forbidden += 1,
            _ => met.no_permit += 1,
        }
    }
}

/// Compares this many requests for each seed; each seed is another set of policies.
fn run(seeds: std::ops::Range<u64>, requests: usize) -> Met {
    let mut met = Met::default();
    for seed in seeds {
        let mut random = Random::new(seed);
        World::new(&mut random, requests).compare(&mut random, &mut met);
    }
    met
}

#[test]
fn tables_say_what_cedar_says() {
    let met = run(1..161, 125);
    assert_eq!(met.pairs, 20_000);
    for (what, count) in [
        ("permitted", met.permitted),
        ("forbidden", met.forbidden),
        ("without permit", met.no_permit),
    ] {
        assert!(count > 2_000, "only {count} {what}: the generator asks too little");
    }
}
