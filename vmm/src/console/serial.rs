//! The guest's serial port: a 16550 whose output goes to the host, line by line, and whose input comes from there.

use std::convert::Infallible;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hmmvisor_devices::bell;
use parking_lot::{Mutex, MutexGuard};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::ending::Ending;
use crate::machine::bus::{Device, Next};
use crate::outlet::Outlet;

/// Where a PC has its first serial port.
pub const PORTS: Range<u64> = 0x3f8..0x400;
/// The pin of the I/O APIC that is the port's interrupt.
pub const PIN: u32 = 4;

/// Most bytes held back while waiting for the end of a line.
const LINE_LIMIT: usize = 4096;

/// The register with which the guest says which interrupts it wants.
const INTERRUPT_ENABLE: u64 = 1;
/// The bit of that register that asks for an interrupt for input.
const INPUT_INTERRUPT: u8 = 1;
/// The register that the guest reads input from.
const DATA: u64 = 0;

/// How a Linux kernel says that it has panicked. What follows in the line is why.
const KERNEL_PANIC: &str = "Kernel panic - not syncing: ";

/// A serial port with eight byte-wide registers.
pub struct Console {
    serial: Mutex<Serial<Pin, NoEvents, Lines>>,
    /// The console's thread looks at `attention`.
    attended: AtomicBool,
    /// Input waits until the guest can take it.
    input_waits: AtomicBool,
    /// Written when the console's thread has something to do: pass on the beginning of a line, or bring input.
    attention: Option<EventFd>,
    /// The outlet by which the output goes, if it can stall.
    outlet: Option<Outlet>,
    /// Accesses by a guest whose output is stalled.
    unheard: AtomicU64,
    /// The end of the run, which comes when an event cannot be written.
    ending: Option<Arc<Ending>>,
}

impl Console {
    /// Makes a serial port that writes to `out`, for guests that poll.
    pub fn new(out: Box<dyn Write + Send>) -> Console {
        Console::with_pin(out, Pin::default(), None)
    }

    /// Makes a serial port that writes to `out` and interrupts by `pin`. The run ends if the system refuses its events.
    pub fn with_interrupt(
        out: Box<dyn Write + Send>,
        pin: EventFd,
        ending: Arc<Ending>,
    ) -> io::Result<Console> {
        let attention = EventFd::new(EFD_NONBLOCK)?;
        let pin = Pin(Some((pin, ending.clone())));
        let mut console = Console::with_pin(out, pin, Some(attention));
        console.ending = Some(ending);
        Ok(console)
    }

    /// Returns the same port, which knows that its output goes through this outlet.
    pub fn through(self, outlet: Outlet) -> Console {
        Console {
            outlet: Some(outlet),
            ..self
        }
    }

    /// Counts the guest's accesses to the port while its output was stalled. They are no sign of life.
    pub fn unheard(&self) -> u64 {
        self.unheard.load(Ordering::Relaxed)
    }

