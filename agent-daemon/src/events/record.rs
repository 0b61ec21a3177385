//! Records as the kernel half (or the fanotify backend) makes them, read by a checked parse.
//!
//! Nothing that a record says of itself is believed before it is checked: sizes are compared with
//! the bytes that are there, and a code without a name is an error that says the code.

use agent_ebpf::{
    ARGV_MAX, Action, ExecBody, ExitBody, FileBody, ForkBody, Header, Hook, Kind, Lane, PATH_MAX,
    PeerBody, PrivilegeBody, Reason, SocketBody, Verdict,
};
use zerocopy::{FromBytes, IntoBytes};

/// A parsed record; its variable parts borrow from the bytes that it was read from.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// The header as it came.
    pub header: Header,
    /// What was tried. Records that only tell of a process carry whatever their hook left there.
    pub action: Action,
    /// What came of it. Records that only tell of a process may leave it 0, which reads as allowed.
    pub verdict: Verdict,
    /// Why; `None` when the record only tells of a process and nothing was judged.
    pub reason: Option<Reason>,
    /// Who wrote it.
    pub hook: Hook,
    /// What follows the header.
    pub body: Body<'a>,
}

/// What follows a record's header.
#[derive(Clone, Debug)]
pub enum Body<'a> {
    /// A file opened, a program about to run, or a unix socket.
    File {
        /// The fixed part.
        body: FileBody,
        /// The absolute path, without NUL, or `@` and an abstract unix address; the last name alone when it
        /// could not be resolved.
        path: &'a [u8],
        /// The absolute path that the object was to get; empty when it was to get none.
        result: &'a [u8],
    },
    /// A peer connected, sent to or bound.
    Peer(PeerBody),
    /// A privilege asked for.
    Privilege(PrivilegeBody),
    /// A socket made.
    Socket(SocketBody),
    /// A process began.
    Fork(ForkBody),
    /// A program now runs.
    Exec {
        /// The fixed part.
        body: ExecBody,
        /// The file name as `execve` got it.
        filename: &'a [u8],
        /// Arguments, each ended by NUL; the last may be cut.
        argv: &'a [u8],
    },
    /// A process ended.
    Exit(ExitBody),
    /// A process was found in an agent's cgroup.
    Enrol,
}

impl Body<'_> {
    /// The kind that this body belongs to.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::File { .. } => Kind::File,
            Self::Peer(_) => Kind::Peer,
            Self::Privilege(_) => Kind::Privilege,
            Self::Socket(_) => Kind::Socket,
            Self::Fork(_) => Kind::Fork,
            Self::Exec { .. } => Kind::Exec,
            Self::Exit(_) => Kind::Exit,
            Self::Enrol => Kind::Enrol,
        }
    }
}

/// Why bytes are not a record. It means that the two halves disagree, or that memory was damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than the part that must be there.
    #[error("a record's {part} needs {needed} bytes and only {had} are there")]
    Short {
        /// Which part.
        part: &'static str,
        /// Bytes that it needs.
        needed: usize,
        /// Bytes that there are.
        had: usize,
    },
    /// The header states a size that cannot be.
    #[error("a record states a size of {stated} bytes, but came with {had}")]
    Size {
        /// `Header::size`.
        stated: u32,
        /// Bytes that came.
        had: usize,
    },
    /// A code that this build has no name for.
    #[error("unknown {what} code {code} in a record: the two halves are of different versions")]
    Code {
        /// Which field.
        what: &'static str,
        /// Its value.
        code: u8,
    },
    /// A length beyond what the ABI allows.
    #[error("a record's {what} states {stated} bytes, more than the {limit} that the ABI allows")]
    Length {
        /// Which variable part.
        what: &'static str,
        /// What it states.
        stated: u32,
        /// What is allowed.
        limit: usize,
    },
    /// A kind of record that cannot tell of this action.
    #[error("a {} record tells of action {}, which it cannot", .kind.name(), .action.name())]
    Mismatch {
        /// The record's kind.
        kind: Kind,
        /// The record's action.
        action: Action,
    },
}

/// The lane that the kernel half sends a record in: told when it was allowed, else denied.
pub const fn lane_of(header: &Header) -> Lane {
    if header.verdict == Verdict::Allowed as u8 { Lane::Told } else { Lane::Denied }
}

fn fixed<'a, T: FromBytes>(
    bytes: &'a [u8],
    part: &'static str,
) -> Result<(T, &'a [u8]), DecodeError> {
    T::read_from_prefix(bytes).map_err(|_| DecodeError::Short {
        part,
        needed: size_of::<T>(),
        had: bytes.len(),
    })
}

