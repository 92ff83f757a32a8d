//! Read duplication: the same contents in a device's private memory and in system memory.
//!
//! A page becomes a duplicate when a CPU reads it on a device and the policy asks for that
//! ([`crate::policy::Advice::duplicate`]): the driver's `migrate_to_ram` runs as for a migration, but the device keeps
//! its frame, and the page in system memory is write-protected. The page stays in a folio of the device, which
//! can be evicted. From then on neither CPUs nor devices can write to it: a write first ends the duplication
//! under the folio's lock, and no contents move. A CPU's write, another device's, a pin, a request, eviction
//! and detach leave the copy in system memory (`migrate/to_system.rs`). A write of the device itself leaves the
//! copy in its frame; that is done here.

use super::core::Core;
use crate::observe::{Counter, Event, EventKind};
use crate::pages::Page;
use crate::residency::{TryLock, Word};

impl Core {
    /// Drops the system copy of a duplicated page, so that only the device has the contents. Does nothing if
    /// another thread has the page's lock or the page is not a duplicate (any more).
    pub(crate) fn drop_system_copy(&self, page: Page) {
        let TryLock::Locked(lock) = self.table.try_lock(page) else {
            return;
        };
        if !lock.word().residency().duplicated() {
            return;
        }
        let Some((device, source)) = self.device_source(lock) else {
            return;
        };
        let mut pieces = Vec::new();
        let only = |range: crate::pages::PageRange| u32::from(range.contains(page));
        source.carve(self, device, &only, &mut pieces);
        for mut source in pieces {
            // Other devices may read the system copy in place.
            self.invalidate_mirrors(std::iter::once(&mut source.lock));
            let range = source.lock.range();
            // After this, a CPU that touches the page faults and finds the lock. The copies are equal, because
            // neither could be written.
            if self.guest.discard(range).is_err() {
                // The host has refused: the page stays a duplicate.
                continue;
            }
            source.lock.publish_folio(Word::to_device_alone);
            self.recorder.add(Counter::Collapsed, range.len().into());
            self.recorder.event(|| Event {
                device: Some(device.id),
                ..Event::new(self.clock.now(), EventKind::Collapsed, range)
            });
        }
    }
}
