//! What is known of a block: which of its pages have been on a device, and for each group of 64 KiB whether that has paid
//! off.

use std::time::Duration;

use super::window::Window;
use crate::pages::{BLOCK_PAGES, PAGE_SIZE, PageSet};
use crate::policy::LinkModel;
use crate::policy::fault::density::{BIG_PAGE, big_page};

/// Groups of a block.
const GROUPS: usize = BLOCK_PAGES as usize / BIG_PAGE;
/// The time of a fault, as in the replay's costs: about what a GPU's fault takes.
const FAULT: Duration = Duration::from_micros(20);
/// The time of an access in place, as in the replay's costs: about a round trip over PCIe.
const REMOTE: Duration = Duration::from_micros(1);
/// How often a group that has proved hot may return before it has to prove it again. It bounds what a wrong proof costs:
/// this many migrations for the accesses in place of one.
const PASSES: u8 = 4;
/// The most times that the accesses needed for a proof are doubled.
const MOST_LEVEL: u8 = 6;

/// The window shrinks if at most one in so many of the pages that an eviction takes away was used: one used page pays for the
/// bytes of more than that, but a smaller window also keeps other pages for longer.
const USED: usize = 8;
/// The order of 64 KiB.
const BIG_ORDER: u8 = 4;

/// A time in nanoseconds, half as large as a `Duration`.
type Nanos = u64;

/// How a page left a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Returned {
    /// Device memory was short.
    Evicted,
    /// A CPU touched it or one of its neighbours.
    ByCpu,
}

/// Whether a device's memory has room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Room {
    Free,
    Full,
}

/// The experience with 64 KiB.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    /// Accesses in place since the group came to system memory or was used there first.
    heat: u32,
    /// The accesses needed for a proof are doubled so often.
    level: u8,
    /// Returns left for which pages migrate at once.
    passes: u8,
    /// Whether pages are on a device since `since`, and this stay has not been judged yet.
    on_device: bool,
    /// When pages went to a device, or when the device began to use pages in place.
    since: Nanos,
    /// How long the last proof took; 0 if there has been none.
    heated: Nanos,
}

/// A block's history. 64 bytes for each set of pages, 24 for each group.
#[derive(Debug)]
pub(super) struct Region {
    /// Pages that went to a device and are not known to have come back.
    sent: PageSet,
    /// Pages that have come back.
    returned: PageSet,
    /// Pages that were brought to a device and that it has not used yet.
    unused: PageSet,
    /// Pages that came to system memory along with one that a CPU touched, and that no device has used since.
    pulled: PageSet,
    /// Pages that a device uses in place; may contain pages that have migrated since.
    in_place: PageSet,
    groups: [Group; GROUPS],
    /// What comes with a page that a device or a CPU faults on.
    pub(super) to_device: Window,
    pub(super) to_system: Window,
}

impl Default for Region {
    fn default() -> Region {
        Region {
            sent: PageSet::EMPTY,
            returned: PageSet::EMPTY,
            unused: PageSet::EMPTY,
            pulled: PageSet::EMPTY,
            in_place: PageSet::EMPTY,
            groups: [Group::default(); GROUPS],
            to_device: Window::new(BIG_ORDER),
            to_system: Window::new(BIG_ORDER),
        }
    }
}

impl Region {
    /// Notes the pages that an eviction has taken away: they went to a device, and are in system memory. The device's window
    /// shrinks if hardly any of them was used.
    pub(super) fn lost(&mut self, system: &PageSet, now: Nanos) {
        let gone = self.sent.intersection(system);
        if !gone.is_empty() {
            let used = gone.difference(&self.unused).count();
            if used * USED <= gone.count() {
                self.to_device.shrink();
            }
            self.come_back(&gone, Returned::Evicted, now);
        }
    }

    /// Notes that these pages are in system memory again, if they were on a device. Judges each group's stay there: it was
    /// worth the migration if it took at least as long as the accesses that had proved the group hot.
    pub(super) fn come_back(&mut self, pages: &PageSet, how: Returned, now: Nanos) {
        let back = pages.intersection(&self.sent);
        for index in back.iter() {
            let group = &mut self.groups[index / BIG_PAGE];
            if std::mem::take(&mut group.on_device) {
                group.judge(how, now);
            }
        }
        self.sent = self.sent.difference(&back);
        self.unused = self.unused.difference(&back);
        self.in_place = self.in_place.difference(&back);
        self.returned = self.returned.union(&back);
    }

    /// Returns whether this page has returned to system memory, and may not migrate alone before its group proves hot.
    pub(super) fn waits(&self, index: usize) -> bool {
        self.returned.contains(index) && self.groups[index / BIG_PAGE].passes == 0
    }

