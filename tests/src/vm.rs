//! A virtual machine in a few lines, whose vCPUs do what a test says.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hmm_backend::{
    BLOCK_PAGES, Backend, BackendConfig, Driver, Engine, EngineChoice, Event, PAGE_SIZE, Page,
    PageRange, PolicySpec, Residency, Stats,
};
use hmmvisor::ending::Ending;
use hmmvisor::vm::{DeviceConfig, Hooks, Managed, Vm, VmConfig};
use hmmvisor::{End, OnMemoryError};
use hmmvisor_abi::agent;

use crate::device::{Device, Kind, Slot};
use crate::doorbell::{Doorbell, Mailboxes};
use crate::inject::{Injected, Injector};
use crate::pending::Task;
use crate::place::{Pages, Word};
use crate::vcpu::{Desk, Vcpu};
use crate::{Output, ScriptedDriver, word};

/// Events kept for each thread until somebody asks for them.
const EVENTS: usize = 4096;

enum DeviceKind {
    Accelerator,
    Scripted,
    Driver(Arc<dyn Driver>),
}

/// What a [`TestVm`] is made of.
pub struct Builder {
    engine: Engine,
    policy: String,
    vcpus: u32,
    pages: u32,
    devices: Vec<(DeviceKind, u32)>,
    patience: Duration,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            engine: Engine::Remap,
            policy: "on-demand+timeslice:min=0".into(),
            vcpus: 2,
            pages: BLOCK_PAGES as u32,
            devices: Vec::new(),
            patience: Duration::from_secs(30),
        }
    }
}

impl Builder {
    /// How pages migrate; *remap* if not said.
    pub fn engine(mut self, engine: Engine) -> Builder {
        self.engine = engine;
        self
    }

    /// What migrates when, as on the command line of `hmmvisor`. If not said, only what is touched, so that a test knows
    /// where each page is: `on-demand+timeslice:min=0`.
    pub fn policy(mut self, policy: &str) -> Builder {
        self.policy = policy.into();
        self
    }

    /// Number of vCPUs, at most 64; 2 if not said.
    pub fn vcpus(mut self, vcpus: u32) -> Builder {
        self.vcpus = vcpus;
        self
    }

    /// Pages of managed memory, rounded up to a multiple of 512, which it is if not said.
    pub fn pages(mut self, pages: u32) -> Builder {
        self.pages = pages;
        self
    }

    /// One more device: a real accelerator with this many pages of memory.
    pub fn accelerator(self, pages: u32) -> Builder {
        self.device(DeviceKind::Accelerator, pages)
    }

    /// One more device, with this many pages of memory: a [`ScriptedDriver`], which only migrates and checks that the
    /// backend keeps to the contract.
    pub fn scripted(self, pages: u32) -> Builder {
        self.device(DeviceKind::Scripted, pages)
    }

    /// One more device, with this many pages of memory: a driver of your own.
    pub fn driver(self, pages: u32, driver: Arc<dyn Driver>) -> Builder {
        self.device(DeviceKind::Driver(driver), pages)
    }

    fn device(mut self, kind: DeviceKind, pages: u32) -> Builder {
        self.devices.push((kind, pages));
        self
    }

    /// How long anything that the test waits for may take; 30 s if not said. Only tests that fail wait so long.
    pub fn patience(mut self, patience: Duration) -> Builder {
        self.patience = patience;
        self
    }

