//! The terminal's mode: raw while the guest runs, so that the guest gets every key; as before when the run ends or is stopped.
//!
//! The terminal belongs to the job in the foreground. In the background nothing is changed (the kernel would stop the process with
//! SIGTTOU) and nothing is read; the signals' thread and the console's thread see to the terminal when the
//! process comes to the foreground.

use std::io;
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{STDIN_FILENO, termios};

/// The terminal's mode when the process was first in the foreground.
static BEFORE: OnceLock<termios> = OnceLock::new();

/// Set while the terminal is to be raw whenever the process is in the foreground.
static WANTED: AtomicBool = AtomicBool::new(false);

/// Signals that end the process at once, if it comes to that. Those that end a run are taken by [`crate::run::signals`].
const DEADLY: [libc::c_int; 9] = [
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGSTKFLT,
    libc::SIGQUIT,
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
    /// Switches standard input, which must be a terminal, to raw mode: now, or when the process comes to the foreground.
    pub fn enter() -> io::Result<RawTerminal> {
        // An error if standard input is no terminal. The mode that it has in the background is not kept: another program, such as a
        // shell's line editor, has set it.
        get()?;
        restore_on_panics();
        restore_on_signals();
        WANTED.store(true, Ordering::Release);
        if in_foreground() {
            set_raw()?;
        }
        Ok(RawTerminal(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        WANTED.store(false, Ordering::Release);
        restore();
    }
}

/// Whether this process may use its terminal: it is in the foreground, or standard input is no terminal that has one.
pub fn in_foreground() -> bool {
    // SAFETY: takes and returns numbers; negative where there is no job control.
    let (foreground, own) = unsafe { (libc::tcgetpgrp(STDIN_FILENO), libc::getpgrp()) };
    foreground < 0 || foreground == own
}

/// Makes the terminal raw again, if it is to be, after the process was stopped or came to the foreground.
pub fn resume() {
    if WANTED.load(Ordering::Acquire) && in_foreground() {
        // A failure means that the terminal is gone.
        let _ = set_raw();
    }
}

/// Restores what was before the run, if there is a terminal in raw mode. May be called from a signal handler: reads an initialized
/// cell, makes system calls.
pub fn restore() {
    if let Some(before) = BEFORE.get()
        && in_foreground()
    {
        // A failure means that the terminal is gone, and there is nowhere else to report it.
        let _ = set(before);
    }
}

fn set_raw() -> io::Result<()> {
    let before = match BEFORE.get() {
        Some(before) => before,
        None => {
            let now = get()?;
            // Once in a process: a later look may find the raw mode.
            BEFORE.get_or_init(|| now)
        }
    };
    let mut raw = *before;
    // SAFETY: changes the structure only.
    unsafe { libc::cfmakeraw(&mut raw) };
    // Hmmvisor's own messages end their lines with a line feed only.
    raw.c_oflag = before.c_oflag;
    set(&raw)
}

fn get() -> io::Result<termios> {
    let mut mode = MaybeUninit::<termios>::uninit();
    // SAFETY: the kernel fills the structure, or fails.
    match unsafe { libc::tcgetattr(STDIN_FILENO, mode.as_mut_ptr()) } {
        // SAFETY: the call succeeded.
        0 => Ok(unsafe { mode.assume_init() }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the terminal's mode with SIGTTOU blocked: a process that has gone to the background a moment ago must not be stopped here.
fn set(mode: &termios) -> io::Result<()> {
    // SAFETY: bitmaps; all zeros is valid, and the signal exists.
    let (mut ttou, mut old): (libc::sigset_t, libc::sigset_t) = unsafe { mem::zeroed() };
    // SAFETY: the sets are valid; the mask is put back below.
    unsafe {
        libc::sigaddset(&mut ttou, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &ttou, &mut old);
    }
    // SAFETY: the structure is valid and only read.
    let result = match unsafe { libc::tcsetattr(STDIN_FILENO, libc::TCSANOW, mode) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: the mask is this thread's own.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &old, ptr::null_mut()) };
    result
}

/// Restores the terminal before a panic's message is printed, so that it is readable.
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
    DEADLY.into_iter().for_each(on_signal);
}

/// Takes SIGSEGV and SIGBUS before the standard library does, if called from a constructor of the program.
///
/// The standard library takes them to name a thread whose stack has overflowed, and for that maps a second stack when a thread
/// starts. Where the host has no memory for it, the thread panics before its first line, which aborts the process. A handler
/// that is there already keeps it from that, so that a thread starts or is refused with an error.
pub extern "C" fn take_memory_faults() {
    [libc::SIGSEGV, libc::SIGBUS]
        .into_iter()
        .for_each(on_signal);
}

/// Has the terminal restored before a signal kills the process.
fn on_signal(signal: libc::c_int) {
    extern "C" fn handler(signal: libc::c_int) {
        restore();
        // The handler is gone by now (SA_RESETHAND): this is what the signal does by default.
        // SAFETY: may be called from a signal handler.
        unsafe { libc::raise(signal) };
    }
    let mut old = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the kernel fills the structure, or fails; nothing is changed.
    let known = unsafe { libc::sigaction(signal, ptr::null(), old.as_mut_ptr()) } == 0;
    // SAFETY: the call succeeded.
    if known && unsafe { old.assume_init() }.sa_sigaction != libc::SIG_DFL {
        // What was ignored at the start stays ignored. A handler that is there restores the terminal: this one, or the sandbox's.
        return;
    }
    // SAFETY: a structure of integers and pointers; all zeros is valid.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_RESETHAND;
    // SAFETY: the handler does only what is allowed in one. A failure, which there is only for signals that do not exist, changes
    // nothing.
    unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
}