    fn count_unheard(&self) {
        if self.outlet.as_ref().is_some_and(Outlet::is_stalled) {
            self.unheard.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn with_pin(out: Box<dyn Write + Send>, pin: Pin, attention: Option<EventFd>) -> Console {
        let lines = Lines {
            line: Vec::new(),
            passed: 0,
            out,
            kernel_panic: None,
        };
        Console {
            serial: Mutex::new(Serial::new(pin, lines)),
            attended: AtomicBool::new(false),
            input_waits: AtomicBool::new(false),
            attention,
            outlet: None,
            unheard: AtomicU64::new(0),
            ending: None,
        }
    }

    /// Becomes readable when [`Self::rest`] may have something to pass on, or [`Self::offer`] may take input again. None for guests
    /// that poll. From now on the caller is expected to look at it.
    pub fn attend(&self) -> Option<&EventFd> {
        self.attended.store(true, Ordering::Relaxed);
        self.attention.as_ref()
    }

    fn call_attention(&self) {
        if self.attended.load(Ordering::Relaxed)
            && let Some(attention) = &self.attention
        {
            report_failure(self.ending.as_deref(), bell::ring(attention));
        }
    }

    /// Whether there is the beginning of a line that has not been passed on.
    pub fn has_rest(&self) -> bool {
        self.serial().writer().has_rest()
    }

    /// Passes on the beginning of a line, such as a prompt.
    pub fn rest(&self) {
        self.serial().writer_mut().pass_on();
    }

    /// Gives the guest input; returns how many bytes were taken. A guest that has not opened the port takes none, since it would
    /// throw it away. When the guest can take more, [`Self::attend`]'s event is written.
    pub fn offer(&self, input: &[u8]) -> usize {
        let mut serial = self.serial();
        let listens = serial.state().interrupt_enable & INPUT_INTERRUPT != 0;
        let taken = match listens {
            // Nothing is taken if the queue is full.
            true => serial.enqueue_raw_bytes(input).unwrap_or(0),
            false => 0,
        };
        // Under the lock, so that the guest's next access sees it.
        self.input_waits
            .store(taken < input.len(), Ordering::Relaxed);
        taken
    }

    /// Returns what the guest's kernel said when it panicked, if it did. The console is the only place where every kernel says so; a
    /// program in the guest can print the same text.
    pub fn kernel_panic(&self) -> Option<String> {
        self.serial().writer().kernel_panic.clone()
    }

    /// Writes out what is left of an unfinished line, and ends it.
    pub fn finish(&self) {
        let mut serial = self.serial();
        let lines = serial.writer_mut();
        if !lines.line.is_empty() {
            lines.put(b'\n');
        }
    }

    fn serial(&self) -> MutexGuard<'_, Serial<Pin, NoEvents, Lines>> {
        self.serial.lock()
    }
}

impl Device for Console {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Ok(register @ 0..8) = u8::try_from(offset) else {
            return;
        };
        self.count_unheard();
        let mut serial = self.serial();
        // Several bytes are those of a string instruction, all from the same register.
        data.iter_mut()
            .for_each(|byte| *byte = serial.read(register));
        if offset == DATA && self.input_waits.swap(false, Ordering::Relaxed) {
            self.call_attention();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Next {
        if let Ok(register @ 0..8) = u8::try_from(offset) {
            self.count_unheard();
            let mut serial = self.serial();
            let had_rest = serial.writer().has_rest();
            // Several bytes are those of a string instruction, all for the same register. Failures
            // are the output's, for instance a closed pipe: no reason to disturb the guest.
            data.iter()
                .for_each(|byte| _ = serial.write(register, *byte));
            let begins = !had_rest && serial.writer().has_rest();
            let listens =
                offset == INTERRUPT_ENABLE && self.input_waits.swap(false, Ordering::Relaxed);
            if begins || listens {
                self.call_attention();
            }
        }
        Next::Continue
    }
}

/// Passes on whole lines. Ignores flushes, because the serial port flushes after each byte.
struct Lines {
    /// The line that is being written.
    line: Vec<u8>,
    /// How much of it has been passed on.
    passed: usize,
    out: Box<dyn Write + Send>,
    kernel_panic: Option<String>,
}

impl Lines {
    fn has_rest(&self) -> bool {
        self.line.len() > self.passed
    }

    fn pass_on(&mut self) {
        if self.has_rest() {
            let rest = &self.line[self.passed..];
            let _ = self.out.write_all(rest).and_then(|()| self.out.flush());
            self.passed = self.line.len();
        }
    }

    fn put(&mut self, byte: u8) {
        self.line.push(byte);
        if byte == b'\n' || self.line.len() >= LINE_LIMIT {
            self.look_for_panic();
            self.pass_on();
            self.line.clear();
            self.passed = 0;
        }
    }

