//! The ends of a failed run.

use crate::{console, control};
use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};
use hmmvisor_abi::control::EXIT_PANIC;

/// Set by the first vCPU that fails; the others keep silent.
static FAILED: AtomicBool = AtomicBool::new(false);

/// Ends the run with a message and a code other than 0; `fail!` is the convenient form.
pub fn end_run(code: u32, message: fmt::Arguments) -> ! {
    if FAILED.swap(true, Ordering::Relaxed) {
        control::park();
    }
    console::last_line(message);
    control::exit(code)
}

/// Ends the run: `fail!(code, "format", arguments…)`.
macro_rules! fail {
    ($code:expr, $($text:tt)*) => { $crate::exit::end_run($code, format_args!($($text)*)) };
}
pub(crate) use fail;

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    match info.location() {
        Some(at) => fail!(
            EXIT_PANIC,
            "guest panicked at {}:{}: {}",
            at.file(),
            at.line(),
            info.message()
        ),
        None => fail!(EXIT_PANIC, "guest panicked: {}", info.message()),
    }
}

/// Referred to by the precompiled `core`, never called: panics do not unwind.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
