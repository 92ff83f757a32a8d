//! The backend: managed memory and the operations on it. Each method calls a layer below.

mod config;
#[cfg(feature = "measure")]
pub mod measure;
mod model;
#[cfg(all(test, not(loom)))]
mod properties;
mod tap;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use config::{BackendConfig, EVICTION_BATCH};
pub use model::ModelBackend;
pub use tap::{EventReader, EventTap};

use parking_lot::Mutex;

use crate::fault::{DeviceMmu, Fatal, FatalFault, FaultConfig, Faults, Mirror};
use crate::memory::{Engine, GuestConfig, GuestMemory};
use crate::migrate::{Core, Driver, LinkTraffic, Links, MAX_DEVICES, first_outside};
use crate::observe::{Events, FaultLatencies, Recorder, Stats};
use crate::ops::{self, Pinned, Progress};
use crate::pages::time::Clock;
use crate::pages::{
    BLOCK_PAGES, DeviceId, Error, Hint, PAGE_SIZE, Page, PageRange, Permission, Place,
};
use crate::policy::{MAX_REGIONS, PolicyFactory, PolicyFile, Regions};
use crate::residency::{ResidencyTable, Word};
use crate::service::{FaultService, ServiceConfig};

/// The largest size of managed memory: frames and pages have 32-bit numbers, and page tables have their limits.
const MAX_MEMORY: u64 = 1 << 42;

/// Managed memory with its devices. Shared by service threads, devices and the VMM.
pub struct Backend {
    pub(crate) faults: Arc<Faults>,
    /// What the advisors' policies come from. The policy of all pages chooses the folios to evict, too.
    policies: Mutex<Regions<Arc<dyn PolicyFactory>>>,
    shards: usize,
}