    fn look_for_panic(&mut self) {
        if self.kernel_panic.is_none() {
            let line = String::from_utf8_lossy(&self.line);
            let said = line.split_once(KERNEL_PANIC);
            self.kernel_panic = said.map(|(_, why)| why.trim_end().to_owned());
        }
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().for_each(|byte| self.put(*byte));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The port's interrupt; none for guests that poll.
#[derive(Default)]
struct Pin(Option<(EventFd, Arc<Ending>)>);

impl Trigger for Pin {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        if let Some((event, ending)) = &self.0 {
            report_failure(Some(ending), bell::ring(event));
        }
        Ok(())
    }
}

/// Ends the run if the system has refused an event at every try.
fn report_failure(ending: Option<&Ending>, result: io::Result<()>) {
    if let (Some(ending), Err(error)) = (ending, result) {
        ending.event_failed(
            "telling of the serial port's state (writing an eventfd)",
            &error,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<Vec<u8>>>>);
    impl Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().push(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn say(console: &Console, text: &[u8]) {
        for byte in text {
            assert_eq!(console.write(DATA, &[*byte]), Next::Continue);
        }
    }

    fn interrupting(out: Seen) -> (Console, EventFd) {
        let pin = EventFd::new(EFD_NONBLOCK).unwrap();
        let ending = Arc::new(Ending::new().unwrap());
        let its = pin.try_clone().unwrap();
        let console = Console::with_interrupt(Box::new(out), its, ending).unwrap();
        (console, pin)
    }

    #[test]
    fn output_comes_in_lines_and_the_rest_at_the_end() {
        let seen = Seen::default();
        let console = Console::new(Box::new(seen.clone()));
        say(&console, b"one\ntwo");
        assert_eq!(*seen.0.lock(), [b"one\n".to_vec()]);
        console.finish();
        console.finish();
        assert_eq!(*seen.0.lock(), [b"one\n".to_vec(), b"two\n".to_vec()]);
    }

    #[test]
    fn the_beginning_of_a_line_calls_for_attention_and_can_be_passed_on() {
        let seen = Seen::default();
        let (console, _pin) = interrupting(seen.clone());
        say(&console, b"not attended\nlog");
        let attention = console.attend().unwrap();
        assert!(attention.read().is_err());
        say(&console, b"in:\n# ");
        assert!(console.has_rest() && attention.read().is_ok());
        console.rest();
        assert!(!console.has_rest());
        assert_eq!(seen.0.lock().last().unwrap(), b"# ");
    }

    #[test]
    fn input_waits_until_the_guest_listens_and_has_room() {
        let (console, pin) = interrupting(Seen::default());
        let attention = console.attend().unwrap();
        let input = [b'x'; 100];
        assert_eq!(console.offer(&input), 0);
        assert!(attention.read().is_err() && pin.read().is_err());
        let _ = console.write(INTERRUPT_ENABLE, &[INPUT_INTERRUPT]);
        assert_eq!(attention.read().unwrap(), 1);
        let taken = console.offer(&input);
        assert!(taken > 0 && taken < input.len());
        assert_eq!(pin.read().unwrap(), 1);
        assert_eq!(console.offer(&input[taken..]), 0);
        let mut byte = [0];
        console.read(DATA, &mut byte);
        assert_eq!((byte[0], attention.read().unwrap()), (b'x', 1));
        assert_eq!(console.offer(&input[taken..]), 1);
    }

    #[test]
    fn a_kernel_s_panic_is_noticed() {
        let console = Console::new(Box::new(io::sink()));
        say(&console, b"[ 0.1] Kernel panic is a word\n");
        assert_eq!(console.kernel_panic(), None);
        // The text is recognized also if it comes in pieces.
        say(&console, b"[ 1.0] Kernel pa");
        console.rest();
        say(&console, b"nic - not syncing: VFS: no root\r\n");
        say(&console, b"[ 1.1] Kernel panic - not syncing: another\r\n");
        assert_eq!(console.kernel_panic().as_deref(), Some("VFS: no root"));
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
