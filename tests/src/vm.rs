//! A virtual machine in a few lines, whose vCPUs do what a test says.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};

use hmm_backend::Backend;
use hmm_backend::observe::{Event, Stats};
use hmm_backend::pages::{Page, PageRange};
use hmm_backend::residency::Residency;
use hmmvisor::End;
use hmmvisor::ending::Ending;
use hmmvisor::vm::Vm;
use hmmvisor_policies::{ScriptFigures, Scripts};
use parking_lot::{Mutex, MutexGuard};

use crate::builder::Builder;
use crate::device::{Device, Kind, Slot};
use crate::doorbell::Doorbell;
use crate::pending::Task;
use crate::place::{Pages, Word, pages};
use crate::vcpu::{Desk, Vcpu};
use crate::{Output, word};

/// A running virtual machine under test. Dropping it stops it, opens all gates, and checks that the backend has kept
/// to the contract with every driver that can tell.
pub struct TestVm {
    pub(crate) vm: Mutex<Vm>,
    pub(crate) ending: Arc<Ending>,
    pub(crate) backend: Arc<Backend>,
    pub(crate) scripts: Vec<Arc<Scripts>>,
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) desks: Vec<Desk>,
    pub(crate) devices: Vec<Slot>,
    pub(crate) pages: u32,
    pub(crate) shared: u32,
    pub(crate) output: Output,
    /// Taken out of the rings and not asked for yet.
    pub(crate) events: Mutex<Vec<Event>>,
    pub(crate) patience: Mutex<Duration>,
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

    /// How the policy's script has been doing; none if the policy is no script.
    pub fn script(&self) -> Option<ScriptFigures> {
        self.scripts.first().map(|script| script.figures())
    }

    /// Pages of managed memory that are the test's. Behind them there are more, for the accelerators' queues.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The last of these pages, which are shared memory ([`Builder::shared`]).
    pub fn shared(&self) -> PageRange {
        pages(self.pages - self.shared..self.pages)
    }

    /// The memory.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// The guest's output so far.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// A word as the VMM reaches it: accesses fault like a vCPU's, and the service threads serve these faults.
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
        let away = |page| {
            let residency = self.word(page).residency();
            matches!(
                residency,
                Residency::Device(_) | Residency::Coherent(_) | Residency::Duplicated(_)
            )
        };
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

    /// The place of a page, after its folio is unlocked.
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
        let mut events = self.events.lock();
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

    /// Waits until the folios of these pages are unlocked, except for those that a call at a gate has locked.
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
        *self.patience.lock() = patience;
    }

    pub(crate) fn patience(&self) -> Duration {
        *self.patience.lock()
    }

    pub(crate) fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    pub(crate) fn desk(&self, vcpu: u32) -> &Desk {
        &self.desks[vcpu as usize]
    }

    pub(crate) fn word(&self, page: impl Pages) -> hmm_backend::residency::Word {
        let word = self.backend.word(page.range().start);
        word.expect("the page is in managed memory")
    }

    /// Opens all gates and stops all waits that could keep a thread from ending.
    fn let_go(&self) {
        self.devices.iter().for_each(|slot| slot.injector.end());
        self.doorbell.stop();
    }
}

impl Drop for TestVm {
    fn drop(&mut self) {
        self.let_go();
        self.vm.get_mut().stop();
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
