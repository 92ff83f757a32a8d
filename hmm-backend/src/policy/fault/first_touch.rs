//! Pages are created where they are first touched. Later, devices access pages of system memory in place. Pages in a
//! device's private memory come back when a CPU touches them, because CPUs cannot access them there.

use crate::pages::Place;
use crate::policy::{Advice, BlockFault, BlockView, FaultPolicy};
use crate::residency::Residency;

/// The first-touch policy.
#[derive(Debug, Default)]
pub struct FirstTouch;

/// Whether this is a device fault whose pages are all in system memory, so that the device can access them in place.
pub(super) fn reached_in_place(fault: &BlockFault, view: &BlockView<'_>) -> bool {
    let mut pages = fault.pages.iter();
    fault.to != Place::System && pages.all(|i| view.residency(i) == Residency::System)
}

impl FaultPolicy for FirstTouch {
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        Advice {
            stay: reached_in_place(fault, view),
            ..Advice::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::{DeviceId, PageSet};
    use crate::policy::test_view::*;

    #[test]
    fn devices_leave_system_pages_and_fill_untouched_ones() {
        let words = block(
            64,
            &PageSet::from_range(0..10),
            &PageSet::from_range(10..20),
        );
        let device = Place::Device(DeviceId(0));
        for (page, to, stay) in [
            (3, device, true),
            (30, device, false),
            (12, Place::System, false),
            (30, Place::System, false),
        ] {
            let advice = FirstTouch.advise(&fault([page], to), &view(&words));
            let expected = Advice {
                stay,
                ..Advice::default()
            };
            assert_eq!(advice, expected, "page {page}");
        }
    }
}
