//! Privileges: what reaches beyond an agent's own processes and files. Judged by name.

use agent_ebpf::{
    Action, Decision, GUARD_SELF, Header, Hook, Kind, ObjectKey, PlaceKey, Privilege,
    PrivilegeBody, RULE_PROTECTED, Reason, Verdict, decide_numbered,
};
use core::{arch::asm, ffi::c_void};

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_task_btf,
        generated::{bpf_get_current_task, bpf_task_pt_regs},
    },
    programs::LsmContext,
};

use super::file::{Places, outcome};
use crate::{
    emit,
    identity::{self, Actor, read},
    maps::{GUARDED, PLACES, TASKS},
    offsets::{kernel, known, offsets},
};

// include/linux/ptrace.h
const PTRACE_MODE_NOAUDIT: u32 = 4;
// include/linux/security.h
const CAP_OPT_NOAUDIT: u32 = 2;
// include/uapi/linux/capability.h
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_MODULE: u32 = 16;
const CAP_SYS_RAWIO: u32 = 17;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_BOOT: u32 = 22;
const CAP_SYS_TIME: u32 = 25;
const CAP_MKNOD: u32 = 27;
const CAP_PERFMON: u32 = 38;

#[repr(C)]
struct PrivilegeRecord {
    header: Header,
    body: PrivilegeBody,
}

/// What is asked for.
struct Asked {
    privilege: Privilege,
    hook: Hook,
    /// As in [`PrivilegeBody`].
    detail: u32,
    /// As in [`PrivilegeBody`].
    target: u32,
}

/// What the actor's policy says of something with a number.
#[inline(always)]
pub fn decide(actor: &Actor, key: PlaceKey) -> Decision {
    // SAFETY: a lookup; the inner map lives until the program ends.
    match unsafe { PLACES.get(&actor.set) } {
        Some(places) => {
            let places: *mut c_void = core::ptr::from_ref(places).cast_mut().cast();
            decide_numbered(&key, &Places { set: actor.set, places, patterns: places, program: 0 })
        }
        None => Decision::because(Reason::NoPolicy),
    }
}

/// Judges and tells it. Not inlined: a record on the stack of a frame of its own.
#[inline(never)]
fn judge(actor: &Actor, asked: &Asked) -> i32 {
    let decision = decide(actor, PlaceKey::privilege(asked.privilege));
    let verdict = actor.verdict(decision);
    tell(actor, asked, decision, verdict);
    outcome(verdict)
}

#[inline(always)]
fn tell(actor: &Actor, asked: &Asked, decision: Decision, verdict: Verdict) {
    let mut record = PrivilegeRecord {
        header: Header::default(),
        body: PrivilegeBody {
            privilege: asked.privilege as u32,
            detail: asked.detail,
            target: asked.target,
            pad: 0,
        },
    };
    emit::fill(&mut record.header, actor, Kind::Privilege, asked.hook);
    emit::decided(&mut record.header, Action::Privilege, decision, verdict);
    emit::send(&mut record);
}

/// Memory that becomes code. What is allowed is not told: a just-in-time compiler does it all the time, as it
/// maps libraries.
#[inline(never)]
pub fn execmem(actor: &Actor, hook: Hook) -> i32 {
    let decision = decide(actor, PlaceKey::privilege(Privilege::Execmem));
    let verdict = actor.verdict(decision);
    if !matches!(verdict, Verdict::Allowed) {
        let asked = Asked { privilege: Privilege::Execmem, hook, detail: 0, target: 0 };
        tell(actor, &asked, decision, verdict);
    }
    outcome(verdict)
}

/// Denies and tells what would reach Ambit itself, whatever the policy says.
#[inline(never)]
fn refuse(actor: &Actor, asked: &Asked) -> i32 {
    let decision = Decision { reason: Reason::Forbidden, rule: RULE_PROTECTED };
    let verdict = actor.verdict(decision);
    tell(actor, asked, decision, verdict);
    outcome(verdict)
}

/// True for the commands that open programs, maps and links which somebody else made, and so Ambit's
/// (`enum bpf_cmd` of include/uapi/linux/bpf.h: `OBJ_GET`, `PROG_`, `MAP_`, `BTF_` and
/// `LINK_GET_FD_BY_ID`).
#[inline(always)]
const fn reaches_others(command: u32) -> bool {
    matches!(command, 7 | 13 | 14 | 19 | 30)
}

