//! Thin userfaultfd bindings: only the calls that the engines make, with the kernel's partial results reported
//! exactly. The constants come from the kernel's own headers (`linux-raw-sys`); a test below checks the encodings.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use linux_raw_sys::general as k;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iowr_nr};

use crate::host::limits::{self, Refusal, Resource};
use crate::host::patience::Repeats;
use crate::pages::{Access, Error, Permission};

const UFFDIO: u32 = 0xaa;
ioctl_iowr_nr!(UFFDIO_API, UFFDIO, k::_UFFDIO_API, k::uffdio_api);
ioctl_iowr_nr!(
    UFFDIO_REGISTER,
    UFFDIO,
    k::_UFFDIO_REGISTER,
    k::uffdio_register
);
ioctl_ior_nr!(
    UFFDIO_UNREGISTER,
    UFFDIO,
    k::_UFFDIO_UNREGISTER,
    k::uffdio_range
);
ioctl_ior_nr!(UFFDIO_WAKE, UFFDIO, k::_UFFDIO_WAKE, k::uffdio_range);
ioctl_iowr_nr!(UFFDIO_COPY, UFFDIO, k::_UFFDIO_COPY, k::uffdio_copy);
ioctl_iowr_nr!(
    UFFDIO_ZEROPAGE,
    UFFDIO,
    k::_UFFDIO_ZEROPAGE,
    k::uffdio_zeropage
);
ioctl_iowr_nr!(
    UFFDIO_WRITEPROTECT,
    UFFDIO,
    k::_UFFDIO_WRITEPROTECT,
    k::uffdio_writeprotect
);
ioctl_iowr_nr!(UFFDIO_MOVE, UFFDIO, k::_UFFDIO_MOVE, k::uffdio_move);
ioctl_io_nr!(USERFAULTFD_IOC_NEW, UFFDIO, 0x00);
/// `UFFDIO_WRITEPROTECT_MODE_WP`, which `linux-raw-sys` lacks.
const WRITEPROTECT_MODE_WP: u64 = 1;
/// `UFFDIO_COPY_MODE_WP`, which it lacks, too.
const COPY_MODE_WP: u64 = 2;

/// Maximum number of fault messages read by one call.
pub(crate) const BATCH: usize = 64;

/// The userfaultfd features of this kernel beyond missing-page faults.
#[derive(Clone, Copy, Debug, Default)]
pub struct UffdSupport {
    /// How the descriptor was obtained: by system call or from `/dev/userfaultfd`.
    pub via: &'static str,
    /// Write-protect faults (engine `copy`).
    pub write_protect: bool,
    /// `UFFDIO_MOVE`, Linux 6.8 (engine `remap`).
    pub remap: bool,
    /// `UFFDIO_POISON`, Linux 6.6.
    pub poison: bool,
    /// Fault messages contain the id of the faulting thread.
    pub thread_id: bool,
}

/// Asks the kernel for its userfaultfd features.
pub fn probe_userfaultfd() -> Result<UffdSupport, Error> {
    let (fd, via) = open()?;
    let features = handshake(&fd, 0)?;
    Ok(UffdSupport {
        via,
        write_protect: features & u64::from(k::UFFD_FEATURE_PAGEFAULT_FLAG_WP) != 0,
        remap: features & u64::from(k::UFFD_FEATURE_MOVE) != 0,
        poison: features & u64::from(k::UFFD_FEATURE_POISON) != 0,
        thread_id: features & u64::from(k::UFFD_FEATURE_THREAD_ID) != 0,
    })
}

/// The faults that a userfaultfd reports.
#[derive(Clone, Copy)]
pub(crate) enum FaultKinds {
    /// On missing pages.
    Missing,
    /// On missing pages, and writes to protected ones.
    MissingAndProtected,
}

/// A fault message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FaultMessage {
    pub(crate) address: u64,
    pub(crate) access: Access,
    /// The kernel's id of the thread that sleeps.
    pub(crate) thread: u32,
}

