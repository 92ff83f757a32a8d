//! When the process started, as precisely as it can tell.

use std::mem;
use std::time::{Duration, Instant};

/// The moment from which the time to the guest's first instruction counts.
#[derive(Clone, Copy, Debug)]
pub struct Started(Instant);

impl Started {
    /// Now: for users of the library, in whose process much may have happened before.
    pub fn now() -> Started {
        Started(Instant::now())
    }

    /// When this process started, if called first thing in `main`. The kernel only tells the start to
    /// 10 ms, but until now the process has done nothing but use its CPU to get here.
    pub fn of_process() -> Started {
        let now = Instant::now();
        Started(now.checked_sub(cpu_time()).unwrap_or(now))
    }

    /// Time from the start to a moment.
    pub fn until(self, moment: Instant) -> Duration {
        moment.saturating_duration_since(self.0)
    }
}

/// CPU time of the process so far, in user and kernel mode.
fn cpu_time() -> Duration {
    // SAFETY: a structure of integers; all zeros is valid.
    let mut time: libc::timespec = unsafe { mem::zeroed() };
    // SAFETY: the kernel fills the structure, which lives throughout the call; on failure it stays
    // zero.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
