//! What the host does to a guest that runs the workload `torture` for a time: a thread migrates, pins, protects and frees pages and
//! attaches and detaches devices, drivers fail, policies advise nonsense. The host also checks what the guest cannot: the books of
//! folios, the words that devices read, the additions that devices make with exclusive access.
//!
//! The thread's choices are drawn from the run's seed and the round's number; those of drivers and policies from the seed,
//! in the order in which they are called. What meets what is the machine's timing.
//!
//! The VMM holds a [`Torture`] through a run: it asks for the policy and for drivers while it makes the machine, starts the thread
//! before the guest, passes on what the guest says ([`State`]), and stops the thread before the machine.

mod device;
mod driver;
mod options;
mod policy;
mod random;
mod thread;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hmm_backend::Backend;
use hmm_backend::driver::Driver;
use hmm_backend::pages::{PAGE_SIZE, Page, PageRange};
use hmm_backend::policy::PolicyFactory;
use hmmvisor_abi::control::chaos;
use hmmvisor_abi::map;
use hmmvisor_devices::Accelerator;
use hmmvisor_devices::thread::{self as threads, Joined, Thread};
use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use driver::{FailingDriver, Injected};
use options::Options;
use random::Random;
use thread::Disturber;

/// How long the thread may take to put everything back at the end.
const END_WITHIN: Duration = Duration::from_secs(10);

/// How much there was of what the host did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
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
    /// Returns none unless all of the pages are managed memory.
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

/// Receives what a torture finds while the guest runs.
pub trait Listener: Send + Sync {
    /// Counts this many more operations whose outcome was compared with what it must be.
    fn checked(&self, operations: u64);
    /// Ends the run, because of something wrong that `what` describes.
    fn failed(&self, what: String);
}

/// What the guest, the thread and the drivers of one run share.
pub struct State {
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

impl State {
    /// Inverts one bit of a word that neither guest nor host writes.
    fn flip_a_bit(&self) {
        const WORD: usize = 77;
        let Some(layout) = *self.layout.lock() else {
            return;
        };
        if let Ok(pinned) = self.backend.pin(PageRange::single(Page(layout.host))) {
            // SAFETY: the page is present while it is pinned, aligned, and only accessed in atomic words.
            let word = unsafe { AtomicU64::from_ptr(pinned.host().cast::<u64>().add(WORD)) };
            word.fetch_xor(1 << 13, Ordering::SeqCst);
        }
    }
}

/// What the guest says.
impl State {
    /// Notes that a round begins.
    pub fn round(&self, round: u64) {
        self.round.store(round, Ordering::Relaxed);
        if self.corrupt > 0 && round == self.corrupt {
            self.flip_a_bit();
        }
    }

    /// Notes the guest-physical address of the first page that the guest never frees, see [`chaos`].
    pub fn chaos_base(&self, base: u64) {
        self.base.store(base, Ordering::Relaxed);
    }

    /// Notes how many pages from there on the guest shares with the host. From now on the thread disturbs them.
    pub fn chaos_shared(&self, pages: u64) {
        let base = self.base.load(Ordering::Relaxed);
        *self.layout.lock() = Layout::new(&self.backend, base, pages);
        self.has_layout.notify_all();
    }

    /// Tells the thread to end.
    fn stop(&self) {
        // Under the lock, so that the thread is not between its look at `stop` and its sleep, where no call wakes it.
        let _layout = self.layout.lock();
        self.stop.store(true, Ordering::SeqCst);
        self.has_layout.notify_all();
    }
}

/// Puts a driver in front of an accelerator's own, which it gets with the accelerator's index.
pub type WrapDriver = dyn Fn(u32, Arc<dyn Driver>) -> Arc<dyn Driver>;

/// The torture of one run.
pub struct Torture {
    options: Options,
    seed: u64,
    injected: Arc<Injected>,
    drivers: Arc<Mutex<Vec<Arc<FailingDriver>>>>,
    running: Option<Running>,
}

/// What a torture has while the guest runs.
struct Running {
    state: Arc<State>,
    accelerators: Vec<Arc<Accelerator>>,
    listener: Arc<dyn Listener>,
    /// The thread; none without `chaos=on`.
    thread: Option<Thread<Disturber>>,
}

impl Torture {
    /// A torture with these parameters of the workload; none if the guest is not to run for a time. Parameters that are wrong are
    /// the catalogue's to complain about.
    pub fn new(params: &[(String, String)], seed: u64) -> Option<Torture> {
        Some(Torture {
            options: Options::new(params)?,
            seed,
            injected: Arc::default(),
            drivers: Arc::default(),
            running: None,
        })
    }

    /// The policy that is asked for; none if that is the one of the configuration.
    pub fn policy(&self) -> Option<Arc<dyn PolicyFactory>> {
        match self.options.policy {
            options::Policy::Given => None,
            options::Policy::Random => Some(policy::drawn(self.seed)),
            options::Policy::Chaotic => Some(Arc::new(policy::Chaotic { seed: self.seed })),
        }
    }

