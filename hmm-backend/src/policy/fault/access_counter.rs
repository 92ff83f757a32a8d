//! NVIDIA UVM's access-counter migration (`uvm_gpu_access_counters.c` of the open kernel modules, 595.45). Devices
//! access pages of system memory in place, hardware counts the accesses per 64 KiB, and pages that are used often
//! migrate.

use super::first_touch::reached_in_place;
use crate::pages::{PageSet, Place};
use crate::policy::{Advice, BlockFault, BlockView, FaultPolicy};

/// The access-counter policy.
#[derive(Debug)]
pub struct AccessCounter {
    threshold: u32,
}

impl AccessCounter {
    /// Migrates after `threshold` accesses to a group of 64 KiB (UVM: 256).
    pub fn new(threshold: u32) -> AccessCounter {
        AccessCounter { threshold }
    }
}

impl FaultPolicy for AccessCounter {
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        Advice {
            stay: reached_in_place(fault, view),
            ..Advice::default()
        }
    }

    fn remote_access_threshold(&self) -> Option<u32> {
        Some(self.threshold)
    }

    fn remote_accesses(&mut self, seen: &BlockFault, count: u32, view: &BlockView<'_>) -> PageSet {
        if count < self.threshold {
            return PageSet::EMPTY;
        }
        seen.pages.intersection(&view.resident(Place::System))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::DeviceId;
    use crate::policy::test_view::*;

    /// In UVM, the notification at the threshold for 64 KiB is turned into the set of those pages that are resident
    /// at the holder. Below the threshold there is no notification.
    #[test]
    fn what_is_resident_of_a_hot_group_migrates() {
        let mut system = PageSet::from_range(16..24);
        system.insert(40);
        let words = block(512, &system, &PageSet::from_range(24..28));
        let to = Place::Device(DeviceId(0));
        let mut policy = AccessCounter::new(256);
        assert_eq!(policy.remote_access_threshold(), Some(256));
        assert!(policy.advise(&fault([17], to), &view(&words)).stay);
        assert!(
            !policy.advise(&fault([30], to), &view(&words)).stay,
            "untouched"
        );
        let group = fault(16..32, to);
        let mut migrates = |count| policy.remote_accesses(&group, count, &view(&words));
        assert_eq!(migrates(255), PageSet::EMPTY);
        assert_eq!(migrates(256), PageSet::from_range(16..24));
    }
}
