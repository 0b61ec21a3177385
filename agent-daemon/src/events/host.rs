//! The machine that events come from.

use std::fs;
use std::io;

/// The machine, as every event names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Host name.
    pub hostname: String,
    /// `/etc/machine-id`, where there is one.
    pub machine_id: Option<String>,
    /// Random id of this boot.
    pub boot_id: String,
    /// The kernel's release.
    pub kernel_release: String,
}

impl Host {
    /// Reads them from this machine.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn read() -> io::Result<Self> {
        let line = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
        let machine_id = line("/etc/machine-id").ok();
        Ok(Self {
            hostname: line("/proc/sys/kernel/hostname")?,
            machine_id: machine_id.filter(|id| !id.is_empty()),
            boot_id: line("/proc/sys/kernel/random/boot_id")?,
            kernel_release: line("/proc/sys/kernel/osrelease")?,
        })
    }
}
