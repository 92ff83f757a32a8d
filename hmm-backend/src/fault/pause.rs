//! Where threads let time pass before they try again: the rest of a hold or of a throttle, or a moment after a failure.
//! Only time ends these. But a device may go away meanwhile, and then there is nothing left to wait for.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// All threads that pause. They are few, and devices go away seldom: one condition variable is enough.
#[derive(Default)]
pub(crate) struct Pauses {
    mutex: Mutex<()>,
    look_again: Condvar,
}

impl Pauses {
    /// Sleeps this long, or until `pointless`, which is asked at once and after each [`Self::look_again`].
    pub(crate) fn pause(&self, time: Duration, mut pointless: impl FnMut() -> bool) {
        let mut guard = self.mutex.lock();
        self.look_again
            .wait_while_for(&mut guard, |()| !pointless(), time);
    }

    /// To be called after something has become so that makes a pause pointless.
    pub(crate) fn look_again(&self) {
        // Taken and dropped: who has asked before it became so is asleep afterwards, and hears of it.
        drop(self.mutex.lock());
        self.look_again.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

    use super::*;

    /// Longer than anybody has.
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
            // Somebody else's news.
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
