//! The places of pages over time: the heat map.

use std::collections::BTreeMap;

use hmm_backend::limits::Refusal;
use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::{BLOCK_PAGES, Block, Page, PageRange};

use super::room::Room;
use super::timeline::{BINS, Bins, fold};
use crate::report::drawing::axis::{PlotFrame, Scale};
use crate::report::drawing::page::HtmlPage;
use crate::report::drawing::style::viridis;
use crate::report::drawing::svg::{Anchor, Svg};

const SYSTEM: u8 = 1;
const DEVICE: u8 = 2;
/// The largest number of areas of memory that are distinguished while events are read.
const AREAS: usize = 1024;
/// Rows of the plot.
const ROWS: usize = 64;
/// Steps of the colour scale.
const LEVELS: usize = 12;

/// The time that the pages of an area spent in each place.
#[derive(Clone)]
struct Area {
    system: u32,
    device: u32,
    /// The time up to which the area's pages are counted in the bins.
    counted: u64,
    /// Page-nanoseconds in system and device memory.
    bins: Vec<[f64; 2]>,
}

#[derive(Clone, Copy, Default)]
struct Share([f64; 2]);

impl std::ops::AddAssign for Share {
    fn add_assign(&mut self, other: Share) {
        self.0[0] += other.0[0];
        self.0[1] += other.0[1];
    }
}

/// Bytes for each block in use, with what its tree leaves empty.
const BLOCK_BYTES: u64 = BLOCK_PAGES + 48;

/// The places of a block's pages.
type Places = [u8; BLOCK_PAGES as usize];

/// Follows every page. Takes a byte for each of the blocks of which any is in use, and a bounded rest.
pub(super) struct ResidencyPlot {
    blocks: BTreeMap<Block, Box<Places>>,
    pages: u32,
    pages_per_area: usize,
    areas: Vec<Option<Area>>,
    clock: Bins,
    now: u64,
    peak: u64,
    in_device: u64,
    room: Room,
}

impl ResidencyPlot {
    pub(super) fn new(pages: usize) -> ResidencyPlot {
        let pages_per_area = pages.div_ceil(AREAS).max(1);
        ResidencyPlot {
            blocks: BTreeMap::new(),
            pages: u32::try_from(pages).unwrap_or(u32::MAX),
            pages_per_area,
            areas: vec![None; pages.div_ceil(pages_per_area)],
            clock: Bins::new(),
            now: 0,
            peak: 0,
            in_device: 0,
            room: Room::for_entries_of(BLOCK_BYTES),
        }
    }

    /// Returns the most pages that were in device memory at a time.
    pub(super) fn peak(&self) -> u64 {
        self.peak
    }

    /// `time` is in nanoseconds from the first event and never decreases.
    pub(super) fn add(&mut self, event: &Event, time: u64) -> Result<(), Refusal> {
        self.advance(time);
        let to = match event.kind {
            EventKind::ToDevice | EventKind::BetweenDevices => DEVICE,
            EventKind::ToSystem | EventKind::CpuFault | EventKind::MappedInPlace => SYSTEM,
            // Duplicates count as in device memory: they take up frames.
            EventKind::Duplicated => DEVICE,
            EventKind::Collapsed | EventKind::Placed if event.device.is_some() => DEVICE,
            EventKind::Collapsed | EventKind::Placed => SYSTEM,
            EventKind::Freed => 0,
            _ => return Ok(()),
        };
        // A fault only shows that the page exists now; a migration shows where.
        let only_new = matches!(event.kind, EventKind::CpuFault | EventKind::MappedInPlace);
        let range = event.within(self.pages);
        if to == 0 {
            self.free(range, time);
        } else {
            for part in range.split_by_block() {
                let block = self.blocks.entry(part.start.block());
                block.or_insert_with(|| Box::new([0; BLOCK_PAGES as usize]));
                self.place(part, to, |was| !only_new || was == 0, time);
            }
        }
        self.peak = self.peak.max(self.in_device);
        self.room.check(self.blocks.len())
    }

