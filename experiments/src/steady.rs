//! Writes that are retried when they are interrupted, a limited number of times.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

/// Writes in a row that the system may interrupt or put off before that is an error...
const RETRIES: u32 = 1000;
/// ... with this pause between them, after the first few.
const PAUSE: Duration = Duration::from_millis(1);
const AT_ONCE: u32 = 8;

/// Writes and flushes all of it. What the system interrupts or puts off is tried again, for at least a second and with pauses.
///
/// # Errors
/// The first error that is neither; or one that is, at every try.
pub fn write_all(out: &mut dyn Write, mut bytes: &[u8]) -> io::Result<()> {
    let mut failures = 0;
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => {
                let why = "nothing of it was taken, without an error";
                return Err(io::Error::new(ErrorKind::WriteZero, why));
            }
            Ok(written) => {
                bytes = &bytes[written..];
                failures = 0;
            }
            Err(error) => retry(error, &mut failures)?,
        }
    }
    failures = 0;
    while let Err(error) = out.flush() {
        retry(error, &mut failures)?;
    }
    Ok(())
}

/// Waits until an output has room that another process has made non-blocking, as each process can that shares a pipe or a terminal.
pub fn wait_for_room(out: &impl AsFd) -> io::Result<()> {
    poll(&mut [PollFd::new(out, PollFlags::OUT)], None)?;
    Ok(())
}

/// Whether to try again, after a pause.
fn retry(error: io::Error, failures: &mut u32) -> io::Result<()> {
    *failures += 1;
    let temporary = matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock);
    if !temporary {
        return Err(error);
    }
    if *failures > RETRIES {
        // Of another kind: callers take the kinds above for reasons to try again.
        return Err(io::Error::other(format!(
            "{error}, at each of {failures} tries"
        )));
    }
    if *failures > AT_ONCE {
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes one byte at every third try.
    #[derive(Default)]
    struct Slow {
        tries: u32,
        seen: Vec<u8>,
    }
    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.tries += 1;
            if !self.tries.is_multiple_of(3) {
                return Err(ErrorKind::Interrupted.into());
            }
            self.seen.push(bytes[0]);
            Ok(1)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Fails(ErrorKind);
    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn interruptions_are_passed_over_unless_there_is_nothing_else() {
        let mut slow = Slow::default();
        write_all(&mut slow, b"some text").unwrap();
        assert_eq!(slow.seen, b"some text");
        for kind in [ErrorKind::Interrupted, ErrorKind::WouldBlock] {
            let error = write_all(&mut Fails(kind), b"x").unwrap_err();
            assert!(error.to_string().contains("tries"), "{error}");
        }
        let full = write_all(&mut Fails(ErrorKind::StorageFull), b"x");
        assert_eq!(full.unwrap_err().kind(), ErrorKind::StorageFull);
    }
}
