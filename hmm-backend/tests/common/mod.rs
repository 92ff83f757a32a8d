//! A test process without a VM: its own threads are the CPUs, and a small device reads and writes through a
//! mirror.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use hmm_backend::driver::{Driver, FaultError};
use hmm_backend::engine::{Engine, EngineChoice};
use hmm_backend::mirror::{Mirror, MirrorError, PageTable, TranslationTable};
use hmm_backend::pages::{Access, DeviceId, Page, PageRange};
use hmm_backend::service::{Fatal, FatalFault, FaultService, ServiceConfig};
use hmm_backend::testing::{CheckedDriver, Failing};
use hmm_backend::{Backend, BackendConfig};

/// Failures that a test driver injects into its next calls.
#[derive(Default)]
pub struct Faults {
    /// Errors for the next calls of `migrate_to_ram`, the last one first.
    pub to_ram: Vec<FaultError>,
    /// How many of the next migrations to the device fail after the copy.
    pub to_device_after_copy: u32,
    /// How many of the next migrations to the device fail before the copy.
    pub to_device_before_copy: u32,
    /// How many of the next calls to flush folios for another device fail.
    pub flush: u32,
    /// How many of the next migrations to system memory the driver abandons after the copy phase.
    pub to_ram_after_copy: u32,
}

impl Faults {
    fn reached(&mut self, point: Failing) -> Result<(), FaultError> {
        let left = match point {
            Failing::ToSystemBeforeCopy => return self.to_ram.pop().map_or(Ok(()), Err),
            Failing::ToDeviceBeforeCopy => &mut self.to_device_before_copy,
            Failing::ToDeviceAfterCopy => &mut self.to_device_after_copy,
            Failing::ToSystemAfterCopy => &mut self.to_ram_after_copy,
            Failing::Flush => &mut self.flush,
        };
        match left.checked_sub(1) {
            Some(rest) => {
                *left = rest;
                Err(FaultError::Retry)
            }
            None => Ok(()),
        }
    }
}

/// A device that reads and writes 64-bit words.
pub struct Device {
    pub id: DeviceId,
    pub driver: Arc<CheckedDriver>,
    /// Failures of the driver's next calls.
    pub faults: Arc<Mutex<Faults>>,
    mirror: Mirror<PageTable>,
}

impl Device {
    pub fn read(&mut self, page: u32, word: usize) -> Result<u64, MirrorError> {
        self.mirror.access(Page(page), Access::Read, |m| {
            cell(m.host.as_ptr(), word).load(Ordering::SeqCst)
        })
    }

    pub fn write(&mut self, page: u32, word: usize, value: u64) -> Result<(), MirrorError> {
        self.mirror.access(Page(page), Access::Write, |m| {
            cell(m.host.as_ptr(), word).store(value, Ordering::SeqCst)
        })
    }

    pub fn add(&mut self, page: u32, word: usize, value: u64) -> Result<u64, MirrorError> {
        self.mirror.access(Page(page), Access::Write, |m| {
            cell(m.host.as_ptr(), word).fetch_add(value, Ordering::SeqCst)
        })
    }

    /// Adds to a word while the page is exclusive to the device. The addition is a load and a store, not an
    /// atomic operation of the host; `between` runs between the two.
    pub fn add_exclusively(
        &mut self,
        page: u32,
        word: usize,
        value: u64,
        between: impl Fn(),
    ) -> Result<(), MirrorError> {
        self.mirror.access_exclusively(Page(page), |mapping| {
            let cell = cell(mapping.host.as_ptr(), word);
            let old = cell.load(Ordering::SeqCst);
            between();
            cell.store(old + value, Ordering::SeqCst);
        })
    }

    /// Returns the device's mirror.
    pub fn mirror(&mut self) -> &mut Mirror<PageTable> {
        &mut self.mirror
    }

    /// Returns where the device's table says the page is, if it has a translation.
    pub fn target(&mut self, page: u32) -> Option<hmm_backend::mirror::Target> {
        self.mirror.lock().get(Page(page)).map(|m| m.target)
    }
}

fn cell<'a>(page: *mut u8, word: usize) -> &'a AtomicU64 {
    assert!(word < 512);
    // SAFETY: the word lies inside a page of a mapping that lives as long as the backend, which every
    // caller keeps; all accesses in these tests are atomic.
    unsafe { AtomicU64::from_ptr(page.cast::<u64>().add(word)) }
}

/// Managed memory with a fault service, and the fatal faults that it has reported.
pub struct Rig {
    // Dropped first: the service must not outlive the backend that it serves.
    service: Option<FaultService>,
    pub backend: Arc<Backend>,
    pub fatal: Arc<Mutex<Vec<Fatal>>>,
    pub fatal_seen: Arc<std::sync::Condvar>,
}

impl Rig {
    pub fn new(pages: u32, engine: Engine, policy: &str) -> Rig {
        Self::with(pages, engine, policy, |_| {}, 1)
    }

