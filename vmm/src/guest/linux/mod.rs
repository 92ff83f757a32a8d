//! Boots an operating system: an unmodified Linux kernel with its ramdisk and a description of the machine.
//!
//! | module | what |
//! |---|---|
//! | `kernel`, `initrd` | the files: what they are, whether they are whole, where they go |
//! | `layout` | where memory is, and where in it is what the kernel finds |
//! | `guest` | the machine, its devices and its vCPUs, as one of the two kinds of guests |
//! | `boot` | putting all of it into memory |
//! | `entry` | the first vCPU's registers |
//! | `acpi` | the tables that describe the machine |
//! | `cpuid` | the processor that the kernel sees |
//! | `power` | registers that switch the machine off or reset it |
//! | `kernel_mode` | whether this host runs a kernel's code natively |

mod acpi;
mod boot;
pub mod cpuid;
mod entry;
mod guest;
mod initrd;
mod kernel;
pub mod kernel_mode;
pub mod layout;
mod power;

pub use acpi::ACCELERATOR_ID;
pub use boot::{Linux, LoadError, Plan};
pub use guest::LinuxGuest;
pub use initrd::{Initrd, InitrdError};
pub use kernel::{Kernel, KernelError, Loaded, Protocol};

/// The command line by default: it tells the kernel to use the serial port, and to reset the machine, which ends the run, when it
/// panics.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1";
