//! The thread that disturbs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hmm_backend::mirror::MirrorError;
use hmm_backend::pages::{DeviceId, Page, PageRange, Permission};
use hmm_backend::testing::CheckedDriver;
use hmm_backend::{Backend, Error, Pinned};

use super::device::{ExtraDevice, WORDS};
use super::driver::FailingDriver;
use super::random::Random;
use super::{Figures, Layout, Listener, State, address_of};

/// Devices that come and go in a run, at most: a backend can attach 64 in its life.
const EXTRA_DEVICES: u64 = 40;
/// Extra devices attached at a time, at most.
const AT_A_TIME: usize = 3;
/// Pins held at a time, at most.
const PINS: usize = 4;
/// Longest pause between two calls: the guest shall get on, too.
const PAUSE_US: u64 = 400;

/// The thread's state.
pub(super) struct Disturber {
    state: Arc<State>,
    listener: Arc<dyn Listener>,
    accelerators: Vec<DeviceId>,
    /// The time between two arrivals of devices.
    interval: Duration,
    extra: VecDeque<ExtraDevice>,
    pins: VecDeque<Pinned>,
    protected: Vec<PageRange>,
    random: Random,
    round: u64,
    pub(super) figures: Figures,
}

impl Disturber {
    pub(super) fn new(
        state: Arc<State>,
        listener: Arc<dyn Listener>,
        accelerators: Vec<DeviceId>,
        seconds: u64,
    ) -> Disturber {
        let round = state.round.load(Ordering::Relaxed);
        Disturber {
            random: Random::new(state.seed, 1000 + round),
            state,
            listener,
            accelerators,
            interval: Duration::from_millis((seconds * 1000 / (EXTRA_DEVICES + 1)).max(20)),
            extra: VecDeque::new(),
            pins: VecDeque::new(),
            protected: Vec::new(),
            round,
            figures: Figures::default(),
        }
    }

    fn stopping(&self) -> bool {
        self.state.stop.load(Ordering::SeqCst)
    }

    /// Disturbs the guest until it is told to stop, then puts everything back.
    pub(super) fn run(mut self) -> Disturber {
        let waiting = |layout: &mut Option<Layout>| layout.is_none() && !self.stopping();
        let layout = {
            let mut layout = self.state.layout.lock();
            self.state.has_layout.wait_while(&mut layout, waiting);
            *layout
        };
        let result = match layout {
            Some(layout) => self.disturb(layout),
            None => Ok(()),
        };
        // Also after an error: the checks at the end want to find everything in place.
        let result = result.and(self.put_back());
        if let Err(what) = result {
            self.listener.failed(what);
        }
        self
    }

    fn disturb(&mut self, layout: Layout) -> Result<(), String> {
        let mut next_device = Instant::now();
        while !self.stopping() {
            let round = self.state.round.load(Ordering::Relaxed);
            if round != self.round {
                self.round = round;
                self.random = Random::new(self.state.seed, 1000 + round);
            }
            if Instant::now() >= next_device && self.figures.attached < EXTRA_DEVICES {
                next_device = Instant::now() + self.interval;
                self.attach()?;
            }
            self.step(layout)?;
            self.figures.calls += 1;
            std::thread::park_timeout(Duration::from_micros(self.random.below(PAUSE_US)));
        }
        Ok(())
    }

    /// Draws some pages of a range, at most `most`.
    fn some(&self, range: PageRange, most: u64) -> PageRange {
        let start = self.random.below(range.len().into()) as u32;
        let len = 1 + self.random.below(most.min(u64::from(range.len() - start))) as u32;
        PageRange::with_len(range.start.plus(start), len)
    }

    fn step(&mut self, layout: Layout) -> Result<(), String> {
        let backend = self.state.backend.clone();
        let all = PageRange::new(Page(0), Page(layout.end));
        match self.random.below(16) {
            0..=2 => {
                let most = 1 << self.random.below(10);
                let range = self.some(all, most);
                let extra = self.extra.iter().map(|device| device.id);
                let devices: Vec<_> = self.accelerators.iter().copied().chain(extra).collect();
                let device = devices[self.random.below(devices.len() as u64) as usize];
                let moved = backend.migrate_to_device(device, range);
                moved.map_err(|error| format!("migrating {range:?}: {error}"))?;
            }
            3..=4 => {
                let most = 1 << self.random.below(10);
                let range = self.some(all, most);
                let moved = backend.migrate_to_system(range);
                moved.map_err(|error| format!("migrating {range:?}: {error}"))?;
            }
            5 => {
                if self.pins.len() == PINS {
                    self.pins.pop_front();
                }
                // Never read-only ones, which cannot be pinned for writing.
                let shared = PageRange::new(Page(layout.first), layout.counters().end);
                let range = self.some(shared, 8);
                let pinned = backend.pin(range);
                let pinned = pinned.map_err(|error| format!("pinning {range:?}: {error}"))?;
                self.figures.pinned += u64::from(range.len());
                self.pins.push_back(pinned);
            }
            6 => self.pins.clear(),
            7 => {
                let range = self.some(layout.constant(), 8);
                self.set_permission(range, Permission::ReadOnly)?;
                self.figures.protected += u64::from(range.len());
                self.protected.push(range);
            }
            8 => self.lift()?,
            9 => {
                let range = self.some(layout.volatile(), 8);
                let freed = backend.guest_freed(range);
                self.figures.freed +=
                    freed.map_err(|error| format!("freeing {range:?}: {error}"))?;
            }
            10..=12 => self.add(layout)?,
            _ => self.read(layout)?,
        }
        Ok(())
    }

