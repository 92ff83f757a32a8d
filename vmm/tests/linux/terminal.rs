//! An interactive console, on a terminal made for the test.

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::{Child, Command, Stdio};
use std::ptr;

use crate::kernel::{Code, Folder, command};

/// The two ends of a pseudo-terminal.
struct Terminal {
    user: File,
    program: File,
}

impl Terminal {
    fn new() -> Terminal {
        let (mut user, mut program) = (-1, -1);
        // SAFETY: makes two descriptors; the other arguments may be null.
        let result = unsafe {
            libc::openpty(
                &mut user,
                &mut program,
                ptr::null_mut(),
                ptr::null(),
                ptr::null(),
            )
        };
        assert_eq!(result, 0);
        // SAFETY: both are new, open and nobody else's.
        unsafe {
            Terminal {
                user: File::from_raw_fd(user),
                program: File::from_raw_fd(program),
            }
        }
    }

    /// Local modes: echo, line editing, signals.
    fn modes(&self) -> u32 {
        let mut modes = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the kernel fills the structure.
        let result = unsafe { libc::tcgetattr(self.program.as_raw_fd(), modes.as_mut_ptr()) };
        assert_eq!(result, 0);
        // SAFETY: the call succeeded.
        unsafe { modes.assume_init() }.c_lflag
    }

    fn start(&self, mut command: Command) -> Child {
        let end = || Stdio::from(self.program.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end());
        command.spawn().unwrap()
    }

    /// Reads until this has been written.
    fn expect(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let mut bytes = [0; 256];
            let len = self.user.read(&mut bytes).unwrap();
            seen.push_str(&String::from_utf8_lossy(&bytes[..len]));
        }
        seen
    }
}

fn kernel(folder: &Folder) -> String {
    let code = Code::default().say("ready\n").echo_until(b'.').power_off();
    folder.file("kernel", &code.bzimage())
}

const COOKED: u32 = libc::ECHO | libc::ICANON | libc::ISIG;

#[test]
fn keys_go_to_the_guest_and_the_terminal_is_restored() {
    let (folder, mut terminal) = (Folder::new(), Terminal::new());
    let before = terminal.modes();
    assert_eq!(before & COOKED, COOKED);
    let mut child = terminal.start(command(&["--kernel", &kernel(&folder)]));
    let said = terminal.expect("ready");
    assert!(said.contains("type Ctrl-A and then x"), "{said}");
    assert_eq!(terminal.modes() & COOKED, 0);
    // Ctrl-C is the guest's; Ctrl-A twice is one for it.
    terminal.user.write_all(b"\x03\x01\x01!.").unwrap();
    terminal.expect("\x03\x01!.");
    terminal.expect("powered off");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(terminal.modes(), before);
}

#[test]
fn the_escape_sequence_quits() {
    let (folder, mut terminal) = (Folder::new(), Terminal::new());
    let before = terminal.modes();
    let mut child = terminal.start(command(&["--kernel", &kernel(&folder)]));
    terminal.expect("ready");
    terminal.user.write_all(b"\x01x").unwrap();
    terminal.expect("ended at the console");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(terminal.modes(), before);
}

#[test]
fn signals_restore_the_terminal() {
    for signal in [libc::SIGTERM, libc::SIGQUIT, libc::SIGABRT] {
        let (folder, mut terminal) = (Folder::new(), Terminal::new());
        let before = terminal.modes();
        let mut child = terminal.start(command(&["--kernel", &kernel(&folder)]));
        terminal.expect("ready");
        // SAFETY: sends a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        assert!(!child.wait().unwrap().success());
        assert_eq!(terminal.modes(), before, "signal {signal}");
    }
}

#[test]
fn a_terminal_is_left_alone_if_told_so() {
    let (folder, mut terminal) = (Folder::new(), Terminal::new());
    let args = ["--kernel", &kernel(&folder), "--console", "stdio"];
    let mut child = terminal.start(command(&args));
    terminal.expect("ready");
    assert_eq!(terminal.modes() & COOKED, COOKED);
    terminal.user.write_all(b".\n").unwrap();
    terminal.expect("powered off");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
