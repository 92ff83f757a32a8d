//! Read duplication: the same contents in a device's private memory and in system memory.
//!
//! A duplicate is born when a CPU reads a page on a device and the policy says so ([`crate::Advice::duplicate`]): the
//! driver's way back runs as for a migration, but the device keeps its frame and the page in system memory is write-protected. It
//! stays a folio of the device, which can be evicted. From then on nobody can write: whoever wants to ends it under the folio's
//! lock, and no contents move. A CPU's write, another device's, a pin, a request, eviction and detach leave the copy in
//! system memory (`migrate/to_system.rs`); a write of the device itself leaves the one in its frame, which is here.

use super::core::Core;
use crate::observe::{Counter, Event, EventKind};
use crate::pages::Page;
use crate::residency::{TryLock, Word};

impl Core {
    /// Leaves a duplicated page to its device alone. Does nothing if somebody is at work on it or it is no duplicate (any more).
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
        let only = |range: crate::PageRange| u32::from(range.contains(page));
        source.carve(self, device, &only, &mut pieces);
        for mut source in pieces {
            // Other devices may read the page in place.
            self.invalidate_mirrors(std::iter::once(&mut source.lock));
            let range = source.lock.range();
            // From here on CPUs fault, and find the lock. The two copies are the same: nobody could write either.
            if self.guest.discard(range).is_err() {
                // It stays a duplicate.
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
