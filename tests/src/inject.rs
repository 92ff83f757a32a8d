//! Drivers that stop or fail at a way-point of a migration, as a test says.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hmm_backend::driver::{
    DeviceFolio, Driver, FaultError, Finalized, MigrateError, ToDevice, ToSystem,
};
use hmm_backend::pages::{DeviceId, Frame, Page, PageRange};
use hmm_backend::testing::{Step, Watch};
use parking_lot::{Condvar, Mutex};

/// The points at which a driver can be held or made to fail, in the order of a migration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum WayPoint {
    /// The backend asks the driver to flush folios that are to go directly to another device. They are locked.
    Flush,
    /// The backend calls the driver: pages are to go to the device. They are locked.
    ToDeviceEntry,
    /// The driver has set its cookies; nothing has moved.
    ToDeviceBeforeCopy,
    /// The frames hold the contents; no CPU and no device can reach them.
    ToDeviceAfterCopy,
    /// The residency says device; the pages are still locked.
    ToDeviceAfterCommit,
    /// The pages are unlocked; the driver has not returned yet.
    ToDeviceAfterFinalize,
    /// The backend calls the driver: pages are to come back, because of a CPU fault or otherwise. They are locked.
    ToSystemEntry,
    /// The device still has its translations.
    ToSystemBeforeCopy,
    /// The device's translations are gone; no CPU has the pages yet.
    ToSystemAfterCopy,
    /// CPUs have the pages, which are still locked.
    ToSystemAfterCommit,
    /// The pages are unlocked and their frames free; the driver has not returned yet.
    ToSystemAfterFinalize,
    /// The backend says that a folio is no longer in use. Cannot fail.
    PageFree,
    /// The backend cuts a folio. Cannot fail.
    FolioSplit,
}

impl WayPoint {
    /// The way-points of a migration to a device, in order.
    pub const TO_DEVICE: [WayPoint; 5] = [
        WayPoint::ToDeviceEntry,
        WayPoint::ToDeviceBeforeCopy,
        WayPoint::ToDeviceAfterCopy,
        WayPoint::ToDeviceAfterCommit,
        WayPoint::ToDeviceAfterFinalize,
    ];
    /// The way-points of a migration to system memory, in order.
    pub const TO_SYSTEM: [WayPoint; 5] = [
        WayPoint::ToSystemEntry,
        WayPoint::ToSystemBeforeCopy,
        WayPoint::ToSystemAfterCopy,
        WayPoint::ToSystemAfterCommit,
        WayPoint::ToSystemAfterFinalize,
    ];

    fn can_fail(self) -> bool {
        !matches!(self, WayPoint::PageFree | WayPoint::FolioSplit)
    }
}

/// A driver's call that has reached a way-point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// Which.
    pub point: WayPoint,
    /// With these pages.
    pub pages: Vec<PageRange>,
}

impl Arrival {
    /// Whether this page is among them.
    pub fn contains(&self, page: u32) -> bool {
        self.pages.iter().any(|range| range.contains(Page(page)))
    }

    /// Number of pages.
    pub fn len(&self) -> u32 {
        self.pages.iter().map(PageRange::len).sum()
    }

    /// Whether there is none, which never happens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The arrivals that a rule is about.
type Filter = Box<dyn FnMut(&Arrival) -> bool + Send>;

struct Gate {
    id: u64,
    point: WayPoint,
    filter: Filter,
    arrived: Vec<Arrival>,
}

struct Failure {
    point: WayPoint,
    filter: Filter,
    error: FaultError,
    left: u32,
}

#[derive(Default)]
struct State {
    next_gate: u64,
    gates: Vec<Gate>,
    failures: Vec<Failure>,
    /// Pages of those who wait at a gate now.
    waiting: Vec<(u64, Vec<PageRange>)>,
    reached: BTreeMap<WayPoint, u64>,
    failed: BTreeMap<WayPoint, u64>,
    /// The test is over: no call is held any more.
    over: bool,
}

/// The rules for one driver and what has become of them.
#[derive(Default)]
pub struct Injector {
    state: Mutex<State>,
    changed: Condvar,
}

impl Injector {
    /// Closes a gate; returns its number.
    pub(crate) fn close(&self, point: WayPoint, filter: Filter) -> u64 {
        let mut state = self.state.lock();
        state.next_gate += 1;
        let id = state.next_gate;
        let arrived = Vec::new();
        state.gates.push(Gate {
            id,
            point,
            filter,
            arrived,
        });
        id
    }

