//! The bench on which a rule is checked: managed memory with a fault service and the subject attached, and the steps of rules.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hmm_backend::engine::{Engine, EngineChoice};
use hmm_backend::pages::{DeviceId, PAGE_SIZE, Page, PageRange};
use hmm_backend::policy::PolicySpec;
use hmm_backend::residency::{Placed, Residency};
use hmm_backend::service::{Fatal, FaultService, ServiceConfig};
use hmm_backend::{Backend, BackendConfig, Error};
use parking_lot::Mutex;

use super::obstacles::Obstacles;
use super::witness::Witness;
use super::{DeviceAccess, Evidence, MirrorDevice, PAGES, Subject};

/// The result of a rule's steps.
pub type Checked<T = ()> = Result<T, Evidence>;

/// A subject, attached.
pub struct Unit {
    // In the order in which they go: a device's threads before its books.
    pub access: Option<Box<dyn DeviceAccess>>,
    /// The suite's own device, which works on the subject's memory.
    pub device: MirrorDevice,
    pub subject: Box<dyn Subject>,
    pub witness: Arc<Witness>,
    pub id: DeviceId,
}

pub struct Bench {
    // In the order in which they go: who may fault before who serves faults.
    pub units: Vec<Unit>,
    _service: FaultService,
    pub backend: Arc<Backend>,
    obstacles: Arc<Obstacles>,
    fatal: Arc<Mutex<Vec<Fatal>>>,
    pub patience: Duration,
}

/// Managed memory for a rule, and what can be put in the way there.
pub fn backend(engine: Engine) -> Result<(Arc<Backend>, Arc<Obstacles>), Error> {
    let obstacles = Arc::new(Obstacles::default());
    let mut config = BackendConfig::new(u64::from(PAGES) * PAGE_SIZE);
    config.engine = EngineChoice::Only(engine);
    let policy: PolicySpec = "on-demand+timeslice:min=0us"
        .parse()
        .expect("a known policy");
    config.policy = Arc::new(policy);
    config.kernel = Some(obstacles.clone());
    Ok((Backend::new(config)?, obstacles))
}

impl Bench {
    pub fn new(
        (backend, obstacles): (Arc<Backend>, Arc<Obstacles>),
        subjects: Vec<(Box<dyn Subject>, Arc<Witness>)>,
        device_pages: u32,
        patience: Duration,
    ) -> Result<Bench, Error> {
        let fatal = Arc::new(Mutex::new(Vec::new()));
        let (list, released) = (fatal.clone(), backend.clone());
        let threads = vec![None; 2];
        let service = backend.start_service(
            ServiceConfig {
                threads,
                ..ServiceConfig::default()
            },
            move |fatal| {
                list.lock().push(fatal);
                // The rule is broken; the threads that sleep in the fault must wake and report it.
                released.abandon_faults();
            },
        )?;
        let mut units = Vec::new();
        for (mut subject, witness) in subjects {
            let memory = u64::from(device_pages) * PAGE_SIZE;
            let id = backend.attach(memory, witness.clone())?;
            units.push(Unit {
                access: subject.connect(&backend, id),
                device: MirrorDevice::new(&backend, id)?,
                subject,
                witness,
                id,
            });
        }
        Ok(Bench {
            units,
            _service: service,
            backend,
            obstacles,
            fatal,
            patience,
        })
    }

    /// The only or first subject.
    pub fn unit(&mut self) -> &mut Unit {
        &mut self.units[0]
    }

    pub fn obstacles(&self) -> &Obstacles {
        &self.obstacles
    }

    pub fn witness(&self) -> &Witness {
        &self.units[0].witness
    }

    /// The subject's own device; rules that need it run with it only.
    pub fn access(&mut self) -> &mut dyn DeviceAccess {
        &mut **self.units[0].access.as_mut().expect("the rule needs it")
    }

    /// A CPU's access to a word.
    pub fn cpu(&self, page: u32, word: usize) -> &AtomicU64 {
        crate::word(&self.backend, page, word)
    }

    /// CPUs fill whole pages.
    pub fn fill(&self, pages: Range<u32>) {
        for page in pages {
            for word in 0..512 {
                self.cpu(page, word)
                    .store(pattern(page, word), Ordering::Relaxed);
            }
        }
    }

    /// CPUs find what [`Self::fill`] wrote.
    pub fn expect_filled(&self, when: &str, pages: Range<u32>) -> Checked {
        pages
            .into_iter()
            .try_for_each(|page| self.expect_page(when, page, pattern))
    }

    /// CPUs find zeros.
    pub fn expect_zeros(&self, when: &str, pages: Range<u32>) -> Checked {
        pages
            .into_iter()
            .try_for_each(|page| self.expect_page(when, page, |_, _| 0))
    }

    pub fn expect_page(
        &self,
        when: &str,
        page: u32,
        expected: impl Fn(u32, usize) -> u64,
    ) -> Checked {
        for word in 0..512 {
            let (expected, found) = (
                expected(page, word),
                self.cpu(page, word).load(Ordering::Relaxed),
            );
            same(|| format!("{when}, word {word}"), page, expected, found)?;
        }
        Ok(())
    }

