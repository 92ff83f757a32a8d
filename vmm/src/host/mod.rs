//! The host: its CPUs, memory and limits, and files that users name.

pub mod cpus;
pub mod file;
pub(crate) mod process_memory;

use std::mem;

use hmm_backend::limits::{self, Group};

/// The part of the host that configurations are checked against.
#[derive(Clone, Debug)]
pub struct Host {
    /// All of its memory, in bytes.
    pub memory: u64,
    /// CPUs that this process may use, in the order in which to use them.
    pub cpus: Vec<usize>,
    /// The control groups that limit this process, innermost first.
    pub groups: Vec<Group>,
    /// Bytes of address space that this process may still map, and how many in all, if that is limited.
    pub address_space: Option<(u64, u64)>,
}

impl Host {
    /// Looks at this host as it is now.
    pub fn here() -> Host {
        // SAFETY: a structure of integers; all zeros is valid.
        let mut info: libc::sysinfo = unsafe { mem::zeroed() };
        // SAFETY: the kernel fills the structure, which lives throughout the call; on failure, which
        // is impossible with a valid address, it stays zero.
        unsafe { libc::sysinfo(&mut info) };
        Host {
            memory: info.totalram * u64::from(info.mem_unit),
            cpus: cpus::allowed(),
            groups: limits::groups(),
            address_space: limits::address_space(),
        }
    }
}
