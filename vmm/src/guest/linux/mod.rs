//! Booting an operating system: an unmodified Linux kernel, its ramdisk, what it is told of the machine.
//!
//! | module | what |
//! |---|---|
//! | `kernel`, `initrd` | the files: what they are, whether they are whole, where they go |
//! | `layout` | where memory is, and where in it is what the kernel finds |
//! | `boot` | putting all of it into memory |
//! | `entry` | the first vCPU's registers |
//! | `acpi` | the tables that describe the machine |
//! | `cpuid` | the processor that the kernel sees |
//! | `power` | registers that switch the machine off or reset it |
//! | `kernel_mode` | whether this host runs a kernel's code natively |

mod acpi;
mod boot;
pub mod cpuid;
pub(crate) mod entry;
mod initrd;
mod kernel;
pub mod kernel_mode;
pub mod layout;
pub(crate) mod power;

pub use acpi::ACCELERATOR_ID;
pub use boot::{LoadError, Plan};
pub use initrd::{Initrd, InitrdError};
pub use kernel::{Kernel, KernelError, Loaded, Protocol};

use std::path::Path;

/// What a kernel is told if nothing else is said: to use the serial port, and to reset the machine, which ends the run, when it
/// panics.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1";

/// What to boot.
#[derive(Debug)]
pub struct Linux {
    /// The kernel.
    pub kernel: Kernel,
    /// Its initial ramdisk.
    pub initrd: Option<Initrd>,
    /// Its command line.
    pub cmdline: String,
    /// The processor that it sees.
    pub cpu: cpuid::Template,
}

impl Linux {
    /// Opens the files and looks what they are.
    pub fn open(
        kernel: &Path,
        initrd: Option<&Path>,
        cmdline: &str,
        cpu: cpuid::Template,
    ) -> Result<Linux, LoadError> {
        let initrd = initrd.map(|path| {
            Initrd::open(path).map_err(|error| LoadError::Initrd {
                path: path.display().to_string(),
                error,
            })
        });
        Ok(Linux {
            kernel: Kernel::open(kernel).map_err(|error| LoadError::Kernel {
                path: kernel.display().to_string(),
                error,
            })?,
            initrd: initrd.transpose()?,
            cmdline: cmdline.to_owned(),
            cpu,
        })
    }
}