    /// Frees a range. It may be large and never have been in use, so only blocks in use are visited, and those of
    /// which all is freed once.
    fn free(&mut self, range: PageRange, time: u64) {
        if range.is_empty() {
            return;
        }
        let blocks = range.start.block()..=Page(range.end.0 - 1).block();
        let used: Vec<Block> = self.blocks.range(blocks).map(|(block, _)| *block).collect();
        for block in used {
            let all = PageRange::with_len(block.first_page(), BLOCK_PAGES as u32);
            let part = PageRange::new(range.start.max(all.start), range.end.min(all.end));
            self.place(part, 0, |_| true, time);
            if part == all {
                self.blocks.remove(&block);
            }
        }
    }

    /// Moves those pages of one block in use whose place `moves` accepts.
    fn place(&mut self, part: PageRange, to: u8, moves: impl Fn(u8) -> bool, time: u64) {
        let Some(places) = self.blocks.get_mut(&part.start.block()) else {
            return;
        };
        let width = self.clock.width;
        for page in part.pages() {
            let was = places[page.index_in_block()];
            if was == to || !moves(was) {
                continue;
            }
            places[page.index_in_block()] = to;
            let area =
                self.areas[page.0 as usize / self.pages_per_area].get_or_insert_with(|| Area {
                    system: 0,
                    device: 0,
                    counted: time,
                    bins: vec![[0.0; 2]; BINS],
                });
            area.count(time, width);
            for (state, sign) in [(was, -1), (to, 1)] {
                match state {
                    SYSTEM => area.system = area.system.saturating_add_signed(sign),
                    DEVICE => {
                        area.device = area.device.saturating_add_signed(sign);
                        self.in_device = self.in_device.saturating_add_signed(sign.into());
                    }
                    _ => {}
                }
            }
        }
    }

    fn advance(&mut self, time: u64) {
        self.now = time;
        let width = self.clock.width;
        let folds = self.clock.reach(time);
        if folds == 0 {
            return;
        }
        for area in self.areas.iter_mut().flatten() {
            // Time is counted with the old width as far as its bins reach, and then the bins are folded.
            area.count(time.min(width * BINS as u64), width);
            for _ in 0..folds {
                area.fold();
            }
        }
    }

    /// Share of device pages by row and bin; `None` where nothing was.
    fn rows(&self) -> Rows {
        let mut areas = self.areas.clone();
        for area in areas.iter_mut().flatten() {
            area.count(self.now, self.clock.width);
        }
        let used = |area: &Option<Area>| area.is_some();
        let first = areas.iter().position(used).unwrap_or(0);
        let last = areas.iter().rposition(used).unwrap_or(0);
        let per_row = (last + 1 - first).div_ceil(ROWS);
        let bins = self.clock.bin(self.now.saturating_sub(1)) + 1;
        let cells = areas[first..=last.min(areas.len() - 1)]
            .chunks(per_row)
            .map(|areas| {
                let share = |bin: usize| {
                    let mut sum = Share::default();
                    for area in areas.iter().flatten() {
                        sum += Share(area.bins[bin]);
                    }
                    let [system, device] = sum.0;
                    (system + device > 0.0).then(|| device / (system + device))
                };
                (0..bins).map(share).collect()
            })
            .collect();
        Rows {
            cells,
            first_page: first * self.pages_per_area,
            pages_per_row: per_row * self.pages_per_area,
        }
    }

