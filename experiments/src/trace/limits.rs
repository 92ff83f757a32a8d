//! What a trace can hold. The limits are the same for whoever writes, imports, reads and replays: what one accepts, the
//! others can use. They keep numbers in a small file from setting anybody's time or memory.

use hmm_backend::{BLOCK_PAGES, Event, EventKind};

/// Pages of memory in imported traces and in replays: 1 TiB.
pub const PAGES: u32 = 1 << 28;
/// Accelerators in imported traces and in replays.
pub const DEVICES: u32 = 64;
/// Threads whose vCPUs are known, and vCPUs.
pub const THREADS: usize = 1 << 16;
/// Blocks of 2 MiB whose addresses are known: 256 GiB. With all threads they fit into a note.
pub const BLOCKS: usize = 1 << 17;
/// Nanoseconds: 292 years. Tables have signed numbers.
pub const TIME: u64 = i64::MAX as u64;
/// Accesses of all events together; that many nanoseconds can be told, too.
pub const ACCESSES: u64 = TIME;

/// Pages that events may name in all, whatever the number of events.
const NAMED: u64 = 1 << 21;
/// And how many more for each event.
const NAMED_PER_EVENT: u64 = 1 << 12;

/// Whether there can be such an event, if the machine has so many pages; an error says what is wrong.
pub fn check(event: &Event, pages: u32) -> Result<(), &'static str> {
    if u64::from(event.page.0) + u64::from(event.pages) > u64::from(pages) {
        return Err("an event names pages beyond the trace's memory");
    }
    if event.pages > most(event.kind) {
        return Err("an event names more pages than there can be in one");
    }
    if event.time.as_nanos().max(event.latency.as_nanos()) > TIME.into() {
        return Err("an event's time is beyond 292 years");
    }
    Ok(())
}

/// What happens to single pages or to folios never concerns more than a block.
fn most(kind: EventKind) -> u32 {
    use EventKind::*;
    match kind {
        CpuFault | ToDevice | ToSystem | MappedInPlace | Deferred | Fatal | Advice | SlowDriver
        | Duplicated | Collapsed => BLOCK_PAGES as u32,
        DeviceFault | Freed | Access | Pinned | Unpinned | Hint => u32::MAX,
    }
}

/// How many pages a trace's events have named so far: a replay looks at each of them.
#[derive(Default)]
pub struct Named {
    events: u64,
    pages: u64,
}

impl Named {
    /// Counts an event. The error is the number of pages, if that is too many.
    pub fn add(&mut self, event: &Event) -> Result<(), u64> {
        let pages = u64::from(event.pages);
        self.events += 1;
        self.pages += match event.kind {
            // Only looked at where something is.
            EventKind::Freed => pages.div_ceil(BLOCK_PAGES),
            // Kept for each block.
            EventKind::Hint => pages.div_ceil(16),
            _ => pages,
        };
        match self.pages > NAMED + self.events * NAMED_PER_EVENT {
            true => Err(self.pages),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use hmm_backend::{Page, PageRange};
    use std::time::Duration;

    use super::*;

    fn event(kind: EventKind, page: u32, pages: u32) -> Event {
        Event {
            page: Page(page),
            pages,
            ..Event::new(Duration::ZERO, kind, PageRange::single(Page(0)))
        }
    }

    #[test]
    fn impossible_events_are_told_apart() {
        use EventKind::*;
        for (kind, page, pages, good) in [
            (Access, 0, 1000, true),
            (Access, 1, 1000, false),
            (Freed, u32::MAX, u32::MAX, false),
            (ToDevice, 10, 512, true),
            (ToDevice, 10, 513, false),
            (CpuFault, 999, 1, true),
            (CpuFault, 1000, 1, false),
        ] {
            let found = check(&event(kind, page, pages), 1000);
            assert_eq!(found.is_ok(), good, "{kind:?} {page} {pages}");
        }
        let mut late = event(Access, 0, 1);
        late.time = Duration::from_nanos(TIME);
        assert_eq!(check(&late, 1), Ok(()));
        late.time = Duration::from_nanos(TIME + 1);
        assert!(check(&late, 1).is_err());
    }

    #[test]
    fn pages_are_limited_in_all_and_by_event() {
        let mut named = Named::default();
        let half = event(EventKind::Access, 0, 1 << 20);
        assert_eq!((named.add(&half), named.add(&half)), (Ok(()), Ok(())));
        assert_eq!(named.add(&half), Err(3 << 20));
        let mut many = Named::default();
        for _ in 0..1_000_000 {
            many.add(&event(EventKind::Access, 0, 1 << 12)).unwrap();
        }
        // What is freed costs little where nothing is.
        let mut freed = Named::default();
        for _ in 0..1000 {
            freed.add(&event(EventKind::Freed, 0, 1 << 21)).unwrap();
        }
    }
}
