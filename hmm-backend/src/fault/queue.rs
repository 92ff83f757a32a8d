//! The queues of a service thread: faults in page order, and faults put off.

use std::time::Duration;

use super::retry::Attempts;
use crate::pages::{Access, Page};

/// A CPU fault that a service thread has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fault {
    pub(crate) page: Page,
    pub(crate) access: Access,
    pub(crate) thread: u32,
    /// When its message was read.
    pub(crate) since: Duration,
    /// Microseconds, rounded up, from a moment before the read of the message to `since`. Only 32 bits, because
    /// faults are moved when they are sorted.
    pub(crate) reading: u32,
    /// The page's generation when the message was read.
    pub(crate) generation: u16,
}

impl Fault {
    /// Returns a moment before the fault's message was read: the thread was asleep in the access at this
    /// moment, or fell asleep later.
    pub(crate) fn before(&self) -> Duration {
        let reading = Duration::from_micros(self.reading.into());
        self.since.saturating_sub(reading)
    }
}

/// A fault that was put off. The order makes a heap return the earliest first.
#[derive(Debug)]
pub(crate) struct Deferred {
    pub(crate) due: Duration,
    pub(crate) fault: Fault,
    /// The page's generation when it was put off.
    pub(crate) generation: u16,
    pub(crate) history: History,
}

/// What has come of a fault so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct History {
    pub(crate) attempts: Attempts,
    /// Whether the fault has waited for a hold or a throttle; a fault waits only once.
    pub(crate) waited: bool,
}

impl PartialEq for Deferred {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}
impl Eq for Deferred {}
impl PartialOrd for Deferred {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Deferred {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.due.cmp(&self.due)
    }
}

/// Sorts faults by page and keeps one entry for each page and thread, with the strongest access. Threads that
/// touch the same page keep separate entries, because each must be named if the fault is fatal.
pub(crate) fn sort_and_deduplicate(faults: &mut Vec<Fault>) {
    faults.sort_unstable_by_key(|f| (f.page, f.thread));
    faults.dedup_by(|later, first| {
        let same = (later.page, later.thread) == (first.page, first.thread);
        if same {
            first.access = first.access.max(later.access);
        }
        same
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BinaryHeap;

    #[test]
    fn batches_are_sorted_and_the_strongest_access_counts() {
        let fault = |page, thread, access| Fault {
            page: Page(page),
            access,
            thread,
            since: Duration::ZERO,
            reading: 0,
            generation: 0,
        };
        let mut batch = vec![
            fault(7, 1, Access::Read),
            fault(3, 2, Access::Read),
            fault(7, 1, Access::Write),
            fault(3, 1, Access::Read),
            fault(3, 2, Access::Read),
        ];
        sort_and_deduplicate(&mut batch);
        let found: Vec<_> = batch
            .iter()
            .map(|f| (f.page.0, f.thread, f.access))
            .collect();
        use Access::*;
        assert_eq!(found, [(3, 1, Read), (3, 2, Read), (7, 1, Write)]);
    }

    #[test]
    fn the_heap_gives_the_earliest_first() {
        let fault = Fault {
            page: Page(0),
            access: Access::Read,
            thread: 0,
            since: Duration::ZERO,
            reading: 0,
            generation: 0,
        };
        let mut heap = BinaryHeap::new();
        for ms in [30, 10, 20] {
            heap.push(Deferred {
                due: Duration::from_millis(ms),
                fault,
                generation: 0,
                history: History::default(),
            });
        }
        assert_eq!(heap.pop().unwrap().due, Duration::from_millis(10));
    }
}
