//! What a device driver implements. Its rules are in the documentation of [`crate::driver`].

use super::phases::Finalized;
use super::to_device::ToDevice;
use super::to_system::ToSystem;
use crate::pages::{DeviceFolio, DeviceId, FaultError, MigrateError};

/// The calls that a device model implements, under the rules of [`crate::driver`]. Service threads, device threads and any
/// other thread that requests a migration call it, several at once.
///
/// While a migration's call runs, its pages are locked, and any thread that wants them sleeps. So a driver must not
/// touch managed memory or fault through its own mirror during a call: it could wait for itself.
pub trait Driver: Send + Sync {
    /// Migrates pages into this device's memory, from system memory or directly from another device's memory
    /// ([`ToDevice::source`]), whose driver was asked to [`Driver::flush`] them. The frames are allocated and the source pages locked; the
    /// driver may set cookies ([`ToDevice::set_cookies`]) and decline folios ([`ToDevice::retain`]) before
    /// [`ToDevice::copy`], and update its hardware between the phases. An error before the commit rolls
    /// everything back.
    fn migrate_to_device(&self, migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        migration.run()
    }

    /// Migrates pages back into system memory, because a CPU or another device touched one of them
    /// ([`ToSystem::fault`]), because device memory is short, on request, or because the device is being
    /// detached.
    ///
    /// If the pages are only duplicated ([`ToSystem::keeps_frames`]), they are copied and the folios stay in
    /// use. When the duplication ends by a migration, the folios are passed to this call once more.
    ///
    /// `Ok` does not promise that every page moved: the CPU executes its access again and faults again if its
    /// page did not move. An error before the commit rolls everything back, and decides what happens to the
    /// fault, see [`FaultError`].
    fn migrate_to_ram(&self, migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        migration.run()
    }

    /// Prepares folios of this device to be read by the device `to`, to whose memory their contents go directly: writes
    /// back what the device still has in caches, for example. Called with the folios locked, after their translations
    /// were taken away from this device, so that it does not use them any more, and before the other driver's
    /// [`Driver::migrate_to_device`]. On an error, the pages go through system memory, by
    /// [`Driver::migrate_to_ram`].
    ///
    /// The folios stay in use: [`Driver::page_free`] follows for each one, or for each half, that has moved. The others stay
    /// where they are, and the device may use them again.
    fn flush(&self, _folios: &[DeviceFolio], _to: DeviceId) -> Result<(), MigrateError> {
        Ok(())
    }

    /// Takes back a folio of this device that is no longer in use, because the guest freed it or it has moved
    /// away. Called exactly once for each folio that [`Driver::migrate_to_device`] was shown, also if that
    /// migration failed or the driver declined the folio (then during that call). The folio still has its
    /// cookie, but its pages are unlocked; when the call returns, the frames may be allocated again. Must not block and cannot fail.
    fn page_free(&self, folio: DeviceFolio);

    /// Notes that a folio is cut in two halves of order `folio.order - 1`, and returns the cookie of the upper
    /// half; the lower half keeps `folio.cookie`. A driver whose cookies count references takes one here. Called with the
    /// folio locked, also from inside the phases of this driver's own migrations.
    fn folio_split(&self, folio: DeviceFolio) -> u64 {
        folio.cookie
    }
}

/// A driver that leaves everything to the defaults, for devices whose driver has nothing to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultDriver;

impl Driver for DefaultDriver {
    fn page_free(&self, _: DeviceFolio) {}
}
