//! The thread that brings the console's input, and passes on output that does not end its line.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use hmmvisor_devices::bell;
use hmmvisor_devices::thread::{self, STOP_WITHIN, Thread};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::console::serial::Console;
use crate::console::terminal;
use crate::ending::{End, Ending};

/// How long the beginning of a line may wait for its end: too short for a user to notice. Whole lines are passed on at once.
const REST_AFTER_MS: i32 = 10;

/// Waits in a row that may fail before that is an error; each takes a millisecond.
const FAILURES: u32 = 1000;

/// How often the thread of a process in the background looks whether it has come to the foreground.
const FOREGROUND_AFTER_MS: i32 = 200;

/// What begins the escape sequences of an interactive console: Ctrl-A.
const ESCAPE: u8 = 0x01;
/// What quits, after [`ESCAPE`].
const QUIT: u8 = b'x';

/// Where the guest's input comes from.
pub struct Input {
    /// The descriptor that is read.
    source: File,
    /// Whether a person types there, so that escape sequences have a meaning.
    interactive: bool,
}

impl Input {
    /// Takes standard input, whatever it is. All of its bytes go to the guest.
    pub fn stdin() -> io::Result<Input> {
        let source = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Input::of(source.into()))
    }

    /// Takes standard input, where a person types: Ctrl-A and then x quit, Ctrl-A twice is one for the guest.
    pub fn terminal() -> io::Result<Input> {
        let stdin = Input::stdin()?;
        Ok(Input {
            interactive: true,
            ..stdin
        })
    }

    /// Takes a file, a pipe or the like. All of its bytes go to the guest.
    pub fn of(source: File) -> Input {
        Input {
            source,
            interactive: false,
        }
    }
}

/// The running thread; stopped when dropped.
pub struct ConsoleThread {
    stop: Arc<EventFd>,
    thread: Option<Thread<()>>,
}

