//! The vocabulary of the crate: pages, their numbers and sets, devices and frames, accesses, times, and errors.

mod access;
mod error;
mod ids;
mod page;
pub(crate) mod time;

pub use access::{Access, Hint, Place};
pub use error::{Error, FatalCause, FaultError, MigrateError, MirrorError};
pub use ids::{DeviceFolio, DeviceId, Frame};
pub use page::{BLOCK_PAGES, Block, MAX_ORDER, PAGE_SIZE, Page, PageRange, PageSet};
