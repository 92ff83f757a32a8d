//! What the command prints. All of it goes through here, because the standard library's `println!` panics when nobody
//! reads any more.

use std::io::{self, ErrorKind, Write};

use anyhow::{Context, Result};
use hmmvisor_experiments::output::Files;

/// Writes to standard output. Whoever has closed the pipe, like `head`, has read enough: that is no error.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing to standard output"),
    }
}

/// Says what has been done: on standard output, or on standard error if an output of the command goes there.
pub fn status(files: &Files, text: &str) -> Result<()> {
    match files.use_stdout() {
        true => {
            note(text);
            Ok(())
        }
        false => print(text),
    }
}

/// Says something on standard error that is not the result; there is nowhere to say that this failed.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "hmmvisor: {}", text.trim_end());
}
