//! A terminal that passes every key on to the guest, and is what it was before once the run is over.

use std::io;
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::OnceLock;

use libc::{STDIN_FILENO, termios};

/// What the terminal was, for those who have to restore it in the middle of something else.
static BEFORE: OnceLock<termios> = OnceLock::new();

/// Signals that end the process at once, if it comes to that.
const DEADLY: [libc::c_int; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
];

/// Standard input's terminal in raw mode. Dropping it restores what was before; so do a panic in whatever thread and signals that
/// kill the process, except SIGKILL.
pub struct RawTerminal(());

impl RawTerminal {
    /// Switches standard input, which must be a terminal, to raw mode.
    pub fn enter() -> io::Result<RawTerminal> {
        let mut before = MaybeUninit::<termios>::uninit();
        // SAFETY: the kernel fills the structure, or fails.
        if unsafe { libc::tcgetattr(STDIN_FILENO, before.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded.
        let before = unsafe { before.assume_init() };
        // Once in a process: what is found later may be our own doing.
        let before = *BEFORE.get_or_init(|| before);
        restore_on_panics();
        restore_on_signals();
        let mut raw = before;
        // SAFETY: changes the structure only.
        unsafe { libc::cfmakeraw(&mut raw) };
        // Our own messages end their lines with a mere line feed.
        raw.c_oflag = before.c_oflag;
        set(&raw)?;
        Ok(RawTerminal(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn set(mode: &termios) -> io::Result<()> {
    // SAFETY: the structure is valid and only read.
    match unsafe { libc::tcsetattr(STDIN_FILENO, libc::TCSANOW, mode) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// May be called from a signal handler: reads an initialized cell, makes one system call.
fn restore() {
    if let Some(before) = BEFORE.get() {
        // There is nobody left to tell if it fails: the terminal is gone.
        let _ = set(before);
    }
}

/// First, so that the panic's message is readable.
fn restore_on_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            next(info);
        }));
    });
}

fn restore_on_signals() {
    extern "C" fn handler(signal: libc::c_int) {
        restore();
        // The handler is gone by now (SA_RESETHAND): this is what the signal does by default.
        // SAFETY: may be called from a signal handler.
        unsafe { libc::raise(signal) };
    }
    for signal in DEADLY {
        // SAFETY: a structure of integers and pointers; all zeros is valid.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESETHAND;
        // SAFETY: the handler does only what is allowed in one. A failure, which there is only for signals that do not exist, changes
        // nothing.
        unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
    }
}
