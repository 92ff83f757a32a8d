//! Event descriptors that wake service threads.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::host::patience::Patience;

/// An eventfd that is readable from [`Self::ring`] until [`Self::silence`].
pub(crate) struct Doorbell(EventFd);

impl Doorbell {
    pub(crate) fn new() -> io::Result<Doorbell> {
        EventFd::new(EFD_NONBLOCK).map(Doorbell)
    }

    /// Makes the eventfd readable.
    pub(crate) fn ring(&self) -> io::Result<()> {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the buffer is readable for its whole size.
        patiently(|| unsafe { libc::write(self.as_raw_fd(), one.as_ptr().cast(), one.len()) })
    }

    /// Makes the eventfd unreadable. The caller must know that it is readable, or that no thread rings it at the same
    /// time.
    pub(crate) fn silence(&self) -> io::Result<()> {
        let mut count = 0u64.to_ne_bytes();
        // SAFETY: the buffer is writable for its whole size.
        patiently(|| unsafe {
            libc::read(self.as_raw_fd(), count.as_mut_ptr().cast(), count.len())
        })
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Repeats a call while it fails with a temporary error, within the bounds of [`Patience`]. (`EventFd`'s own methods
/// repeat `EINTR` without limit.)
fn patiently(mut call: impl FnMut() -> isize) -> io::Result<()> {
    let mut patience = Patience::default();
    loop {
        if call() >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if !passes(&error) || !patience.again() {
            return Err(error);
        }
    }
}

fn passes(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), Interrupted | WouldBlock)
}