    /// Returns those of these pages of system memory that a device uses in place.
    pub(super) fn in_place(&self, system: &PageSet) -> PageSet {
        self.in_place.intersection(system)
    }

    /// Notes that a device uses these pages in place from now on.
    pub(super) fn use_in_place(&mut self, pages: &PageSet, now: Nanos) {
        for index in pages.iter() {
            let number = index / BIG_PAGE;
            let group = &mut self.groups[number];
            if self.in_place.count_in(big_page(number)) == 0 {
                (group.since, group.heat) = (now, 0);
            }
            self.in_place.insert(index);
        }
        self.returned = self.returned.union(pages);
    }

    /// Notes that these pages come to system memory along with those that a CPU touches.
    pub(super) fn pull(&mut self, pages: &PageSet) {
        self.pulled = self.pulled.union(pages);
    }

    /// A device faults on this page. If it was pulled away, the CPUs' window was too large.
    pub(super) fn missed(&mut self, index: usize) {
        if self.pulled.contains(index) {
            self.pulled.remove(index);
            self.to_system.shrink();
        }
    }

    /// Whether at least one in [`USED`] pages of the last window was used.
    pub(super) fn last_window_was_used(&self) -> bool {
        let window = self.to_device.last();
        let pages = window.len();
        self.sent.difference(&self.unused).count_in(window) * USED > pages
    }

    /// Notes that the device uses a page. Returns whether it was brought along and is used for the first time.
    pub(super) fn used(&mut self, index: usize) -> bool {
        let first = self.unused.contains(index);
        self.unused.remove(index);
        first
    }

    /// Notes that these pages go to a device, of which it has asked for those of `wanted`.
    pub(super) fn send(&mut self, pages: &PageSet, wanted: &PageSet, now: Nanos) {
        self.unused = self.unused.union(pages).difference(wanted);
        self.sent = self.sent.union(pages);
        self.returned = self.returned.difference(pages);
        self.pulled = self.pulled.difference(pages);
        self.in_place = self.in_place.difference(pages);
        for index in pages.iter() {
            let group = &mut self.groups[index / BIG_PAGE];
            if !group.on_device {
                (group.since, group.on_device) = (now, true);
            }
        }
    }

    /// Notes `count` accesses in place to a group, of which these pages are in system memory. Returns the pages that
    /// migrate: those that the device uses, when the accesses have cost as much as bringing them costs.
    pub(super) fn used_in_place(
        &mut self,
        system: &PageSet,
        count: u32,
        link: &LinkModel,
        room: Room,
        now: Nanos,
    ) -> PageSet {
        let pages = self.in_place.intersection(system);
        let Some(first) = pages.first() else {
            return PageSet::EMPTY;
        };
        let group = &mut self.groups[first / BIG_PAGE];
        group.heat = group.heat.saturating_add(count);
        if group.heat < accesses_worth(pages.count(), link, room) << group.level {
            return PageSet::EMPTY;
        }
        group.heated = now.saturating_sub(group.since).max(1);
        (group.heat, group.passes) = (0, PASSES);
        (group.since, group.on_device) = (now, true);
        self.sent = self.sent.union(&pages);
        pages
    }

    /// Forgets pages whose contents are gone.
    pub(super) fn freed(&mut self, pages: &PageSet) {
        let Region {
            sent,
            returned,
            unused,
            pulled,
            in_place,
            ..
        } = self;
        for set in [sent, returned, unused, pulled, in_place] {
            *set = set.difference(pages);
        }
    }
}

impl Group {
    fn judge(&mut self, how: Returned, now: Nanos) {
        let stayed = now.saturating_sub(self.since);
        self.heat = 0;
        if self.heated == 0 {
            // It never proved hot: nothing is known of its worth.
            return;
        }
        if stayed < self.heated {
            self.level = (self.level + 1).min(MOST_LEVEL);
            self.passes = 0;
            return;
        }
        self.level = self.level.saturating_sub(1);
        if how == Returned::Evicted {
            self.passes = self.passes.saturating_sub(1);
        }
    }
}

/// Returns how many accesses in place cost as much as it costs to migrate this many pages to the device and to bring them back with
/// one fault. Into a full memory, each of them pushes a page out, on which the device faults again.
fn accesses_worth(pages: usize, link: &LinkModel, room: Room) -> u32 {
    let transfers = link.time(pages as u64 * PAGE_SIZE) * 2;
    let faults = match room {
        Room::Free => 1,
        Room::Full => 1 + pages as u32,
    };
    let accesses = (transfers + FAULT * faults).as_nanos() / REMOTE.as_nanos();
    // A slow link makes no page wait for ever.
    accesses.min(1 << 20) as u32
}
