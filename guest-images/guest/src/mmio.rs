//! Device registers.

use core::arch::asm;

/// Bytes in a window of registers: every device has at least that much.
const WINDOW: u64 = 0x1000;

/// A window of device registers.
///
/// Accesses are single `mov` instructions, which every instruction emulator knows, and compiler
/// barriers: what was written to memory before a register write is in memory when the device sees it.
#[derive(Clone, Copy)]
pub struct Registers {
    base: u64,
}

impl Registers {
    /// # Safety
    ///
    /// `base` must be the address of a device's window.
    pub const unsafe fn at(base: u64) -> Self {
        Self { base }
    }

    pub fn read(self, offset: u64) -> u64 {
        assert!(offset <= WINDOW - 8);
        let value;
        // SAFETY: `at`'s caller vouched for the window, and the offset is inside; reading device
        // registers changes no memory that Rust code uses.
        unsafe {
            asm!("mov {value}, [{address}]", value = out(reg) value, address = in(reg) self.base + offset,
                options(nostack, preserves_flags));
        }
        value
    }

    pub fn write(self, offset: u64, value: u64) {
        assert!(offset <= WINDOW - 8);
        // SAFETY: as for `read`; a command that makes a device write memory names memory that is only
        // accessed through `Words`, which allows for that.
        unsafe {
            asm!("mov [{address}], {value}", value = in(reg) value, address = in(reg) self.base + offset,
                options(nostack, preserves_flags));
        }
    }

    pub fn read_byte(self, offset: u64) -> u8 {
        assert!(offset < WINDOW);
        let value;
        // SAFETY: as for `read`.
        unsafe {
            asm!("mov {value}, [{address}]", value = out(reg_byte) value, address = in(reg) self.base + offset,
                options(nostack, preserves_flags));
        }
        value
    }

    pub fn write_byte(self, offset: u64, value: u8) {
        assert!(offset < WINDOW);
        // SAFETY: as for `write`.
        unsafe {
            asm!("mov [{address}], {value}", value = in(reg_byte) value, address = in(reg) self.base + offset,
                options(nostack, preserves_flags));
        }
    }
}
