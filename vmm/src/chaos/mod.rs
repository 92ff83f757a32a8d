//! What the host does to a guest that runs workload `torture` for a time: a thread that migrates, pins, protects and frees
//! pages and lets devices come and go, drivers that fail, policies that advise nonsense. And what it
//! checks, because the guest cannot: books of folios, words that devices read, additions with exclusive access.
//!
//! The thread's choices are drawn from the run's seed and the round's number; those of drivers and policies from the seed,
//! in the order in which they are called. What meets what is the machine's timing.

mod device;
mod driver;
mod options;
mod policy;
mod random;
mod thread;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hmm_backend::Backend;
use hmm_backend::driver::Driver;
use hmm_backend::pages::{DeviceId, PAGE_SIZE, Page, PageRange};
use hmm_backend::policy::PolicyFactory;
use hmmvisor_abi::control::chaos;
use hmmvisor_abi::map;
use hmmvisor_devices::thread::{self as threads, Joined, Thread};
use serde::Serialize;

use crate::ending::failure::Failure;
use crate::ending::{End, Ending};
use crate::guest::program::control::Watch;
use crate::vm::{Vm, WrapDriver};
use driver::{FailingDriver, Injected};
pub(crate) use options::{TortureOptions, replay};
use random::Random;
use thread::Disturber;

/// How long the thread may take to put everything back at the end.
const END_WITHIN: Duration = Duration::from_secs(10);

/// How much there was of what the host did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ChaosFigures {
    /// Calls of the backend.
    pub calls: u64,
    /// Devices attached while the guest ran.
    pub attached: u64,
    /// Devices detached while it ran, or at its end.
    pub detached: u64,
    /// Errors that drivers returned.
    pub failures_injected: u64,
    /// Folios that drivers declined.
    pub folios_declined: u64,
    /// Pages pinned.
    pub pinned: u64,
    /// Pages made read-only for a while.
    pub protected: u64,
    /// Pages freed by the host.
    pub freed: u64,
    /// Additions by devices with exclusive access.
    pub exclusive_adds: u64,
}

/// The pages that the guest has told of.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// The first page that the guest never frees.
    first: u32,
    /// The first of the [`chaos::PAGES`].
    host: u32,
    end: u32,
}

impl Layout {
    /// None if that is not all managed memory.
    fn new(backend: &Backend, base: u64, shared: u64) -> Option<Layout> {
        let first = base.checked_sub(map::MANAGED)? / PAGE_SIZE;
        let host = first.checked_add(shared)?;
        let end = host.checked_add(chaos::PAGES)?;
        (end <= u64::from(backend.pages())).then_some(Layout {
            first: first as u32,
            host: host as u32,
            end: end as u32,
        })
    }

    fn counters(&self) -> PageRange {
        PageRange::with_len(Page(self.host), chaos::COUNTERS as u32)
    }

    fn constant(&self) -> PageRange {
        PageRange::with_len(self.counters().end, chaos::CONSTANT as u32)
    }

    fn volatile(&self) -> PageRange {
        PageRange::with_len(self.constant().end, chaos::VOLATILE as u32)
    }
}

/// What the guest, the thread and the drivers of one run share.
struct Shared {
    backend: Arc<Backend>,
    seed: u64,
    corrupt: u64,
    base: AtomicU64,
    layout: Mutex<Option<Layout>>,
    has_layout: Condvar,
    round: AtomicU64,
    stop: AtomicBool,
    injected: Arc<Injected>,
    /// What devices added to each counter's upper half.
    added: [AtomicU64; chaos::COUNTERS as usize],
}

impl Shared {
    fn layout(&self) -> MutexGuard<'_, Option<Layout>> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One bit of a word that nobody writes.
    fn flip_a_bit(&self) {
        const WORD: usize = 77;
        let Some(layout) = *self.layout() else { return };
        if let Ok(pinned) = self.backend.pin(PageRange::single(Page(layout.host))) {
            // SAFETY: the page is present while it is pinned, aligned, and only accessed in atomic words.
            let word = unsafe { AtomicU64::from_ptr(pinned.host().cast::<u64>().add(WORD)) };
            word.fetch_xor(1 << 13, Ordering::SeqCst);
        }
    }
}

impl Watch for Shared {
    fn round(&self, round: u64) {
        self.round.store(round, Ordering::Relaxed);
        if self.corrupt > 0 && round == self.corrupt {
            self.flip_a_bit();
        }
    }

    fn chaos_base(&self, base: u64) {
        self.base.store(base, Ordering::Relaxed);
    }

    fn chaos_shared(&self, pages: u64) {
        let base = self.base.load(Ordering::Relaxed);
        *self.layout() = Layout::new(&self.backend, base, pages);
        self.has_layout.notify_all();
    }
}

/// The chaos of one run.
pub(crate) struct Chaos {
    options: TortureOptions,
    shared: Arc<Shared>,
    drivers: Arc<Mutex<Vec<Arc<FailingDriver>>>>,
    thread: Option<Thread<Disturber>>,
}

impl TortureOptions {
    /// The policy that is asked for, unless it is the one of the configuration.
    pub(crate) fn policy(&self, seed: u64) -> Option<Arc<dyn PolicyFactory>> {
        match self.policy {
            options::Policy::Given => None,
            options::Policy::Random => Some(policy::drawn(seed)),
            options::Policy::Chaotic => Some(Arc::new(policy::Chaotic { seed })),
        }
    }
}

