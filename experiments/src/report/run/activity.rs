//! Faults and bytes over time.

use std::ops::AddAssign;

use hmm_backend::observe::{Cause, Event, EventKind};
use hmm_backend::pages::PAGE_SIZE;

use super::timeline::{BINS, Bins, fold};
use crate::report::drawing::axis::{PlotFrame, Scale, Unit};
use crate::report::drawing::legend::legend;
use crate::report::drawing::page::HtmlPage;
use crate::report::drawing::style::{Fill, Look};
use crate::report::drawing::svg::Svg;

/// The causes, and one for events that say none.
const CAUSES: usize = Cause::ALL.len() + 1;

#[derive(Clone, Copy, Default)]
struct Bin {
    /// Faults of CPUs and of devices.
    faults: [f64; 2],
    /// Bytes to devices and to system memory, by cause.
    bytes: [[f64; CAUSES]; 2],
}

impl AddAssign for Bin {
    fn add_assign(&mut self, other: Bin) {
        for (sum, part) in self.faults.iter_mut().zip(other.faults) {
            *sum += part;
        }
        for (sum, part) in self
            .bytes
            .iter_mut()
            .flatten()
            .zip(other.bytes.into_iter().flatten())
        {
            *sum += part;
        }
    }
}

/// Sums in bins of time.
pub(super) struct Activity {
    clock: Bins,
    bins: Vec<Bin>,
    now: u64,
}

impl Activity {
    pub(super) fn new() -> Activity {
        Activity {
            clock: Bins::new(),
            bins: vec![Bin::default(); BINS],
            now: 0,
        }
    }

    /// `time` is in nanoseconds from the first event and never decreases.
    pub(super) fn add(&mut self, event: &Event, time: u64) {
        for _ in 0..self.clock.reach(time) {
            fold(&mut self.bins);
        }
        self.now = time;
        let bin = &mut self.bins[self.clock.bin(time)];
        let cause = event
            .cause
            .and_then(|cause| Cause::ALL.iter().position(|it| *it == cause));
        let cause = cause.unwrap_or(CAUSES - 1);
        let bytes = f64::from(event.pages) * PAGE_SIZE as f64;
        match event.kind {
            EventKind::CpuFault => bin.faults[0] += 1.0,
            EventKind::DeviceFault => bin.faults[1] += 1.0,
            EventKind::ToDevice => bin.bytes[0][cause] += bytes,
            EventKind::ToSystem | EventKind::Duplicated => bin.bytes[1][cause] += bytes,
            _ => {}
        }
    }

    /// Bins for a plot, at most 128, and how long each is in nanoseconds.
    fn plotted(&self) -> (Vec<Bin>, f64) {
        let (mut bins, mut width) = (self.bins.clone(), self.clock.width);
        if self.clock.bin(self.now) >= BINS / 2 {
            fold(&mut bins);
            width *= 2;
        }
        bins.truncate((self.now / width) as usize + 1);
        (bins, width as f64)
    }

    pub(super) fn draw(&self, page: &mut HtmlPage) {
        let (bins, width) = self.plotted();
        self.draw_faults(page, &bins, width);
        self.draw_bytes(page, &bins, width);
    }

    fn time(&self, frame: PlotFrame, bins: &[Bin], width: f64) -> Scale {
        Scale::linear(0.0, bins.len() as f64 * width, frame.left, frame.right)
    }

    fn draw_faults(&self, page: &mut HtmlPage, bins: &[Bin], width: f64) {
        let mut svg = Svg::new(900.0, 290.0);
        let frame = PlotFrame::new((90.0, 10.0), (885.0, 235.0));
        let rate = |bin: &Bin, who: usize| bin.faults[who] / (width / 1e9);
        let high = bins
            .iter()
            .flat_map(|bin| [rate(bin, 0), rate(bin, 1)])
            .fold(0.0, f64::max);
        let x = self.time(frame, bins, width);
        let y = Scale::fitting(&[0.0, high], Unit::count(), frame.bottom, frame.top);
        frame.y_axis(&mut svg, y, Unit::count(), "faults per second");
        for who in 0..2 {
            let mut points = Vec::new();
            for (index, bin) in bins.iter().enumerate() {
                let height = y.at(rate(bin, who));
                points.push((x.at(index as f64 * width), height));
                points.push((x.at((index + 1) as f64 * width), height));
            }
            svg.polyline(&points, &Look(who).stroke());
            // Markers tell the lines apart where colours do not.
            let every = (bins.len() / 8).max(1);
            for (index, bin) in bins.iter().enumerate().skip(who * every / 2).step_by(every) {
                let place = (x.at((index as f64 + 0.5) * width), y.at(rate(bin, who)));
                Look(who).marker(&mut svg, place);
            }
        }
        frame.outline(&mut svg);
        frame.time_axis(&mut svg, x, self.now);
        let names = ["faults of CPUs".to_owned(), "faults of devices".to_owned()];
        legend(&mut svg, frame.left, &names, |svg, index, (x, y)| {
            svg.line((x - 13.0, y), (x + 13.0, y), &Look(index).stroke());
            Look(index).marker(svg, (x, y));
        });
        page.figure(
            "Faults over time",
            svg,
            "How often CPUs and devices touched pages that they could not reach where they were, averaged over short spans of time. Lower is better.",
        );
    }

