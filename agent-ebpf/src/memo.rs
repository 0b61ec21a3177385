//! What was found out before and still holds, so that it need not be found out again: each is one word, a hash of
//! everything that it depends on under the secrets that no agent can read.

use agent_ebpf::{BOUND_BY_DAEMON, BOUND_BY_HOOKS, Config};
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_task_btf, generated::bpf_jiffies64,
};

use crate::{
    identity::Actor,
    maps::{BINDINGS, BYSTANDERS, BYSTANDERS_MAX, MEMOS, MEMOS_MAX},
    offsets::{kernel, known, member, offsets},
};

/// A moment is two to the power of so many ticks: a second at 250 ticks a second, 2.6 at 100. The other clocks
/// cost more, or are kept from hooks.
const MOMENT: u64 = 8;

/// A question: which agent asks what of which thing, under which policy set, in this moment. So whoever reads or sends
/// in a loop is judged about once a second, and else pays for one look.
pub struct Memo(u64);

impl Memo {
    /// The question of this actor with these words.
    #[inline(always)]
    pub fn of(actor: &Actor, words: [u64; 4]) -> Self {
        // SAFETY: a plain helper call.
        let moment = unsafe { bpf_jiffies64() } >> MOMENT;
        let root = actor.task().map_or(0, |task| task.root_dentry);
        let [a, b, c, d] = words;
        let own = u64::from(actor.set) << 8 | u64::from(actor.mode);
        Self(digest(actor.config, [a, b, c, d, root, u64::from(actor.agent), own, moment]))
    }

    #[inline(always)]
    fn place(&self) -> Option<*mut u64> {
        MEMOS.get_ptr_mut(self.0 as u32 & (MEMOS_MAX as u32 - 1))
    }

    /// Whether it went ahead.
    #[inline(always)]
    pub fn is_kept(&self) -> bool {
        // SAFETY: a live element of one word.
        self.0 != 0 && self.place().is_some_and(|at| unsafe { at.read_volatile() } == self.0)
    }

    /// Notes that it goes ahead.
    #[inline(always)]
    pub fn keep(&self) {
        if let Some(at) = self.place() {
            // SAFETY: a live element of one word, written at once; the last who writes is as good.
            unsafe { at.write_volatile(self.0) };
        }
    }
}

/// A task that is nobody's: which one, in which cgroup, and how often anything was bound to an agent until then. Not for
/// programs of cgroups, which do not know the task by its type.
pub struct Bystander(u64);

impl Bystander {
    /// Whether programs may know the task that runs now by its type (`bpf_get_current_task_btf` of
    /// kernel/trace/bpf_trace.c: since 5.11).
    #[inline(always)]
    pub fn is_known() -> bool {
        known(&kernel().types_tasks) != 0
    }

    /// The task that runs now, were it one.
    #[inline(always)]
    pub fn current(config: &Config) -> Self {
        // Before anything is looked up, so that what is bound meanwhile makes it another one.
        // SAFETY: live elements of one word.
        let bound =
            |by| BINDINGS.get_ptr(by).map_or(config.zero, |at| unsafe { at.read_volatile() });
        let (hooks, daemon) = (bound(BOUND_BY_HOOKS), bound(BOUND_BY_DAEMON));
        // SAFETY: the current task and members of what it holds; a cgroup's id is never another's (kernfs).
        let words = unsafe {
            let task = bpf_get_current_task_btf().cast::<u8>().cast_const();
            let set: *const u8 = member(task, &offsets().task_cgroups);
            let group: *const u8 = member(set, &offsets().css_set_group);
            let node: *const u8 = member(group, &offsets().cgroup_node);
            let id: u64 = member(node, &offsets().kernfs_id);
            [bpf_get_current_pid_tgid(), member(task, &offsets().task_start), id, hooks, daemon]
        };
        // Never 0, which nobody's place begins with.
        Self(digest(config, words) | 1)
    }

    #[inline(always)]
    fn place(&self) -> Option<*mut u64> {
        BYSTANDERS.get_ptr_mut((self.0 >> 1) as u32 & (BYSTANDERS_MAX as u32 - 1))
    }

    /// Whether it was found to be nobody's.
    #[inline(always)]
    pub fn is_kept(&self) -> bool {
        // SAFETY: a live element of one word.
        self.place().is_some_and(|at| unsafe { at.read_volatile() } == self.0)
    }

    /// Notes that it is nobody's.
    #[inline(always)]
    pub fn keep(&self) {
        if let Some(at) = self.place() {
            // SAFETY: a live element of one word, written at once.
            unsafe { at.write_volatile(self.0) };
        }
    }
}

#[inline(always)]
fn digest<const N: usize>(config: &Config, words: [u64; N]) -> u64 {
    let factor = config.hash_factor;
    let mut state = config.hash_seed;
    for word in words {
        // Twice, so that no difference of one word is another's that is known beforehand.
        let mixed = (state ^ word).wrapping_mul(factor);
        state = (mixed ^ (mixed >> 29)).wrapping_mul(factor);
        state ^= state >> 32;
    }
    state
}