    /// Opens it; the calls that wait there continue.
    pub(crate) fn open(&self, gate: u64) {
        let mut state = self.state.lock();
        state.gates.retain(|it| it.id != gate);
        // Here and not when they wake up: from now on they are no longer held.
        state.waiting.retain(|(id, _)| *id != gate);
        drop(state);
        self.changed.notify_all();
    }

    /// The first call that has reached the gate; waits for it at most this long.
    pub(crate) fn first_arrival(&self, gate: u64, patience: Duration) -> Option<Arrival> {
        let arrival = |state: &State| {
            let gate = state.gates.iter().find(|it| it.id == gate)?;
            gate.arrived.first().cloned()
        };
        let until = |state: &mut State| arrival(state).is_none();
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, until, patience);
        arrival(&state)
    }

    /// All calls that have reached the gate.
    pub(crate) fn arrivals(&self, gate: u64) -> Vec<Arrival> {
        let state = self.state.lock();
        let gate = state.gates.iter().find(|it| it.id == gate);
        gate.map_or(Vec::new(), |gate| gate.arrived.clone())
    }

    pub(crate) fn fail(&self, point: WayPoint, times: u32, error: FaultError, filter: Filter) {
        assert!(point.can_fail(), "a driver cannot fail at {point:?}");
        self.state.lock().failures.push(Failure {
            point,
            filter,
            error,
            left: times,
        });
    }

    pub(crate) fn heal(&self) {
        self.state.lock().failures.clear();
    }

    pub(crate) fn reached_count(&self, point: WayPoint) -> u64 {
        self.state.lock().reached.get(&point).copied().unwrap_or(0)
    }

    pub(crate) fn failed_count(&self, point: WayPoint) -> u64 {
        self.state.lock().failed.get(&point).copied().unwrap_or(0)
    }

    /// Whether a call about this page waits at a gate.
    pub(crate) fn holds(&self, page: Page) -> bool {
        let state = self.state.lock();
        let mut held = state.waiting.iter().flat_map(|(_, pages)| pages);
        held.any(|range| range.contains(page))
    }

    /// Opens all gates, for ever.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        state.over = true;
        state.waiting.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// A call has reached a way-point: holds it, then makes it fail, if a rule says so.
    fn reached(&self, point: WayPoint, pages: Vec<PageRange>) -> Result<(), FaultError> {
        let mut state = self.state.lock();
        *state.reached.entry(point).or_default() += 1;
        let arrival = Arrival { point, pages };
        let mut held = None;
        for gate in state.gates.iter_mut().filter(|gate| gate.point == point) {
            if (gate.filter)(&arrival) {
                gate.arrived.push(arrival.clone());
                held = Some(gate.id);
                break;
            }
        }
        if let Some(id) = held {
            state.waiting.push((id, arrival.pages.clone()));
            self.changed.notify_all();
            let closed =
                |state: &mut State| !state.over && state.gates.iter().any(|gate| gate.id == id);
            self.changed.wait_while(&mut state, closed);
        }
        let due = state.failures.iter_mut().find_map(|rule| {
            let is_due = rule.point == point && rule.left > 0 && (rule.filter)(&arrival);
            is_due.then_some(rule)
        });
        let Some(due) = due else { return Ok(()) };
        due.left -= u32::from(due.left < u32::MAX);
        let error = due.error.clone();
        *state.failed.entry(point).or_default() += 1;
        Err(error)
    }
}

impl fmt::Debug for Injector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        write!(f, "reached {:?}, failed {:?}", state.reached, state.failed)?;
        for gate in &state.gates {
            let held = state.waiting.iter().filter(|(id, _)| *id == gate.id);
            let held: Vec<_> = held.map(|(_, pages)| pages).collect();
            write!(f, "; gate at {:?} holds {held:?}", gate.point)?;
        }
        Ok(())
    }
}

/// A driver in front of another one, which lets a test hold it or make it fail.
pub struct Injected {
    inner: Arc<dyn Driver>,
    injector: Arc<Injector>,
    /// Frames of a migration that failed before the inner driver saw it: it must not hear that they are free.
    unseen: Mutex<HashSet<Frame>>,
}

