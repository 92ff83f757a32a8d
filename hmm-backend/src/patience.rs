//! How long a system call is repeated that gets nothing done.

use std::time::{Duration, Instant};

/// Times a call is repeated at once: what makes it fail is over in a moment, if it is to be over at all.
const TIMES: u32 = 1000;
/// How long it is repeated at least: on a busy machine a moment can be long, and the times be short.
const TIME: Duration = Duration::from_millis(20);

/// Bounds the repeats of a call that gets nothing done, by their number and by time: both must be exceeded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patience {
    times: u32,
    since: Option<Instant>,
}

impl Patience {
    /// Whether to try once more; lets other threads run first.
    pub(crate) fn again(&mut self) -> bool {
        self.times += 1;
        // The clock is not read for what passes at once, which is the rule.
        let since = match self.times {
            1 => return true,
            _ => *self.since.get_or_insert_with(Instant::now),
        };
        std::thread::yield_now();
        self.times <= TIMES || since.elapsed() < TIME
    }

    /// The call got something done.
    pub(crate) fn progress(&mut self) {
        *self = Patience::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
