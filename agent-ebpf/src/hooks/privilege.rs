//! Actions that would reach the enforcer itself.

use agent_ebpf::{Action, BpfBody, Decision, Header, Hook, Kind, Reason, Verdict};
use core::arch::asm;

use aya_ebpf::{EbpfContext as _, programs::LsmContext};

use super::DENY;
use crate::{
    emit, identity,
    offsets::{kernel, known},
};

#[repr(C)]
struct BpfRecord {
    header: Header,
    body: BpfBody,
}

/// LSM `bpf(cmd, attr, size)`: no agent may touch programs or maps, whatever the policy says.
#[inline(always)]
pub fn bpf(ctx: &LsmContext) -> i32 {
    // Two loads at constant offsets: the verifier allows no computed ones into the context.
    let prior: u64;
    // SAFETY: the hook's last argument, 8 bytes each; the branch not taken is dead to the verifier.
    unsafe {
        let args = ctx.as_ptr();
        if known(&kernel().bpf_verdict) == 4 {
            asm!("{0} = *(u64 *)({1} + 32)", out(reg) prior, in(reg) args);
        } else {
            asm!("{0} = *(u64 *)({1} + 24)", out(reg) prior, in(reg) args);
        }
    }
    let prior = prior as i32;
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::current() else {
        return 0;
    };
    let decision = Decision::because(Reason::NoPermit);
    let verdict = actor.verdict(decision);
    let mut record =
        BpfRecord { header: Header::default(), body: BpfBody { command: ctx.arg(0), pad: 0 } };
    emit::fill(&mut record.header, &actor, Kind::Bpf, Hook::Bpf);
    emit::decided(&mut record.header, Action::Bpf, decision, verdict);
    emit::send(&mut record);
    match verdict {
        Verdict::Allowed | Verdict::WouldDeny => 0,
        Verdict::Denied => DENY,
    }
}