    fn any_extra(&mut self) -> Option<&mut ExtraDevice> {
        let count = self.extra.len() as u64;
        let index = (count > 0).then(|| self.random.below(count) as usize)?;
        self.extra.get_mut(index)
    }

    /// A device adds to a counter's upper half, vCPUs to its lower half.
    fn add(&mut self, layout: Layout) -> Result<(), String> {
        let counters = layout.counters();
        let index = self.random.below(counters.len().into());
        let page = counters.start.plus(index as u32);
        let count = 1 + self.random.below(32);
        let state = self.state.clone();
        let added = &state.added[index as usize];
        let Some(device) = self.any_extra() else {
            return Ok(());
        };
        for done in 0..count {
            let expected = added.load(Ordering::Relaxed) as u32;
            let found = match device.add_exclusively(page, 1 << 32) {
                Ok(found) => (found >> 32) as u32,
                // Pinned just now.
                Err(MirrorError::NotExclusive(_)) => {
                    self.count_adds(done);
                    return Ok(());
                }
                Err(error) => return Err(format!("exclusive access to {page:?}: {error}")),
            };
            added.fetch_add(1, Ordering::Relaxed);
            if found != expected {
                return Err(format!(
                    "page {:#x}, word 0, the devices' half of a counter: expected {expected:#x}, found {found:#x}",
                    page.0
                ));
            }
        }
        self.count_adds(count);
        Ok(())
    }

    fn count_adds(&mut self, count: u64) {
        self.figures.exclusive_adds += count;
        self.listener.checked(count);
    }

    /// A device reads a constant page and compares every word.
    fn read(&mut self, layout: Layout) -> Result<(), String> {
        let both = PageRange::new(layout.host_page(), layout.constant().end);
        let page = both.start.plus(self.random.below(both.len().into()) as u32);
        // A counter's page begins with the counter.
        let first = usize::from(layout.counters().contains(page));
        let Some(device) = self.any_extra() else {
            return Ok(());
        };
        let wrong = device.read(page, |words| {
            (first..words.len()).find_map(|word| {
                let (expected, found) = (
                    address_of(page, word as u64),
                    words[word].load(Ordering::Relaxed),
                );
                (found != expected).then_some((word, expected, found))
            })
        });
        match wrong.map_err(|error| format!("a device reads {page:?}: {error}"))? {
            None => self.listener.checked(WORDS - first as u64),
            Some((word, expected, found)) => {
                return Err(format!(
                    "page {:#x}, word {word}, a constant that a device reads: expected {expected:#x}, found {found:#x}",
                    page.0
                ));
            }
        }
        Ok(())
    }

    /// Sets what the guest may do with pages. Tries again what the kernel may refuse for a moment.
    fn set_permission(&self, range: PageRange, permission: Permission) -> Result<(), String> {
        const TRIES: u32 = 100;
        let mut tries = 0;
        loop {
            match self.state.backend.set_permission(range, permission) {
                Ok(()) => return Ok(()),
                Err(Error::Protect { .. }) if tries < TRIES => tries += 1,
                Err(error) => return Err(format!("permission of {range:?}: {error}")),
            }
        }
    }

    fn lift(&mut self) -> Result<(), String> {
        for range in std::mem::take(&mut self.protected) {
            self.set_permission(range, Permission::Writable)?;
        }
        Ok(())
    }

    /// A device comes; the oldest goes if there are many.
    fn attach(&mut self) -> Result<(), String> {
        if self.extra.len() == AT_A_TIME {
            self.detach_oldest()?;
        }
        let (backend, number) = (&self.state.backend, self.figures.attached);
        let memory = (16 + self.random.below(512)) * hmm_backend::pages::PAGE_SIZE;
        let cookies = Arc::new(CheckedDriver::default());
        let random = Arc::new(Random::new(self.state.seed, 200 + number));
        let injected = self.state.injected.clone();
        let books = Arc::new(FailingDriver::new(cookies.clone(), random, injected));
        let id = match number % 3 {
            2 => backend.attach_coherent(memory, books.clone()),
            _ => backend.attach(memory, books.clone()),
        };
        let device = id.and_then(|id| ExtraDevice::new(backend, id, books, cookies));
        let device = device.map_err(|error| format!("attaching device {number}: {error}"))?;
        self.extra.push_back(device);
        self.figures.attached += 1;
        Ok(())
    }

    fn detach_oldest(&mut self) -> Result<(), String> {
        let Some(device) = self.extra.pop_front() else {
            return Ok(());
        };
        detach(&self.state.backend, device.id)?;
        self.figures.detached += 1;
        let name = format!("device {:?}", device.id);
        device
            .books
            .check_books()
            .map_err(|what| format!("books of {name}: {what}"))?;
        match &device.cookies.violations()[..] {
            [] => Ok(()),
            [first, ..] => Err(format!("{name}: {first}")),
        }
    }

    fn put_back(&mut self) -> Result<(), String> {
        self.pins.clear();
        self.lift()?;
        while !self.extra.is_empty() {
            self.detach_oldest()?;
        }
        Ok(())
    }
}

/// Detaches a device whose driver may fail now and then.
pub(super) fn detach(backend: &Backend, device: DeviceId) -> Result<(), String> {
    const TRIES: u32 = 10;
    let mut result = Ok(());
    for _ in 0..TRIES {
        result = backend.detach(device);
        if result.is_ok() {
            break;
        }
    }
    result.map_err(|error| format!("detaching: {error}"))
}

impl Layout {
    fn host_page(&self) -> Page {
        Page(self.host)
    }
}
