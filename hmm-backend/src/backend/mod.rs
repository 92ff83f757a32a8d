//! The backend: managed memory, its devices and the calls that are not about faults.

#[cfg(feature = "measure")]
pub mod measure;
#[cfg(all(test, not(loom)))]
mod properties;

use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::fault::advisor::Advisor;
use crate::fault::mirror::Invalidate;
use crate::fault::pause::Pauses;
use crate::fault::wishes::Wishes;
use crate::memory::mmap::Mapping;
use crate::memory::{DeviceMemory, Engine, EngineChoice, GuestMemory, KernelAnswers};
use crate::migrate::driver_calls::DriverCalls;
use crate::migrate::{Device, Driver, Occupancy};
use crate::observe::{Counter, Events, Recorder, Stats};
use crate::pages::time::{Clock, Tick};
use crate::pages::{BLOCK_PAGES, Block, DeviceId, Error, Frame, PAGE_SIZE, Page, PageRange};
use crate::policy::{LinkModel, PolicyFactory, PolicySpec};
use crate::residency::{AUX_MAX, FolioLock, Residency, ResidencyTable, TryLock, Word};

/// How to make a [`Backend`].
pub struct BackendConfig {
    /// Bytes of managed memory, a multiple of 2 MiB.
    pub memory: u64,
    /// How many of these bytes, at the end, are memory shared with others (a multiple of 2 MiB): devices reach it in
    /// place, and it never moves.
    pub shared: u64,
    /// Pages that do not exist, though they have numbers: nobody can reach them. For guests whose memory is not in one piece, so that
    /// addresses and pages keep their distance.
    pub hole: PageRange,
    /// Pages that are in system memory from the start, as zeros: for what is about to be written as a whole, by a boot loader
    /// for instance. Any other page costs a fault when it is first touched.
    pub present: Vec<PageRange>,
    /// A CPU's first touch of a block in which no page has contents fills all of it, whatever the policy says; with engine
    /// `remap` in a huge page of the host, if it has one. For guests that use their memory by and large, like Linux: fewer
    /// faults, quicker page tables. Otherwise only pages that are touched or prefetched come into being.
    pub fill_blocks: bool,
    /// How pages are moved.
    pub engine: EngineChoice,
    /// Number of userfaultfds that managed memory is spread over, block by block; more than one helps
    /// only with many vCPUs.
    pub shards: usize,
    /// Bytes of host memory that engine `copy` may keep beyond guest and device memory, to bring contents back
    /// in pages that have been used before. 0: none, and pages are copied in place, as on kernels
    /// without `UFFDIO_MOVE`. Engine `remap` needs none.
    pub recycled: u64,
    /// What the policy wants prefetched for a CPU fault is there before the CPU goes on, instead of when nothing more
    /// urgent is to be done. Slower, but what migrates then depends on the accesses alone, not on who is faster: a
    /// replay of a single CPU's faults makes the same migrations.
    pub lockstep: bool,
    /// For tests: answers that the kernel gives only now and then.
    pub kernel: Option<Arc<dyn KernelAnswers>>,
    /// What to migrate and evict.
    pub policy: Arc<dyn PolicyFactory>,
    /// What a migration costs on the hardware that is modelled: for policies to look at.
    pub link: LinkModel,
    /// Events kept for each thread until they are drained; 0 for none.
    pub events: usize,
}

impl BackendConfig {
    /// The defaults for this much memory.
    pub fn new(memory: u64) -> BackendConfig {
        BackendConfig {
            memory,
            shared: 0,
            hole: PageRange::with_len(Page(0), 0),
            present: Vec::new(),
            fill_blocks: false,
            engine: EngineChoice::Auto,
            shards: 1,
            recycled: DEFAULT_RECYCLED,
            lockstep: false,
            kernel: None,
            policy: Arc::new(PolicySpec::default()),
            link: LinkModel::default(),
            events: 0,
        }
    }
}

/// One block: enough for the folios of a fault, and little beside the VMM's other memory.
const DEFAULT_RECYCLED: u64 = BLOCK_PAGES * PAGE_SIZE;

/// Most devices a backend can attach in its life.
const MAX_DEVICES: usize = AUX_MAX as usize + 1;
/// The most managed memory: frames and pages are 32-bit numbers, and page tables have their limits.
const MAX_MEMORY: u64 = 1 << 42;

