//! Pauses of threads before they try again: the rest of a hold or of a throttle, or a moment after a failure. A
//! pause ends after its time, or when its device is detached and there is nothing left to wait for.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// The pauses of all threads. These threads are few, and a detach is rare, so one condition variable is enough.
#[derive(Default)]
pub(crate) struct Pauses {
    mutex: Mutex<()>,
    look_again: Condvar,
}

impl Pauses {
    /// Sleeps for `time`, or until `pointless` returns true. The call checks `pointless` at once and after each
    /// [`Self::look_again`].
    pub(crate) fn pause(&self, time: Duration, mut pointless: impl FnMut() -> bool) {
        let mut guard = self.mutex.lock();
        self.look_again
            .wait_while_for(&mut guard, |()| !pointless(), time);
    }

    /// Wakes all pausing threads. Call it after changing anything that their `pointless` conditions read.
    pub(crate) fn look_again(&self) {
        // Lock and unlock the mutex: a thread that has read the old state under the mutex is asleep after this,
        // and gets the signal.
        drop(self.mutex.lock());
        self.look_again.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

    use super::*;

    /// Longer than any test run.
    const FOR_EVER: Duration = Duration::MAX;

    #[test]
    fn a_pause_ends_when_it_becomes_pointless() {
        let pauses = Pauses::default();
        let (gone, asked) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pauses.pause(FOR_EVER, || {
                    asked.fetch_add(1, SeqCst);
                    gone.load(SeqCst)
                });
            });
            while asked.load(SeqCst) == 0 {
                std::thread::yield_now();
            }
            // A wake-up that does not concern this pause.
            pauses.look_again();
            gone.store(true, SeqCst);
            pauses.look_again();
        });
        assert!(asked.load(SeqCst) >= 2);
    }

    #[test]
    fn a_pause_that_is_pointless_does_not_begin() {
        Pauses::default().pause(FOR_EVER, || true);
    }

    #[test]
    fn a_pause_ends_after_its_time() {
        Pauses::default().pause(Duration::from_micros(20), || false);
    }
}
