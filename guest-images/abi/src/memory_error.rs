//! Memory errors: the report that a guest gets when a page of managed memory cannot be supplied.
//!
//! The vCPU that accessed the page takes a machine check (vector 18), with the error in bank
//! [`BANK`] of the machine-check registers. The firmware's handler of it looks at the vCPU's [`MemoryError`]
//! at [`crate::map::memory_error`]: if a recovery address is there, it fills in what happened, clears
//! the recovery address and the bank, and continues at that address in ring 3; otherwise the run ends.

/// One vCPU's place for recovery from memory errors, in memory that ring 3 can reach.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryError {
    /// Written by the guest before an access that may fail: where to continue if it fails, with all registers as
    /// they were before the access. 0 for nowhere. The firmware writes 0 when it has used it.
    pub recovery: u64,
    /// Written by the firmware: address of the page that could not be supplied.
    pub address: u64,
    /// Written by the firmware, never 0: why (`REASON_*`).
    pub reason: u64,
    /// Zero.
    pub reserved: [u64; 5],
}

const _: () = assert!(size_of::<MemoryError>() == 64);

/// The contents are lost.
pub const REASON_LOST: u64 = 1;
/// The driver of the device that holds the page cannot give it back.
pub const REASON_DEVICE: u64 = 2;
/// The host has no memory for the page.
pub const REASON_OUT_OF_MEMORY: u64 = 3;
/// The page could not be moved in time.
pub const REASON_BUSY: u64 = 4;
/// A write to a page that is read-only.
pub const REASON_READ_ONLY: u64 = 5;
/// The host failed.
pub const REASON_HOST: u64 = 6;

/// The machine-check bank that reports memory errors.
pub const BANK: u8 = 1;
/// IA32_MCG_STATUS; 0 when the error has been taken.
pub const MCG_STATUS: u32 = 0x17a;
/// IA32_MC1_STATUS: [`STATUS`] with the reason in bits 16 to 31, the model-specific error code.
pub const MC_STATUS: u32 = 0x401 + 4 * BANK as u32;
/// IA32_MC1_ADDR: the guest-physical address.
pub const MC_ADDR: u32 = 0x402 + 4 * BANK as u32;

/// Valid, uncorrected, enabled, address and miscellaneous register valid, signalled, action required;
/// "data load" as the architectural error code. The processor's context is not corrupt.
pub const STATUS: u64 = 1 << 63 | 1 << 61 | 1 << 60 | 1 << 59 | 1 << 58 | 1 << 56 | 1 << 55 | 0x134;
/// IA32_MC1_MISC: a physical address whose lowest 12 bits mean nothing.
pub const MISC: u64 = 2 << 6 | 12;
/// Restart address valid, error address valid, machine check in progress.
pub const MCG_STATUS_VALUE: u64 = 0b111;
