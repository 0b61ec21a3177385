//! What is known of a process beside its place in the table.

use agent_ebpf::ExecBody;

/// How the table came to know a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Born {
    /// Its fork was seen.
    Fork,
    /// It was found in an agent's cgroup: it is a root of the agent.
    Enrol,
    /// The kernel's pinned table had it when the daemon started.
    Adopted,
    /// It acted, and neither of the above was seen; `/proc` knew it.
    Proc,
    /// It acted, and nothing but the record itself is known.
    Unknown,
}

/// How a program's path is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExeFrom {
    /// The hook that judged the exec resolved it.
    Hook,
    /// `/proc/PID/exe` named it.
    Proc,
    /// It is the name that `execve` was called with: a spelling, not an object.
    Name,
    /// It is not known.
    Nothing,
}

/// The program that a process runs. Processes that forked share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The executable's path.
    pub exe: Option<Box<[u8]>>,
    /// How `exe` is known.
    pub exe_from: ExeFrom,
    /// The script that was named, when `exe` is its interpreter.
    pub script: Option<Box<[u8]>>,
    /// The command line with secrets taken out.
    pub command_line: Box<str>,
}

impl Image {
    /// Bytes that it takes up.
    pub(super) fn text(&self) -> usize {
        let len = |path: &Option<Box<[u8]>>| path.as_ref().map_or(0, |path| path.len());
        len(&self.exe) + len(&self.script) + self.command_line.len()
    }
}

/// An exec as the record tells it, before it is entered.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The fixed part of the record.
    pub body: &'a ExecBody,
    /// The name that `execve` got.
    pub filename: &'a [u8],
    /// The arguments.
    pub argv: &'a [u8],
    /// The executable as the hook that judged the exec resolved it.
    pub exe: Option<&'a [u8]>,
    /// The script, when the executable is its interpreter.
    pub script: Option<&'a [u8]>,
}

/// The text up to so many bytes, with an ellipsis where it was cut.
pub(crate) fn shortened(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(limit)])
}
