//! Which program an exec record is about: the paths that were judged on the way to it.
//!
//! Before a program runs, each file that it takes is judged and recorded: by LSM
//! `bprm_check_security` the program and, for a script, then its interpreter; by fanotify also the
//! ELF loader at last. Those that were let go are not events of their own. They wait here for the
//! exec record of the same process and give it its path and its rule.

use std::collections::HashMap;

use agent_ebpf::{Header, Hook, Reason, RuleId, Verdict};

use super::record::Record;

/// Processes that may be on their way to an exec; far above what a machine's CPUs can have at once.
const PROCESSES_MAX: usize = 4096;

/// Files that one exec may take: scripts may name scripts, up to a depth of 5 in Linux.
const FILES_MAX: usize = 8;

/// A file that was judged on the way to an exec and let go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    tid: u32,
    hook: Hook,
    /// Its path.
    pub path: Box<[u8]>,
    /// What was said of it.
    pub verdict: Verdict,
    /// Why.
    pub reason: Option<Reason>,
    /// The rule that decided.
    pub rule: RuleId,
    /// The policy set that the rule belongs to.
    pub set: u32,
}

/// What an exec record is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The program that runs.
    pub exe: Judged,
    /// The script that was named, when the program is its interpreter.
    pub script: Option<Judged>,
    /// True when audit mode let go what the policy does not permit.
    pub would_deny: bool,
}

/// The files that wait for their exec record.
#[derive(Debug, Default)]
pub struct Launches {
    waiting: HashMap<u32, Vec<Judged>>,
}

impl Launches {
    /// A file was judged for an exec and let go.
    pub fn saw(&mut self, record: &Record<'_>, path: &[u8]) {
        let header = &record.header;
        if self.waiting.len() >= PROCESSES_MAX && !self.waiting.contains_key(&header.tgid) {
            // Execs that failed after they were judged, by processes whose exit was lost.
            self.waiting.clear();
        }
        let files = self.waiting.entry(header.tgid).or_default();
        if files.len() >= FILES_MAX {
            files.remove(0);
        }
        files.push(Judged {
            tid: header.tid,
            hook: record.hook,
            path: path.into(),
            verdict: record.verdict,
            reason: record.reason,
            rule: header.rule,
            set: header.set,
        });
    }

    /// An exec was refused: what its thread was let go before leads nowhere.
    pub fn refused(&mut self, header: &Header) {
        if let Some(files) = self.waiting.get_mut(&header.tgid) {
            files.retain(|file| file.tid != header.tid);
            if files.is_empty() {
                self.waiting.remove(&header.tgid);
            }
        }
    }

    /// A process ended.
    pub fn forget(&mut self, tgid: u32) {
        self.waiting.remove(&tgid);
    }

    /// A program now runs: what it is, if its files were seen. An exec ends all other threads of
    /// its process, so nothing of it waits any longer.
    pub fn take(&mut self, header: &Header, filename: &[u8], is_script: bool) -> Option<Chosen> {
        let files = self.waiting.remove(&header.tgid)?;
        // A thread that is not the leader takes the leader's number when it execs.
        let own = |file: &&Judged| file.tid == header.tid;
        let files: Vec<&Judged> = match files.iter().filter(own).count() {
            0 => files.iter().collect(),
            _ => files.iter().filter(own).collect(),
        };
        let last = files.len().checked_sub(1)?;
        let first = if files[last].hook == Hook::Fanotify {
            attempt(&files, filename)
        } else if is_script {
            // `bprm_check_security` comes once a file: the last is what runs.
            last.saturating_sub(1)
        } else {
            last
        };
        let (exe, script) =
            if is_script && first < last { (first + 1, Some(first)) } else { (first, None) };
        let would_deny = files[first..].iter().any(|file| file.verdict == Verdict::WouldDeny);
        Some(Chosen {
            exe: files[exe].clone(),
            script: script.map(|at| files[at].clone()),
            would_deny,
        })
    }
}

