//! Whether the kernel's IMA gives the SHA-256 of a file to a program that asks: found out by asking it.

use std::{
    fs::{self, File},
    io::Write as _,
};

use agent_ebpf::{Content, Trial};
use aya::{Ebpf, maps::Array, programs::Lsm};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::memfd::{MFdFlags, memfd_create},
};
use sha2::{Digest as _, Sha256};

use super::host::Host;

/// What the kernel calls its own symbols by.
const SYMBOLS: &str = "/proc/kallsyms";
/// Set once an IMA policy is loaded (security/integrity/ima/ima_policy.c).
const FLAG: &str = "ima_policy_flag";
/// What is asked about.
const TEXT: &[u8] = b"ambit\n";

/// Has a program ask IMA about a file of the daemon's own, and puts it away again. Returns where the kernel has the
/// flag that says whether an IMA policy is loaded; the error says why IMA is not asked.
pub(super) fn try_out(host: &Host, ebpf: &mut Ebpf, btf: &aya::Btf) -> Result<u64, String> {
    // `__bpf_prog_enter_sleepable` of kernel/bpf/trampoline.c; from 6.2 on LSM programs are let in.
    if host.version < (6, 2) {
        return Err(format!(
            "{} skips an LSM program in which another task sleeps on that CPU, as it does while IMA reads; \
             boot Linux 6.2 or later",
            host.release
        ));
    }
    let flag = flag()?;
    let trial = ask(flag, ebpf, btf)?;
    if trial.has_policy != 0 {
        return Err(
            "an IMA policy is loaded, with which IMA may give out what it collected earlier"
                .to_owned(),
        );
    }
    if trial.algorithm != Content::SHA256 || trial.digest[..] != Sha256::digest(TEXT)[..] {
        return Err(format!(
            "IMA answers {} (include/uapi/linux/hash_info.h, or an errno) and not with SHA-256; boot with \
             `ima_hash=sha256`",
            trial.algorithm
        ));
    }
    Ok(flag)
}

/// Where the kernel has [`FLAG`].
fn flag() -> Result<u64, String> {
    let text = fs::read_to_string(SYMBOLS)
        .map_err(|error| format!("cannot read {SYMBOLS}, which tells where {FLAG} is: {error}"))?;
    address_of(FLAG, &text).ok_or_else(|| {
        format!(
            "{SYMBOLS} does not tell where {FLAG} is: the kernel needs CONFIG_IMA and CONFIG_KALLSYMS_ALL, and \
             kernel.kptr_restrict below 2"
        )
    })
}

/// The address of a symbol of the kernel itself; none where it is kept secret.
fn address_of(symbol: &str, text: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split(' ');
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        (words.nth(1) == Some(symbol) && address != 0).then_some(address)
    })
}

/// Asks once.
fn ask(flag: u64, ebpf: &mut Ebpf, btf: &aya::Btf) -> Result<Trial, String> {
    let failed =
        |what: &'static str| move |error: &dyn std::fmt::Display| format!("{what}: {error}");
    let tgid = std::process::id();
    let mut table: Array<_, Trial> = ebpf
        .take_map("TRIAL")
        .ok_or_else(|| "the object has no map TRIAL".to_owned())?
        .try_into()
        .map_err(|error: aya::maps::MapError| failed("cannot open TRIAL")(&error))?;
    table
        .set(0, Trial { flag, tgid, ..Trial::default() }, 0)
        .map_err(|error| failed("cannot write TRIAL")(&error))?;
    let mut file = memfd_create("ambit", MFdFlags::MFD_CLOEXEC)
        .map(File::from)
        .map_err(|error| failed("cannot make a file in memory")(&error))?;
    file.write_all(TEXT).map_err(|error| failed("cannot write a file in memory")(&error))?;
    let program: &mut Lsm = ebpf
        .program_mut("try_ima")
        .ok_or_else(|| "the object has no program try_ima".to_owned())?
        .try_into()
        .map_err(|error: aya::programs::ProgramError| failed("try_ima")(&error))?;
    let refused = failed("a program that asks IMA is refused");
    program.load("file_lock", btf).map_err(|error| refused(&error))?;
    let link = program.attach().map_err(|error| refused(&error))?;
    let locked = Flock::lock(file, FlockArg::LockSharedNonblock);
    let put_away = program.detach(link).and_then(|()| program.unload());
    put_away.map_err(|error| failed("cannot put away the program that asks IMA")(&error))?;
    locked.map_err(|(_, error)| failed("cannot lock a file in memory")(&error))?;
    table.get(&0, 0).map_err(|error| failed("cannot read TRIAL")(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_symbol_and_no_secret_one() {
        let text = "ffffffff81000000 T ima_policy_flags\nffffffffb602ae4c B ima_policy_flag\n";
        assert_eq!(address_of(FLAG, text), Some(0xffff_ffff_b602_ae4c));
        assert_eq!(address_of(FLAG, "0000000000000000 B ima_policy_flag\n"), None);
        assert_eq!(address_of(FLAG, "ffffffff81000000 d ima_policy_flag\t[other]\n"), None);
        assert_eq!(address_of(FLAG, ""), None);
    }
}
