//! SVG, as much of it as plots need.

use std::fmt::Write;

/// Escapes text for HTML and SVG, also within attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            // Neither HTML nor SVG allows control characters, which names of files can have.
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Returns the width of text at the plots' size, about: for room and for cutting, not for placing.
pub(crate) fn text_width(text: &str) -> f64 {
    text.chars().count() as f64 * 7.3
}

/// The part of a text that is at its position.
#[derive(Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        }
    }
}

/// A drawing. Styles are the page's classes or attributes.
pub(crate) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    pub(crate) fn new(width: f64, height: f64) -> Svg {
        Svg {
            width,
            height,
            body: String::new(),
        }
    }

    pub(crate) fn width(&self) -> f64 {
        self.width
    }

    /// Makes it higher by this much, for a legend.
    pub(crate) fn grow(&mut self, height: f64) {
        self.height += height;
    }

    pub(crate) fn height(&self) -> f64 {
        self.height
    }

    pub(crate) fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), attributes: &str) {
        let _ = write!(
            self.body,
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" {attributes}/>"#
        );
    }

    pub(crate) fn rect(
        &mut self,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        attributes: &str,
    ) {
        let (width, height) = (width.max(0.0), height.max(0.0));
        let _ = write!(
            self.body,
            r#"<rect x="{x:.2}" y="{y:.2}" width="{width:.2}" height="{height:.2}" {attributes}/>"#
        );
    }

    pub(crate) fn path(&mut self, d: &str, attributes: &str) {
        let _ = write!(self.body, r#"<path d="{d}" {attributes}/>"#);
    }

    pub(crate) fn polyline(&mut self, points: &[(f64, f64)], attributes: &str) {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let points = points.join(" ");
        let _ = write!(
            self.body,
            r#"<polyline points="{points}" fill="none" {attributes}/>"#
        );
    }

    pub(crate) fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, class: &str, text: &str) {
        let _ = write!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{}" class="{class}">{}</text>"#,
            anchor.name(),
            escape(text)
        );
    }

    /// Text that reads upwards, centred.
    pub(crate) fn upright(&mut self, (x, y): (f64, f64), text: &str) {
        let _ = write!(
            self.body,
            r#"<text transform="translate({x:.1} {y:.1}) rotate(-90)" text-anchor="middle" class="label">{}</text>"#,
            escape(text)
        );
    }

    /// Returns the element; `title` is read aloud to those who cannot see it.
    pub(crate) fn finish(self, title: &str) -> String {
        let Svg {
            width,
            height,
            body,
        } = self;
        format!(
            r#"<svg viewBox="0 0 {width:.0} {height:.0}" role="img" aria-label="{0}">{body}</svg>"#,
            escape(title)
        )
    }
}
