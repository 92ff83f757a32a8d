//! Events between threads (eventfds). Their system calls may fail: they are retried within limits, and then an error is returned.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::retry;

/// Retries of a write.
const WRITES: u32 = 100;
/// Failed reads in a row after which a bell counts as broken.
const READS: u32 = 500;
/// The first failures are retried at once, the others after this time.
const AT_ONCE: u32 = 8;
const PAUSE: Duration = Duration::from_millis(1);

/// Writes to an event. The kernel has no reason to refuse; if it does all the same, tries again for about a tenth of a second.
pub fn ring(event: &EventFd) -> io::Result<()> {
    for failures in 1..=WRITES {
        if write(event).is_ok() {
            return Ok(());
        }
        pause(failures);
    }
    write(event)
}

/// Reads an event, once. (The event's own functions repeat interrupted calls without end.)
pub fn read(event: &EventFd) -> io::Result<u64> {
    let mut count = 0u64.to_ne_bytes();
    // SAFETY: so many writable bytes, as the length says; the descriptor is open.
    let got = unsafe { libc::read(event.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    retry::result(got).map(|_| u64::from_ne_bytes(count))
}

fn write(event: &EventFd) -> io::Result<()> {
    let one = 1u64.to_ne_bytes();
    // SAFETY: so many readable bytes, as the length says; the descriptor is open.
    let put = unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    retry::result(put).map(drop)
}

fn pause(failures: u32) {
    if failures > AT_ONCE {
        thread::sleep(PAUSE);
    }
}

/// An event that one thread sleeps on.
pub struct Bell {
    event: EventFd,
    /// Failed reads without one that succeeded.
    failures: AtomicU32,
}

impl Bell {
    /// A bell that has not rung.
    pub fn new() -> io::Result<Bell> {
        Ok(Bell {
            event: EventFd::new(0)?,
            failures: AtomicU32::new(0),
        })
    }

    /// The event, for KVM.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Wakes the thread that sleeps, or will.
    pub fn ring(&self) -> io::Result<()> {
        ring(&self.event)
    }

    /// Sleeps until the bell has rung since the last call. May return early: the caller looks for itself. An error says that
    /// reading has failed for half a second, at every try.
    pub fn wait(&self) -> io::Result<()> {
        // Reading blocks while the count is 0, and resets it.
        let Err(error) = read(&self.event) else {
            self.failures.store(0, Ordering::Relaxed);
            return Ok(());
        };
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        pause(failures);
        if failures < READS { Ok(()) } else { Err(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::FromRawFd;

    /// A descriptor that can be neither read nor written like an event.
    fn broken() -> EventFd {
        // SAFETY: makes a new descriptor; the path ends with a zero.
        let fd = unsafe { libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: the descriptor is new and open, and no other value owns it.
        unsafe { EventFd::from_raw_fd(fd) }
    }

    #[test]
    fn a_ring_is_heard_also_before_the_wait() {
        let bell = Bell::new().unwrap();
        bell.ring().unwrap();
        bell.wait().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| bell.wait().unwrap());
            bell.ring().unwrap();
        });
    }

    #[test]
    fn calls_that_always_fail_are_an_error_in_the_end() {
        assert!(ring(&broken()).is_err());
        let bell = Bell {
            event: broken(),
            failures: AtomicU32::new(0),
        };
        let waits = (1..).find(|_| bell.wait().is_err());
        assert_eq!(waits, Some(READS));
    }
}
