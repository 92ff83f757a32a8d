//! The events of a live run in the order in which they began.
//!
//! A trace has them in the order in which they were recorded, faults when they had been served. But the vCPU of a fault
//! runs again a moment before that, and its next events may be recorded first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use hmm_backend::observe::{Event, EventKind};

/// How many later events an event is compared with: more than there are threads that could overtake each other.
const WINDOW: usize = 1024;

/// Returns the time at which the access or migration of the event began. Where pages are at the beginning comes before all else.
pub(super) fn began(event: &Event) -> Duration {
    match event.kind {
        EventKind::Placed => Duration::ZERO,
        _ => event.time.saturating_sub(event.latency),
    }
}

/// Sorts within a window.
pub(super) struct InOrder<I> {
    events: I,
    held: BinaryHeap<Reverse<(Duration, usize, ByNumber)>>,
}

/// An event that takes no part in comparisons: no two have the same number.
struct ByNumber(Event);

impl PartialEq for ByNumber {
    fn eq(&self, _: &ByNumber) -> bool {
        true
    }
}

impl Eq for ByNumber {}

impl PartialOrd for ByNumber {
    fn partial_cmp(&self, other: &ByNumber) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByNumber {
    fn cmp(&self, _: &ByNumber) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl<I: Iterator<Item = (usize, Event)>> InOrder<I> {
    pub(super) fn new(events: I) -> InOrder<I> {
        InOrder {
            events,
            held: BinaryHeap::new(),
        }
    }
}

impl<I: Iterator<Item = (usize, Event)>> Iterator for InOrder<I> {
    type Item = (usize, Event);

    fn next(&mut self) -> Option<(usize, Event)> {
        while self.held.len() < WINDOW
            && let Some((number, event)) = self.events.next()
        {
            self.held
                .push(Reverse((began(&event), number, ByNumber(event))));
        }
        let Reverse((_, number, event)) = self.held.pop()?;
        Some((number, event.0))
    }
}

#[cfg(test)]
mod tests {
    use hmm_backend::pages::{Page, PageRange};

    use super::*;

    #[test]
    fn what_began_first_comes_first() {
        let event = |end: u64, latency: u64, page| Event {
            latency: Duration::from_micros(latency),
            ..Event::new(
                Duration::from_micros(end),
                EventKind::CpuFault,
                PageRange::single(Page(page)),
            )
        };
        let noted = [
            event(10, 0, 0),
            event(15, 1, 2),
            event(16, 5, 1),
            event(20, 0, 3),
        ];
        let pages: Vec<_> = InOrder::new(noted.into_iter().enumerate()).collect();
        let pages: Vec<_> = pages.iter().map(|(n, e)| (*n, e.page.0)).collect();
        assert_eq!(pages, [(0, 0), (2, 1), (1, 2), (3, 3)]);
    }
}
