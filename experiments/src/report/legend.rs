//! Legends, below plots.

use super::svg::{Anchor, Svg, text_width};

/// Adds a legend below everything that is drawn; `sample` draws the sample of an entry, 26 wide, around a place.
pub(super) fn legend(
    svg: &mut Svg,
    left: f64,
    names: &[String],
    sample: impl Fn(&mut Svg, usize, (f64, f64)),
) {
    const LINE: f64 = 20.0;
    let widest = names
        .iter()
        .map(|name| text_width(name))
        .fold(0.0, f64::max)
        + 50.0;
    let columns = (((svg.width() - left) / widest) as usize).clamp(1, names.len().max(1));
    let top = svg.height();
    for (index, name) in names.iter().enumerate() {
        let x = left + (index % columns) as f64 * widest;
        let y = top + (index / columns) as f64 * LINE + 8.0;
        sample(svg, index, (x + 13.0, y));
        svg.text((x + 34.0, y + 4.0), Anchor::Start, "number", name);
    }
    svg.grow(names.len().div_ceil(columns) as f64 * LINE + 4.0);
}
