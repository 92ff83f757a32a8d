//! A driver for tests that checks the backend's side of the contract.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::driver::Driver;
use super::phases::Finalized;
use super::to_device::ToDevice;
use super::to_system::ToSystem;
use crate::pages::{DeviceFolio, DeviceId, FaultError, Frame, MigrateError};

/// A point of a migration at which a [`CheckedDriver`] can fail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Failing {
    /// Towards the device: the cookies are set, nothing has moved.
    ToDeviceBeforeCopy,
    /// Towards the device: the frames hold the contents.
    ToDeviceAfterCopy,
    /// From this device directly to another one: the other one's driver has not been called yet.
    Flush,
    /// Towards system memory: nothing has moved.
    ToSystemBeforeCopy,
    /// Towards system memory: the device cannot reach the pages any more.
    ToSystemAfterCopy,
}

/// Called at each [`Failing`] point with the migration's first folio; an error makes the migration fail there.
type Script = dyn FnMut(Failing, DeviceFolio) -> Result<(), FaultError> + Send;

/// A driver that gives every folio a cookie of its own, and checks that each call names a folio that is in
/// use with its cookie, and that each folio is freed exactly once. A script can let migrations fail.
pub struct CheckedDriver {
    serial: AtomicU64,
    /// The folios in use, by their cookies.
    live: Mutex<HashMap<u64, (Frame, u8)>>,
    violations: Mutex<Vec<String>>,
    freed: AtomicU64,
    refused: AtomicU64,
    script: Mutex<Box<Script>>,
}

impl Default for CheckedDriver {
    fn default() -> CheckedDriver {
        CheckedDriver::failing(|_, _| Ok(()))
    }
}

impl CheckedDriver {
    /// A driver whose migrations fail where this says.
    pub fn failing(
        script: impl FnMut(Failing, DeviceFolio) -> Result<(), FaultError> + Send + 'static,
    ) -> CheckedDriver {
        CheckedDriver {
            serial: AtomicU64::new(1),
            live: Mutex::default(),
            violations: Mutex::default(),
            freed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            script: Mutex::new(Box::new(script)),
        }
    }

    /// From now on, migrations fail where this says.
    pub fn fail(
        &self,
        script: impl FnMut(Failing, DeviceFolio) -> Result<(), FaultError> + Send + 'static,
    ) {
        *self.script.lock() = Box::new(script);
    }

    /// From now on, migrations to system memory are refused with the error that this gives for their first folio.
    pub fn refuse(
        &self,
        mut script: impl FnMut(DeviceFolio) -> Option<FaultError> + Send + 'static,
    ) {
        self.fail(move |point, folio| match point {
            Failing::ToSystemBeforeCopy => script(folio).map_or(Ok(()), Err),
            _ => Ok(()),
        });
    }

    /// From now on, no migration fails.
    pub fn refuse_nothing(&self) {
        self.fail(|_, _| Ok(()));
    }

    /// How many migrations the script let fail.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// How many folios were freed.
    pub fn freed(&self) -> u64 {
        self.freed.load(Ordering::Relaxed)
    }

    /// How many folios are in use.
    pub fn live(&self) -> usize {
        self.live.lock().len()
    }

    /// The first frames and the orders of the folios in use.
    pub fn live_folios(&self) -> BTreeSet<(u32, u8)> {
        let live = self.live.lock();
        live.values().map(|(f, order)| (f.0, *order)).collect()
    }

    /// How the backend broke the contract.
    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().clone()
    }

    /// Panics if the backend broke the contract.
    pub fn assert_clean(&self) {
        assert_eq!(*self.violations.lock(), Vec::<String>::new());
    }

    fn new_cookie(&self, frame: Frame, order: u8) -> u64 {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        // Odd, so that no two serial numbers have the same product; all 64 bits are the driver's.
        let cookie = serial.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.live.lock().insert(cookie, (frame, order));
        cookie
    }

    fn check(&self, folio: DeviceFolio) {
        let known = self.live.lock().get(&folio.cookie).copied();
        if known != Some((folio.frame, folio.order)) {
            let mut violations = self.violations.lock();
            violations.push(format!("{folio:?}, but the cookie is of {known:?}"));
        }
    }

    fn reach(&self, point: Failing, first: Option<DeviceFolio>) -> Result<(), FaultError> {
        let Some(first) = first else {
            return Ok(());
        };
        let said = (self.script.lock())(point, first);
        if said.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        said
    }
}

impl Driver for CheckedDriver {
    fn migrate_to_device(&self, mut migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        migration.set_cookies(|folio| self.new_cookie(folio.frame, folio.order));
        let first = migration.folios().next();
        let reach = |point| {
            let reached = self.reach(point, first);
            reached.map_err(|error| MigrateError::Device(error.to_string()))
        };
        reach(Failing::ToDeviceBeforeCopy)?;
        let copied = migration.copy()?;
        reach(Failing::ToDeviceAfterCopy)?;
        Ok(copied.commit().finalize())
    }

    fn migrate_to_ram(&self, migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        migration.folios().for_each(|folio| self.check(folio));
        let first = migration.folios().next();
        self.reach(Failing::ToSystemBeforeCopy, first)?;
        let copied = migration.copy()?;
        self.reach(Failing::ToSystemAfterCopy, first)?;
        Ok(copied.commit()?.finalize())
    }

    fn flush(&self, folios: &[DeviceFolio], _: DeviceId) -> Result<(), MigrateError> {
        folios.iter().for_each(|folio| self.check(*folio));
        let reached = self.reach(Failing::Flush, folios.first().copied());
        reached.map_err(|error| MigrateError::Device(error.to_string()))
    }

    fn page_free(&self, folio: DeviceFolio) {
        self.check(folio);
        self.live.lock().remove(&folio.cookie);
        self.freed.fetch_add(1, Ordering::Relaxed);
    }

    fn folio_split(&self, folio: DeviceFolio) -> u64 {
        self.check(folio);
        let order = folio.order - 1;
        self.live.lock().insert(folio.cookie, (folio.frame, order));
        self.new_cookie(Frame(folio.frame.0 + (1 << order)), order)
    }
}
