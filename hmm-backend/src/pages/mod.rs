//! The vocabulary of the crate: pages, their numbers and sets, devices and frames, accesses, times, and errors.

mod access;
pub(crate) mod error;
pub(crate) mod ids;
mod page;
pub(crate) mod time;

pub use access::{Access, Fidelity, Hint, Permission, Place, Visit};
pub(crate) use error::{Error, FatalCause, FaultError, MigrateError, MirrorError, ServiceFailure};
pub(crate) use ids::DeviceFolio;
pub use ids::{DeviceId, Frame};
pub use page::{BLOCK_PAGES, Block, MAX_ORDER, PAGE_SIZE, Page, PageRange, PageSet};
pub use time::MAX_HOLD;
