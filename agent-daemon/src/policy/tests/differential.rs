//! The lowered tables against Cedar's own authorizer: the same verdict on the same request, and a
//! reported rule that is one of the authorizer's reasons, always the first.

use std::collections::HashMap;

use agent_ebpf::Reason;
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

/// One set of policies with everything that requests about it need.
struct World {
    text: String,
    policies: Policies,
    agents: Vec<(AgentName, Lowered, HashedTables)>,
    entities: Entities,
}

impl World {
    fn new(random: &mut Random, targets: &[(Target, Vec<Entity>)]) -> Self {
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
        for entity in targets.iter().flat_map(|(_, entities)| entities) {
            entities.insert(entity.uid(), entity.clone());
        }
        let entities = Entities::from_entities(entities.into_values(), None).unwrap();
        Self {
            text,
            policies,
            agents,
            entities,
        }
    }

    fn compare(&self, random: &mut Random, targets: &[(Target, Vec<Entity>)], met: &mut Met) {
        let (name, lowered, hashed) = random.one(&self.agents);
        let (target, _) = random.one(targets);
        let action = generate::action_on(random, target);
        let request = model::request(name, action, target).unwrap();
        let answer =
            Authorizer::new().is_authorized(&request, self.policies.cedar(), &self.entities);
        let decision = decide(hashed, action, target);
        let told = format!("{name} {} {target:?}\n{}", action.name(), self.text);

        assert_eq!(answer.diagnostics().errors().count(), 0, "{told}");
        let mut reasons: Vec<&str> = answer
            .diagnostics()
            .reason()
            .map(|id| -> &str { id.as_ref() })
            .collect();
        reasons.sort_by_key(|id| lowered.rules.iter().position(|rule| rule.id == *id));
        let allowed = answer.decision() == cedar_policy::Decision::Allow;
        assert_eq!(
            decision.reason == Reason::Permitted,
            allowed,
            "{decision:?} {told}"
        );
        assert_eq!(
            decision.reason == Reason::NoPermit,
            reasons.is_empty(),
            "{decision:?} {told}"
        );
        let reported = lowered.rule_name(decision.rule);
        assert_eq!(reported, reasons.first().copied(), "{reasons:?} {told}");
        met.pairs += 1;
        match decision.reason {
            Reason::Permitted => met.permitted += 1,
            Reason::Forbidden => met.forbidden += 1,
            _ => met.no_permit += 1,
        }
    }
}

/// Compares this many requests, each seed with another set of policies.
fn run(seeds: std::ops::Range<u64>, requests: usize) -> Met {
    let targets: Vec<(Target, Vec<Entity>)> = generate::targets()
        .into_iter()
        .map(|target| {
            // An object is asked for as what it is and as a program.
            let mut entities = model::resource(agent_ebpf::Action::Read, &target).unwrap();
            if let Target::File { is_dir: false, .. } = target {
                entities.extend(model::resource(agent_ebpf::Action::Exec, &target).unwrap());
            }
            (target, entities)
        })
        .collect();
    let mut met = Met::default();
    for seed in seeds {
        let mut random = Random::new(seed);
        let world = World::new(&mut random, &targets);
        for _ in 0..requests {
            world.compare(&mut random, &targets, &mut met);
        }
    }
    met
}

#[test]
fn tables_say_what_cedar_says() {
    let met = run(1..201, 100);
    assert_eq!(met.pairs, 20_000);
    for (what, count) in [
        ("permitted", met.permitted),
        ("forbidden", met.forbidden),
        ("without permit", met.no_permit),
    ] {
        assert!(
            count > 2_000,
            "only {count} {what}: the generator asks too little"
        );
    }
}
