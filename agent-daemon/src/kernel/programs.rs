//! Every program: where it attaches, and how it is put there.

use std::{fs, io, path::Path};

use aya::{
    Ebpf,
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSock, CgroupSockAddr, Lsm, ProgramError,
        ProgramInfo, links::FdLink,
    },
};

use super::{host::Host, load::Settings};

/// What a program attaches to.
pub(super) enum Kind {
    Lsm(&'static str),
    Trace(&'static str),
    Cgroup,
    CgroupSock,
}

/// Every program: its name in the object, its hook, its kind.
pub(super) const PROGRAMS: [(&str, agent_ebpf::Hook, Kind); 53] = {
    use agent_ebpf::Hook;
    [
        ("sched_fork", Hook::SchedFork, Kind::Trace("sched_process_fork")),
        ("sched_exec", Hook::SchedExec, Kind::Trace("sched_process_exec")),
        ("sched_exit", Hook::SchedExit, Kind::Trace("sched_process_exit")),
        ("connect4", Hook::Connect4, Kind::Cgroup),
        ("connect6", Hook::Connect6, Kind::Cgroup),
        ("sendmsg4", Hook::Sendmsg4, Kind::Cgroup),
        ("sendmsg6", Hook::Sendmsg6, Kind::Cgroup),
        ("bind4", Hook::Bind4, Kind::Cgroup),
        ("bind6", Hook::Bind6, Kind::Cgroup),
        ("recvmsg4", Hook::Recvmsg4, Kind::Cgroup),
        ("recvmsg6", Hook::Recvmsg6, Kind::Cgroup),
        ("sock_create", Hook::SockCreate, Kind::CgroupSock),
        ("bpf_call", Hook::Bpf, Kind::Lsm("bpf")),
        ("socket_connect", Hook::SocketConnect, Kind::Lsm("socket_connect")),
        ("socket_create", Hook::SocketCreate, Kind::Lsm("socket_create")),
        ("socket_listen", Hook::SocketListen, Kind::Lsm("socket_listen")),
        ("ptrace_check", Hook::PtraceAccessCheck, Kind::Lsm("ptrace_access_check")),
        ("task_kill", Hook::TaskKill, Kind::Lsm("task_kill")),
        ("sb_mount", Hook::SbMount, Kind::Lsm("sb_mount")),
        ("move_mount", Hook::MoveMount, Kind::Lsm("move_mount")),
        ("sb_umount", Hook::SbUmount, Kind::Lsm("sb_umount")),
        ("sb_pivotroot", Hook::SbPivotroot, Kind::Lsm("sb_pivotroot")),
        ("userns_create", Hook::UsernsCreate, Kind::Lsm("userns_create")),
        ("capable", Hook::Capable, Kind::Lsm("capable")),
        ("bprm_creds", Hook::BprmCredsFromFile, Kind::Lsm("bprm_creds_from_file")),
        ("bprm_check", Hook::BprmCheck, Kind::Lsm("bprm_check_security")),
        ("file_open", Hook::FileOpen, Kind::Lsm("file_open")),
        ("file_receive", Hook::FileReceive, Kind::Lsm("file_receive")),
        ("file_permission", Hook::FilePermission, Kind::Lsm("file_permission")),
        ("file_truncate", Hook::FileTruncate, Kind::Lsm("file_truncate")),
        ("mmap_file", Hook::MmapFile, Kind::Lsm("mmap_file")),
        ("file_mprotect", Hook::FileMprotect, Kind::Lsm("file_mprotect")),
        ("path_unlink", Hook::PathUnlink, Kind::Lsm("path_unlink")),
        ("path_rmdir", Hook::PathRmdir, Kind::Lsm("path_rmdir")),
        ("path_rename", Hook::PathRename, Kind::Lsm("path_rename")),
        ("path_link", Hook::PathLink, Kind::Lsm("path_link")),
        ("path_mknod", Hook::PathMknod, Kind::Lsm("path_mknod")),
        ("path_mkdir", Hook::PathMkdir, Kind::Lsm("path_mkdir")),
        ("path_symlink", Hook::PathSymlink, Kind::Lsm("path_symlink")),
        ("path_truncate", Hook::PathTruncate, Kind::Lsm("path_truncate")),
        ("path_chmod", Hook::PathChmod, Kind::Lsm("path_chmod")),
        ("path_chown", Hook::PathChown, Kind::Lsm("path_chown")),
        ("inode_setattr", Hook::InodeSetattr, Kind::Lsm("inode_setattr")),
        ("inode_setxattr", Hook::InodeSetxattr, Kind::Lsm("inode_setxattr")),
        ("inode_removexattr", Hook::InodeRemovexattr, Kind::Lsm("inode_removexattr")),
        ("inode_set_acl", Hook::InodeSetAcl, Kind::Lsm("inode_set_acl")),
        ("inode_remove_acl", Hook::InodeRemoveAcl, Kind::Lsm("inode_remove_acl")),
        ("socket_bind", Hook::SocketBind, Kind::Lsm("socket_bind")),
        ("sock_graft", Hook::SockGraft, Kind::Lsm("sock_graft")),
        ("socket_sendmsg", Hook::SocketSendmsg, Kind::Lsm("socket_sendmsg")),
        ("socket_recvmsg", Hook::SocketRecvmsg, Kind::Lsm("socket_recvmsg")),
        ("unix_connect", Hook::UnixStreamConnect, Kind::Lsm("unix_stream_connect")),
        ("unix_may_send", Hook::UnixMaySend, Kind::Lsm("unix_may_send")),
    ]
};

/// Why a program was refused, with every cause once.
pub(super) fn explain(host: &Host, error: &ProgramError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = source.source();
    }
    format!("refused by {}: {text}", host.release)
}

/// The program that takes the place of one of this name where IMA is asked for contents.
pub(super) fn asking(name: &str) -> Option<&'static str> {
    match name {
        "bprm_check" => Some("bprm_check_ima"),
        "mmap_file" => Some("mmap_file_ima"),
        _ => None,
    }
}

