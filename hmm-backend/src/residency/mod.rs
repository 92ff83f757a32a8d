//! The residency of each page: one 64-bit word per page, and the lock protocol on these words.

mod block_words;
mod folio_lock;
#[cfg(all(test, loom))]
mod loom;
mod pattern;
#[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
pub mod script;
mod sync;
mod table;
mod wait;
mod word;

pub(crate) use block_words::BlockWords;
pub(crate) use folio_lock::FolioLock;
pub(crate) use pattern::Pattern;
pub(crate) use table::{PinError, ResidencyTable, TryLock, WakeFaults};
pub(crate) use word::{AUX_MAX, MemoryKind};
#[cfg(all(test, not(loom)))]
pub(crate) use word::{LOCKED, MIRRORED, PIN, WAITERS};
pub use word::{Placed, Residency, Word};
