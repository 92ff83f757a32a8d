//! The guest's serial port: a 16550 whose output goes to the host, line by line.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use crate::bus::{Device, Next};

/// Most bytes held back while waiting for the end of a line.
const LINE_LIMIT: usize = 4096;

/// A serial port with eight byte-wide registers.
pub struct Console(Mutex<Serial<NoInterrupt, NoEvents, Lines>>);

impl Console {
    /// A serial port that writes to `out`.
    pub fn new(out: Box<dyn Write + Send>) -> Console {
        let lines = Lines {
            line: Vec::new(),
            out,
        };
        Console(Mutex::new(Serial::new(NoInterrupt, lines)))
    }

    /// Writes out what is left of an unfinished line, and ends it.
    pub fn finish(&self) {
        let mut serial = self.serial();
        let lines = serial.writer_mut();
        if !lines.line.is_empty() {
            lines.line.push(b'\n');
            lines.pass_on();
        }
    }

    fn serial(&self) -> MutexGuard<'_, Serial<NoInterrupt, NoEvents, Lines>> {
        // Whoever panicked while holding it has left a serial port that still works.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Console {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Ok(register @ 0..8) = u8::try_from(offset) else {
            return;
        };
        data[0] = self.serial().read(register);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Next {
        if let Ok(register @ 0..8) = u8::try_from(offset) {
            let mut serial = self.serial();
            // Several bytes are those of a string instruction, all for the same register. Failures
            // are the output's, for instance a closed pipe: no reason to disturb the guest.
            data.iter()
                .for_each(|byte| _ = serial.write(register, *byte));
        }
        Next::Continue
    }
}

/// Passes on whole lines. The serial port flushes after each byte, which is why this ignores it.
struct Lines {
    line: Vec<u8>,
    out: Box<dyn Write + Send>,
}

impl Lines {
    fn pass_on(&mut self) {
        let _ = self
            .out
            .write_all(&self.line)
            .and_then(|()| self.out.flush());
        self.line.clear();
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() >= LINE_LIMIT {
                self.pass_on();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Small guests poll.
struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<Vec<u8>>>>);
    impl Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_comes_in_lines_and_the_rest_at_the_end() {
        let seen = Seen::default();
        let console = Console::new(Box::new(seen.clone()));
        for byte in b"one\ntwo" {
            assert_eq!(console.write(0, &[*byte]), Next::Continue);
        }
        assert_eq!(*seen.0.lock().unwrap(), [b"one\n".to_vec()]);
        console.finish();
        console.finish();
        assert_eq!(
            *seen.0.lock().unwrap(),
            [b"one\n".to_vec(), b"two\n".to_vec()]
        );
    }

    #[test]
    fn the_transmitter_is_always_empty() {
        let console = Console::new(Box::new(io::sink()));
        let mut status = [0];
        console.read(5, &mut status);
        assert_eq!(status[0] & 0x60, 0x60);
        console.read(8, &mut status);
    }
}
