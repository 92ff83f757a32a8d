//! Failures of a run: a panic that carries the exit code and the message to the caller that started the run.

use std::fmt;
use std::panic;

/// Why a vCPU stopped.
pub struct Ended {
    /// The exit code that the guest would have given the VMM; not 0.
    pub code: u32,
    /// The message for the user.
    pub message: String,
}

/// Ends the run with a message and a code other than 0; `fail!` is the convenient form.
pub fn end_run(code: u32, message: fmt::Arguments) -> ! {
    let message = message.to_string();
    // Not `panic_any`: the message is reported by the caller of the run, not by the panic hook.
    panic::resume_unwind(Box::new(Ended { code, message }))
}

/// Ends the run: `fail!(code, "format", arguments…)`.
macro_rules! fail {
    ($code:expr, $($text:tt)*) => { $crate::exit::end_run($code, format_args!($($text)*)) };
}
pub(crate) use fail;