/// The result of a ranged call: `done` bytes from the start were handled, then `error` occurred, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) done: u64,
    pub(crate) error: Option<i32>,
}

/// One userfaultfd.
#[derive(Debug)]
pub(crate) struct Uffd {
    file: File,
    messages_read: AtomicU64,
    wakes: Repeats,
    protects: Repeats,
}

impl Uffd {
    /// Opens a descriptor for pages that are filled on faults, which `read` reports.
    pub(crate) fn for_faults() -> Result<Uffd, Error> {
        let features = k::UFFD_FEATURE_THREAD_ID;
        Self::with_features(u64::from(features))
    }

    /// Opens a descriptor for pages that must not be accessed before they are filled: such an access is a bug and
    /// raises `SIGBUS` instead of sleeping for ever.
    pub(crate) fn for_device_memory() -> Result<Uffd, Error> {
        Self::with_features(u64::from(k::UFFD_FEATURE_SIGBUS))
    }

    fn with_features(features: u64) -> Result<Uffd, Error> {
        let (fd, _) = open()?;
        handshake(&fd, features)?;
        Ok(Uffd {
            file: File::from(fd),
            messages_read: AtomicU64::new(0),
            wakes: Repeats::default(),
            protects: Repeats::default(),
        })
    }

    /// Makes this descriptor report these faults on `len` bytes from `start`.
    pub(crate) fn register(&self, start: u64, len: u64, faults: FaultKinds) -> Result<(), Error> {
        let mode = match faults {
            FaultKinds::Missing => k::UFFDIO_REGISTER_MODE_MISSING,
            FaultKinds::MissingAndProtected => {
                k::UFFDIO_REGISTER_MODE_MISSING | k::UFFDIO_REGISTER_MODE_WP
            }
        };
        let mut arg = k::uffdio_register {
            range: k::uffdio_range { start, len },
            mode: u64::from(mode),
            ioctls: 0,
        };
        // SAFETY: the argument is valid for the call; registering changes no memory contents.
        let ret = unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_REGISTER(), &mut arg) };
        check(ret).map_err(|error| Error::Register {
            len,
            refusal: Refusal::new(Resource::Memory(0), error),
        })
    }

    /// Undoes [`Self::register`] and wakes the threads that sleep in a fault there. Missing pages read as zeros from
    /// now on.
    pub(crate) fn unregister(&self, start: u64, len: u64) -> io::Result<()> {
        let range = k::uffdio_range { start, len };
        // SAFETY: the argument is valid for the call; no page changes.
        check(unsafe { ioctl_with_ref(&self.file, UFFDIO_UNREGISTER(), &range) })
    }

    /// Reads up to [`BATCH`] pending messages without sleeping, and appends the faults to `faults`. Appends none if
    /// no message is pending. Messages of other kinds cannot come, because their features were not requested.
    pub(crate) fn read(&self, faults: &mut Vec<FaultMessage>) -> io::Result<()> {
        // SAFETY: uffd_msg is plain old data, for which zero is a valid value.
        let mut messages: [k::uffd_msg; BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: the buffer is writable for its whole size and the kernel writes whole messages.
        let n = unsafe {
            libc::read(
                self.file.as_raw_fd(),
                messages.as_mut_ptr().cast(),
                size_of_val(&messages),
            )
        };
        if n < 0 {
            let error = io::Error::last_os_error();
            // Another service thread has read the messages first.
            return match passes(&error) {
                true => Ok(()),
                false => Err(error),
            };
        }
        let count = n as usize / size_of::<k::uffd_msg>();
        self.messages_read.fetch_add(count as u64, Relaxed);
        for message in &messages[..count] {
            if u32::from(message.event) != k::UFFD_EVENT_PAGEFAULT {
                continue;
            }
            // SAFETY: the event number says that the kernel filled in this variant.
            let fault = unsafe { message.arg.pagefault };
            faults.push(FaultMessage {
                address: fault.address,
                access: match fault.flags & u64::from(k::UFFD_PAGEFAULT_FLAG_WRITE) {
                    0 => Access::Read,
                    _ => Access::Write,
                },
                // SAFETY: the feature THREAD_ID is on, so the kernel set the thread id.
                thread: unsafe { fault.feat.ptid },
            });
        }
        Ok(())
    }

    /// Number of messages that all threads together have read so far.
    pub(crate) fn messages_read(&self) -> u64 {
        self.messages_read.load(Relaxed)
    }

    /// Wakes the threads that sleep in faults on the range. They then execute the access again.
    pub(crate) fn wake(&self, start: u64, len: u64) -> io::Result<()> {
        let range = k::uffdio_range { start, len };
        self.wakes.of(passes, || {
            // SAFETY: the argument is valid for the call; no memory changes.
            check(unsafe { ioctl_with_ref(&self.file, UFFDIO_WAKE(), &range) })
        })
    }

    /// Fills missing pages with a copy of `src`, atomically for faulting threads, and wakes them. With `protect`, the
    /// pages are write-protected from the start.
    ///
    /// # Safety
    /// `src..src + len` must be readable, and the caller must have the right to fill `dst..dst + len`.
    pub(crate) unsafe fn copy(
        &self,
        dst: u64,
        src: u64,
        len: u64,
        permission: Permission,
    ) -> Progress {
        let mut arg = k::uffdio_copy {
            dst,
            src,
            len,
            mode: match permission {
                Permission::ReadOnly => COPY_MODE_WP,
                Permission::Writable => 0,
            },
            copy: 0,
        };
        // SAFETY: the caller vouches for both ranges.
        let ret = unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_COPY(), &mut arg) };
        progress(ret, arg.copy, len)
    }

    /// Fills missing pages with zeros and wakes faulting threads.
    ///
    /// # Safety
    /// The caller must have the right to fill `start..start + len`.
    pub(crate) unsafe fn zeropage(&self, start: u64, len: u64) -> Progress {
        let mut arg = k::uffdio_zeropage {
            range: k::uffdio_range { start, len },
            mode: 0,
            zeropage: 0,
        };
        // SAFETY: the caller vouches for the range.
        let ret = unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_ZEROPAGE(), &mut arg) };
        progress(ret, arg.zeropage, len)
    }

    /// Moves pages from `src` to `dst`, where they must be missing. `dst` must be registered with this descriptor.
    /// Atomic for threads that access either range; wakes the threads that sleep for `dst`.
    ///
    /// # Safety
    /// The caller must have the right to take the pages from `src..src + len` (accesses there fault afterwards) and
    /// to fill `dst..dst + len`.
    pub(crate) unsafe fn move_pages(&self, dst: u64, src: u64, len: u64) -> Progress {
        let mut arg = k::uffdio_move {
            dst,
            src,
            len,
            mode: 0,
            move_: 0,
        };
        // SAFETY: the caller vouches for both ranges.
        let ret = unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_MOVE(), &mut arg) };
        progress(ret, arg.move_, len)
    }

    /// Protects pages against writes, or lifts the protection and wakes the writers.
    pub(crate) fn set_permission(
        &self,
        start: u64,
        len: u64,
        permission: Permission,
    ) -> io::Result<()> {
        let mut arg = k::uffdio_writeprotect {
            range: k::uffdio_range { start, len },
            mode: match permission {
                Permission::ReadOnly => WRITEPROTECT_MODE_WP,
                Permission::Writable => 0,
            },
        };
        // While another thread changes the address space, the kernel refuses this call for a moment, even for other
        // ranges.
        self.protects.of(passes, || {
            // SAFETY: the argument is valid for the call; contents stay as they are.
            check(unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_WRITEPROTECT(), &mut arg) })
        })
    }
}

