//! Sleeping to the microsecond.

use std::thread;
use std::time::Duration;

/// Sleeps for this time. By default the kernel lets a thread sleep up to 50 µs longer, to save wake-ups; from the first call on, it does
/// not do that for the calling thread.
pub(crate) fn sleep_exactly(time: Duration) {
    // SAFETY: takes and returns plain numbers. Where the kernel refuses, the sleep is a little longer.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    thread::sleep(time);
}
