//! The wrapper around a driver under test: watches its calls and survives its panics.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use hmm_backend::driver::{
    DeviceFolio, Driver, FaultError, Finalized, MigrateError, ToDevice, ToSystem,
};
use hmm_backend::pages::DeviceId;
use parking_lot::Mutex;

use super::Evidence;

/// A call that has not returned.
struct Running {
    number: u64,
    what: String,
}

pub struct Witness {
    inner: Arc<dyn Driver>,
    /// Folios that the driver was shown and that were not freed.
    live: AtomicI64,
    freed: AtomicU64,
    calls: AtomicU64,
    running: Mutex<Vec<Running>>,
    panics: Mutex<Vec<Evidence>>,
}

impl Witness {
    pub fn new(inner: Arc<dyn Driver>) -> Witness {
        Witness {
            inner,
            live: AtomicI64::new(0),
            freed: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            running: Mutex::default(),
            panics: Mutex::default(),
        }
    }

    /// Folios in use by what the driver was told.
    pub fn live(&self) -> i64 {
        self.live.load(Ordering::SeqCst)
    }

    /// Calls of `page_free` that have returned.
    pub fn freed(&self) -> u64 {
        self.freed.load(Ordering::SeqCst)
    }

    /// The first panic.
    pub fn panic(&self) -> Option<Evidence> {
        self.panics.lock().first().cloned()
    }

    /// The calls that have not returned.
    pub fn running(&self) -> Vec<String> {
        self.running.lock().iter().map(|r| r.what.clone()).collect()
    }

    /// Runs a call of the driver. None if it panicked.
    fn call<R>(
        &self,
        what: &str,
        folio: Option<DeviceFolio>,
        call: impl FnOnce() -> R,
    ) -> Option<R> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let what = match folio {
            Some(f) => format!(
                "{what} (page {}, frame {:#x}, order {}, cookie {:#x})",
                f.page, f.frame.0, f.order, f.cookie
            ),
            None => what.to_owned(),
        };
        self.running.lock().push(Running {
            number,
            what: what.clone(),
        });
        let result = catch_unwind(AssertUnwindSafe(call));
        self.running.lock().retain(|r| r.number != number);
        result
            .map_err(|panic| {
                let mut evidence =
                    Evidence::new(what, "no panic", format!("`{}`", message(&*panic)));
                (evidence.page, evidence.cookie) = folio.map(|f| (f.page, f.cookie)).unzip();
                self.panics.lock().push(evidence);
            })
            .ok()
    }
}

impl Driver for Witness {
    fn migrate_to_device(&self, migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        let shown = migration.folios().count() as i64;
        self.live.fetch_add(shown, Ordering::SeqCst);
        let first = migration.folios().next();
        self.call("migrate_to_device", first, || {
            self.inner.migrate_to_device(migration)
        })
        .unwrap_or_else(|| Err(MigrateError::Device("the driver panicked".into())))
    }

    fn migrate_to_ram(&self, migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        let first = migration.folios().next();
        self.call("migrate_to_ram", first, || {
            self.inner.migrate_to_ram(migration)
        })
        .unwrap_or_else(|| Err(FaultError::Fatal("the driver panicked".into())))
    }

    fn flush(&self, folios: &[DeviceFolio], to: DeviceId) -> Result<(), MigrateError> {
        let first = folios.first().copied();
        self.call("flush", first, || self.inner.flush(folios, to))
            .unwrap_or_else(|| Err(MigrateError::Device("the driver panicked".into())))
    }

    fn page_free(&self, folio: DeviceFolio) {
        self.call("page_free", Some(folio), || self.inner.page_free(folio));
        self.live.fetch_sub(1, Ordering::SeqCst);
        self.freed.fetch_add(1, Ordering::SeqCst);
    }

    fn folio_split(&self, folio: DeviceFolio) -> u64 {
        let upper = self.call("folio_split", Some(folio), || self.inner.folio_split(folio));
        self.live.fetch_add(1, Ordering::SeqCst);
        upper.unwrap_or(folio.cookie)
    }
}

/// The message of a panic.
pub fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    text.unwrap_or_else(|| "a panic without a message".to_owned())
}
