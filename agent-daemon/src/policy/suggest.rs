//! The Cedar lines that would have permitted what was denied.
use agent_ebpf::Action;

use super::model::Target;
use super::rule::AgentName;

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

/// Cedar lines that would have permitted these.
#[must_use]
pub fn suggest(_denied: &[Attempt]) -> String {
    String::new()
}
