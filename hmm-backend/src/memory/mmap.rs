//! Anonymous private mappings: guest memory and device memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;

use crate::host::limits::{Refusal, Resource};
use crate::host::patience::Repeats;
use crate::pages::Error;

/// A private anonymous mapping, named in `/proc/self/maps`, unmapped on drop. Its memory is only accessed through raw
/// pointers, because guests and devices change it at any time.
#[derive(Debug)]
pub(crate) struct MemoryMap {
    start: NonNull<u8>,
    len: u64,
    discards: Repeats,
}

// SAFETY: the mapping is plain memory without ties to a thread. This type only hands out addresses; the code that
// dereferences one states why its access is safe.
unsafe impl Send for MemoryMap {}
// SAFETY: as above; no field changes except an atomic one.
unsafe impl Sync for MemoryMap {}

/// `MADV_DONTNEED` that also works for locked memory. The libc crate lacks this constant.
const MADV_DONTNEED_LOCKED: i32 = 24;

/// A large folio moves as one only between addresses that are aligned to its size.
const ALIGN: u64 = 2 << 20;

impl MemoryMap {
    pub(crate) fn new(len: u64, what: &'static str) -> Result<MemoryMap, Error> {
        let failed = |error| refused(len, what, error);
        // Reserve room to align; the rest is unmapped below.
        let reserve = len
            .checked_add(ALIGN)
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENOMEM)))?;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces no other mapping.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                reserve,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        let base = start as u64;
        let aligned = base.next_multiple_of(ALIGN);
        // SAFETY: both pieces lie inside the new mapping and outside of the part that is kept.
        unsafe {
            libc::munmap(start, (aligned - base) as usize);
            libc::munmap(
                (aligned + len) as *mut _,
                (base + reserve as u64 - aligned - len) as usize,
            );
        }
        let mapping = MemoryMap {
            start: NonNull::new(aligned as *mut u8).expect("mmap does not return null"),
            len,
            discards: Repeats::default(),
        };
        mapping.name(what);
        mapping.keep_from_children();
        Ok(mapping)
    }

    /// Replaces the last `len` bytes by shared memory, which other processes and devices can map. Returns its file.
    pub(crate) fn share_tail(&self, len: u64, what: &'static str) -> Result<File, Error> {
        let failed = |error| refused(len, what, error);
        let name = std::ffi::CString::new(what).unwrap_or_default();
        // SAFETY: the name outlives the call, which returns a new descriptor or -1.
        let fd = unsafe {
            libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
        };
        if fd < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is new and owned by this function.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len).map_err(failed)?;
        // Another process with the file must not shorten it: an access behind its end would raise SIGBUS.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: the descriptor is open; the call changes what may be done with the file, not its contents.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        let start = self.address(self.len - len);
        // SAFETY: the range is the end of this mapping, which is not in use yet; the file has its length.
        let at = unsafe {
            libc::mmap(
                start as *mut _,
                len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        self.keep_from_children();
        Ok(file)
    }

    /// Excludes the mapping from forked children. They must not have the guest's memory, and pages shared with a
    /// child cannot be moved until one of the processes writes to them.
    fn keep_from_children(&self) {
        // SAFETY: the range is this mapping; the call only changes what a fork copies. It cannot fail for a valid
        // range.
        unsafe {
            libc::madvise(
                self.start.as_ptr().cast(),
                self.len as usize,
                libc::MADV_DONTFORK,
            )
        };
    }

    /// Names the mapping in `/proc/self/maps`. On kernels without this feature it stays unnamed.
    fn name(&self, what: &'static str) {
        let name = std::ffi::CString::new(what).unwrap_or_default();
        // SAFETY: the range is this mapping and the name outlives the call; only a label changes.
        unsafe {
            libc::prctl(
                libc::PR_SET_VMA,
                libc::PR_SET_VMA_ANON_NAME,
                self.start.as_ptr(),
                self.len,
                name.as_ptr(),
            );
        }
    }

    /// Asks the kernel to use huge pages where possible.
    pub(crate) fn prefer_huge_pages(&self) {
        // SAFETY: the range is this mapping; its contents do not change. Kernels without huge pages return an error,
        // which is ignored.
        unsafe {
            libc::madvise(
                self.start.as_ptr().cast(),
                self.len as usize,
                libc::MADV_HUGEPAGE,
            )
        };
    }

    pub(crate) fn start(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Host address of the byte at `offset`.
    pub(crate) fn address(&self, offset: u64) -> u64 {
        debug_assert!(offset < self.len);
        self.start() + offset
    }

    /// Gives the memory of a range back to the host. On an error, a part of it may be gone.
    ///
    /// # Safety
    /// The contents of the range must be dead.
    pub(crate) unsafe fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        // SAFETY: the caller guarantees that the contents are dead.
        match unsafe { self.advise_dead(offset, len, libc::MADV_DONTNEED) } {
            // Locked memory, for instance by `mlockall` in the parent process, needs another advice (Linux 5.18).
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                // SAFETY: the caller guarantees that the contents are dead.
                unsafe { self.advise_dead(offset, len, MADV_DONTNEED_LOCKED) }.map_err(|_| error)
            }
            other => other,
        }
    }

    /// Like [`Self::discard`], for shared memory: also removes the contents from its file.
    ///
    /// # Safety
    /// The contents of the range must be dead.
    pub(crate) unsafe fn discard_shared(&self, offset: u64, len: u64) -> io::Result<()> {
        // SAFETY: the caller guarantees that the contents are dead.
        unsafe { self.advise_dead(offset, len, libc::MADV_REMOVE) }
    }

    /// # Safety
    /// The contents of the range must be dead.
    unsafe fn advise_dead(&self, offset: u64, len: u64, advice: i32) -> io::Result<()> {
        debug_assert!(offset + len <= self.len);
        let passes =
            |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR));
        let start = self.address(offset) as *mut libc::c_void;
        self.discards.of(passes, || {
            // SAFETY: the range lies inside the mapping and the caller guarantees that its contents are dead.
            match unsafe { libc::madvise(start, len as usize, advice) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    }

    /// Makes the range present. Missing pages are filled with zeros, as huge pages if the kernel provides them.
    pub(crate) fn populate(&self, offset: u64, len: u64) -> Result<(), Error> {
        if len == 0 {
            return Ok(());
        }
        let (start, bytes) = (self.address(offset) as *mut libc::c_void, len as usize);
        // SAFETY: the range lies inside the mapping; its contents do not change.
        let ret = unsafe { libc::madvise(start, bytes, libc::MADV_POPULATE_WRITE) };
        let error = io::Error::last_os_error();
        match (ret, error.raw_os_error()) {
            (0, _) => Ok(()),
            // Before Linux 5.14: writing to the pages makes them present.
            (_, Some(libc::EINVAL)) => {
                // SAFETY: the range is not in use by other code yet, and holds zeros.
                unsafe { std::ptr::write_bytes(start.cast::<u8>(), 0, bytes) };
                Ok(())
            }
            _ => Err(refused(
                len,
                "the memory that is present from the start",
                error,
            )),
        }
    }

    /// Returns how many bytes of the range are in host memory at this moment, as `mincore` reports.
    pub(crate) fn resident(&self, offset: u64, len: u64) -> Result<u64, Error> {
        let resident = self.resident_bytes(offset, len);
        resident.map_err(|error| refused(len, "residency query", error))
    }

    fn resident_bytes(&self, offset: u64, len: u64) -> io::Result<u64> {
        const HOST_PAGE: u64 = 4096;
        let mut present = vec![0u8; len.div_ceil(HOST_PAGE) as usize];
        // SAFETY: the range lies inside the mapping and the vector has a byte for each of its pages.
        let ret = unsafe {
            libc::mincore(
                self.address(offset) as *mut _,
                len as usize,
                present.as_mut_ptr(),
            )
        };
        if ret != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(present.iter().filter(|p| *p & 1 != 0).count() as u64 * HOST_PAGE)
    }
}

fn refused(len: u64, what: &'static str, error: io::Error) -> Error {
    Error::Map {
        len,
        what,
        refusal: Refusal::new(Resource::Memory(len), error),
    }
}

impl Drop for MemoryMap {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to this value, and code that used its addresses has borrowed or shared this
        // value and has finished.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_make_shared_memory_shorter() {
        let mapping = MemoryMap::new(4 << 20, "test").unwrap();
        let file = mapping.share_tail(2 << 20, "test-shared").unwrap();
        for len in [0, 1 << 20, 4 << 20] {
            let error = file.set_len(len).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{len}");
        }
        assert_eq!(file.metadata().unwrap().len(), 2 << 20);
    }
}
