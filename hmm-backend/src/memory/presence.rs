//! Checks in the kernel's page tables where a page is.
//!
//! A failed call does not prove that a page did not move: Linux 6.18 can move pages with `UFFDIO_MOVE` and answer
//! `EEXIST` (see `kernel.rs`). Only the page tables tell.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::host::patience::Repeats;
use crate::pages::PAGE_SIZE;

/// Pagemap: the page is in memory.
const PRESENT: u64 = 1 << 63;
/// Pagemap: the page is on swap, or the kernel is moving it within memory.
const SWAPPED: u64 = 1 << 62;
/// Pagemap: userfaultfd protects the page against writes.
const PROTECTED: u64 = 1 << 57;

/// The state of a page of this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Presence {
    /// The page has contents, in memory or on swap.
    pub(crate) there: bool,
    /// A write would fault.
    pub(crate) protected: bool,
    /// Whether this comes from the page tables. If not, a page on swap looks like a missing one, and every page
    /// counts as protected.
    pub(crate) exact: bool,
}

impl Presence {
    /// CPUs read and write the page without a fault.
    pub(super) const REACHED: Presence = Presence {
        there: true,
        protected: false,
        exact: true,
    };
}

/// The page tables of this process, for reading.
pub(crate) struct PageTables {
    /// `None` if the process may not read its pagemap, as for a program with file capabilities.
    pagemap: Option<File>,
    reads: Repeats,
    questions: Repeats,
}

impl PageTables {
    pub(crate) fn open() -> PageTables {
        PageTables::of(File::open("/proc/self/pagemap").ok())
    }

    fn of(pagemap: Option<File>) -> PageTables {
        PageTables {
            pagemap,
            reads: Repeats::default(),
            questions: Repeats::default(),
        }
    }

    /// Returns the state of the page at this host address, which must be in a mapping of this process. Uses `mincore`
    /// if the page tables cannot be read.
    pub(crate) fn look(&self, address: u64) -> io::Result<Presence> {
        let entry = self.pagemap.as_ref().map(|file| self.entry(file, address));
        match entry {
            Some(Ok(entry)) => Ok(Presence {
                there: entry & (PRESENT | SWAPPED) != 0,
                protected: entry & PROTECTED != 0,
                exact: true,
            }),
            None | Some(Err(_)) => Ok(Presence {
                there: self.in_core(address)?,
                protected: true,
                exact: false,
            }),
        }
    }

    fn entry(&self, pagemap: &File, address: u64) -> io::Result<u64> {
        let interrupted = |error: &io::Error| error.kind() == io::ErrorKind::Interrupted;
        self.reads.of(interrupted, || {
            let mut entry = [0; 8];
            match pagemap.read_at(&mut entry, address / PAGE_SIZE * 8)? {
                8 => Ok(u64::from_ne_bytes(entry)),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            }
        })
    }

    fn in_core(&self, address: u64) -> io::Result<bool> {
        let busy = |error: &io::Error| error.raw_os_error() == Some(libc::EAGAIN);
        let (start, len) = (address as *mut libc::c_void, PAGE_SIZE as usize);
        self.questions.of(busy, || {
            let mut vector = [0u8; 1];
            // SAFETY: the kernel writes one byte for the one page and touches no memory of the range itself.
            match unsafe { libc::mincore(start, len, vector.as_mut_ptr()) } {
                0 => Ok(vector[0] & 1 != 0),
                _ => Err(io::Error::last_os_error()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::mmap::MemoryMap;

    #[test]
    fn page_tables_tell_what_is_there() {
        let mapping = MemoryMap::new(4 * PAGE_SIZE, "hmm-test").unwrap();
        let unreadable = File::open("/dev/null").ok();
        for pagemap in [PageTables::open().pagemap, unreadable, None] {
            let tables = PageTables::of(pagemap);
            let there = |page: u64| {
                tables
                    .look(mapping.address(page * PAGE_SIZE))
                    .unwrap()
                    .there
            };
            assert!(!there(2));
            mapping.populate(2 * PAGE_SIZE, PAGE_SIZE).unwrap();
            assert!(!there(1) && there(2) && !there(3));
            // SAFETY: only this test uses the memory.
            unsafe { mapping.discard(2 * PAGE_SIZE, PAGE_SIZE) }.unwrap();
        }
    }
}