    /// Makes the machine and starts it. Panics if it cannot, saying why.
    pub fn start(self) -> TestVm {
        let injectors: Vec<Arc<Injector>> = self.devices.iter().map(|_| Arc::default()).collect();
        let is_accelerator = |kind: &DeviceKind| matches!(kind, DeviceKind::Accelerator);
        let accelerators = |(index, (kind, pages)): (usize, &(DeviceKind, u32))| {
            is_accelerator(kind).then_some((index, *pages))
        };
        let accelerators: Vec<(usize, u32)> = self
            .devices
            .iter()
            .enumerate()
            .filter_map(accelerators)
            .collect();

        let blocks = u64::from(self.pages.max(1)).div_ceil(BLOCK_PAGES);
        let bytes = blocks * BLOCK_PAGES * PAGE_SIZE;
        let reserved = if accelerators.is_empty() {
            0
        } else {
            agent::RESERVED
        };
        let mut config = BackendConfig::new(bytes + reserved);
        config.engine = EngineChoice::Only(self.engine);
        config.policy = Arc::new(self.policy.parse::<PolicySpec>().expect("a known policy"));
        config.events = EVENTS;
        let backend = Backend::new(config).expect("managed memory");

        let doorbell = Arc::new(Doorbell::new(backend.clone()));
        let wrapped: Vec<Arc<Injector>> = accelerators
            .iter()
            .map(|(index, _)| injectors[*index].clone())
            .collect();
        let wrap = move |index: u32, own| -> Arc<dyn Driver> {
            Arc::new(Injected::new(own, wrapped[index as usize].clone()))
        };
        let output = Output::default();
        let device = |(_, pages): &(usize, u32)| DeviceConfig {
            memory: u64::from(*pages) * PAGE_SIZE,
            cpu: None,
        };
        let config = VmConfig {
            vcpus: self.vcpus,
            vcpu_cpus: Vec::new(),
            managed: Some(Managed {
                backend: backend.clone(),
                // A driver that waits at a gate keeps the thread that called it.
                service: vec![None; self.vcpus as usize + 2],
                devices: accelerators.iter().map(device).collect(),
                on_memory_error: OnMemoryError::MachineCheck,
            }),
            guest: hmmvisor_guest_images::IMAGE,
            cmdline: "workload=agent",
            seed: 1,
            console: Box::new(output.clone()),
            hooks: Hooks {
                devices: vec![(
                    agent::WINDOW..agent::WINDOW + agent::WINDOW_SIZE,
                    doorbell.clone(),
                )],
                driver: Some(Box::new(wrap)),
            },
        };
        let mut vm = Vm::new(config).expect("a virtual machine");
        doorbell.set_mailboxes(Mailboxes::new(vm.machine().ram(), self.vcpus));

        let mut real = (0..).zip(vm.accelerators());
        let mut devices = Vec::new();
        for ((kind, pages), injector) in self.devices.into_iter().zip(injectors) {
            let attach = |inner: Arc<dyn Driver>| {
                let driver = Arc::new(Injected::new(inner, injector.clone()));
                let memory = u64::from(pages) * PAGE_SIZE;
                backend.attach(memory, driver).expect("a device")
            };
            let (id, kind) = match kind {
                DeviceKind::Accelerator => {
                    let (index, accelerator) = real.next().expect("one for each");
                    let kind = Kind::Accelerator(index, accelerator.clone());
                    (accelerator.device_id(), kind)
                }
                DeviceKind::Scripted => {
                    let driver = Arc::new(ScriptedDriver::default());
                    (attach(driver.clone()), Kind::Scripted(driver))
                }
                DeviceKind::Driver(driver) => (attach(driver), Kind::Driver),
            };
            devices.push(Slot { id, injector, kind });
        }
        vm.start().expect("vCPU threads");
        let vm = TestVm {
            ending: vm.ending().clone(),
            vm: Mutex::new(vm),
            backend,
            doorbell,
            desks: (0..self.vcpus).map(|_| Desk::default()).collect(),
            devices,
            pages: (blocks * BLOCK_PAGES) as u32,
            output,
            events: Mutex::default(),
            patience: Mutex::new(self.patience),
        };
        let ready = || vm.doorbell.all_ready(self.vcpus, TestVm::LOOK_AGAIN);
        vm.wait_until("the guest's first sign of life", || {
            ready() || vm.ended().is_some()
        });
        assert!(vm.ended().is_none(), "the guest does not start\n{vm:?}");
        vm
    }
}

/// A running virtual machine under test. Dropping it stops it, opens all gates, and checks that the backend has kept
/// to the contract with every driver that can tell.
pub struct TestVm {
    vm: Mutex<Vm>,
    ending: Arc<Ending>,
    backend: Arc<Backend>,
    doorbell: Arc<Doorbell>,
    desks: Vec<Desk>,
    devices: Vec<Slot>,
    pages: u32,
    output: Output,
    /// Taken out of the rings and not asked for yet.
    events: Mutex<Vec<Event>>,
    patience: Mutex<Duration>,
}

impl TestVm {
    /// How long to sleep where an event might be missed.
    pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(10);

