//! A driver in front of another one that fails, refuses and declines at random, and keeps books of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hmm_backend::driver::{
    DeviceFolio, Driver, FaultError, Finalized, MigrateError, ToDevice, ToSystem,
};
use hmm_backend::pages::{DeviceId, PageRange};
use hmm_backend::testing::{Step, Watch};
use parking_lot::Mutex;

use super::random::Random;

/// One in this many calls and way-points fails.
const FAILS: u64 = 16;
/// In one of this many migrations, some folios are declined.
const DECLINES: u64 = 8;

/// What all failing drivers of a run have done.
#[derive(Default)]
pub(crate) struct Injected {
    /// Errors at one of the way-points.
    pub(crate) failures: AtomicU64,
    /// Folios declined.
    pub(crate) declined: AtomicU64,
    /// Folios the drivers were shown, halves of cut ones included.
    pub(crate) folios: AtomicU64,
    /// Calls of `page_free`.
    pub(crate) freed: AtomicU64,
}

/// A folio that the backend has shown.
#[derive(Clone, Copy)]
struct Live {
    order: u8,
    /// The inner driver never saw it, so it must not hear that it is free.
    unseen: bool,
}

/// A driver that fails, refuses and declines at random, in front of another one.
pub(crate) struct FailingDriver {
    inner: Arc<dyn Driver>,
    random: Arc<Random>,
    injected: Arc<Injected>,
    live: Mutex<HashMap<u32, Live>>,
    /// The first ways in which the backend broke the contract.
    broken: Mutex<Vec<String>>,
}

impl FailingDriver {
    pub(crate) fn new(
        inner: Arc<dyn Driver>,
        random: Arc<Random>,
        injected: Arc<Injected>,
    ) -> FailingDriver {
        FailingDriver {
            inner,
            random,
            injected,
            live: Mutex::default(),
            broken: Mutex::default(),
        }
    }

    /// What the books say when the device has been detached: every folio was freed exactly once.
    pub(crate) fn check_books(&self) -> Result<(), String> {
        let broken = self.broken.lock();
        if let Some(first) = broken.first() {
            return Err(format!("driver contract broken: {first}"));
        }
        match self.live.lock().len() {
            0 => Ok(()),
            left => Err(format!("{left} folios were never freed")),
        }
    }

    fn broken(&self, what: String) {
        let mut broken = self.broken.lock();
        // The first ones tell the most, and the list must not grow for hours.
        if broken.len() < 8 {
            broken.push(what);
        }
    }

    fn shown(&self, folio: DeviceFolio) {
        self.injected.folios.fetch_add(1, Ordering::Relaxed);
        let live = Live {
            order: folio.order,
            unseen: false,
        };
        if self.live.lock().insert(folio.frame.0, live).is_some() {
            self.broken(format!("{folio:?} was allocated while in use"));
        }
    }

    fn set_unseen(&self, folio: DeviceFolio) {
        if let Some(live) = self.live.lock().get_mut(&folio.frame.0) {
            live.unseen = true;
        }
    }

    fn declines(&self) -> bool {
        let declines = self.random.one_in(2);
        self.injected
            .declined
            .fetch_add(declines.into(), Ordering::Relaxed);
        declines
    }
}

fn error(random: &Random, injected: &Injected) -> Result<(), FaultError> {
    if !random.one_in(FAILS) {
        return Ok(());
    }
    injected.failures.fetch_add(1, Ordering::Relaxed);
    Err(match random.one_in(2) {
        true => FaultError::Retry,
        false => FaultError::OutOfMemory,
    })
}

impl Driver for FailingDriver {
    fn migrate_to_device(&self, mut migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        let folios: Vec<DeviceFolio> = migration.folios().collect();
        folios.iter().for_each(|folio| self.shown(*folio));
        if let Err(error) = error(&self.random, &self.injected) {
            folios.iter().for_each(|folio| self.set_unseen(*folio));
            return Err(MigrateError::Device(error.to_string()));
        }
        if self.random.one_in(DECLINES) {
            migration.retain(|folio| {
                let declines = self.declines();
                if declines {
                    self.set_unseen(folio);
                }
                !declines
            });
        }
        migration.watch(self.failing_watch());
        self.inner.migrate_to_device(migration)
    }

    fn migrate_to_ram(&self, mut migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        error(&self.random, &self.injected)?;
        if self.random.one_in(DECLINES) {
            migration.retain(|_| !self.declines());
        }
        migration.watch(self.failing_watch());
        self.inner.migrate_to_ram(migration)
    }

    fn flush(&self, folios: &[DeviceFolio], to: DeviceId) -> Result<(), MigrateError> {
        for folio in folios {
            let live = self.live.lock().get(&folio.frame.0).copied();
            if live.is_none_or(|live| live.order != folio.order) {
                self.broken(format!("flush of {folio:?}, which is not in use"));
            }
        }
        error(&self.random, &self.injected)
            .map_err(|error| MigrateError::Device(error.to_string()))?;
        self.inner.flush(folios, to)
    }

    fn page_free(&self, folio: DeviceFolio) {
        self.injected.freed.fetch_add(1, Ordering::Relaxed);
        let live = self.live.lock().remove(&folio.frame.0);
        match live {
            Some(live) if live.order == folio.order => {
                if !live.unseen {
                    self.inner.page_free(folio);
                }
            }
            _ => self.broken(format!("page_free of {folio:?}, which is not in use")),
        }
    }

    fn folio_split(&self, folio: DeviceFolio) -> u64 {
        let order = folio.order.saturating_sub(1);
        let mut live = self.live.lock();
        let known = live.get(&folio.frame.0).copied();
        if let Some(known) = known.filter(|known| known.order == folio.order && folio.order > 0) {
            let half = Live { order, ..known };
            live.insert(folio.frame.0, half);
            live.insert(folio.frame.0 + (1 << order), half);
            self.injected.folios.fetch_add(1, Ordering::Relaxed);
        }
        drop(live);
        match known {
            Some(known) if known.order == folio.order => {}
            _ => self.broken(format!("split of {folio:?}, which is not in use")),
        }
        match known {
            Some(Live { unseen: true, .. }) => folio.cookie,
            _ => self.inner.folio_split(folio),
        }
    }
}

impl FailingDriver {
    fn failing_watch(&self) -> Arc<FailingWatch> {
        Arc::new(FailingWatch {
            random: self.random.clone(),
            injected: self.injected.clone(),
        })
    }
}

/// Fails a migration between its phases.
struct FailingWatch {
    random: Arc<Random>,
    injected: Arc<Injected>,
}

impl Watch for FailingWatch {
    fn reached(&self, step: Step, _: &[PageRange]) -> Result<(), FaultError> {
        match step {
            Step::BeforeCopy | Step::Copied => error(&self.random, &self.injected),
            Step::Committed | Step::Finalized => Ok(()),
        }
    }
}
