//! Pages that migrate back and forth.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use hmm_backend::limits::Refusal;
use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::{PAGE_SIZE, Page, PageRange};

use super::room::Room;
use crate::figures::time;
use crate::report::drawing::axis::number;
use crate::report::drawing::page::{HtmlPage, Table};
use crate::returns::{Returns, THRASHING};

/// Rows of the table.
const MOST: usize = 20;
/// The most groups of pages of which account is kept. As many pages may each have a history of their own.
const MOST_GROUPS: usize = 1 << 21;
/// Bytes for each group, with what trees leave empty.
const GROUP_BYTES: u64 = 112;

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct History {
    /// When it last left a device, if it is away.
    left: u64,
    /// Shortest time between leaving and returning, if it has returned.
    shortest: u64,
    to_device: u32,
    to_system: u32,
    returns: Returns,
}

/// Neighbouring pages with the same history. The first of them is the key in [`Thrashing::groups`].
#[derive(Clone, Copy)]
struct PageGroup {
    end: Page,
    history: History,
}

/// The histories of all pages that migrated. An event about many pages costs as much as one about a page.
pub(super) struct Thrashing {
    groups: BTreeMap<Page, PageGroup>,
    /// The first pages of the groups that are away from their device.
    away: BTreeSet<Page>,
    limit: u32,
    most: usize,
    /// Whether there were too many groups, so that no account is kept any more.
    given_up: bool,
    room: Room,
}

impl Thrashing {
    /// Makes empty histories of this many pages.
    pub(super) fn new(pages: usize) -> Thrashing {
        Thrashing {
            groups: BTreeMap::new(),
            away: BTreeSet::new(),
            limit: u32::try_from(pages).unwrap_or(u32::MAX),
            most: MOST_GROUPS,
            given_up: false,
            room: Room::for_entries_of(GROUP_BYTES),
        }
    }

    pub(super) fn add(&mut self, event: &Event, time: u64) -> Result<(), Refusal> {
        let range = event.within(self.limit);
        if self.given_up || range.is_empty() {
            return Ok(());
        }
        match event.kind {
            EventKind::ToDevice => self.migrated(range, |history| history.arrives(time)),
            EventKind::ToSystem => self.migrated(range, |history| history.leaves(time)),
            EventKind::Freed => self.freed(range),
            _ => return Ok(()),
        }
        if self.groups.len() > self.most {
            self.groups.clear();
            self.away.clear();
            self.given_up = true;
        }
        self.room.check(self.groups.len())
    }

    fn migrated(&mut self, range: PageRange, change: impl Fn(&mut History)) {
        self.cut(range.start);
        self.cut(range.end);
        let mut at = range.start;
        while at < range.end {
            let next = self.groups.range_mut(at..range.end).next();
            let new_until = match next {
                Some((start, group)) if *start == at => {
                    change(&mut group.history);
                    let (end, is_away) = (group.end, group.history.returns.is_away());
                    match is_away {
                        true => self.away.insert(at),
                        false => self.away.remove(&at),
                    };
                    at = end;
                    continue;
                }
                Some((start, _)) => *start,
                None => range.end,
            };
            let new = PageGroup {
                end: new_until,
                history: History::default(),
            };
            self.groups.insert(at, new);
        }
    }

    /// Makes a group end at this page, if one goes beyond it.
    fn cut(&mut self, at: Page) {
        let Some((start, group)) = self.groups.range_mut(..at).next_back() else {
            return;
        };
        if group.end > at {
            let rest = *group;
            group.end = at;
            if self.away.contains(start) {
                self.away.insert(at);
            }
            self.groups.insert(at, rest);
        }
    }

    /// Frees a range. It may be large and never have migrated, so only pages that are away are visited, once.
    fn freed(&mut self, range: PageRange) {
        self.cut(range.start);
        self.cut(range.end);
        while let Some(start) = self.away.range(range.start..range.end).next().copied() {
            self.away.remove(&start);
            if let Some(group) = self.groups.get_mut(&start) {
                group.history.returns = group.history.returns.freed();
            }
        }
    }

    /// Returns the groups that returned often, in order.
    fn thrashing(&self) -> impl Iterator<Item = (PageRange, &History)> {
        let groups = self.groups.iter();
        let ranges =
            groups.map(|(start, group)| (PageRange::new(*start, group.end), &group.history));
        ranges.filter(|(_, history)| history.returns.is_thrashing())
    }

    /// Returns how many pages returned often; none if that is not known.
    pub(super) fn count(&self) -> Option<u64> {
        let pages = self.thrashing().map(|(range, _)| u64::from(range.len()));
        let count = pages.sum();
        (!self.given_up).then_some(count)
    }

    /// Returns the groups that returned often, the worst first. Neighbours that returned equally often are put together.
    fn ranges(&self) -> Vec<(PageRange, History)> {
        let mut ranges: Vec<(PageRange, History)> = Vec::new();
        for (pages, history) in self.thrashing() {
            match ranges.last_mut() {
                Some((range, first))
                    if range.end == pages.start
                        && first.returns.count() == history.returns.count() =>
                {
                    range.end = pages.end;
                    first.to_device = first.to_device.max(history.to_device);
                    first.to_system = first.to_system.max(history.to_system);
                    first.shortest = first.shortest.min(history.shortest);
                }
                _ => ranges.push((pages, *history)),
            }
        }
        ranges.sort_by_key(|(range, history)| (Reverse(history.returns.count()), range.start));
        ranges
    }

