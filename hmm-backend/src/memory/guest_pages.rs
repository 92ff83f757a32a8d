//! The guest's pages as the kernel has them: a mapping, registered with userfaultfds, over which its blocks are
//! distributed. What both engines do with them is here.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::host_failure::HostFailures;
use super::kernel::{self, Effect, Kernel, KernelCall};
use super::mmap::MemoryMap;
use super::presence::Presence;
use super::ranged::EngineError;
use super::run::{Fill, Reach, Run};
use super::uffd::Uffd;
use crate::pages::{BLOCK_PAGES, PAGE_SIZE, Page, PageRange, Permission};

/// Managed memory and its userfaultfds; the caller of each call holds the locks of the pages.
pub(crate) struct GuestPages {
    pub(super) mapping: MemoryMap,
    /// None in a model.
    pub(super) shards: Vec<Uffd>,
    pub(super) kernel: Kernel,
    /// A block of zeros that is never written, so that it costs no memory.
    pub(super) zeros: MemoryMap,
    /// The file behind the shared pages, and the first shared page. Shared pages are not registered for faults.
    pub(super) shared: Option<(File, Page)>,
}

impl GuestPages {
    /// Calls `f` for each range of private memory with the userfaultfd it belongs to.
    pub(super) fn each_shard_range<E>(
        &self,
        mut f: impl FnMut(&Uffd, u64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let bytes = self.private_pages().end.offset();
        if bytes == 0 || self.shards.is_empty() {
            return Ok(());
        }
        if let [only] = &self.shards[..] {
            return f(only, self.mapping.start(), bytes);
        }
        let block = BLOCK_PAGES * PAGE_SIZE;
        for offset in (0..bytes).step_by(block as usize) {
            let uffd = self.shard(Page((offset / PAGE_SIZE) as u32));
            f(
                uffd,
                self.mapping.address(offset),
                block.min(bytes - offset),
            )?;
        }
        Ok(())
    }

    /// The pages that can migrate: all but the shared ones.
    pub(super) fn private_pages(&self) -> PageRange {
        let pages = Page((self.mapping.len() / PAGE_SIZE) as u32);
        let end = self.shared.as_ref().map_or(pages, |(_, first)| *first);
        PageRange::new(Page(0), end)
    }

    /// Whether the page is shared memory, which never moves.
    pub(super) fn is_shared(&self, page: Page) -> bool {
        page >= self.private_pages().end
    }

    /// The file behind shared memory.
    pub(super) fn shared_file(&self) -> Option<&File> {
        self.shared.as_ref().map(|(file, _)| file)
    }

    /// The extent that a [`Run`] may have.
    pub(super) fn reach(&self) -> Reach {
        match self.shards.len() {
            0 | 1 => Reach::Everywhere,
            _ => Reach::Block,
        }
    }

    /// The page at a faulting host address.
    pub(super) fn page_at(&self, address: u64) -> Page {
        Page(((address - self.mapping.start()) / PAGE_SIZE) as u32)
    }

    pub(super) fn address(&self, page: Page) -> u64 {
        self.mapping.address(page.offset())
    }

    pub(super) fn shard(&self, page: Page) -> &Uffd {
        &self.shards[page.block().0 as usize % self.shards.len()]
    }

    /// Fills untouched pages with zeros, page by page, and wakes the CPUs that wait for them. `failed` gets the index
    /// and error of each page that could not be filled.
    pub(super) fn fill_zero(
        &self,
        range: PageRange,
        fill: Fill,
        failed: impl FnMut(u32, EngineError),
    ) {
        let uffd = self.shard(range.start);
        let effect = Effect::Made {
            dst: self.address(range.start),
        };
        let fill = |at: u32, left: u32| {
            // The source of zeros is one block long.
            let n = left.min(BLOCK_PAGES as u32);
            let (start, len) = (self.address(range.start.plus(at)), kernel::bytes(n));
            // SAFETY: the pages are locked by the caller and untouched; the source has that many zeros.
            unsafe {
                match fill {
                    Fill::ZeroPage => uffd.zeropage(start, len),
                    Fill::Memory => uffd.copy(start, self.zeros.start(), len, Permission::Writable),
                    Fill::ReadOnly => {
                        uffd.copy(start, self.zeros.start(), len, Permission::ReadOnly)
                    }
                }
            }
        };
        let late = |at| self.wake_range(PageRange::single(range.start.plus(at)));
        let call = KernelCall::Fill;
        self.kernel.each(call, range, effect, failed, late, fill);
    }

    /// Fills missing guest pages with copies of what is at the host address `src`, atomically for CPUs, protected if the
    /// run is read-only, and wakes the CPUs that wait for them.
    pub(super) fn give_copies(&self, run: Run, src: u64, failed: impl FnMut(u32, EngineError)) {
        let uffd = self.shard(run.page);
        let dst = self.address(run.page);
        let late = |at| self.wake_range(PageRange::single(run.page.plus(at)));
        let effect = Effect::Made { dst };
        let call = KernelCall::Give;
        self.kernel
            .each(call, run.range(), effect, failed, late, |at, n| {
                let (offset, len) = (kernel::bytes(at), kernel::bytes(n));
                // SAFETY: the caller holds the pages' locks, and the words say that the frames at `src` hold the contents
                // and that the guest pages are missing.
                unsafe { uffd.copy(dst + offset, src + offset, len, run.permission) }
            });
    }

    /// Lets CPUs write again, unless the pages are read-only, and wakes the writers.
    pub(super) fn lift_protection(&self, run: Run) {
        if run.permission == Permission::Writable
            && self
                .set_permission(run.range(), Permission::Writable)
                .is_err()
        {
            // The writers fault again, and the fault service finds and removes the protection (`fault/stale.rs`).
            self.wake_range(run.range());
        }
    }

    /// Protects pages of one block against writes by CPUs, or lifts the protection and wakes the writers. The pages
    /// must be present.
    pub(super) fn set_permission(
        &self,
        range: PageRange,
        permission: Permission,
    ) -> io::Result<()> {
        let (start, len) = (self.address(range.start), kernel::bytes(range.len()));
        self.kernel.whole(KernelCall::Protect, range, || {
            self.shard(range.start)
                .set_permission(start, len, permission)
        })
    }

    /// Returns the state of a page from the page tables of this process.
    pub(super) fn look(&self, page: Page) -> io::Result<Presence> {
        self.kernel.tables().look(self.address(page))
    }

    /// The record of calls that the host refused although the backend cannot continue without them.
    pub(super) fn host_failures(&self) -> &Arc<HostFailures> {
        &self.kernel.host_failures
    }

    /// Gives the memory of system pages back to the host. Their contents must be dead or copied to a frame. On an
    /// error, which is noted as a failure of the host, the pages are still present, and their words must say so.
    pub(super) fn discard(&self, range: PageRange) -> io::Result<()> {
        let (offset, len) = (range.start.offset(), kernel::bytes(range.len()));
        let shared = self.is_shared(range.start);
        let done = self.kernel.whole(KernelCall::Discard, range, || {
            // SAFETY: the caller holds the pages' locks and guarantees that these contents are no longer needed.
            unsafe {
                match shared {
                    true => self.mapping.discard_shared(offset, len),
                    false => self.mapping.discard(offset, len),
                }
            }
        });
        done.inspect_err(|error| {
            let call = match shared {
                true => "madvise(MADV_REMOVE), freeing shared memory",
                false => "madvise(MADV_DONTNEED), giving guest memory back to the host",
            };
            self.host_failures().note(call, error);
        })
    }

    /// Wakes CPUs that sleep in faults on these pages of one block. The CPUs then execute the access again.
    pub(super) fn wake_range(&self, range: PageRange) {
        let (start, len) = (self.address(range.start), kernel::bytes(range.len()));
        let woken = self.kernel.whole(KernelCall::Wake, range, || {
            self.shard(range.start).wake(start, len)
        });
        // The sleepers were not woken: this must be reported to the user.
        if let Err(error) = woken {
            self.host_failures()
                .note("UFFDIO_WAKE, waking CPUs whose page has arrived", &error);
        }
    }
}