fn variable<'a>(
    bytes: &'a [u8],
    stated: u32,
    limit: usize,
    what: &'static str,
) -> Result<(&'a [u8], &'a [u8]), DecodeError> {
    let len = stated as usize;
    if len > limit {
        return Err(DecodeError::Length { what, stated, limit });
    }
    bytes.split_at_checked(len).ok_or(DecodeError::Short {
        part: what,
        needed: len,
        had: bytes.len(),
    })
}

fn code<T>(what: &'static str, code: u8, parse: fn(u8) -> Option<T>) -> Result<T, DecodeError> {
    parse(code).ok_or(DecodeError::Code { what, code })
}

/// Reads one record. Bytes after the size that the header states are padding and ignored.
///
/// # Errors
/// Every [`DecodeError`] means that the bytes are not a record of this ABI; nothing of them is used.
pub fn decode(bytes: &[u8]) -> Result<Record<'_>, DecodeError> {
    let (header, _) = fixed::<Header>(bytes, "header")?;
    let size = header.size as usize;
    let Some(bytes) = bytes.get(size_of::<Header>()..size) else {
        return Err(DecodeError::Size { stated: header.size, had: bytes.len() });
    };
    let kind = code("kind", header.kind, Kind::from_code)?;
    let action = code("action", header.action, Action::from_code)?;
    let hook = code("hook", header.hook, Hook::from_code)?;
    let judged = match kind {
        Kind::File | Kind::Peer | Kind::Privilege | Kind::Socket => true,
        Kind::Fork | Kind::Exec | Kind::Exit | Kind::Enrol => false,
    };
    let verdict = match header.verdict {
        0 if !judged => Verdict::Allowed,
        verdict => code("verdict", verdict, Verdict::from_code)?,
    };
    let reason =
        if judged { Some(code("reason", header.reason, Reason::from_code)?) } else { None };
    let fits = match (kind, action) {
        (
            Kind::File,
            Action::Exec | Action::Read | Action::Write | Action::Connect | Action::Bind,
        )
        | (Kind::Peer, Action::Connect | Action::Bind | Action::Listen)
        | (Kind::Privilege, Action::Privilege)
        | (Kind::Socket, Action::Socket)
        | (Kind::Fork | Kind::Exec | Kind::Exit | Kind::Enrol, _) => true,
        (Kind::File | Kind::Peer | Kind::Privilege | Kind::Socket, _) => false,
    };
    if !fits {
        return Err(DecodeError::Mismatch { kind, action });
    }
    let body = match kind {
        Kind::File => {
            let (body, rest) = fixed::<FileBody>(bytes, "file body")?;
            let (path, rest) = variable(rest, body.path_len, PATH_MAX, "path")?;
            let (result, _) = variable(rest, body.result_len, PATH_MAX, "second path")?;
            Body::File { body, path, result }
        }
        Kind::Peer => Body::Peer(fixed(bytes, "peer body")?.0),
        Kind::Privilege => Body::Privilege(fixed(bytes, "privilege body")?.0),
        Kind::Socket => Body::Socket(fixed(bytes, "socket body")?.0),
        Kind::Fork => Body::Fork(fixed(bytes, "fork body")?.0),
        Kind::Exec => {
            let (body, rest) = fixed::<ExecBody>(bytes, "exec body")?;
            let (filename, rest) = variable(rest, body.filename_len, PATH_MAX, "file name")?;
            let (argv, _) = variable(rest, body.argv_len, ARGV_MAX, "arguments")?;
            Body::Exec { body, filename, argv }
        }
        Kind::Exit => Body::Exit(fixed(bytes, "exit body")?.0),
        Kind::Enrol => Body::Enrol,
    };
    Ok(Record { header, action, verdict, reason, hook, body })
}

fn clip(bytes: &[u8], limit: usize) -> &[u8] {
    bytes.get(..limit).unwrap_or(bytes)
}

fn assemble(out: &mut Vec<u8>, header: &Header, kind: Kind, body: &[u8], rest: [&[u8]; 2]) {
    out.clear();
    let size = size_of::<Header>() + body.len() + rest[0].len() + rest[1].len();
    let header = Header {
        // At most a header, a body, a path and the arguments: far below 4 GiB.
        size: size as u32,
        kind: kind as u8,
        ..*header
    };
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(rest[0]);
    out.extend_from_slice(rest[1]);
}

/// Makes a [`Kind::File`] record in `out`, as the kernel's hooks do: size, kind and path length are
/// filled in, the rest is taken as given. A path longer than [`PATH_MAX`] is left out; such an
/// object is [`Reason::PathUnresolved`].
pub fn encode_file(out: &mut Vec<u8>, header: &Header, body: &FileBody, path: &[u8]) {
    let path = if path.len() > PATH_MAX { &[] } else { path };
    let body = FileBody { path_len: path.len() as u32, result_len: 0, ..*body };
    assemble(out, header, Kind::File, body.as_bytes(), [path, &[]]);
}

