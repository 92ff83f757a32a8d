//! How long faults took.

use std::time::Duration;

use hdrhistogram::Histogram;
use hmm_backend::observe::{Event, EventKind};

use crate::figures::time;
use crate::report::drawing::axis::{PlotFrame, Scale, Unit};
use crate::report::drawing::page::{HtmlPage, Table};
use crate::report::drawing::style::Fill;
use crate::report::drawing::svg::{Anchor, Svg};

/// Parts of a doubling of the latency that get a bar of their own.
const PARTS: f64 = 4.0;
/// Nothing is waited for longer.
const LONGEST: u64 = 3_600_000_000_000;

/// Latencies of CPU faults and of device faults.
pub(super) struct Latencies([Histogram<u64>; 2]);

const NAMES: [&str; 2] = ["faults of CPUs", "faults of devices"];

impl Latencies {
    pub(super) fn new() -> Latencies {
        let histogram = || Histogram::new_with_bounds(1, LONGEST, 3).expect("good bounds");
        Latencies([histogram(), histogram()])
    }

    pub(super) fn add(&mut self, event: &Event) {
        let who = match event.kind {
            EventKind::CpuFault => 0,
            EventKind::DeviceFault => 1,
            _ => return,
        };
        // Access traces have faults without a time.
        if event.latency > Duration::ZERO {
            let ns = u64::try_from(event.latency.as_nanos()).unwrap_or(LONGEST);
            self.0[who].saturating_record(ns.min(LONGEST));
        }
    }

    /// Counts by bar, the first bar, for one side.
    fn bars(histogram: &Histogram<u64>) -> (i32, Vec<f64>) {
        let bar = |ns: u64| ((ns.max(1) as f64).log2() * PARTS).floor() as i32;
        let first = bar(histogram.min());
        let mut bars = vec![0.0; (bar(histogram.max()) - first + 1).max(1) as usize];
        for value in histogram.iter_recorded() {
            let index = (bar(value.value_iterated_to()) - first).max(0) as usize;
            let last = bars.len() - 1;
            bars[index.min(last)] += value.count_at_value() as f64;
        }
        (first, bars)
    }

    pub(super) fn draw(&self, page: &mut HtmlPage) {
        let used: Vec<usize> = (0..2).filter(|who| !self.0[*who].is_empty()).collect();
        if used.is_empty() {
            page.paragraph("No fault has a latency, so there is no histogram of them. Faults of replays have none.");
            return;
        }
        // The unit suits the medians, not the few slowest faults.
        let medians = used.iter().map(|who| self.0[*who].value_at_quantile(0.5));
        let unit = Unit::time(medians.max().unwrap_or(0) as f64);
        page.figure(
            "How long faults took",
            self.plot(&used, unit),
            "Both axes are logarithmic, so that a few very slow faults show beside many quick ones: the same step is the same factor. \
             Half of the faults are left of the median's line, all but one of a hundred left of the other one.",
        );
        page.table(self.table(&used));
    }

    /// Draws the histograms of these sides one below the other, with one axis.
    fn plot(&self, used: &[usize], unit: Unit) -> Svg {
        let (panel, gap) = (150.0, 40.0);
        let count = used.len() as f64;
        let mut svg = Svg::new(900.0, 14.0 + count * (panel + gap) + 16.0);
        let edge = |bar: i32| 2f64.powf(f64::from(bar) / PARTS);
        let bars: Vec<(i32, Vec<f64>)> = used.iter().map(|who| Self::bars(&self.0[*who])).collect();
        let low = bars.iter().map(|(first, _)| *first).min().unwrap_or(0) - 2;
        let ends = bars.iter().map(|(first, bars)| first + bars.len() as i32);
        let high = ends.max().unwrap_or(1) + 2;
        for (index, who) in used.iter().enumerate() {
            let top = 24.0 + index as f64 * (panel + gap);
            let frame = PlotFrame::new((90.0, top), (885.0, top + panel));
            let x = Scale::log(edge(low), edge(high), frame.left, frame.right);
            let (first, bars) = &bars[index];
            let most = bars.iter().copied().fold(1.0, f64::max);
            let y = Scale::log(0.7, most * 1.6, frame.bottom, frame.top);
            frame.y_axis(&mut svg, y, Unit::count(), "faults (log)");
            for (number, count) in bars.iter().enumerate().filter(|(_, count)| **count > 0.0) {
                let bar = first + number as i32;
                let (left, right, high) = (x.at(edge(bar)), x.at(edge(bar + 1)), y.at(*count));
                let size = (right - left, frame.bottom - high);
                svg.rect((left, high), size, &Fill(*who).attributes());
            }
            for (share, name) in [(0.5, "median"), (0.99, "99 %")] {
                let at = x.at(self.0[*who].value_at_quantile(share) as f64);
                svg.line((at, frame.top), (at, frame.bottom), r#"class="mark""#);
                svg.text((at, frame.top - 4.0), Anchor::Middle, "number", name);
            }
            frame.outline(&mut svg);
            let place = (frame.left + 8.0, frame.top + 17.0);
            svg.text(place, Anchor::Start, "panel", NAMES[*who]);
            let last = index + 1 == used.len();
            let label = format!("latency ({}, log)", unit.name);
            frame.x_axis(&mut svg, x, unit, if last { &label } else { "" });
        }
        svg
    }

    /// Makes a table of the latencies of these sides.
    fn table(&self, used: &[usize]) -> Table {
        let mut table = Table::new(&["<", "faults", "median", "99 %", "99.9 %", "slowest"]);
        for who in used {
            let histogram = &self.0[*who];
            let show = |ns: u64| time(ns as f64);
            table.row(&[
                NAMES[*who].to_owned(),
                crate::report::drawing::axis::number(histogram.len() as f64),
                show(histogram.value_at_quantile(0.5)),
                show(histogram.value_at_quantile(0.99)),
                show(histogram.value_at_quantile(0.999)),
                show(histogram.max()),
            ]);
        }
        table
    }
}
