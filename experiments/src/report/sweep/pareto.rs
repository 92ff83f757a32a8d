//! Bytes moved against time: what is worth its traffic.

use super::results::{Group, Metric};
use super::statistics::Estimate;
use crate::report::drawing::axis::{PlotFrame, Scale, Unit};
use crate::report::drawing::legend::{legend, names};
use crate::report::drawing::page::HtmlPage;
use crate::report::drawing::style::Look;
use crate::report::drawing::svg::{Anchor, Svg};
use crate::size::Size;

struct Point {
    look: usize,
    bytes: Estimate,
    time: Estimate,
}

pub(super) fn draw(page: &mut HtmlPage, group: &Group, policies: &[&str]) {
    let panels: Vec<(u64, Vec<Point>)> = group
        .sizes
        .iter()
        .map(|size| (*size, points(group, *size, policies)))
        .filter(|(_, points)| !points.is_empty())
        .collect();
    if panels.is_empty() {
        return;
    }
    let columns = if panels.len() == 1 { 1 } else { 2 };
    let (width, height) = (if columns == 1 { 780.0 } else { 345.0 }, 250.0);
    let (column, row) = (width + 105.0, height + 75.0);
    let mut svg = Svg::new(900.0, panels.len().div_ceil(columns) as f64 * row + 8.0);
    for (index, (size, points)) in panels.iter().enumerate() {
        let left = 90.0 + (index % columns) as f64 * column;
        let top = 26.0 + (index / columns) as f64 * row;
        let frame = PlotFrame::new((left, top), (left + width, top + height));
        draw_panel(&mut svg, frame, points, group.time_name());
        let title = format!("{} of device memory", Size(*size));
        svg.text((left, top - 8.0), Anchor::Start, "panel", &title);
    }
    let shown = |index: &usize| {
        panels
            .iter()
            .any(|(_, points)| points.iter().any(|point| point.look == *index))
    };
    let looks: Vec<usize> = (0..policies.len()).filter(shown).collect();
    let names = names(policies);
    let names: Vec<String> = looks.iter().map(|index| names[*index].clone()).collect();
    legend(&mut svg, 90.0, &names, |svg, index, place| {
        Look(looks[index]).marker(svg, place)
    });
    page.figure(
        "What the traffic buys",
        svg,
        "Each marker is a policy, the mean over its seeds; thin lines are 95 % confidence intervals. Further left moves less, further down is faster. \
         The dashed line joins the policies that no other one beats in both: the choice is among them. Policies that did the same lie on top of each other. The axes of the panels differ.",
    );
}

fn points(group: &Group, size: u64, policies: &[&str]) -> Vec<Point> {
    let point = |(look, policy): (usize, &&str)| {
        let cell = group.cell(size, policy)?;
        Some(Point {
            look,
            bytes: cell.estimate(Metric::Bytes)?,
            time: cell.estimate(Metric::Time)?,
        })
    };
    policies.iter().enumerate().filter_map(point).collect()
}

/// Room around the values, which need not begin at 0: the points' positions to each other matter.
fn around(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Scale {
    let values: Vec<f64> = values.collect();
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    if low > 0.0 && high / low > 30.0 {
        return Scale::log(low / 1.5, high * 1.5, start, end);
    }
    let room = ((high - low) * 0.12).max(high * 0.02);
    Scale::linear((low - room).max(0.0), high + room, start, end)
}

fn draw_panel(svg: &mut Svg, frame: PlotFrame, points: &[Point], time_name: &str) {
    let ends = |estimate: &Estimate| [estimate.low(), estimate.high()];
    let bytes = points.iter().flat_map(|point| ends(&point.bytes));
    let x = around(bytes, frame.left, frame.right);
    let times = points.iter().flat_map(|point| ends(&point.time));
    let y = around(times, frame.bottom, frame.top);
    let largest = |value: fn(&Point) -> f64| points.iter().map(value).fold(0.0, f64::max);
    let bytes = Unit::bytes(largest(|point| point.bytes.mean));
    let time = Unit::time(largest(|point| point.time.mean));
    let log = |scale: Scale| if scale.is_log() { ", log" } else { "" };
    let label = format!("{time_name} ({}{})", time.name, log(y));
    frame.y_axis(svg, y, time, &label);
    let label = format!("data moved ({}{})", bytes.name, log(x));
    frame.x_axis(svg, x, bytes, &label);
    frame.outline(svg);
    let front: Vec<(f64, f64)> = front(points)
        .into_iter()
        .map(|point| (x.at(point.bytes.mean), y.at(point.time.mean)))
        .collect();
    svg.polyline(&front, r#"class="front""#);
    for point in points {
        let (at_x, at_y) = (x.at(point.bytes.mean), y.at(point.time.mean));
        let colour = Look(point.look).colour();
        let attributes = format!(r#"stroke="{colour}" stroke-width="0.9""#);
        if point.bytes.error.is_some() {
            let ends = (x.at(point.bytes.low()), x.at(point.bytes.high()));
            svg.line((ends.0, at_y), (ends.1, at_y), &attributes);
        }
        if point.time.error.is_some() {
            let ends = (y.at(point.time.low()), y.at(point.time.high()));
            svg.line((at_x, ends.0), (at_x, ends.1), &attributes);
        }
    }
    for point in points {
        Look(point.look).marker(svg, (x.at(point.bytes.mean), y.at(point.time.mean)));
    }
}

/// Returns the points that no other one beats, from the left to the right.
fn front(points: &[Point]) -> Vec<&Point> {
    let mut sorted: Vec<&Point> = points.iter().collect();
    sorted.sort_by(|a, b| {
        let key = |point: &Point| (point.bytes.mean, point.time.mean);
        key(a)
            .partial_cmp(&key(b))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    let mut best = f64::INFINITY;
    sorted.retain(|point| {
        let better = point.time.mean < best;
        best = best.min(point.time.mean);
        better
    });
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_what_nobody_beats() {
        let point = |look, bytes, time| {
            let estimate = |mean| Estimate {
                mean,
                error: None,
                count: 1,
            };
            Point {
                look,
                bytes: estimate(bytes),
                time: estimate(time),
            }
        };
        let points = [
            point(0, 5.0, 1.0),
            point(1, 1.0, 9.0),
            point(2, 2.0, 3.0),
            point(3, 3.0, 3.0),
            point(4, 6.0, 6.0),
        ];
        let looks: Vec<usize> = front(&points).iter().map(|point| point.look).collect();
        assert_eq!(looks, [1, 2, 0]);
    }
}
