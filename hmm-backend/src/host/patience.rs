//! Bounds on how long a failing system call is repeated.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Minimum number of repeats: a temporary error is usually over within this many.
const TIMES: u32 = 1000;
/// Minimum time of repeats: on a busy machine, [`TIMES`] repeats may end before the error's cause does.
const TIME: Duration = Duration::from_millis(20);

/// Number of repeats after another call of the same kind was repeated without success.
const FEW_TIMES: u32 = 8;

/// Repeats calls of one kind within bounds. A call that is refused permanently uses up the whole bound; thousands of
/// them, one per page, would take minutes. After a call was repeated without success, later calls are therefore
/// repeated only [`FEW_TIMES`], until one of them ends without a temporary error.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    in_vain: AtomicBool,
}

impl Repeats {
    /// Makes a call and repeats it while its error is one that `passes` accepts, within bounds. Returns the last
    /// result.
    pub(crate) fn of<T>(
        &self,
        passes: impl Fn(&io::Error) -> bool,
        mut call: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        let in_vain = self.in_vain.load(Relaxed);
        let mut patience = Patience::default();
        loop {
            let result = call();
            let again = matches!(&result, Err(error) if passes(error));
            if again && patience.again() && !(in_vain && patience.times > FEW_TIMES) {
                continue;
            }
            if again != in_vain {
                self.in_vain.store(again, Relaxed);
            }
            return result;
        }
    }
}

/// Bounds the repeats of a call by number and by time. Repeating stops when both bounds are exceeded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patience {
    times: u32,
    since: Option<Instant>,
}

impl Patience {
    /// Counts one failed attempt and returns whether to try again. Yields the CPU to other threads first.
    pub(crate) fn again(&mut self) -> bool {
        self.times += 1;
        // The first repeat usually succeeds, so it does not read the clock.
        let since = match self.times {
            1 => return true,
            _ => *self.since.get_or_insert_with(Instant::now),
        };
        std::thread::yield_now();
        within(self.times, since.elapsed())
    }

    /// Starts counting anew, because the call has made progress.
    pub(crate) fn progress(&mut self) {
        *self = Patience::default();
    }
}

/// Whether a call may be tried once more after so many failed attempts, the first of which was so long ago.
fn within(times: u32, since: Duration) -> bool {
    times <= TIMES || since < TIME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_for_good_is_soon_tried_a_few_times_only() {
        let repeats = Repeats::default();
        let passes = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        let tries = |answers: u32| {
            let mut tries = 0;
            let result = repeats.of(passes, || {
                tries += 1;
                match tries > answers {
                    true => Ok(()),
                    false => Err(io::ErrorKind::WouldBlock.into()),
                }
            });
            (result.is_ok(), tries)
        };
        assert_eq!(tries(500), (true, 501));
        let (done, first) = tries(u32::MAX);
        assert!(!done && first > TIMES);
        assert_eq!(tries(u32::MAX), (false, FEW_TIMES + 1));
        assert_eq!(tries(3), (true, 4));
        assert_eq!(tries(500), (true, 501));
    }

    #[test]
    fn both_bounds_count() {
        let moment = Duration::from_nanos(1);
        assert!(within(TIMES, TIME * 100));
        assert!(within(TIMES + 1, TIME - moment));
        assert!(!within(TIMES + 1, TIME));
    }

    #[test]
    fn patience_ends_and_starts_anew_with_progress() {
        let mut patience = Patience::default();
        let begin = Instant::now();
        let mut times = 0;
        while patience.again() {
            times += 1;
        }
        assert!(times >= TIMES && begin.elapsed() >= TIME);
        assert!(!patience.again());
        patience.progress();
        assert!(patience.again());
    }
}