impl ConsoleThread {
    /// Starts the thread. It ends the run by `ending` when the user quits.
    pub fn start(
        console: Arc<Console>,
        input: Option<Input>,
        ending: Arc<Ending>,
    ) -> io::Result<ConsoleThread> {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let its = stop.clone();
        let on_panic = ending.on_panic();
        let body = move || serve(&console, input, &ending, &its);
        let thread = thread::spawn("console", on_panic, body)?;
        Ok(ConsoleThread {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for ConsoleThread {
    fn drop(&mut self) {
        // If the system refuses, the thread is left behind.
        let _ = bell::ring(&self.stop);
        if let Some(thread) = self.thread.take() {
            // A panic has been reported already.
            let _ = thread.join_within(STOP_WITHIN);
        }
    }
}

fn serve(console: &Console, mut input: Option<Input>, ending: &Ending, stop: &EventFd) {
    let Some(attention) = console.attend() else {
        return;
    };
    let mut keys = Keys::default();
    let mut failures = 0;
    // Input that has been read, but not yet taken by the guest.
    let mut waiting: Vec<u8> = Vec::new();
    loop {
        // Reads more only when the guest has taken everything.
        let source = input.as_ref().filter(|_| waiting.is_empty());
        // In the background a terminal's input is another job's, and reading it would stop this process.
        let away = source.is_some_and(|input| input.interactive) && !terminal::in_foreground();
        let source = source.filter(|_| !away);
        let timeout = match (console.has_rest(), away) {
            (true, _) => REST_AFTER_MS,
            (false, true) => FOREGROUND_AFTER_MS,
            (false, false) => -1,
        };
        let ready = poll(
            [
                Some(stop.as_raw_fd()),
                Some(attention.as_raw_fd()),
                source.map(|input| input.source.as_raw_fd()),
            ],
            timeout,
        );
        match ready {
            // Nothing has come for a while, so the line's end does not follow at once.
            Ok(None) => {
                failures = 0;
                console.rest();
                if away {
                    terminal::resume();
                }
            }
            Ok(Some([true, ..])) => return,
            Ok(Some([_, attend, readable])) => {
                failures = 0;
                // Reading the event makes it unreadable until there is more to do. The pause avoids a busy loop should reading fail
                // again and again.
                if attend && bell::read(attention).is_err() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                if readable && let Some(it) = &mut input {
                    match read(&mut it.source) {
                        Some(bytes) if it.interactive => match keys.typed(&bytes) {
                            Typed::Input(bytes) => waiting = bytes,
                            Typed::Quit => ending.set(End::Quit),
                        },
                        Some(bytes) => waiting = bytes,
                        None => input = None,
                    }
                }
                let taken = match waiting.is_empty() {
                    true => 0,
                    false => console.offer(&waiting),
                };
                waiting.drain(..taken);
            }
            // Interrupted. The pause avoids a busy loop should that repeat, and the limit an endless one.
            Err(error) => {
                failures += 1;
                if failures > FAILURES {
                    return ending.event_failed("waiting for the console's input", &error);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Reads what there is now; none at the end of the input, or if it cannot be read any more.
fn read(source: &mut File) -> Option<Vec<u8>> {
    let mut bytes = [0; 256];
    match source.read(&mut bytes) {
        Ok(0) => None,
        Ok(len) => Some(bytes[..len].to_vec()),
        Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
            // The pause avoids a busy loop should that repeat.
            std::thread::sleep(Duration::from_millis(1));
            Some(Vec::new())
        }
        Err(_) => None,
    }
}

/// Returns which of these can be read; none if none of them can in time.
fn poll(files: [Option<i32>; 3], timeout: i32) -> io::Result<Option<[bool; 3]>> {
    let mut waiting = files.map(|file| libc::pollfd {
        // The kernel ignores negative descriptors.
        fd: file.unwrap_or(-1),
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: three valid structures, as the count says; the descriptors are open while this runs.
    let ready = unsafe { libc::poll(waiting.as_mut_ptr(), waiting.len() as u64, timeout) };
    Ok(match ready {
        0 => None,
        ..0 => return Err(io::Error::last_os_error()),
        // Reading shows an error or a hang-up.
        _ => Some(waiting.map(|file| file.revents != 0)),
    })
}

/// The meaning of a key.
#[derive(Debug, PartialEq, Eq)]
enum Typed {
    /// A byte for the guest.
    Input(Vec<u8>),
    /// The user quits.
    Quit,
}

/// Recognises escape sequences.
#[derive(Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    fn typed(&mut self, bytes: &[u8]) -> Typed {
        let mut input = Vec::new();
        for byte in bytes.iter().copied() {
            match (self.escaped, byte) {
                (true, QUIT) => return Typed::Quit,
                (false, ESCAPE) => self.escaped = true,
                (true, ESCAPE) => {
                    self.escaped = false;
                    input.push(ESCAPE);
                }
                // The byte is for the guest.
                (true, _) => {
                    self.escaped = false;
                    input.extend([ESCAPE, byte]);
                }
                (false, _) => input.push(byte),
            }
        }
        Typed::Input(input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::bus::Device;
    use std::io::Write;
    use std::sync::Mutex;

    /// Longer than anything here takes, even on a busy host.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<u8>>>);
    impl Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Set {
        console: Arc<Console>,
        pin: EventFd,
        seen: Seen,
        ending: Arc<Ending>,
    }

    fn set() -> Set {
        let (seen, pin) = (Seen::default(), EventFd::new(0).unwrap());
        let its = pin.try_clone().unwrap();
        let ending = Arc::new(Ending::new().unwrap());
        let out = Box::new(seen.clone());
        let console = Console::with_interrupt(out, its, ending.clone()).unwrap();
        Set {
            console: Arc::new(console),
            pin,
            seen,
            ending,
        }
    }

    fn pipe() -> (File, File) {
        let (read, write) = io::pipe().unwrap();
        let file = |fd: std::os::fd::OwnedFd| File::from(fd);
        (file(read.into()), file(write.into()))
    }

    fn start(set: &Set, input: Option<Input>) -> ConsoleThread {
        ConsoleThread::start(set.console.clone(), input, set.ending.clone()).unwrap()
    }

    #[test]
    fn all_input_reaches_a_guest_that_opens_the_port_late() {
        let set = set();
        let (source, mut user) = pipe();
        let text: Vec<u8> = (0..1000u32).map(|i| b'a' + (i % 26) as u8).collect();
        user.write_all(&text).unwrap();
        // Its end does not cut off what was written before.
        drop(user);
        let _thread = start(&set, Some(Input::of(source)));
        let _ = set.console.write(1, &[1]);
        let mut received = Vec::new();
        while received.len() < text.len() {
            // Blocks until the port interrupts.
            set.pin.read().unwrap();
            loop {
                let mut status = [0];
                set.console.read(5, &mut status);
                if status[0] & 1 == 0 {
                    break;
                }
                let mut byte = [0];
                set.console.read(0, &mut byte);
                received.push(byte[0]);
            }
        }
        assert_eq!(received, text);
    }

    #[test]
    fn a_prompt_is_passed_on_though_its_line_does_not_end() {
        let set = set();
        let _thread = start(&set, None);
        for byte in b"login: " {
            let _ = set.console.write(0, &[*byte]);
        }
        let begin = std::time::Instant::now();
        while *set.seen.0.lock().unwrap() != b"login: " {
            assert!(begin.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_escape_sequence_quits_only_where_a_person_types() {
        for interactive in [true, false] {
            let set = set();
            let (source, mut user) = pipe();
            let input = Input {
                source,
                interactive,
            };
            let _ = set.console.write(1, &[1]);
            let _thread = start(&set, Some(input));
            user.write_all(b"\x01x").unwrap();
            if interactive {
                assert_eq!(set.ending.wait(PATIENCE), Some(&End::Quit));
            } else {
                set.pin.read().unwrap();
                let mut byte = [0];
                set.console.read(0, &mut byte);
                assert_eq!((byte[0], set.ending.get()), (ESCAPE, None));
            }
        }
    }

    #[test]
    fn it_stops_without_input_and_with_input_that_never_comes() {
        let set = set();
        drop(start(&set, None));
        let (source, _user) = pipe();
        drop(start(&set, Some(Input::of(source))));
        let null = File::open("/dev/null").unwrap();
        drop(start(&set, Some(Input::of(null))));
    }

    #[test]
    fn escape_sequences_may_come_in_pieces() {
        let mut keys = Keys::default();
        assert_eq!(keys.typed(b"ab\x01"), Typed::Input(b"ab".to_vec()));
        assert_eq!(
            keys.typed(b"\x01c\x01d"),
            Typed::Input(b"\x01c\x01d".to_vec())
        );
        assert_eq!(keys.typed(b"\x01"), Typed::Input(vec![]));
        assert_eq!(keys.typed(b"xyz"), Typed::Quit);
    }
}
