//! Guest memory and device memory, and the engines that move contents between them.
//!
//! * `remap` moves the pages themselves with `UFFDIO_MOVE`: no copy, and atomic for all CPUs.
//! * `copy` keeps device memory separate and copies. If the kernel has `UFFDIO_MOVE`, guest pages are moved out
//!   before they are copied, and are reused to carry contents back ([`recycle`]). Otherwise they are copied under
//!   write protection and dropped, and contents come back with `UFFDIO_COPY`.
//!
//! Both offer the same steps, so that the code of migrations does not depend on the engine. The caller of each step
//! holds the locks of the pages.

mod blank;
mod buddy;
mod engine;
mod frames;
mod host_failure;
mod kernel;
mod mmap;
mod presence;
mod probe;
mod ranged;
mod recycle;
mod uffd;

use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::pages::{BLOCK_PAGES, Error, Frame, PAGE_SIZE, Page, PageRange};
use crate::residency::WakeFaults;
use uffd::Progress;

use blank::Blank;
pub(crate) use buddy::Buddy;
pub use engine::{Engine, EngineChoice};
pub(crate) use frames::DeviceMemory;
pub(crate) use host_failure::HostFailures;
use kernel::{Effect, Kernel};
pub use kernel::{KernelAnswers, KernelCall, MadeUpAnswer};
use mmap::Mapping;
pub(crate) use presence::Presence;
pub use probe::{MoveProbe, probe_moves};
pub(crate) use ranged::EngineError;
use recycle::Recycler;
pub(crate) use uffd::{BATCH, FaultMessage, Uffd};
pub use uffd::{UffdSupport, probe_userfaultfd};

/// The configuration of guest memory.
pub(crate) struct GuestConfig<'a> {
    /// Bytes of managed memory.
    pub(crate) memory: u64,
    /// Number of these bytes, at the end, that are shared with other processes.
    pub(crate) shared: u64,
    /// Pages that are present from the start.
    pub(crate) present: &'a [PageRange],
    /// Whether untouched blocks are filled as a whole.
    pub(crate) fill_blocks: bool,
    pub(crate) engine: EngineChoice,
    /// Number of userfaultfds.
    pub(crate) shards: usize,
    /// Bytes of memory that engine `copy` keeps for reuse.
    pub(crate) recycled: u64,
    /// Injected answers of the kernel, for tests.
    pub(crate) kernel: Option<Arc<dyn KernelAnswers>>,
}

/// The extent of one kernel call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// The pages of one block, because the next block may belong to another userfaultfd.
    Block,
    Everywhere,
}

/// Neighbouring pages and the neighbouring frames that their contents move to or from, for one kernel call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) page: Page,
    pub(crate) frame: Frame,
    pub(crate) pages: u32,
    /// Whether CPUs may not write these pages.
    pub(crate) read_only: bool,
}

impl Run {
    /// The run without its first `n` pages.
    fn skip(self, n: u32) -> Run {
        Run {
            page: self.page.plus(n),
            frame: Frame(self.frame.0 + n),
            pages: self.pages - n,
            ..self
        }
    }

    fn bytes(self) -> u64 {
        kernel::bytes(self.pages)
    }

    pub(crate) fn range(self) -> PageRange {
        PageRange::with_len(self.page, self.pages)
    }
}

/// How an untouched page is filled with zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fill {
    /// With the kernel's shared zero page, until a CPU writes.
    ZeroPage,
    /// With memory of its own, because a write follows.
    Memory,
    /// With write-protected memory, because CPUs may not write the page.
    ReadOnly,
}

/// Managed guest memory: its mapping and its userfaultfds, over which the blocks are distributed.
pub(crate) struct GuestMemory {
    engine: Engine,
    mapping: Mapping,
    shards: Vec<Uffd>,
    kernel: Kernel,
    /// For engine `copy`, if the kernel can move pages.
    recycler: Option<Recycler>,
    /// A block of zeros that is never written, so that it costs no memory.
    zeros: Mapping,
    /// For engine `remap`, if blocks are filled as a whole.
    blank: Option<Blank>,
    /// The file behind the shared pages, and the first shared page. Shared pages are not registered for faults.
    shared: Option<(File, Page)>,
}

