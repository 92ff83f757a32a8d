//! A device's accesses to memory, and the simplest device.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hmm_backend::mirror::{Mapping, Mirror, MirrorError, PageTable};
use hmm_backend::pages::{Access, DeviceId, Page};
use hmm_backend::{Backend, Error};

/// Why a device could not access a page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AccessRefused {
    /// The page is read-only for devices.
    Permission,
    /// Anything else.
    Failed(String),
}

impl fmt::Display for AccessRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AccessRefused::Permission => f.write_str("no permission"),
            AccessRefused::Failed(cause) => f.write_str(cause),
        }
    }
}

impl From<MirrorError> for AccessRefused {
    fn from(error: MirrorError) -> AccessRefused {
        match error {
            MirrorError::Permission(_) => AccessRefused::Permission,
            other => AccessRefused::Failed(other.to_string()),
        }
    }
}

/// A device under test reads and writes managed memory, through its own MMU.
pub trait DeviceAccess: Send {
    /// Reads the 64-bit word at this index (0 to 511) of a page.
    fn read(&mut self, page: Page, word: usize) -> Result<u64, AccessRefused>;
    /// Writes it.
    fn write(&mut self, page: Page, word: usize, value: u64) -> Result<(), AccessRefused>;
}

/// A device that does nothing but read and write words through a mirror. The suite uses one on the device of each
/// subject; a subject without an MMU of its own may use one, too.
pub struct MirrorDevice {
    pub(super) mirror: Mirror<PageTable>,
    // The mirror keeps the backend, too; this says that pointers into it are good.
    _backend: Arc<Backend>,
}

impl MirrorDevice {
    /// Makes a mirror of this device.
    pub fn new(backend: &Arc<Backend>, device: DeviceId) -> Result<MirrorDevice, Error> {
        Ok(MirrorDevice {
            mirror: backend.mirror(device, PageTable::default())?,
            _backend: backend.clone(),
        })
    }

    /// Adds to a word, atomically towards CPUs and other devices.
    pub fn add(&mut self, page: Page, word: usize, value: u64) -> Result<u64, AccessRefused> {
        Ok(self.mirror.access(page, Access::Write, |mapping| {
            cell(mapping, word).fetch_add(value, Ordering::SeqCst)
        })?)
    }

    /// Adds to a word in two steps, with exclusive access to the page, so no other access comes between them. Returns what the
    /// word was.
    pub fn exclusive_add(
        &mut self,
        page: Page,
        word: usize,
        value: u64,
    ) -> Result<u64, AccessRefused> {
        let old = self.mirror.access_exclusively(page, |mapping| {
            let old = cell(mapping, word).load(Ordering::SeqCst);
            std::thread::yield_now();
            cell(mapping, word).store(old.wrapping_add(value), Ordering::SeqCst);
            old
        });
        Ok(old?)
    }
}

impl DeviceAccess for MirrorDevice {
    fn read(&mut self, page: Page, word: usize) -> Result<u64, AccessRefused> {
        Ok(self.mirror.access(page, Access::Read, |mapping| {
            cell(mapping, word).load(Ordering::SeqCst)
        })?)
    }

    fn write(&mut self, page: Page, word: usize, value: u64) -> Result<(), AccessRefused> {
        Ok(self.mirror.access(page, Access::Write, |mapping| {
            cell(mapping, word).store(value, Ordering::SeqCst)
        })?)
    }
}

/// A word of a page that the table has a translation of; only called under the mirror's guard.
fn cell(mapping: &Mapping, word: usize) -> &AtomicU64 {
    assert!(word < 512);
    // SAFETY: the translation is in the table, whose guard is held, so it leads to the 4096 mapped bytes of the page;
    // the word lies inside. All accesses to these bytes are atomic.
    unsafe { AtomicU64::from_ptr(mapping.host.as_ptr().cast::<u64>().add(word)) }
}
