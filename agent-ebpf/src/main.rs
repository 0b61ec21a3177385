//! The list of programs; what each does is in its file under `hooks/`.
#![no_std]
#![no_main]
// For the atomic instructions: inline assembly is not yet stable on BPF.
#![feature(asm_experimental_arch)]

mod atomic;
mod emit;
mod hooks;
mod identity;
mod maps;
mod offsets;

use agent_ebpf::Hook;
use aya_ebpf::{
    macros::{btf_tracepoint, cgroup_sock_addr, lsm},
    programs::{BtfTracePointContext, LsmContext, SockAddrContext},
};
use hooks::{exec, file, guard, lifecycle, net, privilege};

#[lsm(hook = "file_open")]
fn file_open(ctx: LsmContext) -> i32 {
    file::open(&ctx)
}

#[lsm(hook = "bprm_check_security")]
fn bprm_check(ctx: LsmContext) -> i32 {
    exec::check(&ctx)
}

#[lsm(hook = "socket_connect")]
fn socket_connect(ctx: LsmContext) -> i32 {
    net::socket_connect(&ctx)
}

#[lsm(hook = "bpf")]
fn bpf_call(ctx: LsmContext) -> i32 {
    privilege::bpf(&ctx)
}

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    net::connect4(&ctx)
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    net::connect6(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    net::sendmsg4(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    net::sendmsg6(&ctx)
}

#[cgroup_sock_addr(bind4)]
fn bind4(ctx: SockAddrContext) -> i32 {
    net::bind4(&ctx)
}

#[cgroup_sock_addr(bind6)]
fn bind6(ctx: SockAddrContext) -> i32 {
    net::bind6(&ctx)
}

#[btf_tracepoint(function = "sched_process_fork")]
fn sched_fork(ctx: BtfTracePointContext) -> i32 {
    lifecycle::fork(&ctx)
}

#[btf_tracepoint(function = "sched_process_exec")]
fn sched_exec(ctx: BtfTracePointContext) -> i32 {
    exec::done(&ctx)
}

#[btf_tracepoint(function = "sched_process_exit")]
fn sched_exit(ctx: BtfTracePointContext) -> i32 {
    lifecycle::exit(&ctx)
}

#[lsm(hook = "inode_unlink")]
fn inode_unlink(ctx: LsmContext) -> i32 {
    guard::removes(&ctx, Hook::InodeUnlink)
}

#[lsm(hook = "inode_rmdir")]
fn inode_rmdir(ctx: LsmContext) -> i32 {
    guard::removes(&ctx, Hook::InodeRmdir)
}

#[lsm(hook = "inode_create")]
fn inode_create(ctx: LsmContext) -> i32 {
    guard::makes(&ctx, Hook::InodeCreate)
}

#[lsm(hook = "inode_mkdir")]
fn inode_mkdir(ctx: LsmContext) -> i32 {
    guard::makes(&ctx, Hook::InodeMkdir)
}

#[lsm(hook = "inode_symlink")]
fn inode_symlink(ctx: LsmContext) -> i32 {
    guard::makes(&ctx, Hook::InodeSymlink)
}

#[lsm(hook = "inode_rename")]
fn inode_rename(ctx: LsmContext) -> i32 {
    guard::rename(&ctx)
}

#[lsm(hook = "inode_link")]
fn inode_link(ctx: LsmContext) -> i32 {
    guard::link(&ctx)
}

#[lsm(hook = "path_truncate")]
fn path_truncate(ctx: LsmContext) -> i32 {
    guard::truncate(&ctx)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // No panicking path survives optimisation; were one left, the verifier would refuse the loop.
    loop {}
}

/// The helpers used here need a GPL-compatible program (include/uapi/linux/bpf.h).
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