impl GuestMemory {
    pub(crate) fn new(config: &GuestConfig<'_>) -> Result<Self, Error> {
        let GuestConfig {
            memory: bytes,
            shared,
            shards,
            recycled,
            ..
        } = *config;
        // A replay needs neither userfaultfd nor the permission for it.
        let support = match config.engine {
            EngineChoice::Only(Engine::Model) => UffdSupport::default(),
            _ => probe_userfaultfd()?,
        };
        let engine = config.engine.resolve(&support)?;
        if shards == 0 || shards > 64 {
            return Err(Error::BadShards(shards));
        }
        let mapping = Mapping::new(bytes, "hmm-managed")?;
        let blank = match engine {
            Engine::Remap if config.fill_blocks => {
                // Without this, the kernel has made a page table for small pages before it reports the fault, and a
                // huge page cannot be moved in.
                mapping.prefer_huge_pages();
                Some(Blank::new()?)
            }
            _ => None,
        };
        let shared = match shared {
            0 => None,
            len => {
                let first = Page(((bytes - len) / PAGE_SIZE) as u32);
                Some((mapping.share_tail(len, "hmm-shared")?, first))
            }
        };
        let real_shards = if engine == Engine::Model { 0 } else { shards };
        let shards = (0..real_shards)
            .map(|_| Uffd::for_faults())
            .collect::<Result<Vec<_>, _>>()?;
        let kernel = Kernel::new(config.kernel.clone());
        let recycler = match engine {
            Engine::Copy if support.remap && recycled > 0 => {
                Some(Recycler::new(recycled, kernel.clone())?)
            }
            _ => None,
        };
        let zeros = Mapping::new(BLOCK_PAGES * PAGE_SIZE, "hmm-zeros")?;
        let guest = GuestMemory {
            engine,
            mapping,
            shards,
            kernel,
            recycler,
            zeros,
            blank,
            shared,
        };
        // Write protection is needed for read-only pages and for the copy engine's migrations.
        if engine != Engine::Model {
            // Before faults are registered, because only then the kernel makes huge pages.
            for range in config.present {
                let len = u64::from(range.len()) * PAGE_SIZE;
                guest.mapping.populate(range.start.offset(), len)?;
            }
            guest.each_shard_range(|uffd, start, len| uffd.register(start, len, true))?;
        }
        Ok(guest)
    }

