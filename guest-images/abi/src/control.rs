//! Registers of the control device: offsets from [`crate::map::CONTROL`]. All are 64 bits wide and
//! take 4- or 8-byte accesses.

/// Write: ends the run with this exit code. 0 means that the guest verified everything.
pub const EXIT: u64 = 0x00;
/// Write: how much of the work is done, in thousandths.
pub const PROGRESS: u64 = 0x08;
/// Write: gives the host a chance to run something else; for polling loops.
pub const YIELD: u64 = 0x10;
/// Write: this vCPU has no more work and never runs again.
pub const PARK: u64 = 0x18;
/// Read: nanoseconds since the virtual machine was made, monotonic.
pub const TIME_NS: u64 = 0x20;
/// Write, from the firmware only: the vCPU took a CPU exception that the guest cannot handle. The
/// value is the vector; `rsp` points at what the firmware saved.
pub const EXCEPTION: u64 = 0x28;

/// Exit code of a guest whose verification found wrong data.
pub const EXIT_WRONG_DATA: u32 = 1;
/// Exit code of a guest that panicked.
pub const EXIT_PANIC: u32 = 2;
/// Exit code of a guest that could not start: bad parameters, too little memory, a missing device.
pub const EXIT_USAGE: u32 = 3;
