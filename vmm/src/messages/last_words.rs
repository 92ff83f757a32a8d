//! The last message of a process that ends on the spot.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// Set where messages are JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// Has last words be JSON objects from now on.
pub(super) fn are_json() {
    JSON.store(true, Ordering::Relaxed);
}

/// Writes a last error to standard error. May be called from a signal handler: formats into a buffer on the stack, and makes system calls
/// that every row of the sandbox's table allows.
pub(crate) fn last_words(message: fmt::Arguments<'_>) {
    let mut line = Line::default();
    // Writing into the line does not fail.
    let _ = match JSON.load(Ordering::Relaxed) {
        false => line.text(message),
        true => line.json(message),
    };
    // SAFETY: the kernel reads the text. There is nothing to do about a failure: the process ends.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.length) };
}

/// Text of a bounded length, made without an allocation: what does not fit is cut off, but for the end of the line.
struct Line {
    bytes: [u8; 640],
    length: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line {
            bytes: [0; _],
            length: 0,
        }
    }
}

/// What ends a line that is an object.
const CLOSING: &str = "\",\"target\":\"hmmvisor\"}\n";

impl Line {
    fn text(&mut self, message: fmt::Arguments<'_>) -> fmt::Result {
        write!(self, "hmmvisor: error: {message}")?;
        self.push("\n", 0);
        Ok(())
    }

    fn json(&mut self, message: fmt::Arguments<'_>) -> fmt::Result {
        self.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut Writer::new(self))?;
        self.write_str("\",\"level\":\"ERROR\",\"message\":\"")?;
        Escaped(self).write_fmt(message)?;
        self.push(CLOSING, 0);
        Ok(())
    }

    /// Appends as much of the text as leaves room for `reserve` bytes.
    fn push(&mut self, text: &str, reserve: usize) {
        let room = (self.bytes.len() - reserve).saturating_sub(self.length);
        let length = text.floor_char_boundary(room);
        self.bytes[self.length..][..length].copy_from_slice(&text.as_bytes()[..length]);
        self.length += length;
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text, CLOSING.len());
        Ok(())
    }
}

/// Writes into a string of JSON.
struct Escaped<'a>(&'a mut Line);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|letter| match letter {
            '"' | '\\' => self.0.write_str("'"),
            letter if letter.is_control() => self.0.write_str(" "),
            letter => self.0.write_char(letter),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_off_and_stays_a_line() {
        let mut line = Line::default();
        line.text(format_args!("{:700}", "begin")).unwrap();
        let text = &line.bytes[..line.length];
        assert!(text.starts_with(b"hmmvisor: error: begin ") && text.ends_with(b" \n"));

        let mut line = Line::default();
        line.json(format_args!("a \"word\"\n{:\u{fc}<700}", ""))
            .unwrap();
        let text = str::from_utf8(&line.bytes[..line.length]).unwrap();
        assert!(text.ends_with('\n'));
        let object: serde_json::Value = serde_json::from_str(text).unwrap();
        let message = object["message"].as_str().unwrap();
        assert!(message.starts_with("a 'word' \u{fc}"), "{message}");
        assert_eq!(object["level"], "ERROR");
    }
}
