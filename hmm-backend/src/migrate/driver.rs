//! The contract: what a device driver implements and what it may rely on.
//!
//! The same three promises as Linux's HMM, one level down: the driver controls the migration of its
//! pages back to system memory ([`Driver::migrate_to_ram`]), owns a 64-bit word per device page
//! (the *cookie*), and is told when a device page is no longer in use ([`Driver::page_free`]).

use super::phases::Finalized;
use super::to_device::ToDevice;
use super::to_system::ToSystem;
use crate::pages::{DeviceFolio, FaultError, MigrateError};

/// What a device model implements. Called from service threads, from device threads and from whoever
/// asks for a migration, concurrently for different pages; never twice at a time for one page.
///
/// While a call runs, the pages it is about are locked: whoever else wants them sleeps. So a driver
/// must not touch guest memory or fault through its own mirror from inside a call.
pub trait Driver: Send + Sync {
    /// Pages move into this device's memory. The frames are allocated and the source pages locked;
    /// the driver may set cookies ([`ToDevice::set_cookies`]) and decline folios ([`ToDevice::retain`])
    /// before [`ToDevice::copy`], and update its hardware between the phases. An error before the
    /// commit rolls everything back.
    fn migrate_to_device(&self, migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        migration.run()
    }

    /// Pages move back into system memory, because a CPU touched one of them
    /// ([`ToSystem::fault`]), because device memory is short, or because the device goes away.
    ///
    /// The device may keep what is only read ([`ToSystem::keeps_frames`]): then the pages are copied, the folios stay in
    /// use, and come again when the duplicates end.
    ///
    /// `Ok` does not promise that every page moved: the access is re-executed and faults again if
    /// its page did not. An error before the commit rolls everything back and decides what becomes of the
    /// fault, see [`FaultError`].
    fn migrate_to_ram(&self, migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        migration.run()
    }

    /// A folio of this device is no longer in use: the guest freed it or it has moved away. Comes
    /// exactly once for each folio that [`Driver::migrate_to_device`] was shown, also if that
    /// migration failed or the folio was declined (then from within that call). The cookie is still
    /// readable; when the call returns, the frames may be handed out again. Must not block and cannot
    /// fail.
    fn page_free(&self, folio: DeviceFolio);

    /// A folio is cut in two halves of order `folio.order - 1`. Returns the cookie of the upper half;
    /// the lower half keeps `folio.cookie`. A driver whose cookie counts references takes one here.
    fn folio_split(&self, folio: DeviceFolio) -> u64 {
        folio.cookie
    }
}
