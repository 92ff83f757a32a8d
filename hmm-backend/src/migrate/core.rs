//! What migrations work on: the table of words, the memories, the devices and their mirrors. This layer has no
//! policy: the layers above decide which pages migrate, this one migrates them.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use super::device::{Device, Occupancy};
use super::driver::Driver;
use super::driver_calls::DriverCalls;
use super::invalidate::Mirrors;
use super::links::Links;
use crate::memory::{DeviceMemory, GuestMemory};
use crate::observe::{Counter, Event, EventKind, Recorder, Stats};
use crate::pages::time::Clock;
use crate::pages::{BLOCK_PAGES, Block, DeviceId, Error, PAGE_SIZE, Page, PageRange, PageSet};
use crate::policy::EvictionPolicy;
use crate::residency::{
    AUX_MAX, BlockWords, FolioLock, Pattern, Residency, ResidencyTable, TryLock, Word,
};

/// The most devices that a backend can attach in its life; a detached device still counts.
pub(crate) const MAX_DEVICES: usize = AUX_MAX as usize + 1;

/// Managed memory with its devices, without policies for faults.
pub(crate) struct Core {
    pub(crate) table: ResidencyTable,
    pub(crate) guest: Arc<GuestMemory>,
    /// The hole: page numbers without memory.
    pub(crate) hole: PageRange,
    /// The memory that holds pages while one device has exclusive access to them: each page at its own offset.
    pub(crate) exclusive: DeviceMemory,
    /// The number of pages in `exclusive`.
    pub(crate) exclusive_pages: AtomicU32,
    devices: [OnceLock<Arc<Device>>; MAX_DEVICES],
    attaching: Mutex<usize>,
    occupancy: Arc<Occupancy>,
    pub(crate) mirrors: Mirrors,
    pub(crate) clock: Clock,
    pub(crate) recorder: Recorder,
    pub(crate) driver_calls: DriverCalls,
    pub(crate) links: Links,
}

impl Core {
    /// Makes a core without devices; `table` has the words of `guest`'s pages. Fails if the memory for
    /// exclusive pages cannot be mapped.
    pub(crate) fn new(
        guest: Arc<GuestMemory>,
        table: ResidencyTable,
        hole: PageRange,
        clock: Clock,
        recorder: Recorder,
        links: Links,
    ) -> Result<Core, Error> {
        Ok(Core {
            exclusive: guest.device_memory(guest.mapping().len())?,
            exclusive_pages: AtomicU32::new(0),
            devices: [const { OnceLock::new() }; MAX_DEVICES],
            attaching: Mutex::new(0),
            occupancy: Arc::default(),
            mirrors: Mirrors::default(),
            driver_calls: DriverCalls::default(),
            guest,
            table,
            hole,
            clock,
            recorder,
            links,
        })
    }

    /// Adds a device with this many frames and returns its number. `memory` is its private memory; `None` if
    /// its memory is coherent.
    pub(crate) fn attach(
        &self,
        frames: u32,
        memory: Option<DeviceMemory>,
        driver: Arc<dyn Driver>,
        eviction: Box<dyn EvictionPolicy>,
    ) -> Result<DeviceId, Error> {
        let mut next = self.attaching.lock();
        let slot = self
            .devices
            .get(*next)
            .ok_or(Error::TooManyDevices(MAX_DEVICES))?;
        let id = DeviceId(*next as u8);
        let device = Device::new(id, driver, memory, frames, eviction, self.occupancy.clone());
        if slot.set(Arc::new(device)).is_err() {
            return Err(Error::TooManyDevices(MAX_DEVICES));
        }
        *next += 1;
        Ok(id)
    }

