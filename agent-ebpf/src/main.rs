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
mod memo;
mod offsets;

use agent_ebpf::Hook;
use aya_ebpf::{
    macros::{btf_tracepoint, cgroup_sock, cgroup_sock_addr, lsm},
    programs::{BtfTracePointContext, LsmContext, SockAddrContext, SockContext},
};
use hooks::{
    change, content, exec, file, held, lifecycle, names, net, privilege, send, socket, unix,
};

#[lsm(hook = "file_open")]
fn file_open(ctx: LsmContext) -> i32 {
    file::open(&ctx)
}

#[lsm(hook = "file_receive")]
fn file_receive(ctx: LsmContext) -> i32 {
    file::receive(&ctx)
}

#[lsm(hook = "file_permission")]
fn file_permission(ctx: LsmContext) -> i32 {
    held::permission(&ctx)
}

#[lsm(hook = "file_truncate")]
fn file_truncate(ctx: LsmContext) -> i32 {
    held::truncate(&ctx)
}

#[lsm(hook = "mmap_file")]
fn mmap_file(ctx: LsmContext) -> i32 {
    file::map(&ctx, false)
}

#[lsm(hook = "mmap_file", sleepable)]
fn mmap_file_ima(ctx: LsmContext) -> i32 {
    file::map(&ctx, true)
}

#[lsm(hook = "file_mprotect")]
fn file_mprotect(ctx: LsmContext) -> i32 {
    file::protect(&ctx)
}

#[lsm(hook = "bprm_check_security")]
fn bprm_check(ctx: LsmContext) -> i32 {
    exec::check(&ctx, false)
}

#[lsm(hook = "bprm_check_security", sleepable)]
fn bprm_check_ima(ctx: LsmContext) -> i32 {
    exec::check(&ctx, true)
}

#[lsm(hook = "file_lock", sleepable)]
fn try_ima(ctx: LsmContext) -> i32 {
    content::try_ima(&ctx)
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

#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    names::answered4(&ctx);
    1
}

#[cgroup_sock_addr(recvmsg6)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    names::answered6(&ctx);
    1
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

#[lsm(hook = "path_unlink")]
fn path_unlink(ctx: LsmContext) -> i32 {
    change::remove(&ctx, Hook::PathUnlink)
}

#[lsm(hook = "path_rmdir")]
fn path_rmdir(ctx: LsmContext) -> i32 {
    change::remove(&ctx, Hook::PathRmdir)
}

#[lsm(hook = "path_mkdir")]
fn path_mkdir(ctx: LsmContext) -> i32 {
    change::make(&ctx, Hook::PathMkdir)
}

#[lsm(hook = "path_symlink")]
fn path_symlink(ctx: LsmContext) -> i32 {
    change::make(&ctx, Hook::PathSymlink)
}

#[lsm(hook = "path_mknod")]
fn path_mknod(ctx: LsmContext) -> i32 {
    change::make_node(&ctx)
}

#[lsm(hook = "path_rename")]
fn path_rename(ctx: LsmContext) -> i32 {
    change::rename(&ctx)
}

#[lsm(hook = "path_link")]
fn path_link(ctx: LsmContext) -> i32 {
    change::link(&ctx)
}

#[lsm(hook = "path_truncate")]
fn path_truncate(ctx: LsmContext) -> i32 {
    change::truncate(&ctx)
}

#[lsm(hook = "path_chmod")]
fn path_chmod(ctx: LsmContext) -> i32 {
    change::chmod(&ctx)
}

#[lsm(hook = "path_chown")]
fn path_chown(ctx: LsmContext) -> i32 {
    change::chown(&ctx)
}

#[lsm(hook = "inode_setattr")]
fn inode_setattr(ctx: LsmContext) -> i32 {
    change::times(&ctx)
}

#[lsm(hook = "inode_setxattr")]
fn inode_setxattr(ctx: LsmContext) -> i32 {
    change::attribute(&ctx, Hook::InodeSetxattr, ctx.arg(6))
}

#[lsm(hook = "inode_removexattr")]
fn inode_removexattr(ctx: LsmContext) -> i32 {
    change::attribute(&ctx, Hook::InodeRemovexattr, ctx.arg(3))
}

#[lsm(hook = "inode_set_acl")]
fn inode_set_acl(ctx: LsmContext) -> i32 {
    change::attribute(&ctx, Hook::InodeSetAcl, ctx.arg(4))
}

#[lsm(hook = "inode_remove_acl")]
fn inode_remove_acl(ctx: LsmContext) -> i32 {
    change::attribute(&ctx, Hook::InodeRemoveAcl, ctx.arg(3))
}

#[lsm(hook = "socket_create")]
fn socket_create(ctx: LsmContext) -> i32 {
    socket::create(&ctx)
}

#[cgroup_sock(sock_create)]
fn sock_create(ctx: SockContext) -> i32 {
    socket::made(&ctx)
}

#[lsm(hook = "socket_listen")]
fn socket_listen(ctx: LsmContext) -> i32 {
    net::listen(&ctx)
}

#[lsm(hook = "socket_sendmsg")]
fn socket_sendmsg(ctx: LsmContext) -> i32 {
    send::message(&ctx, Hook::SocketSendmsg, ctx.arg(3))
}

#[lsm(hook = "socket_recvmsg")]
fn socket_recvmsg(ctx: LsmContext) -> i32 {
    send::message(&ctx, Hook::SocketRecvmsg, ctx.arg(4))
}

#[lsm(hook = "sock_graft")]
fn sock_graft(ctx: LsmContext) -> i32 {
    send::accepted(&ctx)
}

#[lsm(hook = "socket_bind")]
fn socket_bind(ctx: LsmContext) -> i32 {
    unix::bind(&ctx)
}

#[lsm(hook = "unix_stream_connect")]
fn unix_connect(ctx: LsmContext) -> i32 {
    unix::connect(&ctx)
}

#[lsm(hook = "unix_may_send")]
fn unix_may_send(ctx: LsmContext) -> i32 {
    unix::may_send(&ctx)
}

#[lsm(hook = "ptrace_access_check")]
fn ptrace_check(ctx: LsmContext) -> i32 {
    privilege::ptrace(&ctx)
}

#[lsm(hook = "task_kill")]
fn task_kill(ctx: LsmContext) -> i32 {
    privilege::signal(&ctx)
}

#[lsm(hook = "sb_mount")]
fn sb_mount(ctx: LsmContext) -> i32 {
    privilege::mount(&ctx, ctx.arg(5), Hook::SbMount)
}

#[lsm(hook = "move_mount")]
fn move_mount(ctx: LsmContext) -> i32 {
    privilege::mount(&ctx, ctx.arg(2), Hook::MoveMount)
}

#[lsm(hook = "sb_umount")]
fn sb_umount(ctx: LsmContext) -> i32 {
    privilege::mount(&ctx, ctx.arg(2), Hook::SbUmount)
}

#[lsm(hook = "sb_pivotroot")]
fn sb_pivotroot(ctx: LsmContext) -> i32 {
    privilege::mount(&ctx, ctx.arg(2), Hook::SbPivotroot)
}

#[lsm(hook = "userns_create")]
fn userns_create(ctx: LsmContext) -> i32 {
    privilege::user_namespace(&ctx)
}

#[lsm(hook = "capable")]
fn capable(ctx: LsmContext) -> i32 {
    privilege::capable(&ctx)
}

#[lsm(hook = "bprm_creds_from_file")]
fn bprm_creds(ctx: LsmContext) -> i32 {
    privilege::creds_from_file(&ctx)
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