    /// A machine is described, then started.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A vCPU by its number.
    pub fn vcpu(&self, index: u32) -> Vcpu<'_> {
        let vcpus = self.desks.len();
        assert!(
            (index as usize) < vcpus,
            "vCPU {index}: there are {vcpus} vCPUs"
        );
        Vcpu { vm: self, index }
    }

    /// A device by its number in the order of the builder's calls.
    pub fn device(&self, index: usize) -> Device<'_> {
        let devices = self.devices.len();
        assert!(
            index < devices,
            "device {index}: there are {devices} devices"
        );
        Device {
            vm: self,
            index,
            slot: &self.devices[index],
        }
    }

    /// Pages of managed memory that are the test's. Behind them there are more, for the accelerators' queues.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The memory.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// What the guest has to say.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// A word as the VMM reaches it: accesses fault like a vCPU's, and so would the test if nobody served them.
    pub fn host_word(&self, at: impl Word) -> &AtomicU64 {
        let (page, index) = at.place();
        word(&self.backend, page, index as usize)
    }

    /// Moves pages to a device's memory, as a program's hint does, until they all are there. Panics if that takes longer
    /// than the machine's patience. Not with a gate closed on the way: [`Self::begin_to_device`] is for that.
    pub fn to_device(&self, device: usize, pages: impl Pages) {
        let (device, range) = (self.device(device), pages.range());
        self.wait_until(&format!("{range:?} on device {}", device.index), || {
            let moved = self.backend.migrate_to_device(device.id(), range);
            moved.expect("the device is attached");
            device.holds(range)
        });
    }

    /// Moves pages to system memory, as a program's hint does, until none is in a device's memory. Otherwise like
    /// [`Self::to_device`]; with gates, [`Self::begin_to_system`].
    pub fn to_system(&self, pages: impl Pages) {
        let range = pages.range();
        let away = |page| matches!(self.word(page).residency(), Residency::Device { .. });
        self.wait_until(&format!("{range:?} in system memory"), || {
            let moved = self.backend.migrate_to_system(range);
            moved.expect("the range is in managed memory");
            !range.pages().any(away)
        });
    }

    /// Asks once for a migration to a device, in the background, where a gate may hold it. The result is the number of
    /// pages that moved.
    pub fn begin_to_device(&self, device: usize, pages: impl Pages) -> Task<'_, u64> {
        let (id, range) = (self.device(device).id(), pages.range());
        let what = format!("migration of {range:?} to device {device}");
        self.background(&what, move |backend| {
            let moved = backend.migrate_to_device(id, range);
            moved.expect("the device is attached")
        })
    }

    /// Asks once for a migration to system memory, in the background, where a gate may hold it. The result is the
    /// number of pages that moved.
    pub fn begin_to_system(&self, pages: impl Pages) -> Task<'_, u64> {
        let range = pages.range();
        let what = format!("migration of {range:?} to system memory");
        self.background(&what, move |backend| {
            let moved = backend.migrate_to_system(range);
            moved.expect("the range is in managed memory")
        })
    }

    /// Does something with the backend on another thread.
    pub fn background<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&Arc<Backend>) -> T + Send + 'static,
    ) -> Task<'_, T> {
        Task::<T>::start(self, what, work)
    }

    /// Where a page is, once nobody is at work on it.
    pub fn residency(&self, page: u32) -> Residency {
        self.settle(page);
        self.word(Page(page)).residency()
    }

    /// One byte for each page, as the device sees it; see [`hmm_backend::snapshot`].
    pub fn snapshot(&self, device: usize, pages: impl Pages) -> Vec<u8> {
        let snapshot = self
            .backend
            .snapshot(self.device(device).id(), pages.range());
        snapshot.expect("the range is in managed memory")
    }

    /// The counters at this moment. They may lag a moment behind what vCPUs have noticed: see [`Self::wait_for`].
    pub fn stats(&self) -> Stats {
        self.backend.stats()
    }

    /// Waits until the counters are as `condition` wants them. Panics if that takes longer than the machine's patience.
    pub fn wait_for(&self, mut condition: impl FnMut(&Stats) -> bool) {
        self.wait_until("the counters", || condition(&self.stats()));
    }

    /// All events since the last call, in order of time.
    pub fn drain_events(&self) -> Vec<Event> {
        std::mem::take(&mut *self.fresh_events())
    }

    /// Waits for an event and takes it out; the others stay for later calls. Panics if that takes longer than the
    /// machine's patience.
    pub fn wait_event(&self, mut which: impl FnMut(&Event) -> bool) -> Event {
        let mut found = None;
        self.wait_until("an event", || {
            let mut events = self.fresh_events();
            let position = events.iter().position(&mut which);
            found = position.map(|position| events.remove(position));
            found.is_some()
        });
        found.expect("waited for")
    }

    fn fresh_events(&self) -> MutexGuard<'_, Vec<Event>> {
        let mut events = lock(&self.events);
        events.extend(self.backend.drain_events().events);
        events.sort_by_key(|event| event.time);
        events
    }

    /// Why the run has ended, if it has: the guest itself never ends it.
    pub fn ended(&self) -> Option<End> {
        self.ending.get().cloned()
    }

    /// Waits until the run has ended. Panics if that takes longer than the machine's patience.
    pub fn wait_ended(&self) -> End {
        match self.ending.wait(self.patience()) {
            Some(end) => end.clone(),
            None => self.give_up("the run does not end"),
        }
    }

    /// Waits until `condition` holds. Panics if that takes longer than the machine's patience, with the state of
    /// everything.
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !condition() {
            if begin.elapsed() > self.patience() {
                self.give_up(&format!("waited in vain for {what}"));
            }
            thread::yield_now();
        }
    }

    /// Waits until nobody is at work on these pages, except for those who wait at gates.
    pub fn settle(&self, pages: impl Pages) {
        for page in pages.range().pages() {
            let in_motion = || self.backend.in_motion(page).expect("a managed page");
            let at_gate = || self.devices.iter().any(|slot| slot.injector.holds(page));
            self.wait_until(&format!("the end of work on {page:?}"), || {
                !in_motion() || at_gate()
            });
        }
    }

    /// From now on waits only this long, see [`Builder::patience`].
    pub fn set_patience(&self, patience: Duration) {
        *lock(&self.patience) = patience;
    }

    pub(crate) fn patience(&self) -> Duration {
        *lock(&self.patience)
    }

    pub(crate) fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    pub(crate) fn desk(&self, vcpu: u32) -> &Desk {
        &self.desks[vcpu as usize]
    }

    pub(crate) fn word(&self, page: impl Pages) -> hmm_backend::Word {
        let word = self.backend.word(page.range().start);
        word.expect("the page is in managed memory")
    }

    /// The test fails: something takes too long.
    pub(crate) fn give_up(&self, what: &str) -> ! {
        panic!("{what} within {:?}\n{self:?}", self.patience())
    }

    pub(crate) fn describe_page(&self, page: u32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.backend.word(Page(page)) {
            Ok(word) => write!(f, "{:?}", word.residency())?,
            Err(error) => write!(f, "{error}")?,
        }
        if self.backend.in_motion(Page(page)).unwrap_or(false) {
            write!(f, ", in motion")?;
        }
        for (index, slot) in self.devices.iter().enumerate() {
            if slot.injector.holds(Page(page)) {
                write!(f, ", held at a gate of device {index}")?;
            }
        }
        Ok(())
    }

    /// Lets everybody go who could keep a thread from ending.
    fn let_go(&self) {
        self.devices.iter().for_each(|slot| slot.injector.end());
        self.doorbell.stop();
    }
}

