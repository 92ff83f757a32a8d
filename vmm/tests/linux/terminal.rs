//! An interactive console, on a terminal made for the test.

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::ptr;
use std::time::{Duration, Instant};

use crate::kernel::{Code, Folder, command};
use crate::signals::heed_signals;

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
        // SAFETY: both are new and open, and no other value owns them.
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
        heed_signals(&mut command);
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

/// Longer than anything here takes, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(20);

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

/// Waits for something that nothing but a look can tell.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "never came: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A shell with job control, whose terminal this is.
struct Shell {
    terminal: Terminal,
    child: Child,
    own: i32,
}

impl Shell {
    fn start() -> Shell {
        let terminal = Terminal::new();
        let mut command = Command::new("sh");
        command.arg("-i").env("PS1", "$ ").env_remove("ENV");
        let own_terminal = || {
            // SAFETY: makes a session, in the child, and the terminal on standard input its.
            match unsafe { (libc::setsid(), libc::ioctl(0, libc::TIOCSCTTY, 0)) } {
                (_, 0) => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: the closure makes two system calls and touches no memory.
        unsafe { command.pre_exec(own_terminal) };
        let child = terminal.start(command);
        let own = child.id() as i32;
        let mut shell = Shell {
            terminal,
            child,
            own,
        };
        shell.terminal.expect("$ ");
        shell
    }

    fn type_line(&mut self, line: &str) {
        self.terminal.user.write_all(line.as_bytes()).unwrap();
        self.terminal.user.write_all(b"\n").unwrap();
    }

    /// The group in the foreground.
    fn foreground(&self) -> i32 {
        // SAFETY: takes a descriptor that is open, returns a number.
        unsafe { libc::tcgetpgrp(self.terminal.user.as_raw_fd()) }
    }

    fn wait_for_shell(&self) {
        wait_until("the shell in the foreground", || {
            self.foreground() == self.own
        });
    }

    fn wait_for_modes(&self, cooked: bool) {
        let modes = if cooked { COOKED } else { 0 };
        wait_until(&format!("the terminal cooked: {cooked}"), || {
            self.terminal.modes() & COOKED == modes
        });
    }

    /// As some shells do when a job has stopped.
    fn make_cooked(&self) {
        let mut modes = MaybeUninit::<libc::termios>::uninit();
        let fd = self.terminal.program.as_raw_fd();
        // SAFETY: the kernel fills the structure, which is then changed and read.
        unsafe {
            assert_eq!(libc::tcgetattr(fd, modes.as_mut_ptr()), 0);
            let mut modes = modes.assume_init();
            modes.c_lflag |= COOKED;
            assert_eq!(libc::tcsetattr(fd, libc::TCSANOW, &modes), 0);
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(process: i32, signal: i32) {
    // SAFETY: sends a signal to a child's child, which runs.
    assert_eq!(unsafe { libc::kill(process, signal) }, 0);
}

#[test]
fn the_terminal_follows_a_job_that_stops_and_continues() {
    let folder = Folder::new();
    let hmmvisor = env!("CARGO_BIN_EXE_hmmvisor");
    let run = format!("{hmmvisor} run --memory 64M --kernel {}", kernel(&folder));
    let mut shell = Shell::start();
    shell.type_line(&run);
    shell.terminal.expect("ready");
    shell.wait_for_modes(false);
    let job = shell.foreground();
    assert_ne!(job, shell.own);

    // Stopped by a signal that it can take: it leaves the terminal as it was.
    signal(job, libc::SIGTSTP);
    shell.wait_for_shell();
    shell.wait_for_modes(true);
    shell.type_line("fg");
    shell.wait_for_modes(false);

    // By one that it cannot take; the shell sees to the terminal.
    signal(job, libc::SIGSTOP);
    shell.wait_for_shell();
    shell.make_cooked();
    shell.type_line("fg");
    shell.wait_for_modes(false);

    // In the background it leaves the terminal alone, and runs.
    signal(job, libc::SIGTSTP);
    shell.wait_for_shell();
    shell.type_line("bg; echo continued");
    shell.terminal.expect("\ncontinued");
    assert_eq!(shell.terminal.modes() & COOKED, COOKED);
    shell.type_line("fg");
    shell.wait_for_modes(false);

    // The keys are the guest's again.
    shell.terminal.user.write_all(b".").unwrap();
    shell.terminal.expect("powered off");
    shell.wait_for_shell();
    shell.wait_for_modes(true);
}

#[test]
fn a_run_that_begins_in_the_background_is_not_stopped() {
    let folder = Folder::new();
    let hmmvisor = env!("CARGO_BIN_EXE_hmmvisor");
    let run = format!("{hmmvisor} run --memory 64M --kernel {} &", kernel(&folder));
    let mut shell = Shell::start();
    shell.type_line(&run);
    shell.terminal.expect("ready");
    assert_eq!(shell.terminal.modes() & COOKED, COOKED);
    // What is typed is the shell's.
    shell.type_line("echo still here");
    shell.terminal.expect("\nstill here");
    shell.type_line("fg");
    shell.wait_for_modes(false);
    shell.terminal.user.write_all(b".").unwrap();
    shell.terminal.expect("powered off");
}