    /// Calls `f` for each range of private memory with the userfaultfd it belongs to.
    fn each_shard_range<E>(
        &self,
        mut f: impl FnMut(&Uffd, u64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let bytes = self.private_pages().end.offset();
        if bytes == 0 {
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
    pub(crate) fn private_pages(&self) -> PageRange {
        let pages = Page((self.mapping.len() / PAGE_SIZE) as u32);
        let end = self.shared.as_ref().map_or(pages, |(_, first)| *first);
        PageRange::new(Page(0), end)
    }

    /// Whether the page is shared memory, which never moves.
    pub(crate) fn is_shared(&self, page: Page) -> bool {
        page >= self.private_pages().end
    }

    /// The file behind shared memory.
    pub(crate) fn shared_file(&self) -> Option<&File> {
        self.shared.as_ref().map(|(file, _)| file)
    }

    /// Stops catching faults. CPUs that sleep in a fault wake up and find zeros.
    pub(crate) fn stop_catching_faults(&self) {
        if self.engine == Engine::Model {
            return;
        }
        // Fails only for ranges that are not registered, which is the wanted state.
        let _ = self.each_shard_range(|uffd, start, len| uffd.unregister(start, len));
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    pub(crate) fn shards(&self) -> &[Uffd] {
        &self.shards
    }

    pub(crate) fn device_memory(&self, bytes: u64) -> Result<DeviceMemory, Error> {
        DeviceMemory::new(bytes, self.engine, self.kernel.host_failures.clone())
    }

    /// The extent that a [`Run`] may have.
    pub(crate) fn reach(&self) -> Reach {
        match self.shards.len() {
            0 | 1 => Reach::Everywhere,
            _ => Reach::Block,
        }
    }

    /// The page at a faulting host address.
    pub(crate) fn page_at(&self, address: u64) -> Page {
        Page(((address - self.mapping.start()) / PAGE_SIZE) as u32)
    }

    fn address(&self, page: Page) -> u64 {
        self.mapping.address(page.offset())
    }

    fn shard(&self, page: Page) -> &Uffd {
        &self.shards[page.block().0 as usize % self.shards.len()]
    }

    /// Fills untouched pages with zeros and wakes the CPUs that wait for them. `failed` gets the index and error of
    /// each page that could not be filled.
    pub(crate) fn fill_zero(
        &self,
        range: PageRange,
        fill: Fill,
        failed: impl FnMut(u32, EngineError),
    ) {
        if self.engine == Engine::Model {
            return;
        }
        let uffd = self.shard(range.start);
        let whole = u64::from(range.len()) == BLOCK_PAGES && fill == Fill::Memory;
        let blank = self.blank.as_ref().filter(|_| whole).and_then(Blank::zeros);
        let dst = self.address(range.start);
        let effect = match &blank {
            Some(blank) => Effect::Moved {
                src: blank.address(0),
                dst,
            },
            None => Effect::Made { dst },
        };
        let fill = |at: u32, left: u32| {
            if let Some(blank) = &blank {
                let start = self.address(range.start.plus(at));
                // SAFETY: the pages are locked by the caller and untouched; the zeros belong to this call.
                return unsafe { uffd.move_pages(start, blank.address(at), kernel::bytes(left)) };
            }
            // The source of zeros is one block long.
            let n = left.min(BLOCK_PAGES as u32);
            let (start, len) = (self.address(range.start.plus(at)), kernel::bytes(n));
            // SAFETY: the pages are locked by the caller and untouched; the source has that many zeros.
            unsafe {
                match fill {
                    Fill::ZeroPage => uffd.zeropage(start, len),
                    Fill::Memory => uffd.copy(start, self.zeros.start(), len, false),
                    Fill::ReadOnly => uffd.copy(start, self.zeros.start(), len, true),
                }
            }
        };
        let late = |at| self.wake_range(PageRange::single(range.start.plus(at)));
        let call = KernelCall::Fill;
        self.kernel.each(call, range, effect, failed, late, fill);
    }

    /// Takes pages away from CPUs: afterwards they are missing in the guest, and the frames hold the contents.
    /// `failed` gets the pages that stay in the guest unchanged; their frames may hold dead contents.
    pub(crate) fn take(
        &self,
        run: Run,
        device: &DeviceMemory,
        failed: impl FnMut(u32, EngineError),
    ) {
        if self.engine == Engine::Model {
            return;
        }
        let (src, dst) = (self.address(run.page), device.address(run.frame));
        if let Some(recycler) = &self.recycler {
            // SAFETY: the caller holds the pages' locks and has just allocated the frames.
            unsafe { recycler.take(run.range(), src, dst, failed) };
            return;
        }
        // No CPU sleeps for a frame, so late arrivals need no wake-up.
        let late = |_| ();
        let (call, range) = (KernelCall::Take, run.range());
        if let Some(uffd) = &device.uffd {
            let effect = Effect::Moved { src, dst };
            self.kernel
                .each(call, range, effect, failed, late, |at, n| {
                    let offset = kernel::bytes(at);
                    // SAFETY: the caller holds the pages' locks and has just allocated the frames.
                    unsafe { uffd.move_pages(dst + offset, src + offset, kernel::bytes(n)) }
                });
        } else {
            let effect = Effect::Dropped { src };
            // A second call is made only after one has failed. A failed call may have dropped a part of its pages,
            // and a page that is gone cannot be copied again: from then on each page is checked first.
            let mut calls = 0;
            let take = |at: u32, n: u32| {
                let in_doubt = calls > 0;
                calls += 1;
                let n = if in_doubt { 1 } else { n };
                let part = Run {
                    pages: n,
                    ..run.skip(at)
                };
                let look = || self.look(part.page);
                let gone = in_doubt && look().is_ok_and(|it| it.exact && !it.there);
                let done = match gone {
                    true => Ok(()),
                    false => self.copy_and_drop(part, device),
                };
                match done {
                    Ok(()) => Progress {
                        done: kernel::bytes(n),
                        error: None,
                    },
                    // The call handles all of its pages or none, as far as is known. Temporary errors have already
                    // been repeated.
                    Err(error) => Progress {
                        done: 0,
                        error: match error.raw_os_error() {
                            Some(libc::EAGAIN) => Some(libc::EBUSY),
                            errno => errno.or(Some(libc::EIO)),
                        },
                    },
                }
            };
            self.kernel.each(call, range, effect, failed, late, take);
        }
    }

    /// Takes pages by copying them into their frames under write protection, and dropping them.
    fn copy_and_drop(&self, run: Run, device: &DeviceMemory) -> io::Result<()> {
        let start = self.address(run.page);
        let taken = self.protect(run.range(), true).and_then(|()| {
            // SAFETY: the source is present (system pages always are) and can no longer change; the frames belong to
            // the caller. The two mappings do not overlap.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    start as *const u8,
                    device.address(run.frame) as *mut u8,
                    run.bytes() as usize,
                );
            }
            // SAFETY: the frames hold the contents, and no CPU can change the pages any more.
            unsafe { self.mapping.discard(run.page.offset(), run.bytes()) }
        });
        if taken.is_err() {
            // The failed call may have protected a part of the range.
            self.lift_protection(run);
        }
        taken
    }

    /// Undoes [`Self::take`]. `stuck` gets the index of each page whose contents could not be brought back and are
    /// still in its frame.
    pub(crate) fn take_rollback(
        &self,
        run: Run,
        device: &DeviceMemory,
        mut stuck: impl FnMut(u32),
    ) {
        self.give(run, device, |at, _| stuck(at));
    }

    /// Lets CPUs write again, unless the pages are read-only, and wakes the writers.
    pub(crate) fn lift_protection(&self, run: Run) {
        if !run.read_only && self.protect(run.range(), false).is_err() {
            // The writers fault again, and the fault service finds and removes the protection (`fault/stale.rs`).
            self.wake_range(run.range());
        }
    }

    /// Protects pages of one block against writes by CPUs, or lifts the protection and wakes the writers. The pages
    /// must be present.
    pub(crate) fn protect(&self, range: PageRange, protect: bool) -> io::Result<()> {
        if self.engine == Engine::Model {
            return Ok(());
        }
        let (start, len) = (self.address(range.start), kernel::bytes(range.len()));
        self.kernel.whole(KernelCall::Protect, range, || {
            self.shard(range.start).write_protect(start, len, protect)
        })
    }

    /// Returns the state of a page from the page tables of this process.
    pub(crate) fn look(&self, page: Page) -> io::Result<Presence> {
        self.kernel.tables().look(self.address(page))
    }

    /// The record of calls that the host refused although the backend cannot continue without them.
    pub(crate) fn host_failures(&self) -> &Arc<HostFailures> {
        &self.kernel.host_failures
    }

    /// Brings contents back to system memory: fills the missing guest pages from the frames, atomically for CPUs, and
    /// wakes the CPUs that wait for them. Both engines copy read-only pages, because a move cannot protect the page
    /// in the same step; their frames keep the contents. `failed` gets the index and error of each failure.
    pub(crate) fn give(
        &self,
        run: Run,
        device: &DeviceMemory,
        mut failed: impl FnMut(u32, EngineError),
    ) {
        if self.engine == Engine::Model {
            return;
        }
        let uffd = self.shard(run.page);
        let mut late = |at| self.wake_range(PageRange::single(run.page.plus(at)));
        let recycled = match &self.recycler {
            // A move cannot protect the pages in the same step.
            _ if run.read_only => 0,
            // SAFETY: the caller holds the pages' locks, and their words say that the frames hold the contents and
            // the guest pages are missing.
            Some(recycler) => unsafe {
                let (src, dst) = (device.address(run.frame), self.address(run.page));
                recycler.give(uffd, run.range(), src, dst, &mut failed, &mut late)
            },
            None => 0,
        };
        if recycled == run.pages {
            return;
        }
        let rest = run.skip(recycled);
        let failed = |at, error| failed(recycled + at, error);
        let late = |at| late(recycled + at);
        let (dst, src) = (self.address(rest.page), device.address(rest.frame));
        let moves = device.uffd.is_some() && !run.read_only;
        let effect = match moves {
            true => Effect::Moved { src, dst },
            false => Effect::Made { dst },
        };
        let (call, range) = (KernelCall::Give, rest.range());
        self.kernel
            .each(call, range, effect, failed, late, |at, n| {
                let (offset, len) = (kernel::bytes(at), kernel::bytes(n));
                // SAFETY: as above.
                unsafe {
                    match moves {
                        true => uffd.move_pages(dst + offset, src + offset, len),
                        false => uffd.copy(dst + offset, src + offset, len, run.read_only),
                    }
                }
            });
    }

    /// Gives the memory of system pages back to the host. Their contents must be dead or copied to a frame. On an
    /// error, which is noted as a failure of the host, the pages are still present, and their words must say so.
    pub(crate) fn discard(&self, range: PageRange) -> io::Result<()> {
        if self.engine == Engine::Model {
            return Ok(());
        }
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
    pub(crate) fn wake_range(&self, range: PageRange) {
        if self.engine == Engine::Model {
            return;
        }
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

impl WakeFaults for Arc<GuestMemory> {
    fn wake_faults(&self, range: PageRange) {
        self.wake_range(range);
    }
}