impl AsRawFd for Uffd {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Whether the error is temporary, so that the call is to be repeated.
fn passes(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR))
}

fn check(ret: i32) -> io::Result<()> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Reads the kernel's answer to a ranged call. The result field is *signed*: it is a positive number of bytes done
/// (then `errno` is `EAGAIN` if that is not all), or a negative error number if nothing was done.
fn progress(ret: i32, result: i64, len: u64) -> Progress {
    if ret == 0 {
        return Progress {
            done: len,
            error: None,
        };
    }
    let errno = io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO);
    if result > 0 {
        Progress {
            done: result as u64,
            error: Some(errno),
        }
    } else if result < 0 {
        Progress {
            done: 0,
            error: Some(-result as i32),
        }
    } else {
        Progress {
            done: 0,
            error: Some(errno),
        }
    }
}

/// Opens a userfaultfd that also sees faults taken inside the kernel, as those of KVM are. Returns it with the way it
/// was obtained.
fn open() -> Result<(OwnedFd, &'static str), Error> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: a system call with integer arguments that returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if fd >= 0 {
        // SAFETY: the descriptor is new and owned by this function.
        return Ok((unsafe { OwnedFd::from_raw_fd(fd as RawFd) }, "system call"));
    }
    let syscall = io::Error::last_os_error();
    if syscall.raw_os_error() == Some(libc::ENOSYS) {
        return Err(Error::NoUserfaultfd);
    }
    if !is_denied(&syscall) {
        return Err(refused(syscall));
    }
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd");
    let device = match device {
        Ok(device) => device,
        // The file does not exist or may not be opened: report the error of the system call.
        Err(error) if is_denied(&error) || error.kind() == io::ErrorKind::NotFound => {
            return Err(refused(syscall));
        }
        Err(error) => return Err(refused(error)),
    };
    // SAFETY: the argument is an integer; the call returns a new descriptor or -1.
    let fd = unsafe { ioctl_with_val(&device, USERFAULTFD_IOC_NEW(), flags as u64) };
    if fd < 0 {
        return Err(refused(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new and owned by this function.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, "/dev/userfaultfd"))
}

