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
/// Write: so many more operations have been checked.
pub const CHECKED: u64 = 0x30;
/// Write: a round of the workload begins; its number.
pub const ROUND: u64 = 0x38;
/// Write: guest-physical address of the pages that the guest shares with the host's chaos.
pub const CHAOS_BASE: u64 = 0x40;
/// Write: how many of these pages are the guest's; [`chaos::PAGES`] more follow. The chaos may begin.
pub const CHAOS_SHARED: u64 = 0x48;

/// The pages by which the host's chaos and workload `torture` check on each other.
///
/// Managed pages from the first to the last of these are there to be migrated; the guest frees none of those from
/// [`CHAOS_BASE`] on, so they may also be pinned.
pub mod chaos {
    /// Pages whose first word both sides add to: the guest in the lower half, the host, by a device with
    /// exclusive access, in the upper half. All other words hold their guest-physical address, for ever.
    pub const COUNTERS: u64 = 16;
    /// Then pages all of whose words hold their guest-physical address. Neither side writes them.
    pub const CONSTANT: u64 = 16;
    /// Then pages that the host may free at any time: what the guest wrote last is there, or zeros.
    pub const VOLATILE: u64 = 16;
    /// All of them.
    pub const PAGES: u64 = COUNTERS + CONSTANT + VOLATILE;
}

/// Exit code of a guest whose verification found wrong data.
pub const EXIT_WRONG_DATA: u32 = 1;
/// Exit code of a guest that panicked.
pub const EXIT_PANIC: u32 = 2;
/// Exit code of a guest that could not start: bad parameters, too little memory, a missing device.
pub const EXIT_USAGE: u32 = 3;