impl fmt::Debug for TestVm {
    /// The state of everything, for tests that fail.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "machine: engine {}, policy {}, {} pages, end {:?}",
            self.backend.engine(),
            self.backend.policy_name(),
            self.pages,
            self.ended()
        )?;
        for index in 0..self.desks.len() as u32 {
            writeln!(f, "{:?}", Vcpu { vm: self, index })?;
        }
        for (index, slot) in self.devices.iter().enumerate() {
            writeln!(f, "device {index}: {:?}", slot.injector)?;
        }
        let mut places: BTreeMap<String, Vec<PageRange>> = BTreeMap::new();
        for page in (0..self.pages).map(Page) {
            let place = match self.word(page).residency() {
                Residency::Device { device, .. } => format!("{device:?}"),
                other => format!("{other:?}"),
            };
            let ranges = places.entry(place).or_default();
            match ranges.last_mut() {
                Some(last) if last.end == page => last.end = page.plus(1),
                _ => ranges.push(PageRange::single(page)),
            }
        }
        for (place, ranges) in places {
            writeln!(f, "{place}: {ranges:?}")?;
        }
        writeln!(f, "{:#?}", self.stats())?;
        write!(f, "the guest says: {:?}", self.output.text())
    }
}

impl Drop for TestVm {
    fn drop(&mut self) {
        self.let_go();
        self.vm
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .stop();
        if thread::panicking() {
            return;
        }
        for (index, slot) in self.devices.iter().enumerate() {
            match &slot.kind {
                Kind::Accelerator(_, accelerator) => {
                    let violations = accelerator.stats().contract_violations;
                    assert_eq!(violations, 0, "device {index}: the contract is broken");
                }
                Kind::Scripted(driver) => driver.assert_clean(),
                Kind::Driver => {}
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
