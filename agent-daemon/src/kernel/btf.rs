//! Offsets of struct members from the running kernel's BTF.
//!
//! A Rust eBPF object has no CO-RE relocations for fields, so the daemon looks them up itself. The
//! format is Documentation/bpf/btf.rst; aya parses it too but keeps the members private.

use std::{collections::HashMap, fs, path::Path};

/// Where the kernel shows its own types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_TYPEDEF: u32 = 8;
const KIND_CONST: u32 = 10;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;

/// Why the types could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file is not there or not readable.
    #[error(
        "cannot read the kernel's type information {path}: {source}. Ambit needs a kernel built with \
         CONFIG_DEBUG_INFO_BTF=y (5.10 or later; every current distribution has it)"
    )]
    Read {
        /// What was read.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The bytes are not what the format says.
    #[error("{path} is not BTF that this build can read: {what}")]
    Malformed {
        /// What was read.
        path: String,
        /// What was found.
        what: String,
    },
}

/// The kernel's types, as far as offsets need them.
#[derive(Debug)]
pub struct Btf {
    data: Vec<u8>,
    strings: usize,
    /// Byte position of each type; index is the type id, 0 is void.
    types: Vec<usize>,
    by_name: HashMap<(bool, String), usize>,
}

impl Btf {
    /// Reads the running kernel's types.
    pub fn of_kernel() -> Result<Self, BtfError> {
        Self::read(Path::new(VMLINUX))
    }

    fn read(path: &Path) -> Result<Self, BtfError> {
        let shown = path.display().to_string();
        let data =
            fs::read(path).map_err(|source| BtfError::Read { path: shown.clone(), source })?;
        Self::parse(data).map_err(|what| BtfError::Malformed { path: shown, what })
    }

    fn parse(data: Vec<u8>) -> Result<Self, String> {
        let mut btf = Self { data, strings: 0, types: vec![0], by_name: HashMap::new() };
        let magic = btf.word(0).ok_or("shorter than its header")? & 0xffff;
        if magic != u32::from(MAGIC) {
            return Err(format!("magic {magic:#x} instead of {MAGIC:#x}"));
        }
        let field = |at| btf.word(at).map(|word| word as usize).ok_or("shorter than its header");
        let header = field(4)?.max(HEADER);
        let (types_at, types_len) = (header + field(8)?, field(12)?);
        btf.strings = header + field(16)?;
        let mut at = types_at;
        while at < types_at + types_len {
            let info = btf.word(at + 4).ok_or("a type past the end")?;
            let (kind, count) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            let more = match kind {
                2 | 7..=12 | 16 | 18 => 0,
                1 | 14 | 17 => 4,
                3 => 12,
                KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * count,
                6 | KIND_FUNC_PROTO => 8 * count,
                other => {
                    return Err(format!("type {} is of unknown kind {other}", btf.types.len()));
                }
            };
            if matches!(kind, KIND_STRUCT | KIND_UNION | KIND_FUNC)
                && let Some(name) = btf.name(at)
                && !name.is_empty()
            {
                let name = name.to_owned();
                let id = btf.types.len();
                btf.by_name.entry((kind == KIND_FUNC, name)).or_insert(id);
            }
            btf.types.push(at);
            at += 12 + more;
        }
        Ok(btf)
    }

    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.data.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn name(&self, at: usize) -> Option<&str> {
        let start = self.strings + self.word(at)? as usize;
        let bytes = self.data.get(start..)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&bytes[..end]).ok()
    }

    /// True when the kernel has a struct or union of this name.
    pub fn has_struct(&self, name: &str) -> bool {
        self.by_name.contains_key(&(false, name.to_owned()))
    }

    /// Byte offset of a member, through unnamed structs and unions.
    pub fn offset(&self, owner: &str, member: &str) -> Option<u32> {
        let id = *self.by_name.get(&(false, owner.to_owned()))?;
        self.member(id, member, 0)
    }

    fn member(&self, id: usize, wanted: &str, depth: u32) -> Option<u32> {
        if depth > 8 {
            return None;
        }
        let at = *self.types.get(id)?;
        let info = self.word(at + 4)?;
        match (info >> 24) & 0x1f {
            KIND_TYPEDEF..=KIND_CONST => {
                return self.member(self.word(at + 8)? as usize, wanted, depth + 1);
            }
            KIND_STRUCT | KIND_UNION => {}
            _ => return None,
        }
        // With the kind flag, the upper 8 bits of an offset are a bit field's width.
        let mask = if info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
        (0..(info & 0xffff) as usize).find_map(|index| {
            let member = at + 12 + 12 * index;
            let bits = self.word(member + 8)? & mask;
            match self.name(member)? {
                "" => Some(
                    self.member(self.word(member + 4)? as usize, wanted, depth + 1)? + bits / 8,
                ),
                name if name == wanted && bits % 8 == 0 => Some(bits / 8),
                _ => None,
            }
        })
    }

    /// How many parameters a kernel function has.
    pub fn parameters(&self, function: &str) -> Option<usize> {
        let id = *self.by_name.get(&(true, function.to_owned()))?;
        let prototype = self.word(self.types.get(id)? + 8)? as usize;
        let info = self.word(self.types.get(prototype)? + 4)?;
        ((info >> 24) & 0x1f == KIND_FUNC_PROTO).then_some((info & 0xffff) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_members_of_the_running_kernel() {
        let btf = Btf::of_kernel().unwrap();
        assert_eq!(btf.offset("path", "dentry"), Some(8));
        // Inside an unnamed union from 6.12 on.
        assert!(btf.offset("file", "f_path").is_some());
        assert_eq!(btf.offset("file", "no_such_member"), None);
        assert_eq!(btf.offset("no_such_struct", "x"), None);
        assert_eq!(btf.parameters("bpf_lsm_file_open"), Some(1));
    }

    #[test]
    fn refuses_what_is_not_btf() {
        assert!(Btf::parse(vec![0; 40]).unwrap_err().contains("magic"));
        assert!(Btf::parse(vec![0x9f]).unwrap_err().contains("shorter"));
    }
}