    pub fn with(
        pages: u32,
        engine: Engine,
        policy: &str,
        change: impl FnOnce(&mut BackendConfig),
        threads: usize,
    ) -> Rig {
        let mut config = BackendConfig::new(u64::from(pages) * hmm_backend::pages::PAGE_SIZE);
        config.engine = EngineChoice::Only(engine);
        config.policy = Arc::new(policy.parse::<hmm_backend::policy::PolicySpec>().unwrap());
        config.events = 1 << 16;
        if NO_MOVES.get() {
            config.recycled = 0;
        }
        change(&mut config);
        let backend = Backend::new(config).unwrap();
        let fatal = Arc::new(Mutex::new(Vec::new()));
        let fatal_seen = Arc::new(std::sync::Condvar::new());
        let (list, seen) = (fatal.clone(), fatal_seen.clone());
        let service = backend
            .start_service(
                ServiceConfig {
                    threads: vec![None; threads],
                    ..ServiceConfig::default()
                },
                move |fatal| {
                    list.lock().unwrap().push(fatal);
                    seen.notify_all();
                },
            )
            .unwrap();
        Rig {
            service: Some(service),
            backend,
            fatal,
            fatal_seen,
        }
    }

    /// Waits for a fatal fault and returns the list of them. If none is reported within a minute, abandons all
    /// faults, so that the test ends, and panics.
    pub fn first_fatal(&self) -> MutexGuard<'_, Vec<Fatal>> {
        let fatal = self.fatal.lock().unwrap();
        let minute = std::time::Duration::from_secs(60);
        let seen = self
            .fatal_seen
            .wait_timeout_while(fatal, minute, |fatal| fatal.is_empty());
        let (fatal, late) = seen.unwrap();
        if late.timed_out() {
            drop(fatal);
            self.backend.abandon_faults();
            panic!("no fault was reported");
        }
        fatal
    }

    pub fn device(&self, pages: u32) -> Device {
        self.attach(pages, Backend::attach)
    }

    pub fn coherent_device(&self, pages: u32) -> Device {
        self.attach(pages, Backend::attach_coherent)
    }

    fn attach(
        &self,
        pages: u32,
        attach: impl Fn(&Backend, u64, Arc<dyn Driver>) -> Result<DeviceId, hmm_backend::Error>,
    ) -> Device {
        let faults: Arc<Mutex<Faults>> = Arc::default();
        let its = faults.clone();
        let script = move |point, _| its.lock().unwrap().reached(point);
        let driver = Arc::new(CheckedDriver::failing(script));
        let bytes = u64::from(pages) * hmm_backend::pages::PAGE_SIZE;
        let id = attach(&self.backend, bytes, driver.clone()).unwrap();
        let mirror = self.backend.mirror(id, PageTable::default()).unwrap();
        Device {
            id,
            driver,
            faults,
            mirror,
        }
    }

    /// Returns a word of a page, for a CPU's access.
    pub fn cpu(&self, page: u32, word: usize) -> &AtomicU64 {
        Self::cell_of(&self.backend, page, word)
    }

    /// Returns the first word of a page, for a CPU's access without a rig.
    pub fn word_of(backend: &Backend, page: u32) -> &AtomicU64 {
        Self::cell_of(backend, page, 0)
    }

    fn cell_of(backend: &Backend, page: u32, word: usize) -> &AtomicU64 {
        let (base, len) = backend.host_memory();
        let offset = u64::from(page) * hmm_backend::pages::PAGE_SIZE;
        assert!(offset < len);
        cell(base.wrapping_add(offset as usize), word)
    }

    /// Stops the service, as at the end of a machine.
    pub fn stop_service(&mut self) {
        drop(self.service.take());
    }

    /// Waits until the statistics fulfil the condition. The service counts a fault a moment after it has woken
    /// the CPU.
    pub fn wait_for(&self, condition: impl Fn(&hmm_backend::observe::Stats) -> bool) {
        let started = std::time::Instant::now();
        while !condition(&self.backend.stats()) {
            assert!(
                started.elapsed().as_secs() < 20,
                "never came: {:#?}",
                self.backend.stats()
            );
            std::thread::yield_now();
        }
    }

    pub fn range(&self, pages: std::ops::Range<u32>) -> PageRange {
        PageRange::new(Page(pages.start), Page(pages.end))
    }

    /// Returns the pages of the range that are in private device memory.
    pub fn on_device(&self, pages: std::ops::Range<u32>) -> HashSet<u32> {
        self.backend.settle(self.range(pages.clone())).unwrap();
        let on_device = |p: &u32| {
            let word = self.backend.word(Page(*p)).unwrap();
            matches!(
                word.residency(),
                hmm_backend::residency::Residency::Device(_)
            )
        };
        pages.filter(on_device).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop_service();
    }
}

thread_local! {
    /// Whether this test's rigs use no moves, as on a kernel without `UFFDIO_MOVE`.
    static NO_MOVES: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs a test whose rigs use no moves, as on a kernel without `UFFDIO_MOVE`.
pub fn without_moves(test: impl FnOnce()) {
    NO_MOVES.set(true);
    test();
    NO_MOVES.set(false);
}

/// Runs a test once with each engine, and with `copy` also as on a kernel without `UFFDIO_MOVE`.
pub fn both_engines(test: impl Fn(Engine)) {
    for (engine, no_moves) in [
        (Engine::Remap, false),
        (Engine::Copy, false),
        (Engine::Copy, true),
    ] {
        eprintln!(
            "engine {engine}{}",
            if no_moves { " without moves" } else { "" }
        );
        NO_MOVES.set(no_moves);
        test(engine);
    }
    NO_MOVES.set(false);
}

/// The fault of a report, if it is about one.
pub fn fault(fatal: &Fatal) -> Option<&FatalFault> {
    match fatal {
        Fatal::Fault(fault) => Some(fault),
        Fatal::Service(_) => None,
    }
}
