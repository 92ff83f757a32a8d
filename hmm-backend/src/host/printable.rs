//! Text from outside - from a guest, a script, a file, a file's name - on its way to a terminal or a log.
//!
//! Such text can hold line breaks, which would make lines that look like the program's own, escape sequences, which
//! terminals obey, and characters that change the order in which others are shown. [`printable`] is the one place that
//! makes them visible instead.

use std::borrow::Cow;
use std::fmt::Write;

/// The text in one line, with everything that is not to be seen written as an escape: `\n`, `\t`, `\u{1b}`.
///
/// Characters that show something are left as they are, so the result is for people: it cannot be turned back.
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

/// The text in several lines: each of them [`printable`], all but the first indented, so that none of them begins as one
/// of the program's own does.
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

/// Tabs within a line are harmless, and columns need their width.
fn expand(line: &str) -> Cow<'_, str> {
    match line.contains('\t') {
        true => Cow::Owned(line.replace('\t', "    ")),
        false => Cow::Borrowed(line),
    }
}

/// Whether a character controls the terminal (C0, DEL, C1), ends a line, changes the order of others, or has no width.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // The soft hyphen, the Arabic letter mark, and the Mongolian vowel separator.
            '\u{ad}' | '\u{61c}' | '\u{180e}'
            // Zero width, and marks of direction.
            | '\u{200b}'..='\u{200f}'
            // Line and paragraph separators; embeddings and overrides of direction.
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
        // C1's CSI, an override of direction, a line separator, an invisible tag.
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