    pub(super) fn draw(&self, page: &mut HtmlPage, base: u64) {
        page.heading("Thrashing pages");
        let Some(count) = self.count() else {
            page.paragraph(&format!(
                "More than {} runs of pages have histories of their own, so many that no account of them is kept: it is not known \
                 which returned to device memory.",
                number(self.most as f64)
            ));
            return;
        };
        let ranges = self.ranges();
        if ranges.is_empty() {
            page.paragraph(&format!(
                "No page returned to device memory {THRASHING} times or more."
            ));
            return;
        }
        page.paragraph(&format!(
            "{} pages returned to device memory {THRASHING} times or more after they had been brought back. Neighbours with as many returns \
             share a row; the worst come first. The shorter the time away, the more a policy that holds or pins them would gain.",
            number(count as f64)
        ));
        let mut table = Table::new(&[
            "<guest-physical address",
            "pages",
            "returns",
            "to device",
            "to system",
            "shortest time away",
        ]);
        for (range, history) in ranges.iter().take(MOST) {
            let address = |page: Page| base.saturating_add(u64::from(page.0) * PAGE_SIZE);
            let shortest = history.shortest as f64;
            table.row(&[
                format!("{:#x}–{:#x}", address(range.start), address(range.end) - 1),
                number(f64::from(range.len())),
                number(history.returns.count().into()),
                number(history.to_device.into()),
                number(history.to_system.into()),
                time(shortest),
            ]);
        }
        page.table(table);
        if ranges.len() > MOST {
            page.paragraph(&format!(
                "{} more such ranges are not shown.",
                ranges.len() - MOST
            ));
        }
    }
}

impl History {
    fn arrives(&mut self, time: u64) {
        self.to_device = self.to_device.saturating_add(1);
        if self.returns.is_away() {
            let away = time - self.left;
            self.shortest = match self.returns.count() {
                0 => away,
                _ => self.shortest.min(away),
            };
        }
        self.returns = self.returns.arrived();
    }

    fn leaves(&mut self, time: u64) {
        self.to_system = self.to_system.saturating_add(1);
        self.left = time;
        self.returns = self.returns.left();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_alike_is_one_run_and_too_many_are_none() {
        let mut pages = Thrashing::new(1 << 28);
        let add = |pages: &mut Thrashing, kind, page, n| {
            let range = PageRange::with_len(Page(page), n);
            pages
                .add(&Event::new(Duration::ZERO, kind, range), 0)
                .unwrap();
        };
        // All memory, block by block: it takes a group each, not 16 KiB.
        for block in 0..1000 {
            add(&mut pages, EventKind::ToDevice, block * 512, 512);
            add(&mut pages, EventKind::ToSystem, block * 512, 512);
        }
        assert_eq!((pages.groups.len(), pages.away.len()), (1000, 1000));
        // A part of one is another two, and what is freed is freed once.
        add(&mut pages, EventKind::Freed, 100, 10);
        assert_eq!((pages.groups.len(), pages.away.len()), (1002, 1001));
        add(&mut pages, EventKind::Freed, 0, 1 << 28);
        assert_eq!((pages.groups.len(), pages.away.len()), (1002, 0));
        assert_eq!(pages.count(), Some(0));
        pages.most = 1003;
        add(&mut pages, EventKind::ToDevice, 200, 10);
        assert_eq!((pages.groups.len(), pages.count()), (0, None));
        add(&mut pages, EventKind::ToDevice, 0, 1);
        assert_eq!(pages.groups.len(), 0);
    }

    #[test]
    fn returns_are_counted_and_neighbours_share_a_row() {
        let mut pages = Thrashing::new(100);
        let event =
            |kind, page, n| Event::new(Duration::ZERO, kind, PageRange::with_len(Page(page), n));
        for round in 0..4 {
            pages
                .add(&event(EventKind::ToDevice, 10, 4), round * 100)
                .unwrap();
            pages
                .add(&event(EventKind::ToSystem, 10, 4), round * 100 + 60)
                .unwrap();
        }
        // Goes once more, and one that was freed in between.
        pages.add(&event(EventKind::ToDevice, 12, 1), 410).unwrap();
        pages.add(&event(EventKind::Freed, 13, 1), 420).unwrap();
        pages.add(&event(EventKind::ToDevice, 13, 1), 430).unwrap();
        pages
            .add(&event(EventKind::ToDevice, 90, 1000), 430)
            .unwrap();
        assert_eq!(pages.count(), Some(4));
        let ranges: Vec<_> = pages
            .ranges()
            .into_iter()
            .map(|(range, history)| {
                (
                    range.start.0,
                    range.len(),
                    history.returns.count(),
                    history.shortest,
                )
            })
            .collect();
        assert_eq!(ranges, [(12, 1, 4, 40), (10, 2, 3, 40), (13, 1, 3, 40)]);
    }
}
