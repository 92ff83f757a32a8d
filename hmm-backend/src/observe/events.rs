//! The event ring: what happened, in order, in bounded memory. When a ring is full, new events are dropped
//! and counted by kind, never silently.

use std::collections::VecDeque;
use std::time::Duration;

use super::cause::Cause;
use crate::pages::{Access, DeviceId, Hint, Page, PageRange};

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EventKind {
    /// A CPU fault was served; `latency` from its message to the wake-up.
    CpuFault,
    /// A device fault was served; `latency` from the access to the translation.
    DeviceFault,
    /// Pages arrived in device memory.
    ToDevice,
    /// Pages arrived in system memory.
    ToSystem,
    /// A device got a translation of a system page in place.
    MappedInPlace,
    /// The guest freed pages.
    Freed,
    /// A fault was put off.
    Deferred,
    /// A page could not be supplied.
    Fatal,
    /// A page was accessed where it could be: live, a device got a translation of a page that was there; in access
    /// traces, any access.
    Access,
    /// The policy was asked about `page` and had `pages` more brought along, to `device`'s memory or the system's;
    /// `latency` is how long they are to stay.
    Advice,
    /// A driver's call about this page takes longer than the service's limit; `latency` is how long so far.
    SlowDriver,
    /// Pages were brought into system memory and stay there.
    Pinned,
    /// Pages are about to be let go of that were pinned.
    Unpinned,
    /// Pages of the device's memory arrived in system memory and stayed where they were, too.
    Duplicated,
    /// One copy of duplicated pages is gone, and no contents moved: they are in the memory of `device` alone, or in
    /// system memory if there is none.
    Collapsed,
    /// Somebody has said something about pages.
    Hint,
}

/// Number of kinds.
const KINDS: usize = EventKind::ALL.len();

impl EventKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [EventKind; 16] = [
        EventKind::CpuFault,
        EventKind::DeviceFault,
        EventKind::ToDevice,
        EventKind::ToSystem,
        EventKind::MappedInPlace,
        EventKind::Freed,
        EventKind::Deferred,
        EventKind::Fatal,
        EventKind::Access,
        EventKind::Advice,
        EventKind::SlowDriver,
        EventKind::Pinned,
        EventKind::Unpinned,
        EventKind::Duplicated,
        EventKind::Collapsed,
        EventKind::Hint,
    ];

    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::CpuFault => "cpu-fault",
            EventKind::DeviceFault => "device-fault",
            EventKind::ToDevice => "to-device",
            EventKind::ToSystem => "to-system",
            EventKind::MappedInPlace => "mapped-in-place",
            EventKind::Freed => "freed",
            EventKind::Deferred => "deferred",
            EventKind::Fatal => "fatal",
            EventKind::Access => "access",
            EventKind::Advice => "advice",
            EventKind::SlowDriver => "slow-driver",
            EventKind::Pinned => "pinned",
            EventKind::Unpinned => "unpinned",
            EventKind::Duplicated => "duplicated",
            EventKind::Collapsed => "collapsed",
            EventKind::Hint => "hint",
        }
    }
}

/// Something that happened to `pages` pages from `page`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// When, since the backend was made.
    pub time: Duration,
    /// What.
    pub kind: EventKind,
    /// First page.
    pub page: Page,
    /// Number of pages.
    pub pages: u32,
    /// The device concerned.
    pub device: Option<DeviceId>,
    /// For migrations.
    pub cause: Option<Cause>,
    /// For faults and accesses.
    pub access: Option<Access>,
    /// For CPU faults: the thread that sleeps in it, as the kernel numbers it; 0 where that is not known.
    pub thread: u32,
    /// For faults.
    pub latency: Duration,
    /// What was said about the pages.
    pub hint: Option<Hint>,
    /// How often it happened before anything else did: a program's accesses to the same pages, one after the other, are
    /// one event in access traces. 1 for all others.
    pub repeats: u32,
}

impl Event {
    /// An event with nothing known but this.
    pub fn new(time: Duration, kind: EventKind, pages: PageRange) -> Event {
        Event {
            time,
            kind,
            page: pages.start,
            pages: pages.len(),
            device: None,
            cause: None,
            access: None,
            thread: 0,
            latency: Duration::ZERO,
            hint: None,
            repeats: 1,
        }
    }