/// Managed memory with its devices. Shared by service threads, devices and the VMM.
pub struct Backend {
    pub(crate) table: ResidencyTable,
    pub(crate) guest: Arc<GuestMemory>,
    hole: PageRange,
    /// Where pages are while one device has exclusive access: each at its own offset.
    pub(crate) exclusive: DeviceMemory,
    /// How many pages are there.
    pub(crate) exclusive_pages: AtomicU32,
    devices: [OnceLock<Arc<Device>>; MAX_DEVICES],
    attaching: Mutex<usize>,
    occupancy: Arc<Occupancy>,
    pub(crate) mirrors: RwLock<Vec<Arc<dyn Invalidate>>>,
    pub(crate) advisors: Box<[Mutex<Advisor>]>,
    /// What policies want to migrate when there is time.
    pub(crate) wishes: Wishes,
    /// Accesses in place that policies want to hear of; 0 for none.
    pub(crate) remote_access_threshold: AtomicU32,
    pub(crate) link: LinkModel,
    pub(crate) lockstep: bool,
    pub(crate) fill_blocks: bool,
    factory: Arc<dyn PolicyFactory>,
    pub(crate) clock: Clock,
    pub(crate) recorder: Recorder,
    pub(crate) driver_calls: DriverCalls,
    pub(crate) pauses: Pauses,
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
        let guest = Arc::new(GuestMemory::new(&config)?);
        let factory = config.policy.for_backend().unwrap_or(config.policy);
        let threshold = AtomicU32::new(0);
        let advisor = |_| {
            let policy = factory.fault_policy();
            let remote = policy.remote_access_threshold().unwrap_or(0);
            threshold.store(remote, Ordering::Relaxed);
            Mutex::new(Advisor::new(policy))
        };
        let advisors: Box<[_]> = (0..config.shards).map(advisor).collect();
        let table =
            ResidencyTable::new((config.memory / PAGE_SIZE) as u32, Box::new(guest.clone()));
        // Nobody asks the policy about what is there from the start; that goes for shared memory, too.
        let shared = PageRange::new(guest.private_pages().end, Page(table.pages()));
        for page in config
            .present
            .iter()
            .chain([&shared])
            .flat_map(|it| it.pages())
        {
            table.store(page, Word::default().to_system(Tick::default()));
        }
        Ok(Arc::new(Backend {
            table,
            exclusive: guest.device_memory(config.memory)?,
            exclusive_pages: AtomicU32::new(0),
            devices: [const { OnceLock::new() }; MAX_DEVICES],
            attaching: Mutex::new(0),
            occupancy: Arc::default(),
            mirrors: RwLock::new(Vec::new()),
            remote_access_threshold: threshold,
            wishes: Wishes::new(guest.host_failures().clone())?,
            advisors,
            link: config.link,
            lockstep: config.lockstep,
            fill_blocks: config.fill_blocks,
            factory,
            clock: match guest.engine() {
                Engine::Model => Clock::Model(0.into()),
                _ => Clock::Real(Instant::now()),
            },
            recorder: Recorder::new(config.events),
            driver_calls: DriverCalls::default(),
            pauses: Pauses::default(),
            hole: config.hole,
            guest,
        }))
    }

    /// The engine in use.
    pub fn engine(&self) -> Engine {
        self.guest.engine()
    }

    /// The policy's name.
    pub fn policy_name(&self) -> String {
        self.factory.name()
    }

    /// Time since the backend was made: the clock of events and policies.
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    /// Host address and size of managed memory, for memory slots. Valid while the backend lives. Loads
    /// and stores there fault like a vCPU's and are served the same way, so never from a thread that serves
    /// faults or runs a driver.
    pub fn host_memory(&self) -> (*mut u8, u64) {
        (
            self.guest.mapping().start() as *mut u8,
            self.guest.mapping().len(),
        )
    }

    /// Pages of managed memory.
    pub fn pages(&self) -> u32 {
        self.table.pages()
    }

    /// The pages that do not exist, though they have numbers ([`BackendConfig::hole`]).
    pub fn hole(&self) -> PageRange {
        self.hole
    }

    /// Adds a device with this many bytes of private memory (a multiple of the page size): CPUs do not reach
    /// it, and pages migrate on faults.
    pub fn attach(&self, memory: u64, driver: Arc<dyn Driver>) -> Result<DeviceId, Error> {
        check_size("device memory", memory, PAGE_SIZE, MAX_MEMORY)?;
        let private = self.guest.device_memory(memory)?;
        self.attach_memory(memory, Some(private), driver)
    }

    /// Adds a device with this many bytes of coherent memory: CPUs and devices reach pages there in place
    /// without faults, so pages go there and come back only when asked to
    /// ([`Backend::migrate_to_device`], [`Backend::migrate_to_system`], pins, eviction, detach). Here such a page's bytes
    /// stay at the guest's address, as they do towards a CPU on hardware; what moves is whose capacity it uses.
    pub fn attach_coherent(&self, memory: u64, driver: Arc<dyn Driver>) -> Result<DeviceId, Error> {
        check_size("device memory", memory, PAGE_SIZE, MAX_MEMORY)?;
        self.attach_memory(memory, None, driver)
    }

    fn attach_memory(
        &self,
        bytes: u64,
        memory: Option<DeviceMemory>,
        driver: Arc<dyn Driver>,
    ) -> Result<DeviceId, Error> {
        let mut next = self
            .attaching
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let slot = self
            .devices
            .get(*next)
            .ok_or(Error::TooManyDevices(MAX_DEVICES))?;
        let id = DeviceId(*next as u8);
        let frames = (bytes / PAGE_SIZE) as u32;
        let eviction = self.factory.eviction_policy(frames);
        let device = Device::new(id, driver, memory, frames, eviction, self.occupancy.clone());
        if slot.set(Arc::new(device)).is_err() {
            return Err(Error::TooManyDevices(MAX_DEVICES));
        }
        *next += 1;
        Ok(id)
    }

    /// The attached devices.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.devices.iter().map_while(OnceLock::get)
    }

    /// The device of this number, attached and not being detached.
    pub(crate) fn device(&self, id: DeviceId) -> Result<&Arc<Device>, Error> {
        self.any_device(id)
            .and_then(|device| match device.detaching() {
                true => Err(Error::NoDevice(id)),
                false => Ok(device),
            })
    }

    /// The device of this number, also while and after it is detached.
    pub(crate) fn any_device(&self, id: DeviceId) -> Result<&Arc<Device>, Error> {
        let slot = self.devices.get(usize::from(id.0));
        slot.and_then(OnceLock::get).ok_or(Error::NoDevice(id))
    }

    /// The device that a residency word names.
    pub(crate) fn device_of(&self, id: DeviceId) -> &Arc<Device> {
        let slot = self.devices[usize::from(id.0)].get();
        slot.expect("residency words name attached devices")
    }

    /// Where a page is, and its flags, at this moment.
    pub fn word(&self, page: Page) -> Result<Word, Error> {
        self.check_range(PageRange::single(page))?;
        Ok(self.table.word(page))
    }

    pub(crate) fn check_range(&self, range: PageRange) -> Result<(), Error> {
        let pages = self.pages();
        match self.first_outside(range) {
            Some(_) => Err(Error::OutOfRange { range, pages }),
            None => Ok(()),
        }
    }

    /// The first of these pages that does not exist.
    pub(crate) fn first_outside(&self, range: PageRange) -> Option<Page> {
        first_outside(range, self.pages(), self.hole)
    }

    /// The words of a block's pages.
    pub(crate) fn block_words(&self, block: Block) -> Vec<Word> {
        let end = block
            .first_page()
            .plus(BLOCK_PAGES as u32)
            .min(Page(self.pages()));
        self.table
            .words(PageRange::new(block.first_page(), end))
            .collect()
    }

    /// How long a system page still stays where it is.
    pub(crate) fn system_hold(&self, word: Word) -> Option<Duration> {
        word.system_held_until()?.remaining(self.clock.now())
    }

    /// How long a page that is in a device's memory still stays as it is.
    pub(crate) fn device_hold(&self, page: Page, word: Word) -> Option<Duration> {
        let (device, frame, order) = word.residency().frame()?;
        let first = Frame(frame.0 - (page.0 - page.folio_head(order).0));
        self.device_of(device).held(first, self.clock.now())
    }

    /// Takes the translations of these folios away from all devices that may have one. When it returns, no
    /// device uses one, and none can be made before the folios are unlocked.
    pub(crate) fn invalidate_mirrors<'a, 't: 'a>(
        &self,
        locks: impl Iterator<Item = &'a mut FolioLock<'t>>,
    ) {
        // Neighbours are joined: one interruption of the device for all of them.
        let mut ranges: Vec<(Option<DeviceId>, PageRange)> = Vec::new();
        for lock in locks.filter(|l| l.word().mirrored()) {
            let owner = match lock.word().residency() {
                // Only its own device can reach private device memory, or an exclusive page.
                Residency::Device { device, .. } | Residency::Exclusive(device) => Some(device),
                _ => None,
            };
            let range = lock.range();
            match ranges.last_mut() {
                Some((o, last)) if *o == owner && last.end == range.start => last.end = range.end,
                _ => ranges.push((owner, range)),
            }
            lock.clear_mirrored();
        }
        if ranges.is_empty() {
            return;
        }
        let mirrors = self.mirrors.read().unwrap_or_else(PoisonError::into_inner);
        for (owner, range) in ranges {
            self.recorder.add(Counter::Invalidations, 1);
            for mirror in mirrors
                .iter()
                .filter(|m| owner.is_none_or(|o| m.device() == o))
            {
                mirror.invalidate(range);
            }
        }
    }

    /// Lets this much time pass, or ends early when that is `pointless` ([`Pauses::pause`]). In a replay, it has
    /// passed at once.
    pub(crate) fn let_pass(&self, time: Duration, pointless: impl FnMut() -> bool) {
        match &self.clock {
            Clock::Real(_) => self.pauses.pause(time, pointless),
            Clock::Model(_) => self.clock.advance_to(self.clock.now() + time),
        }
    }

    /// Locks a page's folio, sleeping as long as somebody else works on it. The caller must hold no other
    /// page's lock.
    pub(crate) fn lock_waiting(&self, page: Page) -> FolioLock<'_> {
        loop {
            match self.table.try_lock(page) {
                TryLock::Locked(lock) => return lock,
                TryLock::Busy => self.table.wait(page),
            }
        }
    }

    /// Sleeps until nobody is at work on any of these pages. A CPU goes on as soon as its page is there, a moment
    /// before the residency says so: this is for whoever wants to see what the CPU's access has done.
    pub fn settle(&self, range: PageRange) -> Result<(), Error> {
        self.check_range(range)?;
        let mut page = range.start;
        while page < range.end {
            page = self.table.settle(page);
        }
        Ok(())
    }

    /// Whether somebody is at work on the page at this moment; [`Self::settle`] waits until nobody is.
    pub fn in_motion(&self, page: Page) -> Result<bool, Error> {
        self.check_range(PageRange::single(page))?;
        Ok(self.table.locked(page))
    }

    /// Stops catching CPU faults: whoever sleeps in one that could not be served goes on and sees zeros. Only
    /// for the end of a machine none of whose CPUs will execute another instruction: some sleepers
    /// (KVM, emulating an access) are deaf to signals and can be stopped in no other way.
    pub fn abandon_faults(&self) {
        self.guest.stop_catching_faults();
    }

    /// The statistics so far.
    pub fn stats(&self) -> Stats {
        Stats {
            device_pages_peak: self.occupancy.peak(),
            device_pages_capacity: self.devices().map(|d| u64::from(d.capacity())).sum(),
            ..self.recorder.stats()
        }
    }

    /// Takes the events recorded since the last call.
    pub fn drain_events(&self) -> Events {
        self.recorder.drain_events(self.clock.now())
    }

    /// The file behind shared memory, for whoever is to share it, and the pages it is. None without shared memory.
    pub fn shared_memory(&self) -> Option<(&File, PageRange)> {
        let pages = PageRange::new(self.guest.private_pages().end, Page(self.pages()));
        Some((self.guest.shared_file()?, pages))
    }

    /// Host address ranges of managed memory and of the devices' memories: guest memory, as opposed to the
    /// VMM's own.
    pub fn host_ranges(&self) -> Vec<std::ops::Range<u64>> {
        let devices = self.devices().filter_map(|d| d.memory.as_ref());
        let elsewhere = devices.chain([&self.exclusive]).map(|m| m.mapping());
        let all = std::iter::once(self.guest.mapping()).chain(elsewhere);
        all.map(|m| m.start()..m.start() + m.len()).collect()
    }

    /// Bytes of host memory behind these pages of system memory at this moment, as the kernel says.
    pub fn resident_bytes(&self, range: PageRange) -> Result<u64, Error> {
        self.check_range(range)?;
        let len = u64::from(range.len()) * PAGE_SIZE;
        resident(self.guest.mapping(), range.start.offset(), len)
    }

    /// Bytes of host memory behind a device's private memory at this moment, as the kernel says; 0 for coherent
    /// memory, which is a part of system memory here.
    pub fn device_resident_bytes(&self, id: DeviceId) -> Result<u64, Error> {
        match &self.any_device(id)?.memory {
            Some(memory) => resident(memory.mapping(), 0, memory.mapping().len()),
            None => Ok(0),
        }
    }
}

/// The first page of a range that is not among so many pages, or that is in the hole.
fn first_outside(range: PageRange, pages: u32, hole: PageRange) -> Option<Page> {
    let end = Page(pages);
    if range.overlap(hole) > 0 {
        Some(range.start.max(hole.start))
    } else if range.end > end {
        Some(range.start.max(end))
    } else {
        None
    }
}

fn resident(mapping: &Mapping, offset: u64, len: u64) -> Result<u64, Error> {
    let what = "residency query";
    let resident = mapping.resident_bytes(offset, len);
    resident.map_err(|error| crate::memory::mmap::refused(len, what, error))
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
