//! Drivers that fail or are slow at the user's request: in front of each accelerator's own driver, where the machine has an
//! API.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hmm_backend::driver::{
    DeviceFolio, Driver, FaultError, Finalized, MigrateError, ToDevice, ToSystem,
};
use hmm_backend::pages::{DeviceId, PageRange};
use hmm_backend::testing::{Step, Watch};
use hmmvisor_api::{Outcome, Provocation, Provoke, WayPoint};
use parking_lot::{Condvar, Mutex};

use super::error::Refusal;

/// The most provocations of one device at a time.
const MOST: usize = 64;
/// The longest delay, in milliseconds.
const LONGEST_MS: u64 = 10_000;

/// The provocations of all devices.
pub(crate) struct Provoker(Box<[Arc<Provoked>]>);

/// The provocations of one device.
#[derive(Default)]
struct Provoked {
    /// Whether there are some: a copy, so that drivers without any cost nothing.
    any: AtomicBool,
    state: Mutex<State>,
    cleared: Condvar,
}

#[derive(Default)]
struct State {
    all: Vec<Provocation>,
    /// How often they have been ended. A delay lasts as long as this number stays the same.
    generation: u64,
}

impl Provoker {
    /// Makes one for this many devices, without any provocation.
    pub(crate) fn new(devices: u32) -> Arc<Provoker> {
        Arc::new(Provoker((0..devices).map(|_| Arc::default()).collect()))
    }

    /// Puts a driver in front of that of a device; one without this number keeps its own.
    pub(crate) fn wrap(&self, device: u32, own: Arc<dyn Driver>) -> Arc<dyn Driver> {
        match self.0.get(device as usize) {
            Some(provoked) => Arc::new(ProvokedDriver {
                own,
                provoked: provoked.clone(),
            }),
            None => own,
        }
    }

    pub(super) fn all(&self, device: u8) -> Vec<Provocation> {
        let provoked = self.0.get(usize::from(device));
        provoked.map_or_else(Vec::new, |it| it.state.lock().all.clone())
    }

    pub(super) fn add(&self, device: u8, what: Provoke) -> Result<(), Refusal> {
        let Provoke { at, outcome, times } = what;
        let only_delay = matches!(
            at,
            WayPoint::ToDeviceCommitted | WayPoint::ToSystemCommitted
        );
        match outcome {
            Outcome::Fail if only_delay => {
                let detail = "the pages have arrived there, and nothing can fail any more; delay it, or take an earlier way-point";
                return Err(Refusal::bad("outcome", detail));
            }
            Outcome::DelayMs(ms) if !(1..=LONGEST_MS).contains(&ms) => {
                let detail = format!("a delay lasts from 1 to {LONGEST_MS} ms");
                return Err(Refusal::bad("outcome.delay-ms", detail));
            }
            _ => {}
        }
        if times == Some(0) {
            let detail = "it has to happen at least once; leave it out for `until it is ended`";
            return Err(Refusal::bad("times", detail));
        }
        let Some(provoked) = self.0.get(usize::from(device)) else {
            return Ok(());
        };
        let mut state = provoked.state.lock();
        if state.all.len() >= MOST {
            let detail = format!("there are {MOST} provocations of this device; end them first");
            return Err(Refusal::conflict(detail));
        }
        state.all.push(Provocation {
            at,
            outcome,
            left: times,
            happened: 0,
        });
        provoked.any.store(true, Ordering::Release);
        Ok(())
    }

    pub(super) fn clear(&self, device: u8) {
        if let Some(provoked) = self.0.get(usize::from(device)) {
            provoked.clear();
        }
    }

    /// Ends all provocations, and the delays that last.
    pub(crate) fn clear_all(&self) {
        self.0.iter().for_each(|it| it.clear());
    }
}

impl Provoked {
    fn clear(&self) {
        let mut state = self.state.lock();
        state.all.clear();
        state.generation += 1;
        self.any.store(false, Ordering::Release);
        self.cleared.notify_all();
    }

    /// A migration is at this point.
    fn reached(&self, at: WayPoint) -> Result<(), FaultError> {
        let mut state = self.state.lock();
        let (mut delay, mut fails) = (Duration::ZERO, false);
        for it in state.all.iter_mut().filter(|it| it.at == at) {
            if it.left == Some(0) {
                continue;
            }
            it.left = it.left.map(|left| left - 1);
            it.happened += 1;
            match it.outcome {
                Outcome::Fail => fails = true,
                Outcome::DelayMs(ms) => delay += Duration::from_millis(ms),
            }
        }
        if !delay.is_zero() {
            let begun = state.generation;
            let lasts = |state: &mut State| state.generation == begun;
            self.cleared.wait_while_for(&mut state, lasts, delay);
        }
        match fails {
            true => Err(FaultError::Retry),
            false => Ok(()),
        }
    }
}

/// A driver with provocations in front of it.
struct ProvokedDriver {
    own: Arc<dyn Driver>,
    provoked: Arc<Provoked>,
}

/// Watches one migration.
struct Watching {
    provoked: Arc<Provoked>,
    direction: fn(Step) -> Option<WayPoint>,
}

impl Watch for Watching {
    fn reached(&self, step: Step, _: &[PageRange]) -> Result<(), FaultError> {
        match (self.direction)(step) {
            Some(at) => self.provoked.reached(at),
            None => Ok(()),
        }
    }
}

fn to_device(step: Step) -> Option<WayPoint> {
    match step {
        Step::BeforeCopy => Some(WayPoint::ToDeviceBeforeCopy),
        Step::Copied => Some(WayPoint::ToDeviceCopied),
        Step::Committed => Some(WayPoint::ToDeviceCommitted),
        Step::Finalized => None,
    }
}

fn to_system(step: Step) -> Option<WayPoint> {
    match step {
        Step::BeforeCopy => Some(WayPoint::ToSystemBeforeCopy),
        Step::Copied => Some(WayPoint::ToSystemCopied),
        Step::Committed => Some(WayPoint::ToSystemCommitted),
        Step::Finalized => None,
    }
}

impl ProvokedDriver {
    /// Returns a watch on a migration in this direction, if there are provocations.
    fn watch(&self, direction: fn(Step) -> Option<WayPoint>) -> Option<Arc<dyn Watch>> {
        let any = self.provoked.any.load(Ordering::Acquire);
        any.then(|| {
            Arc::new(Watching {
                provoked: self.provoked.clone(),
                direction,
            }) as _
        })
    }
}

impl Driver for ProvokedDriver {
    fn migrate_to_device(&self, mut migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        if let Some(watch) = self.watch(to_device) {
            migration.watch(watch);
        }
        self.own.migrate_to_device(migration)
    }

    fn migrate_to_ram(&self, mut migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        if let Some(watch) = self.watch(to_system) {
            migration.watch(watch);
        }
        self.own.migrate_to_ram(migration)
    }

    fn flush(&self, folios: &[DeviceFolio], to: DeviceId) -> Result<(), MigrateError> {
        if self.provoked.any.load(Ordering::Acquire) {
            let reached = self.provoked.reached(WayPoint::Flush);
            reached.map_err(|error| MigrateError::Device(error.to_string()))?;
        }
        self.own.flush(folios, to)
    }

    fn page_free(&self, folio: DeviceFolio) {
        self.own.page_free(folio);
    }

    fn folio_split(&self, folio: DeviceFolio) -> u64 {
        self.own.folio_split(folio)
    }
}