/// Where the exec begins among the files that were seen; earlier ones are of execs that failed
/// after they were judged. The file that has the name that `execve` got, by path or else by its last
/// component, is the first of its exec; without one it is the first of all.
fn attempt(files: &[&Judged], filename: &[u8]) -> usize {
    let base = |path: &[u8]| path.rsplit(|&b| b == b'/').next().map(<[u8]>::to_vec);
    files
        .iter()
        .rposition(|file| *file.path == *filename)
        .or_else(|| files.iter().rposition(|f| base(&f.path) == base(filename)))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use agent_ebpf::Action;

    use super::*;
    use crate::events::record::Body;

    fn header(tid: u32, rule: RuleId) -> Header {
        Header { tgid: 10, tid, rule, set: 1, ..Header::default() }
    }

    fn record(header: Header, hook: Hook, verdict: Verdict) -> Record<'static> {
        Record {
            header,
            action: Action::Exec,
            verdict,
            reason: Some(Reason::Permitted),
            hook,
            body: Body::Enrol,
        }
    }

    fn let_go(launches: &mut Launches, hook: Hook, paths: &[&str]) {
        for (at, path) in paths.iter().enumerate() {
            let header = header(10, at as u32 + 2);
            let record = record(header, hook, Verdict::Allowed);
            launches.saw(&record, path.as_bytes());
        }
    }

    fn taken(hook: Hook, paths: &[&str], name: &str, script: bool) -> (String, Option<String>) {
        let mut launches = Launches::default();
        let_go(&mut launches, hook, paths);
        let chosen = launches.take(&header(10, 0), name.as_bytes(), script).unwrap();
        let text = |file: Judged| String::from_utf8(file.path.into()).unwrap();
        (text(chosen.exe), chosen.script.map(text))
    }

    #[test]
    fn under_lsm_the_last_file_runs() {
        let elf = taken(Hook::BprmCheck, &["/bin/failed", "/bin/ls"], "ls", false);
        assert_eq!(elf, ("/bin/ls".into(), None));
        let script = taken(Hook::BprmCheck, &["/x/run", "/bin/sh"], "./run", true);
        assert_eq!(script, ("/bin/sh".into(), Some("/x/run".into())));
    }

    #[test]
    fn under_fanotify_the_loader_is_not_the_program() {
        let paths = ["/usr/bin/ls", "/lib64/ld-linux-x86-64.so.2"];
        let elf = taken(Hook::Fanotify, &paths, "/bin/ls", false);
        assert_eq!(elf, ("/usr/bin/ls".into(), None));
        let paths = ["/x/run", "/bin/sh", "/lib64/ld.so"];
        let script = taken(Hook::Fanotify, &paths, "./run", true);
        assert_eq!(script, ("/bin/sh".into(), Some("/x/run".into())));
    }

    #[test]
    fn under_fanotify_an_exec_that_failed_before_is_not_taken_for_this_one() {
        let paths = ["/x/not-elf", "/usr/bin/ls", "/lib64/ld.so"];
        let elf = taken(Hook::Fanotify, &paths, "ls", false);
        assert_eq!(elf.0, "/usr/bin/ls");
    }

    #[test]
    fn a_refused_exec_leaves_nothing_and_audit_is_remembered() {
        let mut launches = Launches::default();
        let_go(&mut launches, Hook::BprmCheck, &["/x/run"]);
        launches.refused(&header(10, 0));
        assert_eq!(launches.take(&header(10, 0), b"run", false), None);
        let header = header(10, 5);
        let audited = record(header, Hook::BprmCheck, Verdict::WouldDeny);
        launches.saw(&audited, b"/x/run");
        assert!(launches.take(&header, b"run", false).unwrap().would_deny);
        assert_eq!(launches.take(&header, b"run", false), None);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut launches = Launches::default();
        for tgid in 0..3 * PROCESSES_MAX as u32 {
            let header = Header { tgid, ..Header::default() };
            for _ in 0..2 * FILES_MAX {
                let record = record(header, Hook::BprmCheck, Verdict::Allowed);
                launches.saw(&record, b"/x");
            }
        }
        assert!(launches.waiting.len() <= PROCESSES_MAX);
        assert!(launches.waiting.values().all(|files| files.len() <= FILES_MAX));
    }
}
