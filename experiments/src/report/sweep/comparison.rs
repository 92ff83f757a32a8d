//! Policies against each other, by the size of device memory.

use super::results::{Group, Metric};
use super::statistics::Estimate;
use crate::report::drawing::axis::{PlotFrame, Scale, Unit, number};
use crate::report::drawing::legend::{legend, names};
use crate::report::drawing::page::HtmlPage;
use crate::report::drawing::style::Look;
use crate::report::drawing::svg::{Anchor, Svg, text_width};
use crate::size::Size;

/// Said once for each group, at its first plot.
const WHISKERS: &str = " The marker is the mean over the seeds, the whiskers its 95 % confidence interval (Student's t); \
                        policies whose whiskers do not overlap differ by more than the seeds do. Without whiskers, all seeds gave the same or there was one.";

/// A policy's estimates, one for each size.
struct Series {
    look: Look,
    name: String,
    estimates: Vec<Option<Estimate>>,
}

pub(super) fn draw(
    page: &mut HtmlPage,
    group: &Group,
    policies: &[&str],
    metric: Metric,
    title: &str,
) {
    let series: Vec<Series> = policies
        .iter()
        .zip(names(policies))
        .enumerate()
        .map(|(index, (policy, name))| Series {
            look: Look(index),
            name,
            estimates: group
                .sizes
                .iter()
                .map(|size| group.cell(*size, policy)?.estimate(metric))
                .collect(),
        })
        .filter(|series| series.estimates.iter().any(Option::is_some))
        .collect();
    let values: Vec<f64> = series
        .iter()
        .flat_map(|series| series.estimates.iter().flatten())
        .flat_map(|estimate| [estimate.mean, estimate.high()])
        .collect();
    if values.is_empty() {
        return;
    }
    let quantity = Quantity {
        metric,
        name: match metric {
            Metric::Time => group.time_name(),
            Metric::Bytes => "data moved",
            Metric::Faults => "faults",
        },
        unit: metric.unit(values.iter().copied().fold(0.0, f64::max)),
    };
    match group.sizes.len() {
        1 => dots(page, title, &series, &values, &quantity, group.sizes[0]),
        _ => lines(page, title, &series, &values, &quantity, &group.sizes),
    }
}

/// What an axis shows.
struct Quantity {
    metric: Metric,
    name: &'static str,
    unit: Unit,
}

impl Quantity {
    /// Returns the explanation of the whiskers for the first plot of a group, which is that of the time.
    fn whiskers(&self) -> &'static str {
        match self.metric {
            Metric::Time => WHISKERS,
            Metric::Bytes | Metric::Faults => "",
        }
    }

    /// Returns `name (unit)`, and whether the axis is logarithmic.
    fn axis_label(&self, scale: Scale) -> String {
        let log = if scale.is_log() { "log" } else { "" };
        let parts: Vec<&str> = [self.unit.name, log]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect();
        match parts.is_empty() {
            true => self.name.to_owned(),
            false => format!("{} ({})", self.name, parts.join(", ")),
        }
    }
}