/// LSM `bpf(cmd, attr, size)`.
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
    let Some(actor) = identity::acting() else {
        return 0;
    };
    let command: u32 = ctx.arg(0);
    let asked = Asked { privilege: Privilege::Bpf, hook: Hook::Bpf, detail: command, target: 0 };
    if reaches_others(command) { refuse(&actor, &asked) } else { judge(&actor, &asked) }
}

/// Who a privilege is used on.
enum Target {
    /// A process of the same agent.
    Own,
    /// One of Ambit's processes.
    Ambit,
    /// Any other, by its thread group id.
    Other(u32),
}

impl Target {
    /// Of a `task_struct`.
    #[inline(always)]
    fn of(actor: &Actor, task: u64) -> Self {
        let tgid: u32 = read(task, &offsets().task_tgid).unwrap_or(0);
        if tgid == actor.tgid {
            return Self::Own;
        }
        // SAFETY: entries are not freed before the program ends (RCU).
        if let Some(entry) = unsafe { TASKS.get(&tgid) } {
            return if entry.agent == actor.agent { Self::Own } else { Self::Other(tgid) };
        }
        // What cannot be read may be Ambit's.
        if runs_ambit(task).unwrap_or(true) { Self::Ambit } else { Self::Other(tgid) }
    }
}

/// True when a task's program is one of Ambit's own, which no agent can run.
#[inline(always)]
fn runs_ambit(task: u64) -> Option<bool> {
    let mm: u64 = read(task, &offsets().task_mm)?;
    if mm == 0 {
        return Some(false); // a kernel thread, or one that has ended
    }
    let file: u64 = read(mm, &offsets().mm_exe)?;
    if file == 0 {
        return Some(false);
    }
    let inode: u64 = read(file, &offsets().file_inode)?;
    let fs: u64 = read(inode, &offsets().inode_super)?;
    let key = ObjectKey {
        inode: read(inode, &offsets().inode_number)?,
        device: read(fs, &offsets().super_device)?,
        pad: 0,
    };
    // SAFETY: the value is one word.
    Some(unsafe { GUARDED.get(&key) }.is_some_and(|flags| flags & GUARD_SELF != 0))
}

#[inline(always)]
fn on(actor: &Actor, task: u64, mut asked: Asked) -> i32 {
    match Target::of(actor, task) {
        Target::Own => 0,
        Target::Ambit => {
            asked.target = read(task, &offsets().task_tgid).unwrap_or(0);
            refuse(actor, &asked)
        }
        Target::Other(tgid) => {
            asked.target = tgid;
            judge(actor, &asked)
        }
    }
}

/// LSM `ptrace_access_check(child, mode)`: tracing, `/proc/PID/mem`, `process_vm_readv`, `pidfd_getfd` and
/// what else of `/proc/PID` is only for those who may trace.
#[inline(always)]
pub fn ptrace(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(2);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    let (task, mode): (u64, u32) = (ctx.arg(0), ctx.arg(1));
    if mode & PTRACE_MODE_NOAUDIT != 0 {
        // What `/proc/PID/stat` shows depends on it, and a `ps` asks it of every process: not told.
        let silent = match Target::of(&actor, task) {
            Target::Own => return 0,
            Target::Ambit => Decision { reason: Reason::Forbidden, rule: RULE_PROTECTED },
            Target::Other(_) => decide(&actor, PlaceKey::privilege(Privilege::Ptrace)),
        };
        return outcome(actor.verdict(silent));
    }
    let hook = Hook::PtraceAccessCheck;
    on(&actor, task, Asked { privilege: Privilege::Ptrace, hook, detail: mode, target: 0 })
}

/// LSM `task_kill(task, info, signal, cred)`.
#[inline(always)]
pub fn signal(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(4);
    if prior != 0 {
        return prior;
    }
    let (task, signal): (u64, u32) = (ctx.arg(0), ctx.arg(2));
    if signal == 0 {
        return 0; // it only asks whether the process exists
    }
    let Some(actor) = identity::acting() else { return 0 };
    let hook = Hook::TaskKill;
    on(&actor, task, Asked { privilege: Privilege::Signal, hook, detail: signal, target: 0 })
}

