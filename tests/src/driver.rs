//! A driver that checks the contract and fails as told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hmm_backend::{
    DeviceFolio, Driver, FaultError, Finalized, Frame, MigrateError, ToDevice, ToSystem,
};

/// The answer to a migration to system memory whose first folio is this one; none lets it through.
type Script = dyn FnMut(DeviceFolio) -> Option<FaultError> + Send;

/// The driver of a device that only migrates: gives every folio a serial number as its cookie, checks that it
/// comes back exactly once, and lets a script refuse migrations to system memory.
pub struct ScriptedDriver {
    live: Mutex<HashMap<u64, (Frame, u8)>>,
    serial: AtomicU64,
    violations: Mutex<Vec<String>>,
    script: Mutex<Box<Script>>,
    refused: AtomicU64,
}

impl Default for ScriptedDriver {
    /// Refuses nothing.
    fn default() -> ScriptedDriver {
        ScriptedDriver {
            live: Mutex::default(),
            serial: AtomicU64::new(1),
            violations: Mutex::default(),
            script: Mutex::new(Box::new(|_| None)),
            refused: AtomicU64::new(0),
        }
    }
}

impl ScriptedDriver {
    /// From now on refuses what this says.
    pub fn refuse(&self, script: impl FnMut(DeviceFolio) -> Option<FaultError> + Send + 'static) {
        *lock(&self.script) = Box::new(script);
    }

    /// From now on refuses nothing.
    pub fn refuse_nothing(&self) {
        self.refuse(|_| None);
    }

    /// How often the script refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Folios that were allocated and not freed yet.
    pub fn live(&self) -> usize {
        lock(&self.live).len()
    }

    /// How the contract was broken, if it was.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    /// Fails if the backend has broken the contract.
    pub fn assert_clean(&self) {
        assert_eq!(*lock(&self.violations), Vec::<String>::new());
    }

    fn new_cookie(&self, frame: Frame, order: u8) -> u64 {
        let cookie = self.serial.fetch_add(1, Ordering::Relaxed);
        lock(&self.live).insert(cookie, (frame, order));
        cookie
    }

    fn check(&self, folio: DeviceFolio) {
        let known = lock(&self.live).get(&folio.cookie).copied();
        if known != Some((folio.frame, folio.order)) {
            lock(&self.violations).push(format!("{folio:?}, but the cookie is of {known:?}"));
        }
    }
}

/// A script: each folio is refused up to three times, then let through.
pub fn few_refusals() -> impl FnMut(DeviceFolio) -> Option<FaultError> + Send {
    let mut refused = HashMap::new();
    move |folio| {
        let times = refused.entry(folio.cookie).or_insert(0);
        *times += 1;
        match (*times, folio.cookie % 3) {
            (4.., _) | (_, 0) => None,
            (_, 1) => Some(FaultError::Retry),
            _ => Some(FaultError::OutOfMemory),
        }
    }
}

/// A test that failed elsewhere should not fail here, too.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Driver for ScriptedDriver {
    fn migrate_to_device(&self, mut migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        migration.set_cookies(|folio| self.new_cookie(folio.frame, folio.order));
        migration.run()
    }

    fn migrate_to_ram(&self, migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        migration.folios().for_each(|folio| self.check(folio));
        let first = migration.folios().next();
        if let Some(error) = first.and_then(|first| lock(&self.script)(first)) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(error);
        }
        migration.run()
    }

    fn page_free(&self, folio: DeviceFolio) {
        self.check(folio);
        lock(&self.live).remove(&folio.cookie);
    }

    fn folio_split(&self, folio: DeviceFolio) -> u64 {
        self.check(folio);
        let order = folio.order - 1;
        lock(&self.live).insert(folio.cookie, (folio.frame, order));
        self.new_cookie(Frame(folio.frame.0 + (1 << order)), order)
    }
}