pub(super) fn verified(info: &ProgramInfo) -> Option<u32> {
    info.verified_instruction_count()
}

/// Puts programs into the kernel.
pub(super) struct Attacher<'a> {
    pub(super) host: &'a Host,
    pub(super) settings: &'a Settings,
    pub(super) btf: &'a aya::Btf,
    pub(super) links: &'a Path,
    /// Where the kernel has its `ima_policy_flag`; or why IMA is not asked for contents.
    pub(super) ima: Result<u64, String>,
}

impl Attacher<'_> {
    /// Has the verifier check one program; returns what it counted.
    pub(super) fn check(
        &mut self,
        ebpf: &mut Ebpf,
        name: &str,
        kind: &Kind,
    ) -> Result<Option<u32>, ProgramError> {
        self.either(name, |own, name| own.check_one(ebpf, name, kind))
    }

    /// Checks, attaches and pins one program; returns what the verifier counted.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        name: &str,
        kind: &Kind,
    ) -> Result<Option<u32>, ProgramError> {
        let pin = self.links.join(name);
        self.either(name, |own, name| own.attach_one(ebpf, name, kind, &pin))
    }

    /// Does it with the program that asks IMA, if there is one; where that is refused, with the one that does not.
    fn either<T>(
        &mut self,
        name: &str,
        mut act: impl FnMut(&Self, &str) -> Result<T, ProgramError>,
    ) -> Result<T, ProgramError> {
        if self.ima.is_ok()
            && let Some(asking) = asking(name)
        {
            match act(self, asking) {
                Ok(done) => return Ok(done),
                Err(error) => self.ima = Err(explain(self.host, &error)),
            }
        }
        act(self, name)
    }

    fn check_one(
        &self,
        ebpf: &mut Ebpf,
        name: &str,
        kind: &Kind,
    ) -> Result<Option<u32>, ProgramError> {
        let program = ebpf.program_mut(name).ok_or_else(|| {
            ProgramError::IOError(io::Error::other(format!("the object has no program {name}")))
        })?;
        match kind {
            Kind::Lsm(hook) => <&mut Lsm>::try_from(&mut *program)?.load(hook, self.btf)?,
            Kind::Trace(point) => {
                <&mut BtfTracePoint>::try_from(&mut *program)?.load(point, self.btf)?
            }
            Kind::Cgroup => <&mut CgroupSockAddr>::try_from(&mut *program)?.load()?,
            Kind::CgroupSock => <&mut CgroupSock>::try_from(&mut *program)?.load()?,
        }
        Ok(program.info().ok().as_ref().and_then(verified))
    }

    fn attach_one(
        &self,
        ebpf: &mut Ebpf,
        name: &str,
        kind: &Kind,
        pin: &Path,
    ) -> Result<Option<u32>, ProgramError> {
        let verified = self.check_one(ebpf, name, kind)?;
        let Some(program) = ebpf.program_mut(name) else {
            return Ok(None);
        };
        let no_link = || {
            ProgramError::IOError(io::Error::other(format!(
                "{} gives no link for cgroup programs",
                self.host.release
            )))
        };
        let cgroup = || fs::File::open(&self.settings.attach).map_err(ProgramError::IOError);
        let link: FdLink = match kind {
            Kind::Lsm(_) => {
                let program: &mut Lsm = program.try_into()?;
                let id = program.attach()?;
                program.take_link(id)?.into()
            }
            Kind::Trace(_) => {
                let program: &mut BtfTracePoint = program.try_into()?;
                let id = program.attach()?;
                program.take_link(id)?.into()
            }
            Kind::Cgroup => {
                let program: &mut CgroupSockAddr = program.try_into()?;
                let id = program.attach(cgroup()?, CgroupAttachMode::Single)?;
                program.take_link(id)?.try_into().map_err(|_| no_link())?
            }
            Kind::CgroupSock => {
                let program: &mut CgroupSock = program.try_into()?;
                let id = program.attach(cgroup()?, CgroupAttachMode::Single)?;
                program.take_link(id)?.try_into().map_err(|_| no_link())?
            }
        };
        link.pin(pin)
            .map_err(|error| ProgramError::IOError(io::Error::other(error.to_string())))?;
        Ok(verified)
    }
}
