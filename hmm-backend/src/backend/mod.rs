//! The backend: managed memory and what can be asked of it. Each call is one of a layer below.

mod config;
#[cfg(feature = "measure")]
pub mod measure;
mod model;
#[cfg(all(test, not(loom)))]
mod properties;

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use config::BackendConfig;
pub use model::ModelBackend;

use crate::fault::{DeviceMmu, FatalFault, FaultConfig, Faults, Mirror};
use crate::memory::{Engine, GuestConfig, GuestMemory};
use crate::migrate::{Core, Driver, first_outside};
use crate::observe::{Events, Recorder, Stats};
use crate::ops::{self, Pinned};
use crate::pages::time::{Clock, Tick};
use crate::pages::{BLOCK_PAGES, DeviceId, Error, Hint, PAGE_SIZE, Page, PageRange};
use crate::policy::PolicyFactory;
use crate::residency::{ResidencyTable, Word};
use crate::service::{FaultService, ServiceConfig};

/// The most managed memory: frames and pages are 32-bit numbers, and page tables have their limits.
const MAX_MEMORY: u64 = 1 << 42;

/// Managed memory with its devices. Shared by service threads, devices and the VMM.
pub struct Backend {
    pub(crate) faults: Arc<Faults>,
    policy: Arc<dyn PolicyFactory>,
}

impl Backend {
    /// Makes managed memory, all of it untouched. Fails if the machine lacks userfaultfd, the permission
    /// for it, or what the engine needs.
    pub fn new(config: BackendConfig) -> Result<Arc<Backend>, Error> {
        let unit = BLOCK_PAGES * PAGE_SIZE;
        check_size("managed memory", config.memory, unit, MAX_MEMORY)?;
        if config.shared > 0 {
            check_size("shared memory", config.shared, unit, config.memory)?;
        }
        let pages = (config.memory / PAGE_SIZE) as u32;
        let outside = |range: &&PageRange| first_outside(**range, pages, config.hole).is_some();
        if let Some(range) = config.present.iter().find(outside) {
            let range = *range;
            return Err(Error::OutOfRange { range, pages });
        }
        let guest = Arc::new(GuestMemory::new(&GuestConfig {
            memory: config.memory,
            shared: config.shared,
            present: &config.present,
            fill_blocks: config.fill_blocks,
            engine: config.engine,
            shards: config.shards,
            recycled: config.recycled,
            kernel: config.kernel,
        })?);
        let table = ResidencyTable::new(pages, Box::new(guest.clone()));
        // The policy is not asked about what is in system memory from the start, which shared memory is, too.
        let shared = PageRange::new(guest.private_pages().end, Page(pages));
        for range in config.present.iter().chain([&shared]) {
            for page in range.pages() {
                table.store(page, Word::default().to_system(Tick::default()));
            }
        }
        let clock = match guest.engine() {
            Engine::Model => Clock::Model(0.into()),
            _ => Clock::Real(Instant::now()),
        };
        let recorder = Recorder::new(config.events);
        let core = Core::new(guest, table, config.hole, clock, recorder)?;
        let policy = config.policy.for_backend().unwrap_or(config.policy);
        let policies = (0..config.shards).map(|_| policy.fault_policy());
        let faults = FaultConfig {
            link: config.link,
            lockstep: config.lockstep,
            fill_blocks: config.fill_blocks,
        };
        let faults = Arc::new(Faults::new(core, policies, faults)?);
        Ok(Arc::new(Backend { faults, policy }))
    }

    fn core(&self) -> &Core {
        &self.faults.core
    }

    /// The engine in use.
    pub fn engine(&self) -> Engine {
        self.core().guest.engine()
    }

    /// The policy's name.
    pub fn policy_name(&self) -> String {
        self.policy.name()
    }

    /// Time since the backend was made: the clock of events and policies.
    pub fn now(&self) -> Duration {
        self.core().clock.now()
    }

    /// Host address and size of managed memory, for memory slots. Valid while the backend lives. Loads
    /// and stores there fault like a vCPU's and are served the same way, so never from a thread that serves
    /// faults or runs a driver.
    pub fn host_memory(&self) -> (*mut u8, u64) {
        let mapping = self.core().guest.mapping();
        (mapping.start() as *mut u8, mapping.len())
    }

    /// Pages of managed memory.
    pub fn pages(&self) -> u32 {
        self.core().pages()
    }