impl Injected {
    /// In front of `inner`, with these rules.
    pub fn new(inner: Arc<dyn Driver>, injector: Arc<Injector>) -> Injected {
        Injected {
            inner,
            injector,
            unseen: Mutex::default(),
        }
    }
}

impl Driver for Injected {
    fn migrate_to_device(&self, mut migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        let device_error = |error: FaultError| MigrateError::Device(error.to_string());
        let entry = self
            .injector
            .reached(WayPoint::ToDeviceEntry, ranges(migration.folios()));
        if let Err(error) = entry {
            self.unseen
                .lock()
                .extend(migration.folios().map(|it| it.frame));
            return Err(device_error(error));
        }
        let looker = Arc::new(Looker {
            injector: self.injector.clone(),
            to_device: true,
            late: Mutex::default(),
        });
        migration.watch(looker.clone());
        let done = self.inner.migrate_to_device(migration)?;
        looker
            .late()
            .map_or(Ok(done), |error| Err(device_error(error)))
    }

    fn migrate_to_ram(&self, mut migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        self.injector
            .reached(WayPoint::ToSystemEntry, ranges(migration.folios()))?;
        let looker = Arc::new(Looker {
            injector: self.injector.clone(),
            to_device: false,
            late: Mutex::default(),
        });
        migration.watch(looker.clone());
        let done = self.inner.migrate_to_ram(migration)?;
        looker.late().map_or(Ok(done), Err)
    }

    fn flush(&self, folios: &[DeviceFolio], to: DeviceId) -> Result<(), MigrateError> {
        let pages = ranges(folios.iter().copied());
        self.injector
            .reached(WayPoint::Flush, pages)
            .map_err(|error| MigrateError::Device(error.to_string()))?;
        self.inner.flush(folios, to)
    }

    fn page_free(&self, folio: DeviceFolio) {
        // Cannot fail.
        let _ = self
            .injector
            .reached(WayPoint::PageFree, ranges([folio].into_iter()));
        let unseen = self.unseen.lock().remove(&folio.frame);
        if !unseen {
            self.inner.page_free(folio);
        }
    }

    fn folio_split(&self, folio: DeviceFolio) -> u64 {
        // Cannot fail.
        let _ = self
            .injector
            .reached(WayPoint::FolioSplit, ranges([folio].into_iter()));
        self.inner.folio_split(folio)
    }
}

fn ranges(folios: impl Iterator<Item = DeviceFolio>) -> Vec<PageRange> {
    folios
        .map(|folio| PageRange::with_len(folio.page, folio.pages()))
        .collect()
}

/// Looks on at one migration.
struct Looker {
    injector: Arc<Injector>,
    to_device: bool,
    /// An error that came too late for the migration: the driver returns it in the end.
    late: Mutex<Option<FaultError>>,
}

impl Looker {
    fn late(&self) -> Option<FaultError> {
        self.late.lock().take()
    }
}

impl Watch for Looker {
    fn reached(&self, step: Step, pages: &[PageRange]) -> Result<(), FaultError> {
        let point = match (self.to_device, step) {
            (true, Step::BeforeCopy) => WayPoint::ToDeviceBeforeCopy,
            (true, Step::Copied) => WayPoint::ToDeviceAfterCopy,
            (true, Step::Committed) => WayPoint::ToDeviceAfterCommit,
            (true, Step::Finalized) => WayPoint::ToDeviceAfterFinalize,
            (false, Step::BeforeCopy) => WayPoint::ToSystemBeforeCopy,
            (false, Step::Copied) => WayPoint::ToSystemAfterCopy,
            (false, Step::Committed) => WayPoint::ToSystemAfterCommit,
            (false, Step::Finalized) => WayPoint::ToSystemAfterFinalize,
        };
        let reached = self.injector.reached(point, pages.to_vec());
        if step >= Step::Committed
            && let Err(error) = &reached
        {
            *self.late.lock() = Some(error.clone());
        }
        reached
    }
}

/// The remaining part of a wait that began at `begin`.
pub(crate) fn left(begin: Instant, patience: Duration) -> Duration {
    patience.saturating_sub(begin.elapsed())
}
