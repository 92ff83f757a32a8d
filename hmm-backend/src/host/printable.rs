//! Makes text from outside (from a guest, a script, a file or a file name) safe for a terminal or a log.
//!
//! Such text can contain line breaks, which would start lines that look like the program's own; escape sequences,
//! which terminals obey; and characters that change the display order of other characters. [`printable`] is the one
//! place that makes them visible.

use std::borrow::Cow;
use std::fmt::Write;

/// Returns the text as one line, with each invisible or controlling character written as an escape: `\n`, `\t`,
/// `\u{1b}`.
///
/// Visible characters, including `\`, stay as they are. The result is for people and cannot be decoded again.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if is_hidden(c) => {
                let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
            }
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// Returns the text as several lines, each of them [`printable`]. All but the first are indented, so that no line
/// from outside looks like the start of one of the program's own messages.
pub fn printable_lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for (i, line) in text.split('\n').enumerate() {
        let line = expand(line);
        if i > 0 {
            shown.push_str(if line.starts_with("  ") { "\n" } else { "\n  " });
        }
        shown.push_str(&printable(&line));
    }
    shown
}

/// Replaces tabs within a line by spaces: tabs are harmless, and columns need their width.
fn expand(line: &str) -> Cow<'_, str> {
    match line.contains('\t') {
        true => Cow::Owned(line.replace('\t', "    ")),
        false => Cow::Borrowed(line),
    }
}

/// Whether a character controls the terminal (C0, DEL, C1), ends a line, changes the display order, or has no width.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // The soft hyphen, the Arabic letter mark, and the Mongolian vowel separator.
            '\u{ad}' | '\u{61c}' | '\u{180e}'
            // Zero-width characters and direction marks.
            | '\u{200b}'..='\u{200f}'
            // Line and paragraph separators; direction embeddings and overrides.
            | '\u{2028}'..='\u{202e}'
            // Invisible operators, isolates, and deprecated format characters.
            | '\u{2060}'..='\u{206f}'
            // The byte order mark, annotations, and tags.
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_stays_and_what_is_not_becomes_visible() {
        for plain in ["", "density+lru", "größer → 日本語", "a\\b"] {
            assert!(matches!(printable(plain), Cow::Borrowed(it) if it == plain));
        }
        assert_eq!(
            printable("x\nhmmvisor: error: y\r\u{1b}[2J\t\0"),
            "x\\nhmmvisor: error: y\\r\\u{1b}[2J\\t\\u{0}"
        );
        // The CSI of C1, a direction override, a line separator, an invisible tag.
        assert_eq!(
            printable("\u{9b}2J \u{202e}abc\u{2028}\u{e0041}"),
            "\\u{9b}2J \\u{202e}abc\\u{2028}\\u{e0041}"
        );
    }

    #[test]
    fn further_lines_do_not_begin_as_the_first_does() {
        assert_eq!(printable_lines("one"), "one");
        assert_eq!(
            printable_lines("a\nhmmvisor: error: b\r\n\tc\u{1b}\n d"),
            "a\n  hmmvisor: error: b\\r\n    c\\u{1b}\n   d"
        );
    }
}