    /// The pages that have numbers, but no memory ([`BackendConfig::hole`]).
    pub fn hole(&self) -> PageRange {
        self.core().hole
    }

    /// Adds a device with this many bytes of private memory (a multiple of the page size): CPUs do not reach
    /// it, and pages migrate on faults.
    pub fn attach(&self, memory: u64, driver: Arc<dyn Driver>) -> Result<DeviceId, Error> {
        check_size("device memory", memory, PAGE_SIZE, MAX_MEMORY)?;
        let private = self.core().guest.device_memory(memory)?;
        let frames = (memory / PAGE_SIZE) as u32;
        let eviction = self.policy.eviction_policy(frames);
        self.core().attach(frames, Some(private), driver, eviction)
    }

    /// Adds a device with this many bytes of coherent memory: CPUs and devices reach pages there in place
    /// without faults, so pages go there and come back only when asked to
    /// ([`Backend::migrate_to_device`], [`Backend::migrate_to_system`], pins, eviction, detach). Here such a page's bytes
    /// stay at the guest's address, as they do towards a CPU on hardware; what moves is whose capacity it uses.
    pub fn attach_coherent(&self, memory: u64, driver: Arc<dyn Driver>) -> Result<DeviceId, Error> {
        check_size("device memory", memory, PAGE_SIZE, MAX_MEMORY)?;
        let frames = (memory / PAGE_SIZE) as u32;
        let eviction = self.policy.eviction_policy(frames);
        self.core().attach(frames, None, driver, eviction)
    }

    /// Removes a device: no page can come there any more, every page that is there comes back, and only
    /// then does the call return. On an error the remaining pages are still in the device's memory
    /// and CPUs can still fault them back, but nothing new goes there; it can be tried again.
    pub fn detach(&self, id: DeviceId) -> Result<(), Error> {
        ops::detach(&self.faults, id)
    }

    /// Makes a mirror for a device. A device may have several.
    pub fn mirror<M: DeviceMmu>(&self, device: DeviceId, mmu: M) -> Result<Mirror<M>, Error> {
        Mirror::new(self.faults.clone(), device, mmu)
    }

    /// Starts serving CPU faults. `on_fatal` is called from a service thread when a page cannot be
    /// supplied.
    pub fn start_service(
        &self,
        config: ServiceConfig,
        on_fatal: impl Fn(FatalFault) + Send + Sync + 'static,
    ) -> Result<FaultService, Error> {
        FaultService::start(self.faults.clone(), config, Arc::new(on_fatal))
    }

    /// Whether the page is in the state that made this fault fatal. If not - it was freed, or a driver has brought
    /// it after all - the access should be executed again, whatever comes of it.
    pub fn is_current(&self, fault: &FatalFault) -> bool {
        self.faults.is_current(fault)
    }

    /// Stops catching CPU faults: a CPU that sleeps in one that could not be served resumes and reads zeros. Only
    /// for the end of a machine none of whose CPUs will execute another instruction: some sleepers
    /// (KVM, emulating an access) are deaf to signals and can be stopped in no other way.
    pub fn abandon_faults(&self) {
        self.core().guest.stop_catching_faults();
    }

    /// Migrates pages to a device because the caller asks for it; pages that cannot move stay. Waits for pages
    /// in motion. Returns how many moved.
    pub fn migrate_to_device(&self, device: DeviceId, range: PageRange) -> Result<u64, Error> {
        ops::migrate_to_device(&self.faults, device, range)
    }

    /// Migrates pages to system memory because the caller asks for it; pages that cannot move stay. Ends exclusive
    /// access; of duplicates, the device's copy goes. Waits for pages in motion. Returns how many moved.
    pub fn migrate_to_system(&self, range: PageRange) -> Result<u64, Error> {
        ops::migrate_to_system(self.core(), range)
    }

    /// The guest has freed these pages: their contents are dead wherever they are, reads give zeros from
    /// now on. Device pages are never copied back: their frames return to the pool and the driver gets
    /// `page_free`; system memory goes back to the host. Pinned pages are skipped. Sleeps while a page
    /// is in motion. Returns the number of pages that had contents. An error of the host leaves pages with contents; the rest
    /// of the range has been freed.
    pub fn guest_freed(&self, range: PageRange) -> Result<u64, Error> {
        ops::guest_freed(&self.faults, range)
    }