/// LSM `sb_mount`, `move_mount`, `sb_umount`, `sb_pivotroot`; the verdict so far comes with it.
#[inline(always)]
pub fn mount(_: &LsmContext, prior: i32, hook: Hook) -> i32 {
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    judge(&actor, &Asked { privilege: Privilege::Mount, hook, detail: 0, target: 0 })
}

/// LSM `userns_create(cred)`.
#[inline(always)]
pub fn user_namespace(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(1);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    let hook = Hook::UsernsCreate;
    judge(&actor, &Asked { privilege: Privilege::Namespace, hook, detail: 0, target: 0 })
}

/// LSM `capable(cred, ns, cap, opts)`: capabilities that reach beyond files, signals and peers, where they
/// count for the whole host. It is asked after the kernel itself has said yes.
#[inline(always)]
pub fn capable(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(4);
    if prior != 0 {
        return prior;
    }
    let (capability, options): (u32, u32) = (ctx.arg(2), ctx.arg(3));
    let judged = matches!(
        capability,
        CAP_NET_ADMIN
            | CAP_SYS_MODULE
            | CAP_SYS_RAWIO
            | CAP_SYS_ADMIN
            | CAP_SYS_BOOT
            | CAP_SYS_TIME
            | CAP_MKNOD
            | CAP_PERFMON
    );
    if !judged || options & CAP_OPT_NOAUDIT != 0 {
        return 0;
    }
    let Some(actor) = identity::acting() else { return 0 };
    let (cred, namespace): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    // SAFETY: a plain helper call.
    let task = unsafe { bpf_get_current_task_btf() };
    // The kernel may act with somebody else's credentials on behalf of the task, as overlayfs does.
    if read::<u64>(task as u64, &offsets().task_real_cred).is_some_and(|own| own != cred) {
        return 0;
    }
    // In a user namespace of its own, it has no power over the host.
    if read::<u32>(namespace, &offsets().user_ns_level).is_some_and(|level| level != 0) {
        return 0;
    }
    let privilege = match capability {
        CAP_SYS_MODULE => Privilege::Module,
        CAP_SYS_BOOT => Privilege::Kexec,
        CAP_SYS_ADMIN => {
            // SAFETY: the current task.
            let regs = unsafe { bpf_task_pt_regs(task.cast()) } as u64;
            by_call(read(regs, &offsets().regs_call).unwrap_or(u32::MAX))
        }
        _ => Privilege::Capability,
    };
    judge(&actor, &Asked { privilege, hook: Hook::Capable, detail: capability, target: 0 })
}

/// What `CAP_SYS_ADMIN` is used for in this system call.
#[inline(always)]
fn by_call(number: u32) -> Privilege {
    let number = number as usize;
    for call in &kernel().namespace_calls {
        if known(call) == number {
            return Privilege::Namespace;
        }
    }
    for call in &kernel().mount_calls {
        if known(call) == number {
            return Privilege::Mount;
        }
    }
    Privilege::Capability
}

/// LSM `bprm_creds_from_file(bprm, file)`: after the kernel has made the credentials that the program would
/// run with.
#[inline(always)]
pub fn creds_from_file(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(2);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    let bprm: u64 = ctx.arg(0);
    if gains(bprm) == Some(false) {
        return 0;
    }
    let hook = Hook::BprmCredsFromFile;
    judge(&actor, &Asked { privilege: Privilege::Setuid, hook, detail: 0, target: 0 })
}

/// True when the program would run as another user or group, or with more capabilities.
#[inline(always)]
fn gains(bprm: u64) -> Option<bool> {
    // SAFETY: a plain helper call.
    let task = unsafe { bpf_get_current_task() };
    let old: u64 = read(task, &offsets().task_cred)?;
    let new: u64 = read(bprm, &offsets().binprm_cred)?;
    let (old_user, new_user): (u32, u32) =
        (read(old, &offsets().cred_euid)?, read(new, &offsets().cred_euid)?);
    let (old_group, new_group): (u32, u32) =
        (read(old, &offsets().cred_egid)?, read(new, &offsets().cred_egid)?);
    let (had, has): (u64, u64) =
        (read(old, &offsets().cred_permitted)?, read(new, &offsets().cred_permitted)?);
    Some(old_user != new_user || old_group != new_group || has & !had != 0)
}