    /// Asks for pages to go to the first subject's device. Returns how many went.
    pub fn to_device(&self, pages: Range<u32>) -> Checked<u64> {
        self.to(0, pages)
    }

    fn to(&self, unit: usize, pages: Range<u32>) -> Checked<u64> {
        let moved = self
            .backend
            .migrate_to_device(self.units[unit].id, range(pages));
        moved.map_err(|error| Evidence::new("migration to the device", "no error", error))
    }

    /// The same, and all must go.
    pub fn all_to(&self, unit: usize, pages: Range<u32>) -> Checked {
        let moved = self.to(unit, pages.clone())?;
        let what = || format!("pages moved to the device, of {} offered", pages.len());
        same(what, pages.start, pages.len() as u64, moved)
    }

    pub fn all_to_device(&self, pages: Range<u32>) -> Checked {
        self.all_to(0, pages)
    }

    /// Asks for pages to come back. Returns how many came.
    pub fn to_system(&self, pages: Range<u32>) -> Checked<u64> {
        let moved = self.backend.migrate_to_system(range(pages));
        moved.map_err(|error| Evidence::new("migration to the system", "no error", error))
    }

    /// The guest frees pages.
    pub fn free(&self, pages: Range<u32>) -> Checked<u64> {
        let freed = self.backend.guest_freed(range(pages));
        freed.map_err(|error| Evidence::new("a free by the guest", "no error", error))
    }

    /// The place of a page, after its folio is unlocked.
    pub fn residency(&self, page: u32) -> Residency {
        let at_rest = self.backend.settle(range(page..page + 1));
        let word = at_rest.and_then(|()| self.backend.word(Page(page)));
        word.expect("rules use managed pages").residency()
    }

    /// The folios in a subject's device, in page order.
    pub fn folios(&self, unit: usize) -> Vec<Range<u32>> {
        let id = self.units[unit].id;
        let mut folios = Vec::new();
        let mut page = 0;
        while page < PAGES {
            page += match self.residency(page) {
                Residency::Device(Placed { device, order, .. }) if device == id => {
                    folios.push(page..page + (1 << order));
                    1 << order
                }
                _ => 1,
            };
        }
        folios
    }

    /// Waits until all that was begun is done, then compares the driver's books with what is in its memory.
    pub fn check_books(&self, when: &str) -> Checked {
        (0..self.units.len()).try_for_each(|unit| self.check_books_of(unit, when))
    }

    fn check_books_of(&self, index: usize, when: &str) -> Checked {
        let unit = &self.units[index];
        let begin = Instant::now();
        let folios = loop {
            // A CPU wakes before the driver's `page_free` is called.
            let (folios, running) = (self.folios(index).len(), unit.witness.running());
            if running.is_empty() && unit.witness.live() == folios as i64 {
                break folios;
            }
            if begin.elapsed() > self.patience {
                return Err(Evidence::new(
                    format!("{when}, what the driver was told"),
                    format!("{folios} folios in use and no call under way"),
                    format!("{} in use, under way: {running:?}", unit.witness.live()),
                ));
            }
            std::thread::yield_now();
        };
        if let Some(complaint) = unit.subject.complaints().into_iter().next() {
            let what = format!("{when}, what the driver says");
            return Err(Evidence::new(
                what,
                "no complaint",
                format!("`{complaint}`"),
            ));
        }
        match unit.subject.live() {
            Some(live) if live != folios => {
                let mut evidence = Evidence::new(
                    format!("{when}, folios in use by the driver's books"),
                    folios,
                    live,
                );
                evidence.page = self.folios(index).first().map(|folio| Page(folio.start));
                Err(evidence)
            }
            _ => Ok(()),
        }
    }

    /// Mistakes that no step of a rule has checked for.
    pub fn accidents(&self) -> Checked {
        if let Some(panic) = self.units.iter().find_map(|unit| unit.witness.panic()) {
            return Err(panic);
        }
        let fatal = self.fatal.lock();
        match fatal.first() {
            Some(Fatal::Fault(fault)) => {
                let evidence = Evidence::new(
                    "an access by a CPU",
                    "contents",
                    format!("`{}`", fault.cause),
                );
                Err(evidence.at(fault.page))
            }
            Some(Fatal::Service(failure)) => Err(Evidence::new(
                "the fault service",
                "faults served",
                format!("`{failure}`"),
            )),
            None => Ok(()),
        }
    }
}

/// The value of a word of a filled page: never 0, different for each word.
pub fn pattern(page: u32, word: usize) -> u64 {
    (u64::from(page) << 32 | word as u64)
        .wrapping_add(1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        | 1
}

pub fn range(pages: Range<u32>) -> PageRange {
    PageRange::new(Page(pages.start), Page(pages.end))
}

/// Compares two numbers.
pub fn same(what: impl Fn() -> String, page: u32, expected: u64, found: u64) -> Checked {
    if expected == found {
        return Ok(());
    }
    Err(Evidence::new(what(), format!("{expected:#x}"), format!("{found:#x}")).at(Page(page)))
}
