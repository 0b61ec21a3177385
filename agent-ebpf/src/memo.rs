//! What went ahead a moment ago, so that whoever reads or sends in a loop is judged about once a second, and
//! else pays for one look.

use aya_ebpf::helpers::generated::bpf_jiffies64;

use crate::{
    identity::Actor,
    maps::{MEMOS, MEMOS_MAX},
};

/// A moment is two to the power of so many ticks: a second at 250 ticks a second, 2.6 at 100. The other clocks
/// cost more, or are kept from hooks.
const MOMENT: u64 = 8;

/// A question: which agent asks what of which thing, under which policy set, in this moment. Its words are hashed under
/// the secrets that no agent can read, so none can ask another one that looks the same.
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
        let factor = actor.config.hash_factor;
        let mut state = actor.config.hash_seed;
        for word in [a, b, c, d, root, u64::from(actor.agent), own, moment] {
            // Twice, so that no difference of one word is another's that is known beforehand.
            let mixed = (state ^ word).wrapping_mul(factor);
            state = (mixed ^ (mixed >> 29)).wrapping_mul(factor);
            state ^= state >> 32;
        }
        Self(state)
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
