//! Checked policies become one agent's tables: what the kernel half is to find at each place and
//! for each range of peers.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;

use agent_ebpf::{
    Config, Facet, Pair, PathHash, PeerCell, PlaceCell, PlaceKey, RULE_FIRST, RULE_NONE,
    RULE_PROTECTED, RuleId,
};
use zerocopy::IntoBytes;

use super::peers::{PeerPrefix, PeerTable};
use super::rule::{AgentName, Effect, Protected, Rule, RuleInfo};

/// The id under which the built-in forbids are reported.
pub const PROTECTED_ID: &str = "ambit:protected";

/// One agent's policy as tables. Agents whose tables are equal may share them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lowered {
    /// What is said of each place, by its raw absolute path; the root folder is `/`.
    pub places: BTreeMap<Vec<u8>, PlaceCell>,
    /// What is said of each range of peers.
    pub peers: BTreeMap<PeerPrefix, PeerCell>,
    /// The rules, by number: the first is [`RULE_FIRST`].
    pub rules: Vec<RuleInfo>,
}

/// Two places have the same key under these secrets, so neither could be told from the other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "two of the policy's paths share one key under this boot's secrets; draw new secrets and load again"
)]
pub struct Collision;

impl Lowered {
    /// The id of the policy with this number; `None` for [`RULE_NONE`] and numbers not in use.
    #[must_use]
    pub fn rule_name(&self, rule: RuleId) -> Option<&str> {
        match rule {
            RULE_NONE => None,
            RULE_PROTECTED => Some(PROTECTED_ID),
            _ => self.rule(rule).map(|info| info.id.as_str()),
        }
    }

    /// The policy with this number; `None` for built-in rules and numbers not in use.
    #[must_use]
    pub fn rule(&self, rule: RuleId) -> Option<&RuleInfo> {
        let index = rule.checked_sub(RULE_FIRST)?;
        self.rules.get(usize::try_from(index).ok()?)
    }

    /// The table of places as the kernel half keys it.
    ///
    /// # Errors
    /// [`Collision`], which is as likely as guessing a 64-bit number: draw new secrets.
    pub fn keyed_places(&self, config: &Config) -> Result<HashMap<PlaceKey, PlaceCell>, Collision> {
        let mut keyed = HashMap::with_capacity(self.places.len());
        for (path, cell) in &self.places {
            if keyed.insert(PathHash::of(config, path), *cell).is_some() {
                return Err(Collision);
            }
        }
        Ok(keyed)
    }
}

impl Hash for Lowered {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for (path, cell) in &self.places {
            path.hash(state);
            cell.as_bytes().hash(state);
        }
        for (prefix, cell) in &self.peers {
            prefix.hash(state);
            cell.as_bytes().hash(state);
        }
        self.rules.hash(state);
    }
}

/// Tables in the making.
#[derive(Default)]
struct Tables {
    places: BTreeMap<Vec<u8>, PlaceCell>,
    peers: PeerTable,
}

impl Tables {
    fn place(&mut self, path: &[u8], beneath: bool, facets: &[Facet], said: Pair) {
        let cell = self.places.entry(path.to_vec()).or_default();
        let pairs = if beneath { &mut cell.beneath } else { &mut cell.exact };
        for facet in facets {
            if let Some(pair) = pairs.get_mut(*facet as usize) {
                *pair = pair.and(said);
            }
        }
    }
}

/// The tables of one agent. Rules for other agents, and rules that nothing can match, leave no trace.
pub(super) fn lower(
    rules: &[Rule],
    agent: &AgentName,
    groups: &[String],
    protected: &[Protected],
) -> Lowered {
    let mut tables = Tables::default();
    for own in protected {
        let said = Pair { permit: RULE_NONE, forbid: RULE_PROTECTED };
        let path = match own.path.as_os_str().as_bytes() {
            [rest @ .., b'/'] if !rest.is_empty() => rest,
            path => path,
        };
        tables.place(path, own.beneath, own.facets, said);
    }
    let mut names = Vec::new();
    let mut number = RULE_FIRST;
    for rule in rules.iter().filter(|rule| rule.who.is(agent, groups)) {
        if rule.places.is_none() && rule.peers.is_none() {
            continue;
        }
        let said = match rule.info.effect {
            Effect::Permit => Pair { permit: number, forbid: RULE_NONE },
            Effect::Forbid => Pair { permit: RULE_NONE, forbid: number },
        };
        if let Some(reach) = &rule.places {
            tables.place(reach.path.as_bytes(), reach.beneath, &reach.facets, said);
        }
        if let Some(reach) = &rule.peers {
            let cell = PeerCell {
                connect: if reach.connect { said } else { Pair::default() },
                bind: if reach.bind { said } else { Pair::default() },
            };
            for net in &reach.nets {
                tables.peers.add(*net, reach.port, reach.protocol, cell);
            }
        }
        names.push(rule.info.clone());
        number += 1;
    }
    Lowered { places: tables.places, peers: tables.peers.fold(), rules: names }
}