    /// Brings pages into system memory, filling untouched ones, and keeps them there while the guard lives.
    /// Device pages cannot be pinned where they are: they migrate first. The calling thread sleeps as long
    /// as that takes, so never call it from a driver.
    pub fn pin(&self, range: PageRange) -> Result<Pinned, Error> {
        Pinned::new(&self.faults, range)
    }

    /// Takes the right to write these pages away from CPUs and devices, or gives it back. A CPU that writes all the same
    /// takes a fatal fault, a device gets [`crate::MirrorError::Permission`]. The permission belongs to the page
    /// wherever its contents are, also after a free. Waits for pages in motion; ends exclusive access. Shared memory
    /// is refused: other processes may have it mapped.
    pub fn set_read_only(&self, range: PageRange, read_only: bool) -> Result<(), Error> {
        ops::set_read_only(self.core(), range, read_only)
    }

    /// The memory behind a page has failed, wherever it is: its contents are lost. From now on every
    /// access by a CPU or a device is fatal, until the guest frees the page. The other pages of its folio are
    /// not affected; the driver gets `page_free`. Sleeps while the page is in motion. Pinned pages are refused:
    /// the holder of the pin uses them without asking.
    pub fn memory_failure(&self, page: Page) -> Result<(), Error> {
        ops::memory_failure(self.core(), page)
    }

    /// Passes a hint about pages to the policy, which decides what becomes of it. The device that a hint
    /// names need not be attached (yet).
    pub fn hint(&self, pages: PageRange, hint: Hint) -> Result<(), Error> {
        self.faults.hint(pages, hint)
    }

    /// One byte for each page of the range, as `viewer` sees it ([`crate::snapshot`]). Each byte is true at some moment
    /// during the call.
    pub fn snapshot(&self, viewer: DeviceId, range: PageRange) -> Result<Vec<u8>, Error> {
        ops::snapshot::take(self.core(), viewer, range)
    }

    /// Where a page is, and its flags, at this moment.
    pub fn word(&self, page: Page) -> Result<Word, Error> {
        self.core().check_range(PageRange::single(page))?;
        Ok(self.core().table.word(page))
    }

    /// Sleeps until no thread works on any of these pages. A CPU resumes as soon as its page is there, a moment
    /// before the residency says so: call this before you look at what the CPU's access has done.
    pub fn settle(&self, range: PageRange) -> Result<(), Error> {
        self.core().settle(range)
    }

    /// Whether a thread works on the page at this moment; [`Self::settle`] waits until none does.
    pub fn in_motion(&self, page: Page) -> Result<bool, Error> {
        self.core().check_range(PageRange::single(page))?;
        Ok(self.core().table.locked(page))
    }

    /// The statistics so far.
    pub fn stats(&self) -> Stats {
        self.core().stats()
    }

    /// Takes the events recorded since the last call.
    pub fn drain_events(&self) -> Events {
        self.core().recorder.drain_events(self.now())
    }

    /// The file behind shared memory, for processes that are to share it, and the pages it is. None without shared memory.
    pub fn shared_memory(&self) -> Option<(&File, PageRange)> {
        let guest = &self.core().guest;
        let pages = PageRange::new(guest.private_pages().end, Page(self.pages()));
        Some((guest.shared_file()?, pages))
    }

    /// Host address ranges of managed memory and of the devices' memories: guest memory, as opposed to the
    /// VMM's own.
    pub fn host_ranges(&self) -> Vec<std::ops::Range<u64>> {
        self.core().host_ranges()
    }

    /// Bytes of host memory behind these pages of system memory at this moment, as the kernel says.
    pub fn resident_bytes(&self, range: PageRange) -> Result<u64, Error> {
        self.core().resident_bytes(range)
    }

    /// Bytes of host memory behind a device's private memory at this moment, as the kernel says; 0 for coherent
    /// memory, which is a part of system memory here.
    pub fn device_resident_bytes(&self, id: DeviceId) -> Result<u64, Error> {
        self.core().device_resident_bytes(id)
    }
}

fn check_size(what: &'static str, bytes: u64, unit: u64, max: u64) -> Result<(), Error> {
    if bytes == 0 || !bytes.is_multiple_of(unit) || bytes > max {
        return Err(Error::BadSize {
            what,
            bytes,
            unit,
            max,
        });
    }
    Ok(())
}
