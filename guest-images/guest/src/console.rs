//! The serial console, a 16550.

use crate::mmio::Registers;
use crate::sync::{Relax, SpinLock};
use core::fmt::{self, Write};
use hmmvisor_abi::map;

const TRANSMIT: u64 = 0;
const FIFO_CONTROL: u64 = 2;
const FIFO_ENABLE: u8 = 1;
const LINE_STATUS: u64 = 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// Bytes the transmitter takes once it is empty.
const FIFO_BYTES: usize = 16;

/// Fixed by the memory map, so that failures before the boot information is read can be told too.
// SAFETY: the map says that the serial port is there.
const SERIAL: Registers = unsafe { Registers::at(map::SERIAL) };

/// Held for a whole line, so that the lines of several vCPUs do not mix.
static LINE: SpinLock<()> = SpinLock::new(());

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for chunk in text.as_bytes().chunks(FIFO_BYTES) {
            let mut relax = Relax::new();
            while SERIAL.read_byte(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
                relax.relax();
            }
            for byte in chunk {
                SERIAL.write_byte(TRANSMIT, *byte);
            }
        }
        Ok(())
    }
}

/// Called once before anything is printed.
pub fn init() {
    SERIAL.write_byte(FIFO_CONTROL, FIFO_ENABLE);
}

/// Prints one line; `say!` is the convenient form.
pub fn line(text: fmt::Arguments) {
    let _line = LINE.lock();
    write_line(text);
}

/// Prints one line even if the vCPU that is printing never gets to its end, because it is the one
/// that panics.
pub fn last_line(text: fmt::Arguments) {
    let _line = LINE.try_lock_for(1000);
    write_line(text);
}

fn write_line(text: fmt::Arguments) {
    // `Port` never fails, but a `Display` implementation may; there is no other place to report that.
    let _ = Port.write_fmt(text);
    let _ = Port.write_str("\n");
}

/// A number with its digits in groups of three.
pub struct Grouped(pub u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            0..1000 => write!(f, "{}", self.0),
            number => write!(f, "{},{:03}", Grouped(number / 1000), number % 1000),
        }
    }
}

/// A number of things, whose name gets an `s` unless there is one.
pub struct Count(pub u64, pub &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        write!(f, "{} {}{plural}", Grouped(self.0), self.1)
    }
}

/// Prints a line.
macro_rules! say {
    ($($text:tt)*) => { $crate::console::line(format_args!($($text)*)) };
}
pub(crate) use say;
