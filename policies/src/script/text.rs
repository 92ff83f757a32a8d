//! A script's text, checked before anything is made of it; and what is shown of what a script says.

use hmm_backend::text::printable;

/// Bytes that are shown of a line that a script prints or causes.
pub(crate) const SHOWN: usize = 400;

/// The text of a script, which is nothing else: the interpreter would also take compiled code, and nothing checks
/// whether that keeps to the rules. On an error, the line and what is wrong.
pub(crate) fn of_script(bytes: Vec<u8>) -> Result<String, (usize, String)> {
    let line = |at: usize| bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
    let is_control = |byte: &u8| byte.is_ascii_control() && !b"\t\n\r\x0b\x0c".contains(byte);
    if let Some(at) = bytes.iter().position(is_control) {
        let byte = bytes[at];
        return Err((
            line(at),
            format!(
                "is not text: it has byte {byte:#04x}, as compiled bytecode does; a script has to be its source"
            ),
        ));
    }
    match std::str::from_utf8(&bytes) {
        Ok(_) => {}
        Err(error) => return Err((line(error.valid_up_to()), "is not text (UTF-8)".to_owned())),
    }
    // It was found to be UTF-8.
    String::from_utf8(bytes).map_err(|_| (1, "is not text (UTF-8)".to_owned()))
}

/// A number of a script's, in words: with all digits up to the whole numbers that it can have exactly.
pub(crate) fn number(n: f64) -> String {
    const EXACT: f64 = (1_u64 << 53) as f64;
    match n == 0.0 || (1e-6..=EXACT).contains(&n.abs()) || !n.is_finite() {
        true => format!("the number {n}"),
        false => format!("the number {n:e}"),
    }
}

/// A line that a script has caused, as it is shown: in one line, without control characters, not too long.
pub(crate) fn shown(line: &str) -> String {
    excerpt(line, SHOWN)
}

/// The beginning of a text from outside, as it is shown: so many bytes of it at most, in one line, without control characters.
pub fn excerpt(text: &str, bytes: usize) -> String {
    let start = &text[..text.floor_char_boundary(bytes)];
    let more = if start.len() < text.len() { "…" } else { "" };
    // Escapes make it longer.
    let start = printable(start);
    let shown = &start[..start.floor_char_boundary(2 * bytes)];
    let more = if shown.len() < start.len() {
        "…"
    } else {
        more
    };
    format!("{shown}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_text() {
        let wrong = |bytes: &[u8]| of_script(bytes.to_vec()).unwrap_err();
        // Luau's bytecode begins with its version; 0 stands for an error of the compiler.
        for version in 0..=12 {
            let (_, why) = wrong(&[version, 3, 0, 0, 0]);
            assert!(why.contains("compiled bytecode"), "{why}");
        }
        assert_eq!(
            wrong(b"\nreturn {} -- \0").1,
            "is not text: it has byte 0x00, as compiled bytecode does; a script has to be its source"
        );
        assert_eq!(wrong(b"\n\x1b").0, 2);
        assert_eq!(wrong(b"a\nb\n\xff"), (3, "is not text (UTF-8)".to_owned()));
        for text in ["", "\t\r\n\u{b}\u{c}", "return {} -- ä\r\n"] {
            assert_eq!(of_script(text.into()).unwrap(), text);
        }
    }

    #[test]
    fn a_number_is_short() {
        for (n, shown) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (-9_007_199_254_740_992.0, "-9007199254740992"),
            (1e300, "1e300"),
            (-1.5e-300, "-1.5e-300"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(n), format!("the number {shown}"));
        }
    }

    #[test]
    fn a_line_of_a_script_is_one_line() {
        assert_eq!(
            shown("a\nhmmvisor: b\u{1b}[2J"),
            "a\\nhmmvisor: b\\u{1b}[2J"
        );
        assert_eq!(shown(&"ä".repeat(300)), format!("{}…", "ä".repeat(200)));
        let escapes = shown(&"\u{1b}".repeat(500));
        assert!(escapes.len() <= 803 && escapes.ends_with('…'), "{escapes}");
    }
}
