//! The event ring: what happened, in order, in bounded memory. When a ring is full, new events are dropped and
//! counted by kind.

use std::collections::VecDeque;
use std::time::Duration;

use super::cause::Cause;
use crate::pages::{Access, DeviceId, Hint, Page, PageRange};

/// The kind of an event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EventKind {
    /// A CPU fault was served; `latency` lasts from the arrival of its message to the wake-up.
    CpuFault,
    /// A device fault was served; `latency` lasts from the access to the translation.
    DeviceFault,
    /// Pages arrived in device memory.
    ToDevice,
    /// Pages arrived in system memory.
    ToSystem,
    /// A device got a translation of a system page in place.
    MappedInPlace,
    /// The guest freed pages.
    Freed,
    /// The service of a fault was postponed.
    Deferred,
    /// A page could not be supplied.
    Fatal,
    /// A page was accessed in place. In a live run: a device got a translation of a page where it was. In access
    /// traces: any access.
    Access,
    /// The policy was asked about `page` and added `pages` pages to the migration, to `device`'s memory or to system
    /// memory; `latency` is how long they are to stay there.
    Advice,
    /// A driver's call about this page has lasted longer than the service's limit; `latency` is its duration so far.
    SlowDriver,
    /// Pages were brought into system memory and pinned there.
    Pinned,
    /// Pages are about to be unpinned.
    Unpinned,
    /// Pages of the device's memory were copied to system memory and stayed on the device as well.
    Duplicated,
    /// One copy of duplicated pages was dropped, and no contents moved. The pages are now only in the memory of
    /// `device`, or in system memory if `device` is `None`.
    Collapsed,
    /// The guest or the user gave a hint about pages.
    Hint,
    /// Pages arrived in `device`'s memory directly from another device's.
    BetweenDevices,
    /// The pages have contents when a recording begins in the middle of a run: in the memory of `device`, or in system memory if
    /// `device` is `None`. A backend makes no such events: recordings begin with them.
    Placed,
}

/// Number of kinds.
const KINDS: usize = EventKind::ALL.len();

impl EventKind {
    /// All kinds, ordered by their number.
    pub const ALL: [EventKind; 18] = [
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
        EventKind::BetweenDevices,
        EventKind::Placed,
    ];

    /// The name of the kind in files.
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
            EventKind::BetweenDevices => "between-devices",
            EventKind::Placed => "placed",
        }
    }
}

/// Something that happened to `pages` pages from `page` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Time since the backend was made.
    pub time: Duration,
    /// The kind.
    pub kind: EventKind,
    /// First page.
    pub page: Page,
    /// Number of pages.
    pub pages: u32,
    /// The device concerned.
    pub device: Option<DeviceId>,
    /// The cause; for migrations only.
    pub cause: Option<Cause>,
    /// The kind of access; for faults and accesses.
    pub access: Option<Access>,
    /// For CPU faults: the kernel's id of the thread that sleeps in the fault; 0 if unknown.
    pub thread: u32,
    /// A duration, as documented at the kind; zero for other kinds.
    pub latency: Duration,
    /// For hints: the hint.
    pub hint: Option<Hint>,
    /// How often the event happened in a row. In access traces, successive accesses of a program to the same pages
    /// are one event. 1 for all other events.
    pub repeats: u32,
}

impl Event {
    /// An event with the given time, kind and pages; all other fields are empty.
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

    /// The number of accesses that an access event stands for: its pages times its repeats. 0 for other events.
    pub fn accesses(&self) -> u64 {
        match self.kind {
            EventKind::Access => u64::from(self.pages) * u64::from(self.repeats),
            _ => 0,
        }
    }

    /// The event's pages, cut to a machine of `pages` pages: events read from a file can name any page.
    pub fn within(&self, pages: u32) -> PageRange {
        let end = self.page.0.saturating_add(self.pages).min(pages);
        PageRange::new(Page(self.page.0.min(end)), Page(end))
    }
}

/// Events taken out of the rings.
#[derive(Clone, Debug, Default)]
pub struct Events {
    /// The events in order of time.
    pub events: Vec<Event>,
    dropped: [u64; KINDS],
}

impl Events {
    /// Adds a copy of other events, as far as there is room for `most`; the others count as dropped.
    pub(crate) fn add(&mut self, others: &Events, most: usize) {
        let room = most
            .saturating_sub(self.events.len())
            .min(others.events.len());
        let (fitting, late) = others.events.split_at(room);
        self.events.extend_from_slice(fitting);
        for event in late {
            self.dropped[event.kind as usize] += 1;
        }
        for (sum, n) in self.dropped.iter_mut().zip(others.dropped) {
            *sum += n;
        }
    }

    /// How many events of this kind were dropped since the rings were last emptied.
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

    /// Changes how many events fit; without any, those in the ring are dropped without being counted.
    pub(crate) fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
        if capacity == 0 {
            *self = Ring::new(0);
        }
    }

    pub(crate) fn push(&mut self, event: Event) {
        if self.events.len() < self.capacity {
            self.events.push_back(event);
        } else if self.capacity > 0 {
            self.dropped[event.kind as usize] += 1;
        }
    }

    /// Moves the events until `until` and the counts of dropped events into `all`.
    pub(crate) fn drain_into(&mut self, all: &mut Events, until: Duration) {
        // The events are not strictly in order of time: a fault is recorded with the time of its end, but only after
        // events that happened in between.
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
        // One event is later than `until` and stays in the ring.
        assert_eq!((next.events.len(), next.dropped(EventKind::Fatal)), (1, 0));
        ring.drain_into(&mut next, Duration::from_nanos(1));
        assert_eq!(next.events.len(), 2);
    }
}
