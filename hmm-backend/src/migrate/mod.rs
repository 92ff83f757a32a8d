//! Migration in phases that are types: *collect* (lock the pages), *copy* (from now on no CPU and no device
//! reaches the old contents), *commit* (the new place is valid), *finalize* (unlock the pages and wake the
//! threads that wait for them). Each step consumes the one before, so an order that breaks the contract does
//! not compile. Dropping an unfinished migration rolls it back, with every page unharmed.

mod between;
mod checked;
mod core;
mod device;
mod discard;
mod driver;
mod driver_calls;
mod duplicate;
mod eviction;
mod exclusive;
mod invalidate;
mod links;
mod phases;
mod to_device;
mod to_system;
mod watch;

pub(crate) use self::core::{Core, MAX_DEVICES, first_outside};
pub(crate) use between::between_devices;
pub use checked::{CheckedDriver, Failing};
pub(crate) use device::Device;
pub(crate) use discard::Refused;
pub use driver::{DefaultDriver, Driver};
pub(crate) use driver_calls::SlowCall;
pub(crate) use eviction::Eviction;
pub(crate) use invalidate::{AllMirrors, Invalidate};
pub(crate) use links::Links;
pub use links::{LinkTraffic, Pacing, Route};
pub use phases::Finalized;
pub(crate) use phases::Reason;
pub(crate) use to_device::to_device;
pub use to_device::{CommittedToDevice, CopiedToDevice, ToDevice};
pub use to_system::{CommittedToSystem, CopiedToSystem, ToSystem};
pub(crate) use to_system::{Leaving, Sources, collect_from_devices, to_system};
pub use watch::{Step, Watch};
