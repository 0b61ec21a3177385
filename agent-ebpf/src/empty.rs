//! Programs that do nothing, on the hooks that every day's actions pass: the limit that `cargo xtask bench hooks`
//! measures against. Never part of a release.
#![no_std]
#![no_main]

use aya_ebpf::{
    macros::{btf_tracepoint, cgroup_sock, cgroup_sock_addr, lsm},
    programs::{BtfTracePointContext, LsmContext, SockAddrContext, SockContext},
};

/// Programs named after their LSM hooks.
macro_rules! lsm_hooks {
    ($($hook:ident)*) => { $(
        #[lsm]
        fn $hook(_: LsmContext) -> i32 {
            0
        }
    )* };
}

lsm_hooks! {
    file_permission bprm_check_security bprm_creds_from_file mmap_file file_mprotect
    socket_create socket_connect socket_listen socket_bind socket_sendmsg socket_recvmsg sock_graft
    capable task_kill
}

#[lsm(sleepable)]
fn file_open(_: LsmContext) -> i32 {
    0
}

macro_rules! tracepoints {
    ($($point:ident)*) => { $(
        #[btf_tracepoint]
        fn $point(_: BtfTracePointContext) -> i32 {
            0
        }
    )* };
}

tracepoints! { sched_process_fork sched_process_exec sched_process_exit }

#[cgroup_sock_addr(connect4)]
fn connect4(_: SockAddrContext) -> i32 {
    1
}

#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(_: SockAddrContext) -> i32 {
    1
}

#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(_: SockAddrContext) -> i32 {
    1
}

#[cgroup_sock_addr(bind4)]
fn bind4(_: SockAddrContext) -> i32 {
    1
}

#[cgroup_sock(sock_create)]
fn sock_create(_: SockContext) -> i32 {
    1
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