    /// How many accesses to pages it stands for, if it is an access: one for each page and time.
    pub fn accesses(&self) -> u64 {
        match self.kind {
            EventKind::Access => u64::from(self.pages) * u64::from(self.repeats),
            _ => 0,
        }
    }

    /// Its pages, as far as a machine of so many has them: what a file says of an event need not be so.
    pub fn within(&self, pages: u32) -> PageRange {
        let end = self.page.0.saturating_add(self.pages).min(pages);
        PageRange::new(Page(self.page.0.min(end)), Page(end))
    }
}

/// Events taken out of the rings.
#[derive(Clone, Debug, Default)]
pub struct Events {
    /// In order of time.
    pub events: Vec<Event>,
    dropped: [u64; KINDS],
}

impl Events {
    /// How many events of this kind did not fit since the rings were last emptied.
    pub fn dropped(&self, kind: EventKind) -> u64 {
        self.dropped[kind as usize]
    }
}

#[derive(Debug)]
pub(crate) struct Ring {
    events: VecDeque<Event>,
    capacity: usize,
    dropped: [u64; KINDS],
}

impl Ring {
    pub(crate) fn new(capacity: usize) -> Ring {
        Ring {
            events: VecDeque::new(),
            capacity,
            dropped: [0; KINDS],
        }
    }

    pub(crate) fn push(&mut self, event: Event) {
        if self.events.len() < self.capacity {
            self.events.push_back(event);
        } else {
            self.dropped[event.kind as usize] += 1;
        }
    }

    /// Takes out the events until `until`, and what is known of those that were dropped.
    pub(crate) fn drain_into(&mut self, all: &mut Events, until: Duration) {
        // Not wholly in order: a fault's time is that of its end, which comes before what is noted meanwhile.
        self.events.retain(|event| {
            let now = event.time <= until;
            if now {
                all.events.push(*event);
            }
            !now
        });
        for (sum, n) in all.dropped.iter_mut().zip(&mut self.dropped) {
            *sum += std::mem::take(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_events_pages_are_cut_to_the_machines() {
        let within = |page, pages, machine| {
            let mut event =
                Event::new(Duration::ZERO, EventKind::Freed, PageRange::single(Page(0)));
            (event.page, event.pages) = (Page(page), pages);
            let range = event.within(machine);
            (range.start.0, range.end.0)
        };
        assert_eq!(within(3, 4, 100), (3, 7));
        assert_eq!(within(98, 4, 100), (98, 100));
        assert_eq!(within(5, 0, 100), (5, 5));
        assert_eq!(within(100, 4, 100), (100, 100));
        assert_eq!(within(u32::MAX, u32::MAX, 100), (100, 100));
        assert_eq!(within(0, u32::MAX, u32::MAX), (0, u32::MAX));
    }

    #[test]
    fn every_kind_is_listed_at_its_number() {
        for (index, kind) in EventKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index, "{}", kind.name());
        }
    }

    #[test]
    fn a_full_ring_counts_what_it_drops() {
        let mut ring = Ring::new(2);
        let event = |kind| Event::new(Duration::ZERO, kind, PageRange::single(Page(0)));
        for kind in [
            EventKind::Freed,
            EventKind::CpuFault,
            EventKind::CpuFault,
            EventKind::Fatal,
        ] {
            ring.push(event(kind));
        }
        let mut all = Events::default();
        ring.drain_into(&mut all, Duration::ZERO);
        assert_eq!(all.events.len(), 2);
        assert_eq!(all.dropped(EventKind::CpuFault), 1);
        assert_eq!(all.dropped(EventKind::Fatal), 1);
        assert_eq!(all.dropped(EventKind::Freed), 0);
        ring.push(event(EventKind::Freed));
        ring.push(Event {
            time: Duration::from_nanos(1),
            ..event(EventKind::Freed)
        });
        let mut next = Events::default();
        ring.drain_into(&mut next, Duration::ZERO);
        // One is later than what was asked for: it waits.
        assert_eq!((next.events.len(), next.dropped(EventKind::Fatal)), (1, 0));
        ring.drain_into(&mut next, Duration::from_nanos(1));
        assert_eq!(next.events.len(), 2);
    }
}
