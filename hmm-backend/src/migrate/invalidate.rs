//! Takes translations away from devices before pages move.

use std::sync::Arc;

use parking_lot::{RwLock, RwLockReadGuard};
use smallvec::SmallVec;

use crate::pages::{Access, DeviceId, Fidelity, Page, PageRange, Visit};
use crate::residency::{FolioLock, Placed, Residency};

/// The part of a mirror that migrations use.
pub(crate) trait Invalidate: Send + Sync {
    /// Returns the device whose translations these are.
    fn device(&self) -> DeviceId;
    /// Removes the translations of these pages; returns when the device uses none of them.
    fn invalidate(&self, pages: PageRange);
    /// How much the device tells of its accesses.
    fn fidelity(&self) -> Fidelity;
    /// Tests and clears the accessed bits of these pages.
    fn take_bits(&self, pages: PageRange, each: &mut dyn FnMut(Page, Access));
    /// Takes the visits that the device has made since the last call, in order.
    fn take_visits(&self, each: &mut dyn FnMut(Visit));
}

/// The mirrors of all devices.
#[derive(Default)]
pub(crate) struct Mirrors(RwLock<Vec<Arc<dyn Invalidate>>>);

/// The mirrors of all devices at one moment.
pub(crate) struct AllMirrors<'a>(RwLockReadGuard<'a, Vec<Arc<dyn Invalidate>>>);

impl AllMirrors<'_> {
    /// Returns the mirrors of a device that tell exactly this much of their accesses.
    pub(crate) fn telling(
        &self,
        device: DeviceId,
        fidelity: Fidelity,
    ) -> impl Iterator<Item = &dyn Invalidate> {
        let mirrors = self.0.iter().map(|mirror| &**mirror);
        mirrors.filter(move |it| it.device() == device && it.fidelity() == fidelity)
    }
}

impl Mirrors {
    pub(crate) fn add(&self, mirror: Arc<dyn Invalidate>) {
        let mut mirrors = self.0.write();
        mirrors.push(mirror);
    }

    pub(crate) fn remove(&self, mirror: &Arc<dyn Invalidate>) {
        let mut mirrors = self.0.write();
        mirrors.retain(|other| !Arc::ptr_eq(other, mirror));
    }

    /// Returns all mirrors. Until they are dropped, none can be added or removed.
    pub(crate) fn all(&self) -> AllMirrors<'_> {
        AllMirrors(self.0.read())
    }

    /// Removes all translations of these pages from one device.
    pub(crate) fn invalidate_device(&self, device: DeviceId, pages: PageRange) {
        let mirrors = self.0.read();
        for mirror in mirrors.iter().filter(|mirror| mirror.device() == device) {
            mirror.invalidate(pages);
        }
    }

    /// Removes the translations of these folios from all devices that may have one, and clears the folios'
    /// mirrored flags. Returns the number of ranges. Neighbouring folios are joined to one range, so that the
    /// device is interrupted only once for them.
    pub(super) fn invalidate<'a, 't: 'a>(
        &self,
        locks: impl Iterator<Item = &'a mut FolioLock<'t>>,
    ) -> u64 {
        let mut ranges: SmallVec<[(Option<DeviceId>, PageRange); 4]> = SmallVec::new();
        for lock in locks.filter(|l| l.word().mirrored()) {
            let owner = match lock.word().residency() {
                // Only its own device can reach private device memory, or an exclusive page.
                Residency::Device(Placed { device, .. }) | Residency::Exclusive(device) => {
                    Some(device)
                }
                _ => None,
            };
            let range = lock.range();
            match ranges.last_mut() {
                Some((o, last)) if *o == owner && last.end == range.start => last.end = range.end,
                _ => ranges.push((owner, range)),
            }
            lock.clear_mirrored();
        }
        if ranges.is_empty() {
            return 0;
        }
        let mirrors = self.0.read();
        for (owner, range) in &ranges {
            for mirror in mirrors
                .iter()
                .filter(|m| owner.is_none_or(|o| m.device() == o))
            {
                mirror.invalidate(*range);
            }
        }
        ranges.len() as u64
    }
}
