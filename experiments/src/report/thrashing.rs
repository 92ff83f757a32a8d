//! Pages that go to and fro.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use hmm_backend::{BLOCK_PAGES, Block, Event, EventKind, PAGE_SIZE, Page as GuestPage, PageRange};

use super::axis::{Unit, number};
use super::page::{Page, Table};
use crate::returns::{Returns, THRASHING};

/// Rows of the table.
const MOST: usize = 20;

/// 32 bytes.
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

type Histories = [History; BLOCK_PAGES as usize];

/// The histories of the pages of all blocks in which any migrated.
#[derive(Default)]
pub(super) struct Thrashing {
    blocks: BTreeMap<Block, Box<Histories>>,
    /// Those in which a page may be away from its device.
    away: BTreeSet<Block>,
    limit: u32,
}

impl Thrashing {
    /// Of this many pages.
    pub(super) fn new(pages: usize) -> Thrashing {
        Thrashing {
            blocks: BTreeMap::new(),
            away: BTreeSet::new(),
            limit: u32::try_from(pages).unwrap_or(u32::MAX),
        }
    }

    pub(super) fn add(&mut self, event: &Event, time: u64) {
        let change: fn(&mut History, u64) = match event.kind {
            EventKind::ToDevice => History::arrives,
            EventKind::ToSystem => History::leaves,
            EventKind::Freed => return self.freed(event.within(self.limit)),
            _ => return,
        };
        for part in event.within(self.limit).split_by_block() {
            let block = part.start.block();
            let new = || Box::new([History::default(); BLOCK_PAGES as usize]);
            let histories = self.blocks.entry(block).or_insert_with(new);
            for page in part.pages() {
                change(&mut histories[page.index_in_block()], time);
            }
            if event.kind == EventKind::ToSystem {
                self.away.insert(block);
            }
        }
    }

    /// What is freed may be large, and never have migrated: only pages that are away have something to lose.
    fn freed(&mut self, range: PageRange) {
        if range.is_empty() {
            return;
        }
        let blocks = range.start.block()..=GuestPage(range.end.0 - 1).block();
        let away: Vec<Block> = self.away.range(blocks).copied().collect();
        for block in away {
            let all = PageRange::with_len(block.first_page(), BLOCK_PAGES as u32);
            let part = PageRange::new(range.start.max(all.start), range.end.min(all.end));
            let Some(histories) = self.blocks.get_mut(&block) else {
                continue;
            };
            for page in part.pages() {
                let history = &mut histories[page.index_in_block()];
                history.returns = history.returns.freed();
            }
            if part == all {
                self.away.remove(&block);
            }
        }
    }

    /// The pages that returned often, in order.
    fn thrashing(&self) -> impl Iterator<Item = (GuestPage, &History)> {
        let pages = self.blocks.iter().flat_map(|(block, histories)| {
            let pages = PageRange::with_len(block.first_page(), BLOCK_PAGES as u32).pages();
            pages.zip(histories.iter())
        });
        pages.filter(|(_, history)| history.returns.is_thrashing())
    }

    /// Pages that returned often.
    pub(super) fn count(&self) -> usize {
        self.thrashing().count()
    }

    /// Runs of neighbours with about the same history, the worst first.
    fn ranges(&self) -> Vec<(PageRange, History)> {
        let mut ranges: Vec<(PageRange, History)> = Vec::new();
        for (page, history) in self.thrashing() {
            match ranges.last_mut() {
                Some((range, first))
                    if range.end == page && first.returns.count() == history.returns.count() =>
                {
                    range.end = page.plus(1);
                    first.to_device = first.to_device.max(history.to_device);
                    first.to_system = first.to_system.max(history.to_system);
                    first.shortest = first.shortest.min(history.shortest);
                }
                _ => ranges.push((PageRange::single(page), *history)),
            }
        }
        ranges.sort_by_key(|(range, history)| (Reverse(history.returns.count()), range.start));
        ranges
    }

    pub(super) fn draw(&self, page: &mut Page, base: u64) {
        page.heading("Thrashing pages");
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
            number(self.count() as f64)
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
            let address = |page: GuestPage| base.saturating_add(u64::from(page.0) * PAGE_SIZE);
            let shortest = history.shortest as f64;
            table.row(
                &[
                    format!("{:#x}–{:#x}", address(range.start), address(range.end) - 1),
                    number(f64::from(range.len())),
                    number(history.returns.count().into()),
                    number(history.to_device.into()),
                    number(history.to_system.into()),
                    Unit::time(shortest).show(shortest),
                ],
                false,
            );
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
    fn a_page_takes_as_much_memory_as_is_said() {
        assert_eq!(size_of::<History>(), 32);
        let mut pages = Thrashing::new(1 << 20);
        let range = PageRange::with_len(GuestPage(700), 2);
        pages.add(&Event::new(Duration::ZERO, EventKind::ToDevice, range), 0);
        let all = PageRange::new(GuestPage(0), GuestPage(1 << 20));
        pages.add(&Event::new(Duration::ZERO, EventKind::Freed, all), 0);
        assert_eq!(pages.blocks.len(), 1);
    }

    #[test]
    fn returns_are_counted_and_neighbours_share_a_row() {
        let mut pages = Thrashing::new(100);
        let event = |kind, page, n| {
            Event::new(
                Duration::ZERO,
                kind,
                PageRange::with_len(GuestPage(page), n),
            )
        };
        for round in 0..4 {
            pages.add(&event(EventKind::ToDevice, 10, 4), round * 100);
            pages.add(&event(EventKind::ToSystem, 10, 4), round * 100 + 60);
        }
        // Goes once more, and one that was freed in between.
        pages.add(&event(EventKind::ToDevice, 12, 1), 410);
        pages.add(&event(EventKind::Freed, 13, 1), 420);
        pages.add(&event(EventKind::ToDevice, 13, 1), 430);
        pages.add(&event(EventKind::ToDevice, 90, 1000), 430);
        assert_eq!(pages.count(), 4);
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