fn lines(
    page: &mut HtmlPage,
    title: &str,
    series: &[Series],
    values: &[f64],
    quantity: &Quantity,
    sizes: &[u64],
) {
    let mut svg = Svg::new(900.0, 400.0);
    let frame = PlotFrame::new((90.0, 10.0), (885.0, 340.0));
    let y = Scale::fitting(values, quantity.unit, frame.bottom, frame.top);
    frame.y_axis(&mut svg, y, quantity.unit, &quantity.axis_label(y));
    let step = frame.width() / sizes.len() as f64;
    for (index, size) in sizes.iter().enumerate() {
        let x = frame.left + (index as f64 + 0.5) * step;
        let ends = (frame.bottom, frame.bottom + 4.0);
        svg.line((x, ends.0), (x, ends.1), r#"class="tick""#);
        let (place, size) = ((x, frame.bottom + 17.0), Size(*size).to_string());
        svg.text(place, Anchor::Middle, "number", &size);
    }
    let place = ((frame.left + frame.right) / 2.0, frame.bottom + 37.0);
    svg.text(place, Anchor::Middle, "label", "device memory");
    // Side by side, so that whiskers do not hide each other.
    let spread = (step * 0.6 / series.len() as f64).min(14.0);
    let centre = (series.len() as f64 - 1.0) / 2.0;
    for (index, series) in series.iter().enumerate() {
        let shift = (index as f64 - centre) * spread;
        let place = |at: usize| frame.left + (at as f64 + 0.5) * step + shift;
        let points: Vec<(f64, f64)> = series
            .estimates
            .iter()
            .enumerate()
            .filter_map(|(at, estimate)| Some((place(at), y.at(estimate.as_ref()?.mean))))
            .collect();
        svg.polyline(&points, &series.look.stroke());
        for (at, estimate) in series.estimates.iter().enumerate() {
            let Some(estimate) = estimate else { continue };
            let point = |value| (place(at), y.at(value));
            if estimate.has_error() {
                let ends = [estimate.low(), estimate.high()].map(point);
                whisker(&mut svg, series, ends, (4.0, 0.0));
            }
            series.look.marker(&mut svg, point(estimate.mean));
        }
    }
    frame.outline(&mut svg);
    let names: Vec<String> = series.iter().map(|series| series.name.clone()).collect();
    legend(&mut svg, frame.left, &names, |svg, index, (x, y)| {
        let look = series[index].look;
        svg.line((x - 13.0, y), (x + 13.0, y), &look.stroke());
        look.marker(svg, (x, y));
    });
    page.figure(
        title,
        svg,
        &format!(
            "Lower is better.{} Markers of one size stand side by side for legibility.",
            quantity.whiskers()
        ),
    );
}

/// Draws an interval, if there is one: a line between two points and a cap at each, `cap` to both sides.
fn whisker(svg: &mut Svg, series: &Series, ends: [(f64, f64); 2], cap: (f64, f64)) {
    let attributes = format!(r#"stroke="{}" stroke-width="1.3""#, series.look.colour());
    svg.line(ends[0], ends[1], &attributes);
    for (x, y) in ends {
        svg.line((x - cap.0, y - cap.1), (x + cap.0, y + cap.1), &attributes);
    }
}

fn dots(
    page: &mut HtmlPage,
    title: &str,
    series: &[Series],
    values: &[f64],
    quantity: &Quantity,
    size: u64,
) {
    const ROW: f64 = 30.0;
    let widest = series
        .iter()
        .map(|series| text_width(&series.name))
        .fold(0.0, f64::max);
    let left = (widest + 24.0).clamp(90.0, 380.0);
    let bottom = 10.0 + ROW * series.len() as f64;
    let mut svg = Svg::new(900.0, bottom + 48.0);
    let frame = PlotFrame::new((left, 10.0), (800.0, bottom));
    let x = Scale::fitting(values, quantity.unit, frame.left, frame.right);
    for (index, series) in series.iter().enumerate() {
        let y = frame.top + (index as f64 + 0.5) * ROW;
        svg.line((frame.left, y), (frame.right, y), r#"class="grid""#);
        let (first, rest) = in_two(&series.name, left - 12.0);
        let up = if rest.is_empty() { 0.0 } else { 6.0 };
        let x_name = frame.left - 8.0;
        svg.text((x_name, y + 4.0 - up), Anchor::End, "number", first);
        if !rest.is_empty() {
            let rest = shortened(rest, left - 12.0);
            svg.text((x_name, y + 4.0 + up), Anchor::End, "number", &rest);
        }
        let Some(estimate) = &series.estimates[0] else {
            continue;
        };
        let point = |value| (x.at(value), y);
        if estimate.has_error() {
            let ends = [estimate.low(), estimate.high()].map(point);
            whisker(&mut svg, series, ends, (0.0, 4.0));
        }
        series.look.marker(&mut svg, point(estimate.mean));
        let mean = number(estimate.mean / quantity.unit.factor);
        let text = format!("{mean} {}", quantity.unit.name);
        let place = (frame.right + 8.0, y + 4.0);
        svg.text(place, Anchor::Start, "number", &text);
    }
    frame.outline(&mut svg);
    frame.x_axis(&mut svg, x, quantity.unit, &quantity.axis_label(x));
    page.figure(
        title,
        svg,
        &format!(
            "With {} of device memory. Further left is better.{}",
            Size(size),
            quantity.whiskers()
        ),
    );
}

/// Returns a policy in two lines if there is no room for it in one: broken behind the last part of it that fits.
fn in_two(policy: &str, room: f64) -> (&str, &str) {
    if text_width(policy) <= room {
        return (policy, "");
    }
    let breaks = policy.match_indices(['+', ',']).map(|(at, _)| at + 1);
    let fits = |at: &usize| text_width(&policy[..*at]) <= room;
    policy.split_at(breaks.rev().find(fits).unwrap_or(0))
}

/// Returns the text, or as much of its beginning as there is room for.
fn shortened(text: &str, room: f64) -> String {
    if text_width(text) <= room {
        return text.to_owned();
    }
    let mut short = String::new();
    for c in text.chars() {
        if text_width(&short) + 14.0 > room {
            break;
        }
        short.push(c);
    }
    short + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_policy_is_broken_between_its_parts() {
        let long = "on-demand+thrash:lapse=50ms,nap=5ms,pin_threshold=1+timeslice:min=0us";
        assert_eq!(in_two("density+lru", 380.0), ("density+lru", ""));
        let (first, rest) = in_two(long, 380.0);
        assert!(first.ends_with(['+', ',']) && text_width(first) <= 380.0);
        assert!(text_width(rest) <= 380.0);
        assert_eq!(format!("{first}{rest}"), long);
        // Nowhere to break: all of it is in the second line, which is shortened.
        let name = "x".repeat(200);
        assert_eq!(in_two(&name, 380.0), ("", name.as_str()));
    }
}
