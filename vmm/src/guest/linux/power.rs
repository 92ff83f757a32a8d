//! The registers by which an operating system switches the machine off or resets it, which end the run, and the button that asks it to.

use std::ops::Range;
use std::sync::Arc;

use crate::console::serial::Console;
use crate::ending::failure::Failure;
use crate::ending::{End, Ending};
use crate::machine::bus::{Device, Next};

/// Ports of the registers.
pub const PORTS: Range<u64> = 0x600..0x603;
/// The I/O APIC's pin of the power button: an event that the guest's ACPI tables describe. No device of a PC's that the machine has uses it.
pub const BUTTON_PIN: u32 = 5;
/// ACPI's sleep control register.
pub const SLEEP_CONTROL: u16 = 0x600;
/// ACPI's sleep status register; this machine never wakes up, so it reads as zero.
pub const SLEEP_STATUS: u16 = 0x601;
/// ACPI's reset register.
pub const RESET: u16 = 0x602;
/// The value that resets.
pub const RESET_VALUE: u8 = 1;
/// The type of sleep that is power off (S5), the only one there is.
pub const SLEEP_TYPE_OFF: u8 = 5;

/// In the sleep control register: begin to sleep.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// Returns code for real mode that resets the machine.
pub fn reset_code() -> [u8; 9] {
    let [low, high] = RESET.to_le_bytes();
    // mov dx, RESET; mov al, RESET_VALUE; out dx, al; again: hlt; jmp again
    [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}

/// The registers.
pub struct Power {
    ending: Arc<Ending>,
    /// Knows whether the kernel that resets the machine has panicked.
    console: Arc<Console>,
}

impl Power {
    /// Makes the registers, which end the run by `ending`.
    pub fn new(ending: Arc<Ending>, console: Arc<Console>) -> Power {
        Power { ending, console }
    }
}

impl Device for Power {
    fn read(&self, _: u64, _: &mut [u8]) {
        // All zeros.
    }

    fn write(&self, offset: u64, data: &[u8]) -> Next {
        let &[value] = data else {
            return Next::Continue;
        };
        const CONTROL: u64 = SLEEP_CONTROL as u64 - PORTS.start;
        const RESET_AT: u64 = RESET as u64 - PORTS.start;
        let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
        let end = match (offset, value) {
            (RESET_AT, RESET_VALUE) => match self.console.kernel_panic() {
                None => End::Reboot,
                Some(message) => End::Failed(Failure::KernelPanic(message)),
            },
            (CONTROL, _) if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_OFF => {
                End::PowerOff
            }
            _ => return Next::Continue,
        };
        self.ending.set(end);
        Next::Leave
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how the run ends after these writes.
    fn end(output: &[u8], writes: &[(u64, &[u8])]) -> Option<End> {
        let ending = Arc::new(Ending::new().unwrap());
        let console = Arc::new(Console::new(Box::new(std::io::sink())));
        for byte in output {
            assert_eq!(console.write(0, &[*byte]), Next::Continue);
        }
        let power = Power::new(ending.clone(), console);
        for (offset, data) in writes {
            let leaves = power.write(*offset, data) == Next::Leave;
            assert_eq!(leaves, ending.get().is_some());
        }
        ending.get().cloned()
    }

    #[test]
    fn only_the_right_values_end_the_run() {
        assert_eq!(end(b"", &[(0, &[0x34])]), Some(End::PowerOff));
        assert_eq!(end(b"", &[(2, &[1])]), Some(End::Reboot));
        let harmless: &[(u64, &[u8])] = &[
            (0, &[0x14]),
            (0, &[0x24]),
            (0, &[0x34, 0]),
            (1, &[0x80]),
            (2, &[0]),
            (2, &[1, 0]),
        ];
        assert_eq!(end(b"", harmless), None);
    }

    #[test]
    fn a_reset_after_a_panic_is_a_failure() {
        let output = b"[    1.5] Kernel panic - not syncing: No working init found.\r\n---[ end";
        let Some(End::Failed(Failure::KernelPanic(message))) = end(output, &[(2, &[1])]) else {
            panic!("no failure");
        };
        assert_eq!(message, "No working init found.");
    }
}