impl Chaos {
    pub(crate) fn new(options: TortureOptions, seed: u64, backend: &Arc<Backend>) -> Chaos {
        let shared = Shared {
            backend: backend.clone(),
            seed,
            corrupt: options.corrupt,
            base: AtomicU64::new(0),
            layout: Mutex::new(None),
            has_layout: Condvar::new(),
            round: AtomicU64::new(options.round),
            stop: AtomicBool::new(false),
            injected: Arc::default(),
            added: [const { AtomicU64::new(0) }; _],
        };
        Chaos {
            options,
            shared: Arc::new(shared),
            drivers: Arc::default(),
            thread: None,
        }
    }

    /// What makes the accelerators' drivers fail.
    pub(crate) fn wrap_driver(&self) -> Option<Box<WrapDriver>> {
        if !self.options.chaos {
            return None;
        }
        let (drivers, injected, seed) = (
            self.drivers.clone(),
            self.shared.injected.clone(),
            self.shared.seed,
        );
        Some(Box::new(move |index, inner: Arc<dyn Driver>| {
            let random = Arc::new(Random::new(seed, 100 + u64::from(index)));
            let driver = Arc::new(FailingDriver::new(inner, random, injected.clone()));
            lock(&drivers).push(driver.clone());
            driver
        }))
    }

    /// Before the vCPUs start.
    pub(crate) fn start(&mut self, vm: &Vm) -> std::io::Result<()> {
        vm.control().watch(self.shared.clone());
        if self.options.chaos {
            let accelerators: Vec<DeviceId> = vm
                .accelerators()
                .iter()
                .map(|accelerator| accelerator.device_id())
                .collect();
            let disturber = Disturber::new(
                self.shared.clone(),
                vm.control().clone(),
                vm.ending().clone(),
                accelerators,
                self.options.seconds,
            );
            let on_panic = vm.ending().on_panic();
            self.thread = Some(threads::spawn("chaos", on_panic, || disturber.run())?);
        }
        Ok(())
    }

    /// Ends the chaos, stops the machine and looks at what is left. `end` becomes a failure if something is wrong that
    /// the guest has not noticed.
    pub(crate) fn finish(mut self, vm: &mut Vm, end: &mut End) -> Option<ChaosFigures> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.has_layout.notify_all();
        let disturber = self.thread.take().map(|thread| {
            thread.handle().thread().unpark();
            thread.join_within(END_WITHIN)
        });
        vm.stop();
        let mut figures = match disturber? {
            Joined::Ended(disturber) => disturber.figures,
            Joined::Panicked => {
                wrong(end, "the chaos thread panicked: a bug in Hmmvisor".into());
                return None;
            }
            Joined::Running => {
                wrong(end, "the chaos thread does not end".into());
                return None;
            }
        };
        if *end == End::Exit(0)
            && let Err(what) = self.check(vm)
        {
            wrong(end, what);
        }
        let injected = &self.shared.injected;
        figures.failures_injected = injected.failures.load(Ordering::Relaxed);
        figures.folios_declined = injected.declined.load(Ordering::Relaxed);
        Some(figures)
    }

    /// With everything stopped.
    fn check(&self, vm: &Vm) -> Result<(), String> {
        let backend = &self.shared.backend;
        for accelerator in vm.accelerators() {
            thread::detach(backend, accelerator.device_id())?;
            match accelerator.stats().contract_violations {
                0 => {}
                n => {
                    return Err(format!(
                        "an accelerator counted {n} violations of the contract"
                    ));
                }
            }
        }
        for (index, driver) in lock(&self.drivers).iter().enumerate() {
            let books = driver.check_books();
            books.map_err(|what| format!("books of accelerator {index}: {what}"))?;
        }
        let injected = &self.shared.injected;
        let (folios, freed) = (
            injected.folios.load(Ordering::Relaxed),
            injected.freed.load(Ordering::Relaxed),
        );
        if folios != freed {
            return Err(format!("{folios} folios were allocated, {freed} freed"));
        }
        let Some(layout) = *self.shared.layout() else {
            return Err("the guest never said which pages may be disturbed".into());
        };
        for (page, added) in layout.counters().pages().zip(&self.shared.added) {
            let pinned = backend
                .pin(PageRange::single(page))
                .map_err(|error| format!("a counter at the end: {error}"))?;
            // SAFETY: the page is present while it is pinned, and aligned.
            let word = unsafe { AtomicU64::from_ptr(pinned.host().cast()) };
            let (expected, found) = (
                added.load(Ordering::Relaxed) as u32,
                (word.load(Ordering::SeqCst) >> 32) as u32,
            );
            if found != expected {
                return Err(format!(
                    "page {:#x}, word 0, the devices' half of a counter: expected {expected:#x}, found {found:#x}",
                    page.0
                ));
            }
            vm.control().add_checked(1);
        }
        Ok(())
    }
}

fn wrong(end: &mut End, what: String) {
    if *end == End::Exit(0) {
        *end = End::Failed(Failure::Torture(what));
    }
}

/// Says what is wrong and ends the run.
fn report(ending: &Ending, what: String) {
    ending.set(End::Failed(Failure::Torture(what)));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The words of the constant pages hold their own guest-physical addresses.
fn address_of(page: Page, word: u64) -> u64 {
    map::MANAGED + page.offset() + word * 8
}

impl Drop for Chaos {
    fn drop(&mut self) {
        // A machine that could not be started: nobody has called `finish`.
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.has_layout.notify_all();
        if let Some(thread) = self.thread.take() {
            thread.handle().thread().unpark();
            let _ = thread.join_within(END_WITHIN);
        }
    }
}
