//! Pages that go to and fro.

use std::collections::BTreeMap;

use hmm_backend::{Event, EventKind, PAGE_SIZE, Page as GuestPage, PageRange};

use super::axis::{Unit, number};
use super::page::{Page, Table};
use crate::THRASHING;

/// Rows of the table.
const MOST: usize = 20;

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct History {
    to_device: u32,
    to_system: u32,
    /// Times it went to a device after it had been brought back.
    returns: u32,
    /// When it last left a device.
    left: Option<u64>,
    /// Shortest time between leaving and returning.
    shortest: u64,
}

/// The histories of all pages that migrated.
#[derive(Default)]
pub(super) struct Thrashing {
    pages: BTreeMap<u32, History>,
    limit: u32,
}

impl Thrashing {
    /// Of this many pages.
    pub(super) fn new(pages: usize) -> Thrashing {
        Thrashing {
            pages: BTreeMap::new(),
            limit: u32::try_from(pages).unwrap_or(u32::MAX),
        }
    }

    pub(super) fn add(&mut self, event: &Event, time: u64) {
        let to_device = match event.kind {
            EventKind::ToDevice => true,
            EventKind::ToSystem => false,
            // A duplicate has left the device only when its frame is given up.
            EventKind::Collapsed if event.device.is_none() => false,
            // Its next contents have another history.
            EventKind::Freed => {
                for page in event.within(self.limit).pages() {
                    if let Some(history) = self.pages.get_mut(&page.0) {
                        history.left = None;
                    }
                }
                return;
            }
            _ => return,
        };
        for page in event.within(self.limit).pages() {
            let history = self.pages.entry(page.0).or_default();
            if !to_device {
                history.to_system += 1;
                history.left = Some(time);
                continue;
            }
            history.to_device += 1;
            if let Some(left) = history.left.take() {
                let away = time - left;
                let first = history.returns == 0;
                history.shortest = if first {
                    away
                } else {
                    history.shortest.min(away)
                };
                history.returns += 1;
            }
        }
    }

    /// Pages that returned often.
    pub(super) fn count(&self) -> usize {
        self.pages
            .values()
            .filter(|history| history.returns >= THRASHING)
            .count()
    }

    /// Runs of neighbours with about the same history, the worst first.
    fn ranges(&self) -> Vec<(PageRange, History)> {
        let mut ranges: Vec<(PageRange, History)> = Vec::new();
        for (page, history) in &self.pages {
            if history.returns < THRASHING {
                continue;
            }
            match ranges.last_mut() {
                Some((range, first))
                    if range.end.0 == *page && first.returns == history.returns =>
                {
                    range.end = GuestPage(page + 1);
                    first.to_device = first.to_device.max(history.to_device);
                    first.to_system = first.to_system.max(history.to_system);
                    first.shortest = first.shortest.min(history.shortest);
                }
                _ => ranges.push((PageRange::single(GuestPage(*page)), *history)),
            }
        }
        ranges.sort_by_key(|(range, history)| (std::cmp::Reverse(history.returns), range.start));
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
            let address = |page: GuestPage| base + u64::from(page.0) * PAGE_SIZE;
            let shortest = history.shortest as f64;
            table.row(
                &[
                    format!("{:#x}–{:#x}", address(range.start), address(range.end) - 1),
                    number(f64::from(range.len())),
                    number(history.returns.into()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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
                    history.returns,
                    history.shortest,
                )
            })
            .collect();
        assert_eq!(ranges, [(12, 1, 4, 40), (10, 2, 3, 40), (13, 1, 3, 40)]);
    }
}
