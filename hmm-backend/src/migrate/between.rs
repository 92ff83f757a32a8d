//! Migration from one device's private memory directly to another's: no page of system memory is used meanwhile.
//!
//! The source's driver is asked first to flush the folios; then the destination's driver runs the same phases as for pages of system
//! memory ([`ToDevice`]); when the pages are unlocked, the source's driver gets `page_free` for what they have left. The pages stay
//! locked from the first step to the last, so CPUs and devices that want them sleep on the folio's lock as ever.

use std::time::Duration;

use super::core::Core;
use super::device::Device;
use super::phases::Reason;
use super::to_device::{Source, ToDevice, migrate};
use super::to_system::{Leaving, collect_from_devices, to_system};
use crate::observe::{Cause, Counter};
use crate::pages::{Block, FaultError, Page, PageSet};

/// What became of pages that were to go from one device's memory to another's.
#[derive(Debug, Default)]
pub(crate) struct Handed {
    /// How many moved.
    pub(crate) pages: u64,
    /// The last error of a source's driver that has kept its pages: it has refused to flush them, and to give them to system
    /// memory.
    pub(crate) kept: Option<FaultError>,
}

/// Migrates those of these pages that are in other devices' private memories directly to this device. The blocks must ascend. If a source's driver refuses, its pages go to system memory instead. Skips
/// duplicated pages and, unless the user asks, pages that are held. `fault` is the page that a thread waits for.
pub(crate) fn between_devices(
    core: &Core,
    device: &Device,
    wanted: impl IntoIterator<Item = (Block, PageSet)>,
    reason: Reason,
    fault: Option<Page>,
) -> Handed {
    let leaving = match reason.cause {
        // An explicit request overrides the hold.
        Cause::User => Leaving::Single,
        _ => Leaving::SingleAndFree,
    };
    let mut handed = Handed::default();
    for (from, mut folios) in collect_from_devices(core, wanted, leaving) {
        let Some(memory) = from.memory.as_ref().filter(|_| from.id != device.id) else {
            continue;
        };
        let source = Source {
            device: from,
            memory,
        };
        // The source must not use the pages any more when its driver writes back what is in caches.
        core.invalidate_mirrors(folios.iter_mut().map(|f| &mut f.lock));
        let flushed: Vec<_> = folios.iter().map(|f| f.folio).collect();
        let first = folios.first().map_or(Page(0), |f| f.lock.head());
        let now = core.clock.now();
        let calls = &core.driver_calls;
        let flush = calls.call(from, first, now, |driver| driver.flush(&flushed, device.id));
        if flush.is_err() {
            core.recorder.add(Counter::FlushesRefused, 1);
            let reason = Reason {
                hold: Duration::ZERO,
                ..reason
            };
            handed.kept = to_system(core, from, folios, reason, fault)
                .err()
                .or(handed.kept);
            continue;
        }
        let locks = folios.into_iter().map(|f| f.lock).collect();
        if let Some(migration) = ToDevice::from_device(core, source, device, locks, reason) {
            handed.pages += migrate(core, device, migration);
        }
    }
    handed
}
