//! Axes: scales, ticks, units.

use super::svg::{Anchor, Svg};
pub(crate) use crate::figures::number;
use crate::figures::{TIMES, fitting};

/// From values to positions.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    from: (f64, f64),
    to: (f64, f64),
    log: bool,
}

impl Scale {
    /// Makes a scale from values `low..high` to positions `start..end`.
    pub(crate) fn linear(low: f64, high: f64, start: f64, end: f64) -> Scale {
        let high = if high > low { high } else { low + 1.0 };
        Scale {
            from: (low, high),
            to: (start, end),
            log: false,
        }
    }

    /// Makes the same scale, but logarithmic; `low` is more than 0.
    pub(crate) fn log(low: f64, high: f64, start: f64, end: f64) -> Scale {
        let high = if high > low { high } else { low * 10.0 };
        Scale {
            from: (low.log10(), high.log10()),
            to: (start, end),
            log: true,
        }
    }

    /// Makes a scale from 0 to a round number of units, or a logarithmic one where values lie too far apart for that.
    pub(crate) fn fitting(values: &[f64], unit: Unit, start: f64, end: f64) -> Scale {
        let high = values.iter().copied().fold(0.0, f64::max);
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        match low > 0.0 && low.is_finite() && high / low > 30.0 {
            true => Scale::log(low / 1.3, high * 1.3, start, end),
            false => Scale::linear(0.0, nice_end(high / unit.factor) * unit.factor, start, end),
        }
    }

    pub(crate) fn is_log(&self) -> bool {
        self.log
    }

    /// Returns the position of a value; values beyond the ends are at the end.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let value = match self.log {
            true if value > 0.0 => value.log10(),
            true => self.from.0,
            false => value,
        };
        let share = (value - self.from.0) / (self.from.1 - self.from.0);
        self.to.0 + share.clamp(0.0, 1.0) * (self.to.1 - self.to.0)
    }

    /// Returns round numbers of units within the scale, about `wanted` of them.
    pub(crate) fn ticks(&self, unit: Unit, wanted: usize) -> Vec<f64> {
        let ticks = self.round_numbers(unit.factor, wanted);
        ticks.into_iter().map(|tick| tick * unit.factor).collect()
    }

    fn round_numbers(&self, factor: f64, wanted: usize) -> Vec<f64> {
        let (low, high) = match self.log {
            true => (self.from.0 - factor.log10(), self.from.1 - factor.log10()),
            false => (self.from.0 / factor, self.from.1 / factor),
        };
        if self.log {
            let decades: Vec<f64> = (low.ceil() as i32..=high.floor() as i32)
                .map(|power| 10f64.powi(power))
                .collect();
            if decades.len() >= 3 {
                let step = decades.len().div_ceil(wanted.max(1));
                return decades.into_iter().step_by(step).collect();
            }
            let (first, last) = (low.floor() as i32, high.ceil() as i32);
            return (first..=last)
                .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)))
                .filter(|value| (low..=high).contains(&value.log10()))
                .collect();
        }
        let step = nice_step((high - low) / wanted.max(1) as f64);
        let first = (low / step).ceil() as i64;
        let last = (high / step + 1e-9).floor() as i64;
        (first..=last).map(|n| n as f64 * step).collect()
    }
}

fn nice_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    let digit = rough / power;
    let nice = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .find(|nice| digit <= nice * 1.001);
    nice.unwrap_or(10.0) * power
}

/// Returns a round number that is at least this.
fn nice_end(high: f64) -> f64 {
    if high <= 0.0 || !high.is_finite() {
        return 1.0;
    }
    let step = nice_step(high / 5.0);
    (high / step - 1e-9).ceil() * step
}

/// A unit that suits some values.
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    pub(crate) name: &'static str,
    pub(crate) factor: f64,
}

impl Unit {
    /// Returns a unit for times of up to `largest` nanoseconds.
    pub(crate) fn time(largest: f64) -> Unit {
        let (name, factor) = fitting(&TIMES, largest);
        Unit { name, factor }
    }

    /// Returns a unit for amounts of up to `largest` bytes.
    pub(crate) fn bytes(largest: f64) -> Unit {
        let step = 1024.0;
        let units = [
            ("B", 1.0),
            ("KiB", step),
            ("MiB", step * step),
            ("GiB", step * step * step),
        ];
        let (name, factor) = fitting(&units, largest);
        Unit { name, factor }
    }

