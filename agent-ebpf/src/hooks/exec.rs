//! Programs: judged before they run, told when they do.

use agent_ebpf::{ARGV_MAX, Action, ExecBody, Header, Hook, Kind, PATH_MAX};
use aya_ebpf::{
    helpers::generated::{bpf_probe_read_kernel_str, bpf_probe_read_user},
    programs::{BtfTracePointContext, LsmContext},
};

use super::file::{self, Opened, Wanted};
use crate::{
    emit, identity,
    maps::EXEC_SCRATCH,
    offsets::{member, offsets},
};

/// LSM `bprm_check_security(bprm)`: the file that will run, then the interpreter of a script. By here the kernel
/// keeps everybody from writing to it.
#[inline(always)]
pub fn check(ctx: &LsmContext, with_ima: bool) -> i32 {
    let prior: i32 = ctx.arg(1);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else {
        return 0;
    };
    let bprm: *const u8 = ctx.arg(0);
    // SAFETY: members of the program that is being loaded.
    let (file, flags) = unsafe {
        let file: *const u8 = member(bprm, &offsets().binprm_file);
        (file, member::<u32>(file, &offsets().file_flags))
    };
    let wanted = Wanted { first: Action::Exec, then: None };
    file::judge(
        &actor,
        &Opened { file: file as u64, flags, is_new: false, with_ima },
        wanted,
        Hook::BprmCheck,
    )
}

/// `sched_process_exec(task, old_pid, bprm)`: the program is loaded, its arguments are on its stack.
#[inline(always)]
pub fn done(ctx: &BtfTracePointContext) -> i32 {
    let Some(actor) = identity::acting() else {
        return 0;
    };
    let Some(record) = EXEC_SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    let (task, bprm): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(2));
    // SAFETY: the element is this CPU's and no other run of this program is in it; members of the
    // task and program that the tracepoint passed.
    unsafe {
        // The daemon, which enrols what it finds by cgroup, does not know it.
        if let Some(entry) = actor.task()
            && entry.start == 0
        {
            let leader: *const u8 = member(task, &offsets().task_leader);
            entry.start = member(leader, &offsets().task_start);
        }
        let filename: *const u8 = member(bprm, &offsets().binprm_filename);
        let interp: *const u8 = member(bprm, &offsets().binprm_interp);
        let mm: *const u8 = member(task, &offsets().task_mm);
        let (start, end): (u64, u64) =
            (member(mm, &offsets().mm_arg_start), member(mm, &offsets().mm_arg_end));

        let tail = (&raw mut (*record).tail).cast::<u8>();
        let named = bpf_probe_read_kernel_str(tail.cast(), PATH_MAX as u32, filename.cast());
        let name_len = if named > 0 { (named as usize - 1) & (PATH_MAX - 1) } else { 0 };
        let total = end.saturating_sub(start);
        let wanted = if total < ARGV_MAX as u64 { total as usize } else { ARGV_MAX };
        let wanted = wanted & (2 * ARGV_MAX - 1);
        let mut argv_len = 0;
        if wanted <= ARGV_MAX {
            let room = tail.add(name_len);
            if bpf_probe_read_user(room.cast(), wanted as u32, start as *const _) == 0 {
                argv_len = wanted;
            }
        }

        emit::fill(&mut (*record).header, &actor, Kind::Exec, Hook::SchedExec);
        emit::happened(&mut (*record).header);
        (*record).body = ExecBody {
            filename_len: name_len as u32,
            argv_len: argv_len as u32,
            argv_total: if total > u64::from(u32::MAX) { u32::MAX } else { total as u32 },
            is_script: u8::from(interp != filename),
            pad: [0; 3],
        };
        let size = size_of::<Header>() + size_of::<ExecBody>() + name_len + argv_len;
        emit::send_bytes(record.cast(), size as u32);
    }
    0
}
