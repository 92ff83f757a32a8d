//! The subject of the checks: a driver, and what else the suite may look at.

use std::sync::Arc;

use hmm_backend::Backend;
use hmm_backend::driver::Driver;
use hmm_backend::pages::DeviceId;

use super::DeviceAccess;

/// A driver under test and what else the suite may look at.
///
/// Each rule gets a fresh subject and uses it in this order: `driver`, `connect`, then the others.
pub trait Subject: Send + 'static {
    /// The driver. It will be attached to a backend of the suite, inside a wrapper that watches its calls.
    fn driver(&self) -> Arc<dyn Driver>;

    /// The driver has been attached as this device: the moment to make a mirror. Returns the device's way to
    /// memory, if it has one; without, the rules about it do not apply.
    fn connect(
        &mut self,
        _backend: &Arc<Backend>,
        _device: DeviceId,
    ) -> Option<Box<dyn DeviceAccess>> {
        None
    }

    /// How many folios are in use by the driver's own books: one more for each that `migrate_to_device` was shown
    /// and for each `folio_split`, one less for each `page_free`. None without books.
    fn live(&self) -> Option<usize> {
        None
    }

    /// Mistakes that the driver itself has found, such as a cookie it does not know. The backend under it keeps the contract,
    /// so the mistake is the driver's.
    fn complaints(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A driver with nothing else to look at.
pub struct Plain(Arc<dyn Driver>);

impl Plain {
    /// This one.
    pub fn new(driver: impl Driver + 'static) -> Plain {
        Plain(Arc::new(driver))
    }
}

impl Subject for Plain {
    fn driver(&self) -> Arc<dyn Driver> {
        self.0.clone()
    }
}
