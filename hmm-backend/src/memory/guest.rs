//! Managed guest memory, with the engine that moves its contents.

use crate::memory::uffd::FaultKinds;
use std::fs::File;
use std::io;
use std::sync::Arc;

use super::engine::{Copy, Engine, EngineChoice, Model, Mover, Remap};
use super::frames::DeviceMemory;
use super::guest_pages::GuestPages;
use super::host_failure::HostFailures;
use super::kernel::{Kernel, KernelAnswers};
use super::mmap::MemoryMap;
use super::presence::Presence;
use super::ranged::EngineError;
use super::run::{Fill, Passage, Reach, Run};
use super::uffd::{Uffd, UffdSupport, probe_userfaultfd};
use crate::pages::{BLOCK_PAGES, Error, PAGE_SIZE, Page, PageRange, Permission};
use crate::residency::WakeFaults;

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
/// Managed guest memory. The caller of each step of a migration holds the locks of the pages.
pub(crate) struct GuestMemory {
    engine: Engine,
    pages: GuestPages,
    mover: Box<dyn Mover>,
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
        let mapping = MemoryMap::new(bytes, "hmm-managed")?;
        let shared = match shared {
            0 => None,
            len => {
                let first = Page(((bytes - len) / PAGE_SIZE) as u32);
                Some((mapping.share_tail(len, "hmm-shared")?, first))
            }
        };
        let kernel = Kernel::new(config.kernel.clone());
        let mover: Box<dyn Mover> = match engine {
            Engine::Remap if config.fill_blocks => {
                // Without this, the kernel has made a page table for small pages before it reports the fault, and a
                // huge page cannot be moved in.
                mapping.prefer_huge_pages();
                Box::new(Remap::filling_blocks()?)
            }
            Engine::Remap => Box::new(Remap::default()),
            Engine::Copy if support.remap && recycled > 0 => {
                Box::new(Copy::recycling(recycled, kernel.clone())?)
            }
            Engine::Copy => Box::new(Copy::default()),
            Engine::Model => Box::new(Model),
        };
        let real_shards = if engine == Engine::Model { 0 } else { shards };
        let pages = GuestPages {
            mapping,
            shards: (0..real_shards)
                .map(|_| Uffd::for_faults())
                .collect::<Result<Vec<_>, _>>()?,
            kernel,
            zeros: MemoryMap::new(BLOCK_PAGES * PAGE_SIZE, "hmm-zeros")?,
            shared,
        };
        if engine != Engine::Model {
            // Before faults are registered, because only then the kernel makes huge pages.
            for range in config.present {
                let len = u64::from(range.len()) * PAGE_SIZE;
                pages.mapping.populate(range.start.offset(), len)?;
            }
            // Write protection is needed for read-only pages and for the copy engine's migrations.
            pages.each_shard_range(|uffd, start, len| {
                uffd.register(start, len, FaultKinds::MissingAndProtected)
            })?;
        }
        Ok(GuestMemory {
            engine,
            pages,
            mover,
        })
    }

    /// Stops catching faults. CPUs that sleep in a fault wake up and find zeros.
    pub(crate) fn stop_catching_faults(&self) {
        // Fails only for ranges that are not registered, which is the wanted state.
        let _ = self
            .pages
            .each_shard_range(|uffd, start, len| uffd.unregister(start, len));
    }

    /// Whether there are contents to move. A replay has none: its migrations only change words.
    pub(crate) fn has_contents(&self) -> bool {
        self.engine != Engine::Model
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    pub(crate) fn mapping(&self) -> &MemoryMap {
        &self.pages.mapping
    }

    pub(crate) fn shards(&self) -> &[Uffd] {
        &self.pages.shards
    }

    pub(crate) fn device_memory(&self, bytes: u64) -> Result<DeviceMemory, Error> {
        DeviceMemory::new(bytes, self.engine, self.host_failures().clone())
    }

    /// The pages that can migrate: all but the shared ones.
    pub(crate) fn private_pages(&self) -> PageRange {
        self.pages.private_pages()
    }

    /// Whether the page is shared memory, which never moves.
    pub(crate) fn is_shared(&self, page: Page) -> bool {
        self.pages.is_shared(page)
    }

    /// The file behind shared memory.
    pub(crate) fn shared_file(&self) -> Option<&File> {
        self.pages.shared_file()
    }

    /// The extent that a [`Run`] may have.
    pub(crate) fn reach(&self) -> Reach {
        self.pages.reach()
    }

    /// The page at a faulting host address.
    pub(crate) fn page_at(&self, address: u64) -> Page {
        self.pages.page_at(address)
    }

    /// The record of calls that the host refused although the backend cannot continue without them.
    pub(crate) fn host_failures(&self) -> &Arc<HostFailures> {
        self.pages.host_failures()
    }

    /// Fills untouched pages with zeros and wakes the CPUs that wait for them. `failed` gets the index and error of
    /// each page that could not be filled.
    pub(crate) fn fill_zero(
        &self,
        range: PageRange,
        fill: Fill,
        mut failed: impl FnMut(u32, EngineError),
    ) {
        self.mover.fill_zero(&self.pages, range, fill, &mut failed);
    }

    /// Takes pages away from CPUs: afterwards they are missing in the guest, and the frames hold the contents.
    /// `failed` gets the pages that stay in the guest unchanged; their frames may hold dead contents.
    pub(crate) fn take(
        &self,
        run: Run,
        device: &DeviceMemory,
        mut failed: impl FnMut(u32, EngineError),
    ) {
        self.mover.take(&self.pages, run, device, &mut failed);
    }

    /// Undoes [`Self::take`]. `stuck` gets the index of each page whose contents could not be brought back and are
    /// still in its frame.
    pub(crate) fn undo_take(&self, run: Run, device: &DeviceMemory, mut stuck: impl FnMut(u32)) {
        self.give(run, device, |at, _| stuck(at));
    }

    /// Brings contents back to system memory: fills the missing guest pages from the frames, atomically for CPUs, and
    /// wakes the CPUs that wait for them. `failed` gets the index and error of each failure.
    pub(crate) fn give(
        &self,
        run: Run,
        device: &DeviceMemory,
        mut failed: impl FnMut(u32, EngineError),
    ) {
        self.mover.give(&self.pages, run, device, &mut failed);
    }

    /// Passes contents from one device's frames to another's. `failed` gets the index of each page whose contents are
    /// still where they were.
    pub(crate) fn pass(
        &self,
        passage: Passage,
        from: &DeviceMemory,
        to: &DeviceMemory,
        mut failed: impl FnMut(u32),
    ) {
        self.mover
            .pass(&self.pages, passage, from, to, &mut |at, _| failed(at));
    }

    /// Lets CPUs write again, unless the pages are read-only, and wakes the writers.
    pub(crate) fn lift_protection(&self, run: Run) {
        self.mover.lift_protection(&self.pages, run);
    }

    /// Protects pages of one block against writes by CPUs, or lifts the protection and wakes the writers. The pages
    /// must be present.
    pub(crate) fn set_permission(
        &self,
        range: PageRange,
        permission: Permission,
    ) -> io::Result<()> {
        self.mover.set_permission(&self.pages, range, permission)
    }

    /// Gives the memory of system pages back to the host. Their contents must be dead or copied to a frame. On an
    /// error, which is noted as a failure of the host, the pages are still present, and their words must say so.
    pub(crate) fn discard(&self, range: PageRange) -> io::Result<()> {
        self.mover.discard(&self.pages, range)
    }

    /// Wakes CPUs that sleep in faults on these pages of one block. The CPUs then execute the access again.
    pub(crate) fn wake_range(&self, range: PageRange) {
        self.mover.wake(&self.pages, range);
    }

    /// Returns the state of a page that CPUs reach by its word, from the page tables.
    pub(crate) fn look(&self, page: Page) -> io::Result<Presence> {
        self.mover.look(&self.pages, page)
    }
}

impl WakeFaults for Arc<GuestMemory> {
    fn wake_faults(&self, range: PageRange) {
        self.wake_range(range);
    }
}
