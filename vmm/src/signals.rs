//! SIGINT, SIGTERM and SIGHUP as events, so that they end a run cleanly; or, in the case of SIGHUP, have its policy
//! scripts reloaded.

use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr;

/// The signals that mean something to a run.
const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// The blocked signals, to be read as events.
pub struct Signals(File);

impl Signals {
    /// Blocks the signals for the calling thread and all that it will start. To be called before
    /// anything starts threads, lest one of them gets a signal and the process dies.
    pub fn block() -> io::Result<Signals> {
        let set = mask(libc::SIG_BLOCK)?;
        // SAFETY: makes a new descriptor; the kernel only reads the set.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, open and nobody else's.
        Ok(Signals(unsafe { File::from_raw_fd(fd) }))
    }

    /// Which signal came, if one did.
    pub fn take(&self) -> Option<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        (&self.0).read_exact(&mut info).ok()?;
        // The number is the structure's first field.
        info.first_chunk().map(|number| i32::from_ne_bytes(*number))
    }

    /// Lets the next signal do what it does by default: kill the process, should its clean end hang.
    pub fn unblock(&self) {
        // Only a convenience is lost if it fails.
        let _ = mask(libc::SIG_UNBLOCK);
    }
}

impl AsRawFd for Signals {
    /// Readable when a signal has come.
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn mask(how: libc::c_int) -> io::Result<libc::sigset_t> {
    // SAFETY: a bitmap; all zeros is valid.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    for signal in SIGNALS {
        // SAFETY: the set is valid and the signal exists.
        unsafe { libc::sigaddset(&mut set, signal) };
    }
    // SAFETY: changes only which signals this thread takes; the old set is not asked for.
    match unsafe { libc::pthread_sigmask(how, &set, ptr::null_mut()) } {
        0 => Ok(set),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
