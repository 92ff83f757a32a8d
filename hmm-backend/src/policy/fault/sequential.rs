//! Stride detection: if faults follow each other at equal distances, the next pages at that distance are prefetched.
//! Several streams are followed at the same time, each towards one place.

use crate::pages::{BLOCK_PAGES, Page, PageRange, PageSet, Place};
use crate::policy::{Advice, BlockFault, BlockView, FaultPolicy, Wish};

/// Number of streams followed at the same time. A new stream replaces the one that was used least recently.
const STREAMS: usize = 8;
/// Faults that are further apart than this belong to different streams.
const REACH: i64 = BLOCK_PAGES as i64;

#[derive(Clone, Copy, Debug)]
struct Stream {
    to: Place,
    /// Page number of the last fault.
    last: i64,
    /// Pages from one fault to the next; 0 after the first fault.
    stride: i64,
    /// Number of equal strides in a row.
    run: u32,
    /// Number of strides that were prefetched beyond the last fault.
    ahead: i64,
    /// When it was last used.
    used: u64,
}

/// The sequential policy.
#[derive(Debug)]
pub struct Sequential {
    window: i64,
    min_run: u32,
    streams: Vec<Stream>,
    time: u64,
}

impl Sequential {
    /// Prefetches `window` pages after `min_run` equal strides.
    pub fn new(window: u32, min_run: u32) -> Sequential {
        Sequential {
            window: window.into(),
            min_run,
            streams: Vec::with_capacity(STREAMS),
            time: 0,
        }
    }

    /// Adds a fault to the stream it belongs to, and returns the stream.
    fn follow(&mut self, page: i64, to: Place) -> &mut Stream {
        self.time += 1;
        let time = self.time;
        let continues = |s: &Stream| {
            let distance = page - s.last;
            s.to == to
                && s.stride != 0
                && distance % s.stride == 0
                // The fault may be on the first page after the prefetched ones, or on one of them that has not
                // arrived yet.
                && (1..=s.ahead + 1).contains(&(distance / s.stride))
        };
        let starts = |s: &Stream| {
            let near = (1..=REACH).contains(&(page - s.last).abs());
            s.to == to && near && s.run < self.min_run
        };
        let at = if let Some(at) = self.streams.iter().position(continues) {
            self.streams[at].run = self.streams[at].run.saturating_add(1);
            at
        } else if let Some(at) = self.streams.iter().position(starts) {
            let stream = &mut self.streams[at];
            (stream.stride, stream.run) = (page - stream.last, 1);
            at
        } else {
            let stream = Stream {
                to,
                last: page,
                stride: 0,
                run: 0,
                ahead: 0,
                used: time,
            };
            if self.streams.len() < STREAMS {
                self.streams.push(stream);
                self.streams.len() - 1
            } else {
                let oldest = (0..STREAMS).min_by_key(|i| self.streams[*i].used);
                let oldest = oldest.unwrap_or_default();
                self.streams[oldest] = stream;
                oldest
            }
        };
        let stream = &mut self.streams[at];
        (stream.last, stream.ahead, stream.used) = (page, 0, time);
        stream
    }
}

impl FaultPolicy for Sequential {
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        let (window, min_run) = (self.window, self.min_run);
        let first = i64::from(fault.block.first_page().0);
        let mut advice = Advice::default();
        let mut found = None;
        for index in fault.pages.iter() {
            let stream = self.follow(first + index as i64, fault.to);
            if stream.run >= min_run {
                stream.ahead = window;
                found = Some(*stream);
            }
        }
        let Some(Stream { last, stride, .. }) = found else {
            return advice;
        };
        let inside = first..first + view.len() as i64;
        let next = (1..=window).map(|n| last + n * stride);
        let next = next.filter(|page| inside.contains(page));
        let wanted: PageSet = next.map(|page| (page - first) as usize).collect();
        advice.prefetch = wanted
            .difference(&fault.pages)
            .difference(&view.resident(fault.to));
        // A walk over every page is also prefetched in the next block, as a wish; walks with larger strides are not.
        let beyond = match stride {
            1 => inside.end..(last + window + 1).min(view.pages.into()),
            -1 => (last - window).max(0)..inside.start,
            _ => 0..0,
        };
        if beyond.start < beyond.end {
            let page = |n| Page(n as u32);
            advice.migrate.push(Wish {
                pages: PageRange::new(page(beyond.start), page(beyond.end)),
                to: fault.to,
            });
        }
        advice
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::Block;
    use crate::policy::test_view::*;

    /// Returns the prefetched pages for each of these faults on a block.
    fn prefetched(policy: &mut Sequential, pages: &[usize]) -> Vec<Vec<usize>> {
        let words = block(512, &PageSet::EMPTY, &PageSet::EMPTY);
        let advise = |page: &usize| {
            let advice = policy.advise(&fault([*page], Place::System), &view(&words));
            advice.prefetch.iter().collect()
        };
        pages.iter().map(advise).collect()
    }

    #[test]
    fn strides_are_found_in_both_directions() {
        let none = Vec::new();
        for (faults, last) in [
            ([10, 11, 12], vec![13, 14, 15]),
            ([10, 20, 30], vec![40, 50, 60]),
            ([30, 28, 26], vec![20, 22, 24]),
            ([10, 11, 13], none.clone()),
            ([500, 505, 510], none.clone()),
        ] {
            let brought = prefetched(&mut Sequential::new(3, 2), &faults);
            assert_eq!(brought, [none.clone(), none.clone(), last]);
        }
    }

    #[test]
    fn a_walk_faults_once_per_window() {
        let mut policy = Sequential::new(7, 2);
        let brought = prefetched(&mut policy, &[0, 1, 2, 10, 18, 26]);
        assert_eq!(brought[5], (27..34).collect::<Vec<_>>());
        assert!(brought[2..].iter().all(|pages| pages.len() == 7));
    }

    #[test]
    fn streams_do_not_disturb_each_other() {
        let mut policy = Sequential::new(2, 2);
        // Two walks, far apart in one block. The first one continues while the second one runs.
        let brought = prefetched(&mut policy, &[0, 1, 2, 400, 402, 5, 404, 8]);
        assert_eq!(brought[5], [6, 7]);
        assert_eq!(brought[6], [406, 408]);
        assert_eq!(brought[7], [9, 10]);
    }

    #[test]
    fn a_dense_walk_wishes_for_the_next_block() {
        let words = block(512, &PageSet::EMPTY, &PageSet::EMPTY);
        let wishes = |pages: [usize; 3], block, memory| {
            let mut policy = Sequential::new(8, 2);
            let mut last = Vec::new();
            for page in pages {
                let fault = BlockFault {
                    block: Block(block),
                    ..fault([page], Place::System)
                };
                let view = BlockView {
                    pages: memory,
                    ..view(&words)
                };
                last = policy.advise(&fault, &view).migrate;
            }
            let range = |w: &Wish| (w.pages.start.0, w.pages.end.0);
            last.iter().map(range).collect::<Vec<_>>()
        };
        assert_eq!(wishes([507, 508, 509], 0, 4096), [(512, 518)]);
        assert_eq!(wishes([507, 508, 509], 0, 512), []);
        assert_eq!(wishes([2, 1, 0], 1, 4096), [(504, 512)]);
        assert_eq!(wishes([2, 1, 0], 0, 4096), []);
        assert_eq!(wishes([501, 503, 505], 0, 4096), []);
    }
}
