//! The backend's time: a monotonic duration since the backend was made, and 32-bit ticks where it must fit into a
//! residency word.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Length of a tick.
const TICK: Duration = Duration::from_micros(16);

/// The longest time that advice can hold a page where it is; longer holds are cut.
pub const MAX_HOLD: Duration = Duration::from_secs(1);

/// A point in time in ticks of 16 µs, wrapping after 19 hours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tick(pub(crate) u32);

impl Tick {
    fn at(time: Duration) -> Tick {
        // A second has a whole number of ticks, so 64 bits are enough for the sum.
        const EACH_SECOND: u64 = 1_000_000 / TICK.as_micros() as u64;
        let part = u64::from(time.subsec_micros()) / TICK.as_micros() as u64;
        Tick(time.as_secs().wrapping_mul(EACH_SECOND).wrapping_add(part) as u32)
    }

    /// The tick at which a hold that starts at `now` ends. A hold of length zero has already ended at `now`.
    pub(crate) fn end_of_hold(now: Duration, hold: Duration) -> Tick {
        if hold.is_zero() {
            return Tick::at(now);
        }
        // Rounding up: the hold must not be shorter than promised.
        Tick(Tick::at(now + hold.min(MAX_HOLD)).0.wrapping_add(1))
    }

    /// How long a hold until this tick still lasts at `now`; `None` if it is over. A difference longer than the
    /// longest hold means that the tick is in the past and that the counter has wrapped since.
    pub(crate) fn remaining(self, now: Duration) -> Option<Duration> {
        let ticks = self.0.wrapping_sub(Tick::at(now).0);
        let rest = TICK * ticks.min(i32::MAX as u32);
        (ticks != 0 && rest <= MAX_HOLD + 2 * TICK).then_some(rest)
    }
}

/// The backend's clock.
#[derive(Debug)]
pub(crate) enum Clock {
    /// The machine's monotonic clock, counted from this moment.
    Real(Instant),
    /// The nanoseconds of a replay, advanced only by [`Clock::advance_to`], by one thread at a time.
    Model(AtomicU64),
}

impl Clock {
    pub(crate) fn now(&self) -> Duration {
        match self {
            Clock::Real(start) => start.elapsed(),
            Clock::Model(now) => Duration::from_nanos(now.load(Ordering::Relaxed)),
        }
    }

    /// Advances a replay's time to this point. Does nothing if it is already later, or if the clock is the machine's.
    pub(crate) fn advance_to(&self, time: Duration) {
        if let Clock::Model(now) = self {
            let nanoseconds = time.as_nanos().min(u64::MAX.into()) as u64;
            if nanoseconds > now.load(Ordering::Relaxed) {
                now.store(nanoseconds, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_end_also_across_the_wrap() {
        let wrap = TICK * (u32::MAX - 2);
        for start in [Duration::ZERO, Duration::from_secs(5), wrap] {
            let hold = Duration::from_micros(100);
            let end = Tick::end_of_hold(start, hold);
            assert!(end.remaining(start).unwrap() >= hold - TICK);
            assert!(end.remaining(start + hold - TICK).is_some());
            assert_eq!(end.remaining(start + hold + 2 * TICK), None);
            assert_eq!(end.remaining(start + Duration::from_secs(3600)), None);
            assert_eq!(
                Tick::end_of_hold(start, Duration::ZERO).remaining(start),
                None
            );
        }
    }
}