    /// Whether first touches fill blocks, as under Linux: with every other seed.
    pub fn fills_blocks(&self) -> bool {
        self.options.chaos && self.seed % 2 == 1
    }

    /// Whether devices come and go while the guest runs.
    pub fn attaches_devices(&self) -> bool {
        self.options.chaos
    }

    /// What makes the accelerators' drivers fail.
    pub fn wrap_driver(&self) -> Option<Box<WrapDriver>> {
        if !self.options.chaos {
            return None;
        }
        let (drivers, injected) = (self.drivers.clone(), self.injected.clone());
        let seed = self.seed;
        Some(Box::new(move |index, inner: Arc<dyn Driver>| {
            let random = Arc::new(Random::new(seed, 100 + u64::from(index)));
            let driver = Arc::new(FailingDriver::new(inner, random, injected.clone()));
            drivers.lock().push(driver.clone());
            driver
        }))
    }

    /// Starts the thread, before the vCPUs. Returns where the VMM passes on what the guest says.
    pub fn start(
        &mut self,
        backend: &Arc<Backend>,
        accelerators: &[Arc<Accelerator>],
        listener: Arc<dyn Listener>,
        on_panic: impl FnOnce(&str) + Send + 'static,
    ) -> io::Result<Arc<State>> {
        let state = Arc::new(State {
            backend: backend.clone(),
            seed: self.seed,
            corrupt: self.options.corrupt,
            base: AtomicU64::new(0),
            layout: Mutex::new(None),
            has_layout: Condvar::new(),
            round: AtomicU64::new(self.options.round),
            stop: AtomicBool::new(false),
            injected: self.injected.clone(),
            added: [const { AtomicU64::new(0) }; _],
        });
        let mut thread = None;
        if self.options.chaos {
            let ids = accelerators.iter().map(|it| it.device_id()).collect();
            let seconds = self.options.seconds;
            let disturber = Disturber::new(state.clone(), listener.clone(), ids, seconds);
            thread = Some(threads::spawn("chaos", on_panic, || disturber.run())?);
        }
        self.running = Some(Running {
            state: state.clone(),
            accelerators: accelerators.to_vec(),
            listener,
            thread,
        });
        Ok(state)
    }

    /// Ends the thread, which puts everything back, then stops the machine. Returns nothing where there was no chaos; an error if
    /// the thread could not be ended.
    pub fn stop(mut self, stop_machine: impl FnOnce()) -> Result<Option<Stopped>, String> {
        let mut running = self.running.take();
        let thread = running.as_mut().and_then(Running::end_thread);
        stop_machine();
        match (thread, running) {
            (Some(Joined::Ended(disturber)), Some(running)) => Ok(Some(Stopped {
                figures: disturber.figures,
                injected: self.injected.clone(),
                drivers: self.drivers.lock().clone(),
                running,
            })),
            (Some(Joined::Panicked), _) => {
                Err("the chaos thread panicked: a bug in Hmmvisor".to_owned())
            }
            (Some(Joined::Running), _) => Err("the chaos thread does not end".to_owned()),
            _ => Ok(None),
        }
    }
}

impl Running {
    fn end_thread(&mut self) -> Option<Joined<Disturber>> {
        self.state.stop();
        let thread = self.thread.take()?;
        thread.handle().thread().unpark();
        Some(thread.join_within(END_WITHIN))
    }
}

impl Drop for Running {
    /// Ends the thread also where the machine could not be started.
    fn drop(&mut self) {
        self.end_thread();
    }
}

/// A torture whose machine has stopped.
pub struct Stopped {
    figures: Figures,
    injected: Arc<Injected>,
    drivers: Vec<Arc<FailingDriver>>,
    running: Running,
}

impl Stopped {
    /// How much there was of everything.
    pub fn figures(&self) -> Figures {
        Figures {
            failures_injected: self.injected.failures.load(Ordering::Relaxed),
            folios_declined: self.injected.declined.load(Ordering::Relaxed),
            ..self.figures.clone()
        }
    }

    /// Detaches the accelerators and looks at what is left; an error if something is wrong that the guest has not noticed.
    pub fn check(&self) -> Result<(), String> {
        let Running {
            state,
            accelerators,
            listener,
            ..
        } = &self.running;
        let backend = &state.backend;
        for accelerator in accelerators {
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
        for (index, driver) in self.drivers.iter().enumerate() {
            let books = driver.check_books();
            books.map_err(|what| format!("books of accelerator {index}: {what}"))?;
        }
        let injected = &self.injected;
        let (folios, freed) = (
            injected.folios.load(Ordering::Relaxed),
            injected.freed.load(Ordering::Relaxed),
        );
        if folios != freed {
            return Err(format!("{folios} folios were allocated, {freed} freed"));
        }
        let Some(layout) = *state.layout.lock() else {
            return Err("the guest never said which pages may be disturbed".into());
        };
        for (page, added) in layout.counters().pages().zip(&state.added) {
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
            listener.checked(1);
        }
        Ok(())
    }
}

/// The words of the constant pages hold their own guest-physical addresses.
fn address_of(page: Page, word: u64) -> u64 {
    map::MANAGED + page.offset() + word * 8
}