/// Makes a [`Kind::Exec`] record in `out`. `argv` holds all arguments, each ended by NUL; it is cut
/// at [`ARGV_MAX`] and its whole length stated in `argv_total`.
pub fn encode_exec(
    out: &mut Vec<u8>,
    header: &Header,
    body: &ExecBody,
    filename: &[u8],
    argv: &[u8],
) {
    let filename = clip(filename, PATH_MAX);
    let kept = clip(argv, ARGV_MAX);
    let body = ExecBody {
        filename_len: filename.len() as u32,
        argv_len: kept.len() as u32,
        argv_total: u32::try_from(argv.len()).unwrap_or(u32::MAX),
        ..*body
    };
    assemble(out, header, Kind::Exec, body.as_bytes(), [filename, kept]);
}

/// Makes a record whose body is fixed: [`Kind::Peer`], [`Kind::Privilege`], [`Kind::Socket`],
/// [`Kind::Fork`], [`Kind::Exit`], or [`Kind::Enrol`] with an empty body.
pub fn encode_fixed(out: &mut Vec<u8>, header: &Header, kind: Kind, body: &[u8]) {
    assemble(out, header, kind, body, [&[], &[]]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(action: Action) -> Header {
        Header {
            action: action as u8,
            verdict: Verdict::Allowed as u8,
            reason: Reason::Permitted as u8,
            hook: Hook::FileOpen as u8,
            tgid: 7,
            ..Header::default()
        }
    }

    fn file() -> Vec<u8> {
        let mut out = Vec::new();
        let body = FileBody { inode: 9, ..FileBody::default() };
        encode_file(&mut out, &header(Action::Read), &body, b"/etc/\xffhosts");
        out
    }

    #[test]
    fn a_file_record_comes_back_as_it_was_made() {
        let bytes = file();
        let record = decode(&bytes).unwrap();
        assert_eq!(record.header.tgid, 7);
        assert_eq!(record.action, Action::Read);
        let Body::File { body, path, .. } = record.body else { panic!("{record:?}") };
        assert_eq!((body.inode, path), (9, b"/etc/\xffhosts".as_slice()));
    }

    #[test]
    fn an_exec_record_is_cut_at_the_bound_and_says_so() {
        let mut out = Vec::new();
        let argv = vec![b'a'; ARGV_MAX + 10];
        let body = ExecBody::default();
        encode_exec(&mut out, &header(Action::Exec), &body, b"/bin/x", &argv);
        let record = decode(&out).unwrap();
        let Body::Exec { body, filename, argv } = record.body else { panic!("{record:?}") };
        assert_eq!(filename, b"/bin/x");
        assert_eq!(argv.len(), ARGV_MAX);
        assert_eq!(body.argv_total as usize, ARGV_MAX + 10);
    }

    #[test]
    fn every_shorter_prefix_is_an_error_and_never_a_panic() {
        let bytes = file();
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn an_unknown_code_is_named() {
        let cases: [(usize, &str); 5] =
            [(4, "kind"), (5, "action"), (6, "verdict"), (7, "reason"), (60, "hook")];
        for (offset, what) in cases {
            let mut bytes = file();
            bytes[offset] = 200;
            assert_eq!(decode(&bytes).unwrap_err(), DecodeError::Code { what, code: 200 });
        }
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        let mut bytes = file();
        let offset = size_of::<Header>() + 16;
        bytes[offset..offset + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(matches!(decode(&bytes).unwrap_err(), DecodeError::Length { what: "path", .. }));
        bytes[offset..offset + 4].copy_from_slice(&100_u32.to_ne_bytes());
        assert!(matches!(decode(&bytes).unwrap_err(), DecodeError::Short { part: "path", .. }));
    }

    #[test]
    fn a_judged_record_without_a_verdict_is_refused_and_a_process_record_is_not() {
        let mut bytes = file();
        bytes[6] = 0;
        assert!(decode(&bytes).is_err());
        let mut out = Vec::new();
        let header = Header { hook: Hook::SchedExit as u8, ..Header::default() };
        encode_fixed(&mut out, &header, Kind::Exit, ExitBody::default().as_bytes());
        let record = decode(&out).unwrap();
        assert_eq!((record.verdict, record.reason), (Verdict::Allowed, None));
    }

    #[test]
    fn a_kind_that_cannot_tell_of_its_action_is_refused() {
        let mut bytes = file();
        bytes[5] = Action::Listen as u8;
        assert!(matches!(decode(&bytes).unwrap_err(), DecodeError::Mismatch { .. }));
    }
}