impl Backend {
    /// Makes managed memory; all pages are untouched, except those that the configuration says are present.
    /// Fails if the machine lacks userfaultfd, the permission to use it, or what the engine needs.
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
        // Present pages and shared memory are in system memory from the start; the policy is not asked about
        // them.
        let shared = PageRange::new(guest.private_pages().end, Page(pages));
        for range in config.present.iter().chain([&shared]) {
            table.set_present(*range);
        }
        let clock = match guest.engine() {
            Engine::Model => Clock::Model(0.into()),
            _ => Clock::Real(Instant::now()),
        };
        let recorder = Recorder::new(config.events);
        let links = Links::new(MAX_DEVICES, config.links, config.pacing);
        let core = Core::new(guest, table, config.hole, clock, recorder, links)?;
        let policy = config.policy.for_backend().unwrap_or(config.policy);
        let policies = (0..config.shards).map(|_| policy.fault_policy());
        let faults = FaultConfig {
            lockstep: config.lockstep,
            fill_blocks: config.fill_blocks,
            eviction_batch: config.eviction_batch,
        };
        let faults = Arc::new(Faults::new(core, policies, faults)?);
        Ok(Arc::new(Backend {
            faults,
            policies: Mutex::new(Regions::new(policy)),
            shards: config.shards,
        }))
    }

    fn core(&self) -> &Core {
        &self.faults.core
    }

    /// Returns the engine in use.
    pub fn engine(&self) -> Engine {
        self.core().guest.engine()
    }

    /// Returns the policy's name, and those of the regions' policies with the memory that they are for.
    pub fn policy_name(&self) -> String {
        self.policies.lock().describe(|policy| policy.name())
    }

    /// Returns the same with everything that determines the behaviour ([`PolicyFactory::exact`]).
    pub fn policy_exact(&self) -> String {
        self.policies.lock().describe(|policy| policy.exact())
    }

    /// Returns the files that the policies were read from.
    pub fn policy_files(&self) -> Vec<PolicyFile> {
        self.policies.lock().files()
    }

    /// Has another policy decide about these pages, or about all, at any moment while the machine runs.
    ///
    /// From the return on, no fault is decided by the old policy. A fault that comes meanwhile is decided by either one;
    /// none is lost, none waits longer than for one decision. What the old policy has set in motion ends as it would
    /// have: holds at their times; the wait of a fault that it has throttled, after which the new policy decides;
    /// migrations that have begun. What it has only wished for does not happen any more. A policy for all pages ends those
    /// of regions, and chooses the folios to evict; it begins with what is in the devices' memories and knows nothing of
    /// its use.
    ///
    /// Returns an error if a region does not consist of whole blocks, or if there would be more than 64 regions.
    pub fn replace_policy(
        &self,
        pages: Option<PageRange>,
        policy: Arc<dyn PolicyFactory>,
    ) -> Result<(), Error> {
        // Held until the end, so that all shards and devices have the same policy.
        let mut policies = self.policies.lock();
        if let Some(pages) = pages {
            let all = PageRange::new(Page(0), Page(self.pages()));
            if pages.is_empty() || pages.overlap(all) < pages.len() {
                return Err(Error::OutOfRange {
                    range: pages,
                    pages: self.pages(),
                });
            }
            let edges = [pages.start.0, pages.end.0];
            if edges.iter().any(|page| page % BLOCK_PAGES as u32 != 0) {
                return Err(Error::NotWholeBlocks(pages));
            }
            if !policies.has_room_for(pages) {
                return Err(Error::TooManyRegions(MAX_REGIONS));
            }
        }
        let policy = policy.for_backend().unwrap_or(policy);
        let of_shards = (0..self.shards).map(|_| policy.fault_policy());
        self.faults.replace_policies(pages, of_shards);
        if pages.is_none() {
            for device in self.core().devices() {
                device.replace_eviction(policy.eviction_policy(device.reserved()));
            }
        }
        policies.set(pages, policy);
        Ok(())
    }

    /// Returns the time since the backend was made: the clock of events and policies.
    pub fn now(&self) -> Duration {
        self.core().clock.now()
    }

    /// Returns the host address and the size in bytes of managed memory, for memory slots. The address is valid
    /// while the backend lives. Loads and stores there fault like a vCPU's and are served the same way. So a
    /// thread that serves faults or runs a driver must not make them: it would wait for itself.
    pub fn host_memory(&self) -> (*mut u8, u64) {
        let mapping = self.core().guest.mapping();
        (mapping.start() as *mut u8, mapping.len())
    }

    /// Returns the number of pages of managed memory, including the hole.
    pub fn pages(&self) -> u32 {
        self.core().pages()
    }

    /// Returns the hole: the page numbers without memory ([`BackendConfig::hole`]).
    pub fn hole(&self) -> PageRange {
        self.core().hole
    }

    /// Adds a device with `memory` bytes of private memory (a multiple of the page size). CPUs cannot reach
    /// private memory; pages migrate on faults. The memory can shrink later, and grow again ([`Self::resize`]).
    pub fn attach(&self, memory: u64, driver: Arc<dyn Driver>) -> Result<DeviceId, Error> {
        check_size("device memory", memory, PAGE_SIZE, MAX_MEMORY)?;
        let private = self.core().guest.device_memory(memory)?;
        let frames = (memory / PAGE_SIZE) as u32;
        // Held until the device is there, so that a replaced policy is replaced here, too.
        let policies = self.policies.lock();
        let eviction = policies.everywhere().eviction_policy(frames);
        self.core().attach(frames, Some(private), driver, eviction)
    }

    /// Adds a device with `memory` bytes of coherent memory (a multiple of the page size). CPUs and devices
    /// reach pages there in place, without faults. So pages migrate there and back only on request:
    /// [`Backend::migrate_to_device`], [`Backend::migrate_to_system`], pins, eviction, detach. In this model,
    /// the bytes of such a page stay at the guest's address, where a CPU on real hardware also finds them; a
    /// migration only changes whose capacity the page uses.
    pub fn attach_coherent(&self, memory: u64, driver: Arc<dyn Driver>) -> Result<DeviceId, Error> {
        check_size("device memory", memory, PAGE_SIZE, MAX_MEMORY)?;
        let frames = (memory / PAGE_SIZE) as u32;
        // Held until the device is there, so that a replaced policy is replaced here, too.
        let policies = self.policies.lock();
        let eviction = policies.everywhere().eviction_policy(frames);
        self.core().attach(frames, None, driver, eviction)
    }

    /// Removes a device and returns when all its pages are back in system memory; from the call on, no page
    /// migrates to the device. On an error the remaining pages are still in the device's memory, CPUs can still
    /// fault them back, and no new page goes there; the caller can try again.
    pub fn detach(&self, id: DeviceId) -> Result<(), Error> {
        self.detach_followed(id, &Progress::default())
    }

    /// Detaches a device as [`Self::detach`] does, while other threads may follow it or cancel it. After a cancel, the device
    /// is attached as before, without the pages that have left it; its accesses meanwhile have failed.
    pub fn detach_followed(&self, id: DeviceId, progress: &Progress) -> Result<(), Error> {
        ops::detach(&self.faults, id, progress)
    }

    /// Changes the size of a device's memory to this many bytes (a multiple of the page size), up to what
    /// [`Backend::attach`] has reserved, and returns when no more is in use. To shrink, it evicts what the policy's order
    /// names; meanwhile, pages migrate to the device only as far as others have left it. On an error or after a cancel,
    /// the memory has the size that it had before; pages that have left it stay in system memory.
    pub fn resize(&self, id: DeviceId, memory: u64, progress: &Progress) -> Result<(), Error> {
        let reserved = u64::from(self.core().device(id)?.reserved()) * PAGE_SIZE;
        check_size("device memory", memory, PAGE_SIZE, reserved)?;
        ops::resize(&self.faults, id, (memory / PAGE_SIZE) as u32, progress)
    }

    /// Makes a mirror for a device. A device may have several mirrors.
    pub fn mirror<M: DeviceMmu>(&self, device: DeviceId, mmu: M) -> Result<Mirror<M>, Error> {
        Mirror::new(self.faults.clone(), device, mmu)
    }

    /// Starts the threads that serve CPU faults. A service thread calls `on_fatal` for each fault that cannot
    /// be resolved, and if the service itself cannot go on.
    pub fn start_service(
        &self,
        config: ServiceConfig,
        on_fatal: impl Fn(Fatal) + Send + Sync + 'static,
    ) -> Result<FaultService, Error> {
        FaultService::start(self.faults.clone(), config, Arc::new(on_fatal))
    }

    /// Returns whether the page is still in the state that made this fault fatal. If not (the guest freed the
    /// page, or a driver brought it back after all), the CPU should execute the access again, whatever the
    /// result.
    pub fn is_current(&self, fault: &FatalFault) -> bool {
        self.faults.is_current(fault)
    }

    /// Stops catching CPU faults: a CPU that sleeps in a fault that could not be served resumes and reads
    /// zeros. Call it only at the end of a machine none of whose CPUs will execute another instruction. It
    /// exists because some sleeping threads (KVM while it emulates an access) do not react to signals and can
    /// be stopped in no other way.
    pub fn abandon_faults(&self) {
        self.core().guest.stop_catching_faults();
    }

    /// Migrates pages to a device at the caller's request and returns how many moved. Waits for pages in
    /// motion; pages that cannot move stay.
    pub fn migrate_to_device(&self, device: DeviceId, range: PageRange) -> Result<u64, Error> {
        self.migrate(Place::Device(device), range, &Progress::default())
    }

    /// Migrates pages to system memory at the caller's request and returns how many moved. Waits for pages in
    /// motion; pages that cannot move stay. Ends exclusive access, and drops the device's copy of duplicates.
    pub fn migrate_to_system(&self, range: PageRange) -> Result<u64, Error> {
        self.migrate(Place::System, range, &Progress::default())
    }

    /// Migrates pages as [`Self::migrate_to_device`] or [`Self::migrate_to_system`] does, while other threads may follow it
    /// or cancel it. After a cancel, each page is where it was or where it was to go.
    pub fn migrate(&self, to: Place, range: PageRange, progress: &Progress) -> Result<u64, Error> {
        match to {
            Place::Device(device) => ops::migrate_to_device(&self.faults, device, range, progress),
            Place::System => ops::migrate_to_system(self.core(), range, progress),
        }
    }

    /// Frees pages for the guest and returns how many of them had contents. The contents are dropped wherever
    /// they are, and later reads give zeros. Device pages are never copied back: their frames return to the
    /// pool and the driver's `page_free` is called; system memory returns to the host. Pinned pages are
    /// skipped. Sleeps while a page is in motion. If the host refuses to take pages back, they keep their
    /// contents and the call returns an error; the rest of the range has been freed.
    pub fn guest_freed(&self, range: PageRange) -> Result<u64, Error> {
        ops::guest_freed(&self.faults, range)
    }

    /// Brings pages into system memory, filling untouched ones with zeros, and keeps them there while the guard
    /// lives. Device pages cannot be pinned where they are: they migrate first. The calling thread sleeps as
    /// long as that takes, so a driver must never call it.
    pub fn pin(&self, range: PageRange) -> Result<Pinned, Error> {
        Pinned::new(&self.faults, range)
    }

    /// Makes pages read-only for CPUs and devices, or writable again. A CPU that writes to a read-only page
    /// takes a fatal fault, a device gets [`crate::mirror::MirrorError::Permission`]. The permission belongs to the
    /// page wherever its contents are, also after a free. Waits for pages in motion; ends exclusive access.
    /// Returns an error for shared memory, because other processes may have it mapped.
    pub fn set_permission(&self, range: PageRange, permission: Permission) -> Result<(), Error> {
        ops::set_permission(self.core(), range, permission)
    }

    /// Marks the contents of a page as lost, because the memory behind it has failed, wherever the page is.
    /// From now on every access by a CPU or a device is fatal, until the guest frees the page. The other pages
    /// of its folio are not affected; the driver's `page_free` is called. Sleeps while the page is in motion.
    /// Returns an error for a pinned page, because the holder of the pin uses it without faults.
    pub fn memory_failure(&self, page: Page) -> Result<(), Error> {
        ops::memory_failure(self.core(), page)
    }

    /// Passes a hint about pages to the policy, which decides what follows from it. The device that a hint
    /// names need not be attached (yet).
    pub fn hint(&self, pages: PageRange, hint: Hint) -> Result<(), Error> {
        self.faults.hint(pages, hint)
    }

    /// Returns one byte for each page of the range, as `viewer` sees it ([`crate::snapshot`]). Each byte is
    /// true at some moment during the call, not all at the same one.
    pub fn snapshot(&self, viewer: DeviceId, range: PageRange) -> Result<Vec<u8>, Error> {
        ops::snapshot::take(self.core(), viewer, range)
    }

    /// Returns where a page is, and its flags, at this moment.
    pub fn word(&self, page: Page) -> Result<Word, Error> {
        self.core().check_range(PageRange::single(page))?;
        Ok(self.core().table.word(page))
    }

    /// Returns where these pages are, in order. Each word is true at some moment during the call, not all at the same one.
    pub fn words(&self, range: PageRange) -> Result<Vec<Word>, Error> {
        self.core().check_range(range)?;
        let parts = range.split_by_block();
        Ok(parts
            .flat_map(|part| self.core().table.words(part))
            .collect())
    }

    /// Sleeps until no thread works on any of these pages. A CPU resumes as soon as its page is there, a moment
    /// before the residency word says so. So call this before checking what a CPU's access has done.
    pub fn settle(&self, range: PageRange) -> Result<(), Error> {
        self.core().settle(range)
    }

    /// Returns whether a thread works on the page at this moment; [`Self::settle`] waits until none does.
    pub fn in_motion(&self, page: Page) -> Result<bool, Error> {
        self.core().check_range(PageRange::single(page))?;
        Ok(self.core().table.locked(page))
    }

    /// Returns the statistics so far.
    pub fn stats(&self) -> Stats {
        self.core().stats()
    }

    /// Returns what has crossed the devices' links so far, in each direction.
    pub fn link_traffic(&self) -> Vec<LinkTraffic> {
        let core = self.core();
        core.links.traffic(core.devices().count())
    }

    /// Returns how long faults have taken so far, by cause.
    pub fn fault_latencies(&self) -> FaultLatencies {
        self.core().recorder.fault_latencies()
    }

    /// Returns how many CPU faults each thread of the host has had so far, by its number as `gettid` returns it; 0 is the number
    /// of threads that the kernel did not name. All together are [`Stats::cpu_faults`], if there are not more than 256 threads.
    pub fn faults_by_thread(&self) -> BTreeMap<u32, u64> {
        self.core().recorder.faults_by_thread()
    }

    /// Returns how a device's memory is used at this moment.
    pub fn device_usage(&self, id: DeviceId) -> Result<DeviceUsage, Error> {
        let device = self.core().any_device(id)?;
        Ok(DeviceUsage {
            capacity: device.capacity(),
            reserved: device.reserved(),
            used: device.used_frames(),
            attached: !device.detaching(),
        })
    }

    /// From now on the ring of each thread holds this many events; 0 ends the recording of events and drops those that are
    /// in the rings. At first it is as [`BackendConfig::events`] says.
    pub fn record_events(&self, ring: usize) {
        self.core().recorder.set_events(ring);
    }

    /// Removes and returns the events recorded since the last call.
    pub fn drain_events(&self) -> Events {
        self.core().recorder.drain_events(self.now())
    }

    /// Returns the file behind shared memory, for processes that are to share it, and the pages it holds.
    /// `None` without shared memory.
    pub fn shared_memory(&self) -> Option<(&File, PageRange)> {
        let guest = &self.core().guest;
        let pages = PageRange::new(guest.private_pages().end, Page(self.pages()));
        Some((guest.shared_file()?, pages))
    }

    /// Returns the host address ranges of managed memory and of the devices' memories: guest memory, as opposed
    /// to the VMM's own.
    pub fn host_ranges(&self) -> Vec<std::ops::Range<u64>> {
        self.core().host_ranges()
    }

    /// Returns the bytes of host memory behind these pages of system memory at this moment, as the kernel
    /// reports them.
    pub fn resident_bytes(&self, range: PageRange) -> Result<u64, Error> {
        self.core().resident_bytes(range)
    }

    /// Returns the bytes of host memory behind a device's private memory at this moment, as the kernel reports
    /// them; 0 for coherent memory, which is a part of system memory here.
    pub fn device_resident_bytes(&self, id: DeviceId) -> Result<u64, Error> {
        self.core().device_resident_bytes(id)
    }
}

/// How a device's memory is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceUsage {
    /// Frames that may hold pages.
    pub capacity: u32,
    /// Frames up to which its memory can grow ([`Backend::resize`]).
    pub reserved: u32,
    /// Frames that hold pages. While the memory shrinks, there are more of them than its capacity.
    pub used: u32,
    /// False from the beginning of a detach on: no page migrates there any more.
    pub attached: bool,
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
