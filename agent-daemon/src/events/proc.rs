//! What `/proc` says of a process: the fallback for processes whose birth was not seen.

use std::fs;
use std::os::unix::ffi::OsStringExt as _;

/// One process as `/proc` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcInfo {
    /// Start time in nanoseconds since boot, rounded down to [`TICK_NS`].
    pub start: u64,
    /// Thread group id of the parent.
    pub parent: u32,
    /// Real user id.
    pub uid: u32,
    /// Name as the process chose it.
    pub comm: Vec<u8>,
    /// The executable's path, when it could be read.
    pub exe: Option<Vec<u8>>,
    /// Arguments, each ended by NUL.
    pub argv: Vec<u8>,
}

/// `/proc` counts start times in ticks of 1/100 s on every architecture that Ambit runs on.
pub const TICK_NS: u64 = 10_000_000;

/// Longest command line that is read.
const CMDLINE_MAX: usize = agent_ebpf::ARGV_MAX;

/// Where processes are looked up whose birth was not seen.
pub trait ProcSource: Send {
    /// What is known of this process; `None` when it is gone or may not be read.
    fn read(&mut self, tgid: u32) -> Option<ProcInfo>;
}

/// The machine's `/proc`.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlashProc;

/// Knows nothing: for tests and for replaying records.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProc;

impl ProcSource for NoProc {
    fn read(&mut self, _tgid: u32) -> Option<ProcInfo> {
        None
    }
}

impl ProcSource for SlashProc {
    fn read(&mut self, tgid: u32) -> Option<ProcInfo> {
        let at = format!("/proc/{tgid}");
        let mut info = stat(&fs::read(format!("{at}/stat")).ok()?)?;
        info.uid = uid(&fs::read(format!("{at}/status")).ok()?)?;
        // A kernel thread or a dying process has none; the rest is still worth having.
        info.exe =
            fs::read_link(format!("{at}/exe")).ok().map(|path| path.into_os_string().into_vec());
        info.argv = fs::read(format!("{at}/cmdline")).unwrap_or_default();
        info.argv.truncate(CMDLINE_MAX);
        Some(info)
    }
}

fn stat(text: &[u8]) -> Option<ProcInfo> {
    // The name may hold anything, spaces and parentheses too: it ends at the last one.
    let open = text.iter().position(|&b| b == b'(')?;
    let close = text.iter().rposition(|&b| b == b')')?;
    let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    // Fields of proc(5): 3 is the state, 4 the parent, 22 the start time in ticks.
    let parent = fields.nth(1)?.parse().ok()?;
    let ticks: u64 = fields.nth(17)?.parse().ok()?;
    Some(ProcInfo {
        start: ticks.saturating_mul(TICK_NS),
        parent,
        comm: text.get(open + 1..close)?.to_vec(),
        ..ProcInfo::default()
    })
}

fn uid(text: &[u8]) -> Option<u32> {
    let line = text.split(|&b| b == b'\n').find_map(|l| l.strip_prefix(b"Uid:"))?;
    let line = std::str::from_utf8(line).ok()?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_process_is_read_back() {
        let info = SlashProc.read(std::process::id()).unwrap();
        let exe = std::env::current_exe().unwrap();
        assert_eq!(info.exe.unwrap(), exe.into_os_string().into_vec());
        assert_eq!(info.uid, nix::unistd::getuid().as_raw());
        assert_eq!(info.parent, std::os::unix::process::parent_id());
        assert!(info.start > 0);
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text = b"42 (a) b (c) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 100";
        let info = stat(text).unwrap();
        assert_eq!(info.comm, b"a) b (c");
        assert_eq!((info.parent, info.start), (7, 12345 * TICK_NS));
    }

    #[test]
    fn a_process_that_is_not_there_is_none() {
        assert_eq!(SlashProc.read(u32::MAX), None);
    }
}