fn is_denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

fn refused(error: io::Error) -> Error {
    match is_denied(&error) {
        true => Error::UserfaultfdDenied {
            root: limits::is_root(),
            error,
        },
        false => Error::Userfaultfd(Refusal::new(Resource::Memory(0), error)),
    }
}

/// Negotiates the API version and features. Returns the features that the kernel has.
fn handshake(fd: &OwnedFd, features: u64) -> Result<u64, Error> {
    let mut api = k::uffdio_api {
        api: u64::from(k::UFFD_API),
        features,
        ioctls: 0,
    };
    // SAFETY: the argument is valid for the call.
    let ret = unsafe { ioctl_with_mut_ref(fd, UFFDIO_API(), &mut api) };
    check(ret).map_err(|error| Error::UserfaultfdFeatures { features, error })?;
    Ok(api.features)
}

// The encodings are those of the kernel's headers on x86-64.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ioctl_numbers() {
        assert_eq!(UFFDIO_API(), 0xc018_aa3f);
        assert_eq!(UFFDIO_REGISTER(), 0xc020_aa00);
        assert_eq!(UFFDIO_UNREGISTER(), 0x8010_aa01);
        assert_eq!(UFFDIO_WAKE(), 0x8010_aa02);
        assert_eq!(UFFDIO_COPY(), 0xc028_aa03);
        assert_eq!(UFFDIO_ZEROPAGE(), 0xc020_aa04);
        assert_eq!(UFFDIO_MOVE(), 0xc028_aa05);
        assert_eq!(UFFDIO_WRITEPROTECT(), 0xc018_aa06);
        assert_eq!(USERFAULTFD_IOC_NEW(), 0xaa00);
        assert_eq!(size_of::<k::uffd_msg>(), 32);
    }

    #[test]
    fn negative_results_are_errors_not_byte_counts() {
        assert_eq!(
            progress(0, 8192, 8192),
            Progress {
                done: 8192,
                error: None
            }
        );
        let again = -i64::from(libc::EAGAIN);
        assert_eq!(
            progress(-1, again, 8192),
            Progress {
                done: 0,
                error: Some(libc::EAGAIN)
            }
        );
        assert_eq!(progress(-1, 4096, 8192).done, 4096);
    }
}
