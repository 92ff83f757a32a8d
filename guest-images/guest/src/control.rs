//! The control device: ends the run, reports progress, tells the time.

use crate::mmio::Registers;
use hmmvisor_abi::{control, map};

/// Fixed by the memory map, so that failures before the boot information is read can be told too.
// SAFETY: the map says that the control device is there.
const CONTROL: Registers = unsafe { Registers::at(map::CONTROL) };

/// Ends the run.
pub fn exit(code: u32) -> ! {
    CONTROL.write(control::EXIT, u64::from(code));
    park()
}

/// Ends this vCPU's work.
pub fn park() -> ! {
    loop {
        CONTROL.write(control::PARK, 0);
    }
}

/// Lets the host run something else.
pub fn yield_now() {
    CONTROL.write(control::YIELD, 0);
}

/// Reports how much of the work is done.
pub fn progress(thousandths: u64) {
    CONTROL.write(control::PROGRESS, thousandths);
}

/// Nanoseconds since the machine was made.
pub fn time_ns() -> u64 {
    CONTROL.read(control::TIME_NS)
}

/// Reports operations that were checked since the last call.
pub fn checked(operations: u64) {
    CONTROL.write(control::CHECKED, operations);
}

/// Says which round begins.
pub fn round(number: u64) {
    CONTROL.write(control::ROUND, number);
}

/// Tells the host which pages it may disturb; see `hmmvisor_abi::control::chaos`.
pub fn chaos(base: u64, shared_pages: u64) {
    CONTROL.write(control::CHAOS_BASE, base);
    CONTROL.write(control::CHAOS_SHARED, shared_pages);
}
