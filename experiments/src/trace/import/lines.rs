//! The lines of a text, one at a time, none longer than a bound.

use std::io::{BufRead, Read};

use super::importer::Failure;

/// Reads lines: what ends with a line feed, with or without a carriage return before it, or with the text.
pub struct Lines<R> {
    input: R,
    longest: u64,
    number: u64,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// Lines of at most so many bytes.
    pub fn new(input: R, longest: u64) -> Lines<R> {
        Lines {
            input,
            longest,
            number: 0,
            line: Vec::new(),
        }
    }

    /// Returns the next line's number, from 1, and the line without its end; none at the end.
    pub fn next(&mut self) -> Result<Option<(u64, &[u8])>, Failure> {
        self.line.clear();
        self.number += 1;
        // Its end counts, too.
        let bound = self.longest + 2;
        let mut input = Read::take(&mut self.input, bound);
        let length = input.read_until(b'\n', &mut self.line);
        if length.map_err(Failure::Input)? == 0 {
            return Ok(None);
        }
        let mut line = self.line.as_slice();
        line = line.strip_suffix(b"\n").unwrap_or(line);
        line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() as u64 > self.longest {
            let why = format!("it is longer than {} bytes", self.longest);
            return Err(Failure::Line(self.number, why));
        }
        // What editors of other systems put in front of a text.
        if self.number == 1 {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if let Some(at) = line.iter().position(|byte| *byte == 0) {
            let why = format!("its byte {} is 0: it is no text, or not in UTF-8", at + 1);
            return Err(Failure::Line(self.number, why));
        }
        Ok(Some((self.number, line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8]) -> Vec<Result<String, u64>> {
        let mut lines = Lines::new(text, 5);
        let mut found = Vec::new();
        loop {
            match lines.next() {
                Ok(None) => return found,
                Ok(Some((number, line))) => {
                    assert_eq!(number, found.len() as u64 + 1);
                    found.push(Ok(String::from_utf8_lossy(line).into_owned()));
                }
                Err(Failure::Line(number, _)) => {
                    found.push(Err(number));
                    return found;
                }
                Err(_) => panic!("it can be read"),
            }
        }
    }

    #[test]
    fn lines_end_as_they_do_anywhere() {
        let good = |lines: &[&str]| {
            lines
                .iter()
                .map(|line| Ok((*line).to_owned()))
                .collect::<Vec<_>>()
        };
        assert_eq!(all(b""), good(&[]));
        assert_eq!(all(b"a\n\nb"), good(&["a", "", "b"]));
        assert_eq!(all(b"\xef\xbb\xbfa\r\nb\r\n"), good(&["a", "b"]));
        assert_eq!(all(b"12345\r\n12345\n12345"), good(&["12345"; 3]));
        for long in [
            "1\n123456\n",
            "1\n123456",
            "1\n123456789",
            "1\n12345\r\r\n",
            "1\n1\x002\n",
        ] {
            assert_eq!(
                all(long.as_bytes()),
                [Ok("1".to_owned()), Err(2)],
                "{long:?}"
            );
        }
    }
}
