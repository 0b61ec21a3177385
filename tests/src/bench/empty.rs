//! Programs that do nothing, attached where Ambit's are.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use aya::programs::{CgroupAttachMode, Program};
use aya::{Btf, Ebpf};

/// They are gone when this is dropped.
pub(super) struct Programs(#[expect(dead_code, reason = "it holds the links")] Ebpf);

impl Programs {
    /// Attaches every program of an object; those of cgroups at this one.
    pub(super) fn attach(object: &Path, cgroup: &Path) -> Result<Self> {
        let shown = object.display();
        let mut ebpf = Ebpf::load_file(object).with_context(|| format!("cannot load {shown}"))?;
        let btf = Btf::from_sys_fs().context("this kernel has no BTF")?;
        let cgroup = File::open(cgroup)?;
        for (name, program) in ebpf.programs_mut() {
            let name = name.to_owned();
            let mut attach = || -> Result<()> {
                match program {
                    Program::Lsm(lsm) => {
                        lsm.load(&name, &btf)?;
                        lsm.attach()?;
                    }
                    Program::BtfTracePoint(point) => {
                        point.load(&name, &btf)?;
                        point.attach()?;
                    }
                    Program::CgroupSockAddr(address) => {
                        address.load()?;
                        address.attach(&cgroup, CgroupAttachMode::Single)?;
                    }
                    Program::CgroupSock(sock) => {
                        sock.load()?;
                        sock.attach(&cgroup, CgroupAttachMode::Single)?;
                    }
                    _ => anyhow::bail!("a program of a kind that Ambit has none of"),
                }
                Ok(())
            };
            attach().with_context(|| format!("cannot attach {name} of {shown}"))?;
        }
        Ok(Self(ebpf))
    }
}