    pub(super) fn draw(&self, page: &mut HtmlPage, base: u64) {
        if self.areas.iter().all(Option::is_none) {
            page.paragraph("No page was ever used, so there is no map of residency.");
            return;
        }
        let rows = self.rows();
        let count = rows.cells.len();
        let row_height = (380.0 / count as f64).clamp(5.0, 24.0);
        let mut svg = Svg::new(900.0, row_height * count as f64 + 66.0);
        let frame = PlotFrame::new((130.0, 12.0), (775.0, 12.0 + row_height * count as f64));
        let time = Scale::linear(0.0, self.now.max(1) as f64, frame.left, frame.right);
        rows.draw_cells(&mut svg, frame, row_height, time, self.clock.width);
        frame.outline(&mut svg);
        frame.time_axis(&mut svg, time, self.now);
        rows.draw_addresses(&mut svg, frame, row_height, base);
        draw_colours(&mut svg, frame);
        page.figure(
            "Where pages were",
            svg,
            "Each row is a piece of guest memory, each column a moment. The colour says which share of the piece's pages was in \
             device memory then: dark is system memory, bright is device memory, white was not in use. A row that changes \
             between dark and bright again and again is memory that both sides want.",
        );
    }
}

impl Area {
    /// Brings the bins up to `time`.
    fn count(&mut self, time: u64, width: u64) {
        while self.counted < time {
            let bin = (self.counted / width) as usize;
            let end = ((bin as u64 + 1) * width).min(time);
            let duration = (end - self.counted) as f64;
            if let Some(cell) = self.bins.get_mut(bin) {
                cell[0] += f64::from(self.system) * duration;
                cell[1] += f64::from(self.device) * duration;
            }
            self.counted = end;
        }
    }

    fn fold(&mut self) {
        let mut shares: Vec<Share> = self.bins.iter().map(|bin| Share(*bin)).collect();
        fold(&mut shares);
        self.bins = shares.into_iter().map(|share| share.0).collect();
    }
}

struct Rows {
    cells: Vec<Vec<Option<f64>>>,
    first_page: usize,
    pages_per_row: usize,
}

