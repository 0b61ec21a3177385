//! Contents: what the daemon found out about a program, while it is still so.

use agent_ebpf::{PlaceKey, Version};

use super::path::{self, read};
use crate::{identity::Actor, maps::CONTENTS, offsets::offsets};

/// Where the rules on the content of this inode's file are; `None` when nobody has read it, or when it was
/// changed since.
#[inline(always)]
pub fn known(inode: u64) -> Option<PlaceKey> {
    // SAFETY: a lookup; an element is replaced whole, never written to.
    let known = unsafe { CONTENTS.get(&path::key(inode)) }?;
    let nanoseconds: u32 = read(inode, &offsets().inode_ctime_nsec);
    let now = Version {
        seconds: read(inode, &offsets().inode_ctime),
        nanoseconds: u64::from(nanoseconds) & Version::NANOSECONDS,
        size: read(inode, &offsets().inode_size),
    };
    let then = &known.version;
    let same =
        now.seconds == then.seconds && now.nanoseconds == then.nanoseconds && now.size == then.size;
    same.then(|| known.key())
}

/// An agent may write to this file: what was known of it is known no more.
#[inline(always)]
pub fn forget(actor: &Actor, inode: u64) {
    if actor.config.contents == 0 {
        return;
    }
    let key = path::key(inode);
    // SAFETY: a lookup; asked first, because to remove takes a lock.
    if unsafe { CONTENTS.get(&key) }.is_some() {
        let _ = CONTENTS.remove(&key);
    }
}