    /// Returns the unit of plain numbers, which has no name.
    pub(crate) fn count() -> Unit {
        Unit {
            name: "",
            factor: 1.0,
        }
    }

    /// Returns a value with its unit.
    pub(crate) fn show(self, value: f64) -> String {
        format!("{} {}", number(value / self.factor), self.name)
            .trim_end()
            .to_owned()
    }
}

/// The place of a plot in its drawing, with room for axes around it.
#[derive(Clone, Copy)]
pub(crate) struct PlotFrame {
    pub(crate) left: f64,
    pub(crate) top: f64,
    pub(crate) right: f64,
    pub(crate) bottom: f64,
}

impl PlotFrame {
    /// The frame between two corners.
    pub(crate) fn new((left, top): (f64, f64), (right, bottom): (f64, f64)) -> PlotFrame {
        PlotFrame {
            left,
            top,
            right,
            bottom,
        }
    }

    pub(crate) fn width(&self) -> f64 {
        self.right - self.left
    }

    pub(crate) fn height(&self) -> f64 {
        self.bottom - self.top
    }

    pub(crate) fn outline(&self, svg: &mut Svg) {
        let size = (self.width(), self.height());
        svg.rect((self.left, self.top), size, r#"class="outline""#);
    }

    /// Ticks and label below.
    pub(crate) fn x_axis(&self, svg: &mut Svg, scale: Scale, unit: Unit, label: &str) {
        let wanted = (self.width() / 90.0) as usize;
        for tick in scale.ticks(unit, wanted.max(2)) {
            let x = scale.at(tick);
            svg.line((x, self.bottom), (x, self.bottom + 4.0), r#"class="tick""#);
            let place = (x, self.bottom + 17.0);
            svg.text(place, Anchor::Middle, "number", &number(tick / unit.factor));
        }
        let place = ((self.left + self.right) / 2.0, self.bottom + 36.0);
        svg.text(place, Anchor::Middle, "label", label);
    }

    /// Ticks, grid and label at the left.
    /// A horizontal axis of time, up to `end` nanoseconds after the first event.
    pub(crate) fn time_axis(&self, svg: &mut Svg, scale: Scale, end: u64) {
        let unit = Unit::time(end as f64);
        let label = format!("time since the first event ({})", unit.name);
        self.x_axis(svg, scale, unit, &label);
    }

    pub(crate) fn y_axis(&self, svg: &mut Svg, scale: Scale, unit: Unit, label: &str) {
        let wanted = (self.height() / 45.0) as usize;
        for tick in scale.ticks(unit, wanted.max(2)) {
            let y = scale.at(tick);
            svg.line((self.left, y), (self.right, y), r#"class="grid""#);
            let place = (self.left - 7.0, y + 4.0);
            svg.text(
                place,
                Anchor::End,
                "number",
                &number((tick / unit.factor).abs()),
            );
        }
        self.y_label(svg, label);
    }

    pub(crate) fn y_label(&self, svg: &mut Svg, label: &str) {
        svg.upright((self.left - 62.0, (self.top + self.bottom) / 2.0), label);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let scale = Scale::linear(0.0, 103.0, 0.0, 100.0);
        assert_eq!(
            scale.ticks(Unit::count(), 5),
            [0.0, 25.0, 50.0, 75.0, 100.0]
        );
        let log = Scale::log(3.0, 3_000_000.0, 0.0, 100.0);
        assert_eq!(
            log.ticks(Unit::count(), 9),
            [10.0, 100.0, 1e3, 1e4, 1e5, 1e6]
        );
        assert_eq!(
            Scale::log(3.0, 30.0, 0.0, 1.0).ticks(Unit::count(), 9),
            [5.0, 10.0, 20.0]
        );
        let memory = Scale::linear(0.0, 5e6, 0.0, 1.0).ticks(Unit::bytes(5e6), 4);
        assert_eq!(memory, [0.0, 2097152.0, 4194304.0]);
        // Nothing to show is no reason to hang.
        for scale in [
            Scale::linear(0.0, 0.0, 0.0, 1.0),
            Scale::fitting(&[], Unit::count(), 0.0, 1.0),
        ] {
            assert!(scale.ticks(Unit::count(), 5).len() < 20);
        }
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (12.34, "12.3"),
            (1234.0, "1,234"),
            (1_234_567.0, "1,234,567"),
            (0.0001, "1.0e-4"),
            (-25.0, "-25"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(Unit::bytes(3e6).show(f64::from(3 << 20)), "3 MiB");
    }
}
