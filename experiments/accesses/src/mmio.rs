//! Device registers: as the guest's `mmio`, but the devices are in this process.

use crate::machine;

/// Bytes in a window of registers: every device has at least that much.
const WINDOW: u64 = 0x1000;

/// A window of device registers.
#[derive(Clone, Copy)]
pub struct Registers {
    base: u64,
}

impl Registers {
    /// The window at an address.
    ///
    /// # Safety
    ///
    /// Nothing is required here; the guest's own function of this name requires a mapped window.
    pub const unsafe fn at(base: u64) -> Self {
        Self { base }
    }

    /// Reads the 8-byte register at `offset`.
    pub fn read(self, offset: u64) -> u64 {
        assert!(offset <= WINDOW - 8);
        machine::read(self.base + offset)
    }

    /// Writes the 8-byte register at `offset`.
    pub fn write(self, offset: u64, value: u64) {
        assert!(offset <= WINDOW - 8);
        machine::write(self.base + offset, value);
    }

    /// Reads the 1-byte register at `offset`.
    pub fn read_byte(self, offset: u64) -> u8 {
        assert!(offset < WINDOW);
        machine::read(self.base + offset) as u8
    }

    /// Writes the 1-byte register at `offset`.
    pub fn write_byte(self, offset: u64, value: u8) {
        assert!(offset < WINDOW);
        machine::write(self.base + offset, value.into());
    }
}
