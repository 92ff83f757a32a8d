//! Colours that colour-blind people tell apart (Okabe and Ito's; viridis), and for black-and-white printers a hatching,
//! a marker or a dash besides each.

use super::svg::Svg;

/// Okabe and Ito's colours; yellow, which paper does not show, is left out.
const COLOURS: [&str; 7] = [
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
];
const DASHES: [&str; 5] = ["none", "7 3", "2 3", "9 3 2 3", "4 2"];
const MARKERS: usize = 14;

/// How one of several series looks. The first 14 differ in their markers alone.
#[derive(Clone, Copy)]
pub(crate) struct Look(pub(crate) usize);

impl Look {
    pub(crate) fn colour(self) -> &'static str {
        COLOURS[self.0 % COLOURS.len()]
    }

    pub(crate) fn stroke(self) -> String {
        let dash = DASHES[self.0 % DASHES.len()];
        format!(
            r#"stroke="{}" stroke-width="1.6" stroke-dasharray="{dash}""#,
            self.colour()
        )
    }

    pub(crate) fn marker(self, svg: &mut Svg, (x, y): (f64, f64)) {
        let r = 4.5;
        let colour = self.colour();
        let polygon = |points: &[(f64, f64)]| {
            let mut d = String::new();
            for (index, (dx, dy)) in points.iter().enumerate() {
                let command = if index == 0 { 'M' } else { 'L' };
                d += &format!("{command}{:.1} {:.1}", x + dx * r, y + dy * r);
            }
            d
        };
        let closed = |points: &[(f64, f64)]| polygon(points) + "Z";
        let circle = format!(
            "M{:.1} {y:.1}a{r} {r} 0 1 0 {} 0a{r} {r} 0 1 0 -{} 0Z",
            x - r,
            2.0 * r,
            2.0 * r
        );
        let square = closed(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]);
        let up = closed(&[(0.0, -1.2), (1.1, 0.9), (-1.1, 0.9)]);
        let down = closed(&[(0.0, 1.2), (1.1, -0.9), (-1.1, -0.9)]);
        let diamond = closed(&[(0.0, -1.3), (1.2, 0.0), (0.0, 1.3), (-1.2, 0.0)]);
        let cross = polygon(&[(-1.0, -1.0), (1.0, 1.0)]) + &polygon(&[(-1.0, 1.0), (1.0, -1.0)]);
        let plus = polygon(&[(-1.2, 0.0), (1.2, 0.0)]) + &polygon(&[(0.0, -1.2), (0.0, 1.2)]);
        let bow = closed(&[(-1.1, -1.0), (1.1, 1.0), (1.1, -1.0), (-1.1, 1.0)]);
        let (d, fill) = match self.0 % MARKERS {
            0 => (circle, colour),
            1 => (square, colour),
            2 => (up, colour),
            3 => (diamond, "#fff"),
            4 => (circle, "#fff"),
            5 => (cross, "none"),
            6 => (square, "#fff"),
            7 => (down, colour),
            8 => (plus, "none"),
            9 => (up, "#fff"),
            10 => (diamond, colour),
            11 => (cross + &plus, "none"),
            12 => (down, "#fff"),
            _ => (bow, colour),
        };
        let attributes = format!(r#"fill="{fill}" stroke="{colour}" stroke-width="1.6""#);
        svg.path(&d, &attributes);
    }
}

/// How a kind of area looks: colour and hatching.
#[derive(Clone, Copy)]
pub(crate) struct Fill(pub(crate) usize);

/// The hatchings' number.
pub(crate) const FILLS: usize = 6;

impl Fill {
    pub(crate) fn attributes(self) -> String {
        format!(
            r##"fill="url(#fill{})" stroke="#222" stroke-width="0.4""##,
            self.0 % FILLS
        )
    }

    /// Returns the definitions of all fills, which a page needs once.
    pub(crate) fn definitions() -> String {
        let inks = [
            // Lighter and darker in turn, so that neighbours differ in grey, too.
            ("#0072B2", ""),
            (
                "#F3C565",
                r##"<path d="M-2 2L2 -2M0 8L8 0M6 10L10 6" stroke="#7a5200" stroke-width="1.4"/>"##,
            ),
            (
                "#D55E00",
                r##"<circle cx="2" cy="2" r="1.3" fill="#fff"/><circle cx="6" cy="6" r="1.3" fill="#fff"/>"##,
            ),
            (
                "#BFE7DA",
                r##"<path d="M0 2H8M0 6H8" stroke="#00634a" stroke-width="1.4"/>"##,
            ),
            (
                "#CC79A7",
                r##"<path d="M0 0L8 8M8 0L0 8" stroke="#fff" stroke-width="1.4"/>"##,
            ),
            (
                "#eeeeee",
                r##"<path d="M2 0V8M6 0V8" stroke="#777" stroke-width="1"/>"##,
            ),
        ];
        let pattern = |(number, (colour, ink)): (usize, &(&str, &str))| {
            format!(
                r#"<pattern id="fill{number}" width="8" height="8" patternUnits="userSpaceOnUse"><rect width="8" height="8" fill="{colour}"/>{ink}</pattern>"#
            )
        };
        let patterns: String = inks.iter().enumerate().map(pattern).collect();
        format!(r#"<svg class="definitions" aria-hidden="true"><defs>{patterns}</defs></svg>"#)
    }
}

/// Returns a colour of the viridis scale, whose lightness grows evenly from 0 to 1.
pub(crate) fn viridis(share: f64) -> String {
    const STOPS: [(f64, f64, f64); 9] = [
        (68.0, 1.0, 84.0),
        (71.0, 45.0, 123.0),
        (59.0, 82.0, 139.0),
        (44.0, 114.0, 142.0),
        (33.0, 145.0, 140.0),
        (40.0, 174.0, 128.0),
        (94.0, 201.0, 98.0),
        (173.0, 220.0, 48.0),
        (253.0, 231.0, 37.0),
    ];
    let place = share.clamp(0.0, 1.0) * (STOPS.len() - 1) as f64;
    let (low, part) = ((place as usize).min(STOPS.len() - 2), place.fract());
    let part = if place as usize > low { 1.0 } else { part };
    let (a, b) = (STOPS[low], STOPS[low + 1]);
    let mix = |a: f64, b: f64| (a + (b - a) * part).round() as u8;
    format!(
        "#{:02x}{:02x}{:02x}",
        mix(a.0, b.0),
        mix(a.1, b.1),
        mix(a.2, b.2)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn viridis_grows_lighter() {
        let luminance = |share| {
            let colour = viridis(share);
            let part = |at: usize| f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap());
            0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
        };
        let steps: Vec<f64> = (0..=20)
            .map(|step| luminance(f64::from(step) / 20.0))
            .collect();
        assert!(steps.windows(2).all(|pair| pair[0] < pair[1]), "{steps:?}");
        assert_eq!(
            (viridis(0.0), viridis(1.0)),
            ("#440154".into(), "#fde725".into())
        );
    }
}
