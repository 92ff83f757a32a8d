//! Accesses to managed memory that return an error if the page cannot be supplied.
//!
//! Any other access to such a page ends the run.

use crate::cpu::Cpu;
use core::arch::asm;
use core::fmt;
use hmmvisor_abi::{map, memory_error};

/// An access failed: the memory was not read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryError {
    /// The page that was accessed.
    pub address: u64,
    /// One of `hmmvisor_abi::memory_error::REASON_*`.
    pub reason: u64,
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.reason {
            memory_error::REASON_LOST => "contents lost",
            memory_error::REASON_DEVICE => "device failed",
            memory_error::REASON_OUT_OF_MEMORY => "host out of memory",
            memory_error::REASON_BUSY => "page busy",
            memory_error::REASON_READ_ONLY => "page read-only",
            memory_error::REASON_HOST => "host failed",
            _ => "unknown reason",
        };
        write!(f, "memory error at {:#x}: {what}", self.address)
    }
}

/// One access, with the recovery address set around it. The label behind the access is where both ways meet.
/// Only the one instruction named may fail.
macro_rules! guarded {
    ($cpu:expr, $access:literal, $($operands:tt)*) => {{
        let slot = $cpu.memory_error_slot();
        // SAFETY: the slot is this vCPU's own, see `memory_error_slot`.
        unsafe { (*slot).reason = 0 };
        // SAFETY: the caller of the function around vouches for the access. If it fails, the firmware goes on at
        // the label with all registers unchanged, and the outputs are not used. The compiler takes the block as
        // accessing all memory, so what the firmware writes to the slot is read afresh.
        unsafe {
            asm!(
                "lea {scratch}, [rip + 2f]",
                "mov [{slot}], {scratch}",
                $access,
                "2:",
                "mov qword ptr [{slot}], 0",
                scratch = out(reg) _,
                slot = in(reg) slot,
                $($operands)*
                options(nostack),
            );
        }
        // SAFETY: as above.
        let told = unsafe { slot.read_volatile() };
        if told.reason == 0 {
            Ok(())
        } else {
            Err(MemoryError { address: told.address, reason: told.reason })
        }
    }};
}

/// For addresses in managed memory, aligned to 8 bytes; others end the run. Atomic, as all accesses to managed memory.
impl Cpu {
    /// Loads a word.
    pub fn try_read(&self, address: u64) -> Result<u64, MemoryError> {
        self.check(address);
        let value: u64;
        guarded!(self, "mov {value}, [{address}]", value = out(reg) value, address = in(reg) address,)?;
        Ok(value)
    }

    /// Stores a word. With an exchange, which other vCPUs see in its place in the order of all accesses.
    pub fn try_write(&self, address: u64, value: u64) -> Result<(), MemoryError> {
        self.check(address);
        guarded!(self, "xchg [{address}], {value}", value = inout(reg) value => _,
            address = in(reg) address,)
    }

    /// Adds to a word; the answer is what was there before.
    pub fn try_fetch_add(&self, address: u64, add: u64) -> Result<u64, MemoryError> {
        self.check(address);
        let before: u64;
        guarded!(self, "lock xadd [{address}], {value}", value = inout(reg) add => before,
            address = in(reg) address,)?;
        Ok(before)
    }

    /// Replaces a word if it is `current`; the answer is what was there before.
    pub fn try_compare_exchange(
        &self,
        address: u64,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        self.check(address);
        let before: u64;
        guarded!(self, "lock cmpxchg [{address}], {new}", inout("rax") current => before,
            new = in(reg) new, address = in(reg) address,)?;
        Ok(before)
    }

    fn check(&self, address: u64) {
        let managed = self.boot.memory_base..self.boot.memory_base + self.boot.memory_size;
        assert!(
            address.is_multiple_of(8) && managed.contains(&address),
            "{address:#x}"
        );
    }

    /// The place for the firmware's reports of memory errors to this vCPU. Only this vCPU and its firmware use it.
    fn memory_error_slot(&self) -> *mut hmmvisor_abi::MemoryError {
        map::memory_error(self.index) as *mut hmmvisor_abi::MemoryError
    }
}
