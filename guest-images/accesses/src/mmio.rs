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
    /// # Safety
    ///
    /// None is needed here; the guest's own needs it.
    pub const unsafe fn at(base: u64) -> Self {
        Self { base }
    }

    pub fn read(self, offset: u64) -> u64 {
        assert!(offset <= WINDOW - 8);
        machine::read(self.base + offset)
    }

    pub fn write(self, offset: u64, value: u64) {
        assert!(offset <= WINDOW - 8);
        machine::write(self.base + offset, value);
    }

    pub fn read_byte(self, offset: u64) -> u8 {
        assert!(offset < WINDOW);
        machine::read(self.base + offset) as u8
    }

    pub fn write_byte(self, offset: u64, value: u8) {
        assert!(offset < WINDOW);
        machine::write(self.base + offset, value.into());
    }
}