    /// Returns all devices that were ever attached, also detached ones.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Arc<Device>> + Clone {
        self.devices.iter().map_while(OnceLock::get)
    }

    /// Returns the device with this number, or an error if there is none or if it is being or was detached.
    pub(crate) fn device(&self, id: DeviceId) -> Result<&Arc<Device>, Error> {
        self.any_device(id)
            .and_then(|device| match device.detaching() {
                true => Err(Error::NoDevice(id)),
                false => Ok(device),
            })
    }

    /// Returns the device with this number, also while and after it is detached.
    pub(crate) fn any_device(&self, id: DeviceId) -> Result<&Arc<Device>, Error> {
        let slot = self.devices.get(usize::from(id.0));
        slot.and_then(OnceLock::get).ok_or(Error::NoDevice(id))
    }

    /// Returns the device that a residency word names.
    pub(crate) fn device_of(&self, id: DeviceId) -> &Arc<Device> {
        let slot = self.devices[usize::from(id.0)].get();
        slot.expect("residency words name attached devices")
    }

    /// Returns the number of pages of managed memory, including the hole.
    pub(crate) fn pages(&self) -> u32 {
        self.table.pages()
    }

    /// Returns an error if one of these pages does not exist.
    pub(crate) fn check_range(&self, range: PageRange) -> Result<(), Error> {
        let pages = self.pages();
        match self.first_outside(range) {
            Some(_) => Err(Error::OutOfRange { range, pages }),
            None => Ok(()),
        }
    }

    /// Returns the first of these pages that does not exist.
    pub(crate) fn first_outside(&self, range: PageRange) -> Option<Page> {
        first_outside(range, self.pages(), self.hole)
    }

    /// Returns the words of a block's pages, which are read when they are looked at.
    pub(crate) fn block_words(&self, block: Block) -> BlockWords<'_> {
        let end = block
            .first_page()
            .plus(BLOCK_PAGES as u32)
            .min(Page(self.pages()));
        BlockWords::new(&self.table, PageRange::new(block.first_page(), end))
    }

    /// Returns the rest of a system page's hold.
    pub(crate) fn system_hold(&self, word: Word) -> Option<Duration> {
        held_in_system(word, self.clock.now())
    }

    /// Returns the rest of the hold of a page in a device's memory.
    pub(crate) fn device_hold(&self, page: Page, word: Word) -> Option<Duration> {
        let place = word.residency().placed()?;
        let folio = place.folio_frame(page);
        self.device_of(place.device).held(folio, self.clock.now())
    }

    /// Returns how many pages of the range could migrate from system memory to a device now.
    pub(crate) fn movable(&self, part: PageRange) -> u32 {
        let movable = part.pages().filter(|page| self.is_movable(*page));
        movable.count() as u32
    }

    /// Returns those of these pages of a block that are in the private memories of other devices, and that could migrate
    /// directly to this device.
    pub(crate) fn on_peers(&self, device: &Device, block: Block, pages: &PageSet) -> PageSet {
        let mut found = PageSet::EMPTY;
        let peers = self.devices().filter(|peer| peer.id != device.id);
        if device.memory.is_none() || peers.clone().next().is_none() {
            return found;
        }
        let words = self.block_words(block);
        for peer in peers.filter(|peer| peer.memory.is_some()) {
            found = found.union(&Pattern::on_device(peer.id).find(&words));
        }
        found.intersection(pages)
    }

    /// Returns whether the page could migrate from system memory to a device now.
    pub(crate) fn is_movable(&self, page: Page) -> bool {
        let word = self.table.word(page);
        match word.residency() {
            Residency::Untouched => self.first_outside(PageRange::single(page)).is_none(),
            Residency::System => word.pins() == 0 && !self.guest.is_shared(page),
            _ => false,
        }
    }

    /// Takes the translations of these folios away from all devices that may have one. When it returns, no
    /// device uses one, and no device can make one before the folios are unlocked.
    pub(crate) fn invalidate_mirrors<'a, 't: 'a>(
        &self,
        locks: impl Iterator<Item = &'a mut FolioLock<'t>>,
    ) {
        let ranges = self.mirrors.invalidate(locks);
        if ranges > 0 {
            self.recorder.add(Counter::Invalidations, ranges);
        }
    }

    /// Locks a page's folio; sleeps while another thread has the lock. The caller must hold no other page's lock.
    pub(crate) fn lock_waiting(&self, page: Page) -> FolioLock<'_> {
        loop {
            match self.table.try_lock(page) {
                TryLock::Locked(lock) => return lock,
                TryLock::Busy => self.table.wait(page),
            }
        }
    }

    /// Sleeps until no thread has the lock of any of these pages.
    pub(crate) fn settle(&self, range: PageRange) -> Result<(), Error> {
        self.check_range(range)?;
        let mut page = range.start;
        while page < range.end {
            page = self.table.settle(page);
        }
        Ok(())
    }

    /// Records an event about one page.
    pub(crate) fn page_event(
        &self,
        kind: EventKind,
        page: Page,
        device: Option<DeviceId>,
        latency: Duration,
    ) {
        self.recorder.event(|| Event {
            device,
            latency,
            ..Event::new(self.clock.now(), kind, PageRange::single(page))
        });
    }

    /// Returns the statistics so far.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            device_pages_peak: self.occupancy.peak(),
            device_pages_capacity: self.devices().map(|d| u64::from(d.capacity())).sum(),
            ..self.recorder.stats()
        }
    }

    /// Returns the host address ranges of managed memory and of the devices' memories.
    pub(crate) fn host_ranges(&self) -> Vec<std::ops::Range<u64>> {
        let devices = self.devices().filter_map(|d| d.memory.as_ref());
        let elsewhere = devices.chain([&self.exclusive]).map(|m| m.mapping());
        let all = std::iter::once(self.guest.mapping()).chain(elsewhere);
        all.map(|m| m.start()..m.start() + m.len()).collect()
    }

    /// Returns the bytes of host memory behind these pages of system memory at this moment.
    pub(crate) fn resident_bytes(&self, range: PageRange) -> Result<u64, Error> {
        self.check_range(range)?;
        let len = u64::from(range.len()) * PAGE_SIZE;
        self.guest.mapping().resident(range.start.offset(), len)
    }

    /// Returns the bytes of host memory behind a device's private memory at this moment; 0 for coherent memory.
    pub(crate) fn device_resident_bytes(&self, id: DeviceId) -> Result<u64, Error> {
        match &self.any_device(id)?.memory {
            Some(memory) => memory.mapping().resident(0, memory.mapping().len()),
            None => Ok(0),
        }
    }
}

/// Returns the rest of a system page's hold at `now`. Reading the clock for each page of a large folio would take longer
/// than locking it.
pub(super) fn held_in_system(word: Word, now: Duration) -> Option<Duration> {
    word.system_held_until()?.remaining(now)
}

/// Returns the first page of a range that is not one of the `pages` pages of managed memory, or that is in the
/// hole.
pub(crate) fn first_outside(range: PageRange, pages: u32, hole: PageRange) -> Option<Page> {
    let end = Page(pages);
    if range.overlap(hole) > 0 {
        Some(range.start.max(hole.start))
    } else if range.end > end {
        Some(range.start.max(end))
    } else {
        None
    }
}