    fn draw_bytes(&self, page: &mut HtmlPage, bins: &[Bin], width: f64) {
        let total = |bin: &Bin, way: usize| bin.bytes[way].iter().sum::<f64>();
        let highest =
            |way| bins.iter().map(|bin| total(bin, way)).fold(0.0, f64::max) / (width / 1e9);
        let (up, down) = (highest(0), highest(1));
        if up + down == 0.0 {
            page.paragraph("Nothing migrated.");
            return;
        }
        let mut svg = Svg::new(900.0, 350.0);
        let frame = PlotFrame::new((90.0, 10.0), (885.0, 295.0));
        let x = self.time(frame, bins, width);
        let unit = Unit::bytes(up.max(down));
        let y = Scale::linear(-down * 1.08, up * 1.08, frame.bottom, frame.top);
        frame.y_axis(&mut svg, y, unit, &format!("{}/s moved", unit.name));
        let moved = |bin: &Bin, cause: usize| bin.bytes[0][cause] + bin.bytes[1][cause] > 0.0;
        let is_used = |cause: &usize| bins.iter().any(|bin| moved(bin, *cause));
        let used: Vec<usize> = (0..CAUSES).filter(is_used).collect();
        let mut stacks = vec![[0.0; 2]; bins.len()];
        for cause in &used {
            for (way, sign) in [1.0, -1.0].into_iter().enumerate() {
                let layer = (*cause, way, sign);
                self.draw_layer(&mut svg, (x, y), bins, width, layer, &mut stacks);
            }
        }
        let zero = y.at(0.0);
        svg.line((frame.left, zero), (frame.right, zero), r#"class="zero""#);
        frame.outline(&mut svg);
        frame.time_axis(&mut svg, x, self.now);
        let name = |cause: &usize| {
            Cause::ALL
                .get(*cause)
                .map_or("unknown cause".to_owned(), |cause| cause.name().to_owned())
        };
        let names: Vec<String> = used.iter().map(name).collect();
        legend(&mut svg, frame.left, &names, |svg, index, (x, y)| {
            let fill = Fill(used[index]).attributes();
            svg.rect((x - 13.0, y - 7.0), (26.0, 14.0), &fill);
        });
        page.figure(
            "Bytes over time, by cause",
            svg,
            "Above the line: what went to devices; below it: what came back to system memory. Layers are stacked: the outline is the sum. \
             Demand: pages that a CPU or device waited for. Prefetch: pages that the policy added. Eviction: pages that made room.",
        );
    }

    /// One cause and direction, on top of those before; a path over each stretch without gaps.
    fn draw_layer(
        &self,
        svg: &mut Svg,
        (x, y): (Scale, Scale),
        bins: &[Bin],
        width: f64,
        (cause, way, sign): (usize, usize, f64),
        stacks: &mut [[f64; 2]],
    ) {
        let mut index = 0;
        while index < bins.len() {
            let length = bins[index..]
                .iter()
                .take_while(|bin| bin.bytes[way][cause] > 0.0)
                .count();
            if length == 0 {
                index += 1;
                continue;
            }
            let (mut outer, mut inner) = (String::new(), String::new());
            for bin in index..index + length {
                let low = stacks[bin][way];
                let high = low + bins[bin].bytes[way][cause] / (width / 1e9);
                stacks[bin][way] = high;
                let (left, right) = (x.at(bin as f64 * width), x.at((bin + 1) as f64 * width));
                let (low, high) = (y.at(sign * low), y.at(sign * high));
                outer += &format!("L{left:.1} {high:.1}H{right:.1}");
                inner = format!("L{right:.1} {low:.1}H{left:.1}") + &inner;
            }
            let d = format!("M{}{inner}Z", &outer[1..]);
            svg.path(&d, &Fill(cause).attributes());
            index += length;
        }
    }
}