impl Rows {
    /// One path for each colour: a tenth of the size of rectangles.
    fn draw_cells(&self, svg: &mut Svg, frame: PlotFrame, height: f64, time: Scale, width: u64) {
        let mut paths = vec![String::new(); LEVELS];
        for (row, cells) in self.cells.iter().enumerate() {
            let level = |cell: &Option<f64>| {
                cell.map(|share| (share * (LEVELS - 1) as f64).round() as usize)
            };
            let mut start = 0;
            while start < cells.len() {
                let this = level(&cells[start]);
                let run = cells[start..]
                    .iter()
                    .take_while(|cell| level(cell) == this)
                    .count();
                if let Some(level) = this {
                    let left = time.at(start as f64 * width as f64);
                    let right = time.at((start + run) as f64 * width as f64);
                    let y = frame.top + row as f64 * height;
                    paths[level] += &format!("M{left:.1} {y:.1}H{right:.1}v{height:.1}H{left:.1}z");
                }
                start += run;
            }
        }
        for (level, path) in paths
            .iter()
            .enumerate()
            .filter(|(_, path)| !path.is_empty())
        {
            let colour = viridis(level as f64 / (LEVELS - 1) as f64);
            let attributes = format!(r#"fill="{colour}" shape-rendering="crispEdges""#);
            svg.path(path, &attributes);
        }
    }

    fn draw_addresses(&self, svg: &mut Svg, frame: PlotFrame, height: f64, base: u64) {
        let count = self.cells.len();
        let every = ((28.0 / height).ceil() as usize).max(1);
        for row in (0..=count).step_by(every) {
            let y = frame.top + row as f64 * height;
            let page = self.first_page + row * self.pages_per_row;
            let address = base.saturating_add(page as u64 * hmm_backend::pages::PAGE_SIZE);
            svg.line((frame.left - 4.0, y), (frame.left, y), r#"class="tick""#);
            let (place, address) = ((frame.left - 7.0, y + 4.0), format!("{address:#x}"));
            svg.text(place, Anchor::End, "number", &address);
        }
        let place = (frame.left - 112.0, (frame.top + frame.bottom) / 2.0);
        svg.upright(place, "guest-physical address");
    }
}

fn draw_colours(svg: &mut Svg, frame: PlotFrame) {
    let height = frame.height().min(170.0);
    let step = height / LEVELS as f64;
    let left = frame.right + 22.0;
    for level in 0..LEVELS {
        let y = frame.top + height - (level + 1) as f64 * step;
        let colour = viridis(level as f64 / (LEVELS - 1) as f64);
        let attributes = format!(r#"fill="{colour}""#);
        svg.rect((left, y), (16.0, step + 0.3), &attributes);
    }
    svg.rect((left, frame.top), (16.0, height), r#"class="outline""#);
    let right = left + 21.0;
    let mut text = |x, y, text| svg.text((x, frame.top + y), Anchor::Start, "number", text);
    text(right, 10.0, "100 %");
    text(right, height / 2.0 + 4.0, "50 %");
    text(right, height, "0 %");
    if frame.height() >= 190.0 {
        text(left - 4.0, height + 18.0, "of pages in");
        text(left - 4.0, height + 33.0, "device memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn event(kind: EventKind, page: u32, pages: u32) -> Event {
        Event::new(Duration::ZERO, kind, PageRange::with_len(Page(page), pages))
    }

    #[test]
    fn shares_are_weighted_by_time() {
        let mut map = ResidencyPlot::new(2048);
        // Two pages in one area of two: both in system memory, then one of them in the device's.
        map.add(&event(EventKind::CpuFault, 0, 2), 0).unwrap();
        map.add(&event(EventKind::ToDevice, 1, 1), 64 * 200)
            .unwrap();
        map.add(&event(EventKind::Freed, 0, 2), 64 * 256 * 16)
            .unwrap();
        map.add(&event(EventKind::Fatal, 0, 1), 64 * 256 * 32)
            .unwrap();
        let rows = map.rows();
        assert_eq!((rows.cells.len(), rows.pages_per_row), (1, 2));
        let cells = &rows.cells[0];
        // A bin is 4096 ns now, and the change was an eighth into the fourth.
        assert_eq!(map.clock.width, 64 * 64);
        assert_eq!(cells[..3], [Some(0.0); 3]);
        let part = cells[3].unwrap();
        assert!((part - 0.875 / 2.0).abs() < 1e-9, "{part}");
        assert_eq!(cells[4..64], [Some(0.5); 60]);
        assert_eq!(cells[64..], [None; 64]);
        assert_eq!(map.peak(), 1);
    }

    #[test]
    fn duplicates_take_up_device_memory() {
        let mut map = ResidencyPlot::new(8);
        map.add(&event(EventKind::ToDevice, 0, 4), 0).unwrap();
        map.add(&event(EventKind::Duplicated, 0, 4), 1).unwrap();
        // A CPU's fault on what is there changes nothing.
        map.add(&event(EventKind::CpuFault, 0, 1), 2).unwrap();
        assert_eq!((map.in_device, map.peak()), (4, 4));
        map.add(&event(EventKind::Collapsed, 0, 1), 3).unwrap();
        let to_device = Event {
            device: Some(hmm_backend::pages::DeviceId(0)),
            ..event(EventKind::Collapsed, 1, 1)
        };
        map.add(&to_device, 4).unwrap();
        assert_eq!(map.in_device, 3);
        assert_eq!(map.blocks[&Block(0)][..4], [SYSTEM, DEVICE, DEVICE, DEVICE]);
    }

    #[test]
    fn pages_beyond_memory_are_left_out() {
        let mut map = ResidencyPlot::new(4);
        map.add(&event(EventKind::ToDevice, 2, 100), 0).unwrap();
        map.add(&event(EventKind::ToDevice, u32::MAX, u32::MAX), 1)
            .unwrap();
        assert_eq!(map.peak(), 2);
    }
}
