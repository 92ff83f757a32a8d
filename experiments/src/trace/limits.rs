//! The limits of a trace's contents. Writer, importer, reader and replay have the same limits: a trace that one accepts, the
//! others can use. So the time and memory of a command do not depend on the numbers in a small file.

use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::BLOCK_PAGES;

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

/// Pages that a trace's events may name in all, however small its file: 1 GiB.
pub const NAMED: u64 = 1 << 18;
/// How many more pages the events may name for each byte of the file. A block of equal events compresses to next to
/// nothing, so their number tells nothing of the work that went into a file. Recordings, whose events have times,
/// name some tens.
pub const NAMED_PER_BYTE: u64 = 1 << 7;

/// Checks whether there can be such an event in a machine with this many pages; an error says what is wrong.
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

/// Returns the most pages in an event of this kind: a block for events about single pages or folios.
fn most(kind: EventKind) -> u32 {
    use EventKind::*;
    match kind {
        CpuFault | ToDevice | ToSystem | BetweenDevices | MappedInPlace | Deferred | Fatal
        | Advice | SlowDriver | Duplicated | Collapsed | Placed => BLOCK_PAGES as u32,
        DeviceFault | Freed | Access | Pinned | Unpinned | Hint => u32::MAX,
    }
}

/// Counts the pages that a trace's events name, without the first page of each event. A replay looks at each of these pages, so
/// their number says how long it takes.
#[derive(Default)]
pub struct Named {
    pages: u64,
}

impl Named {
    /// Counts an event that is replayed. Events that only report what the recorded run did must be left out by the caller: they
    /// are not replayed and take no time.
    pub fn add(&mut self, event: &Event) {
        let pages = u64::from(event.pages);
        let looked_at = match event.kind {
            // A replay looks at each block, and at pages only in blocks that may have contents.
            EventKind::Freed => pages.div_ceil(BLOCK_PAGES),
            // Policies keep hints for each block, as sets of its pages. A page that is placed takes one word.
            EventKind::Hint | EventKind::Placed => pages.div_ceil(16),
            _ => pages,
        };
        // Programs whose accesses are all alike make files in which many events share a byte; each is an access all the same.
        self.pages = self.pages.saturating_add(looked_at.saturating_sub(1));
    }

    /// Checks whether a file of this many bytes may name as many pages as were counted. If not, the error is their number.
    pub fn check(&self, bytes: u64) -> Result<(), u64> {
        let most = bytes.saturating_mul(NAMED_PER_BYTE).saturating_add(NAMED);
        match self.pages > most {
            true => Err(self.pages),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use hmm_backend::pages::{Page, PageRange};
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
    fn pages_are_limited_in_all_and_by_the_size_of_the_file() {
        let named = |count, event: Event| {
            let mut named = Named::default();
            (0..count).for_each(|_| named.add(&event));
            named
        };
        let large = named(2, event(EventKind::Access, 0, 1 << 18));
        assert_eq!(large.check(2047), Err((1 << 19) - 2));
        assert_eq!(large.check(2048), Ok(()));
        // What names one page each is an access each.
        let small = named(1_000_000, event(EventKind::Access, 0, 1));
        assert_eq!(small.check(0), Ok(()));
        // What is freed costs little where nothing is.
        let freed = named(100, event(EventKind::Freed, 0, 1 << 20));
        assert_eq!(freed.check(0), Ok(()));
        let most = named(3, event(EventKind::Access, 0, u32::MAX));
        assert!(most.check(0).is_err() && most.check(u64::MAX).is_ok());
    }
}
