//! Accesses that a device tells of, on their way to its eviction policy.
//!
//! Locks: the list of mirrors first, if several are asked, then the eviction policy's, then the mirror's. A thread that holds a mirror's guard calls nothing of the backend.

use super::faults::Faults;
use crate::migrate::{AllMirrors, Core, Device, Eviction, Invalidate};
use crate::observe::{Counter, Event, EventKind};
use crate::pages::{Access, Fidelity, Frame, PageRange, Visit};
use crate::policy::AccessedBits;
use crate::residency::Residency;

impl Faults {
    /// Tells the device's eviction policy of the visits that the device has made through this mirror since the last call.
    pub(crate) fn tell_visits(&self, device: &Device, mirror: &dyn Invalidate) {
        self.pass_on(device, [mirror], &mut device.eviction());
    }

    /// Tells the eviction policy of the visits through these mirrors, which tell of all.
    fn pass_on<'m>(
        &self,
        device: &Device,
        mirrors: impl IntoIterator<Item = &'m dyn Invalidate>,
        eviction: &mut Eviction,
    ) {
        let core = &self.core;
        let mut visits = 0;
        for mirror in mirrors {
            mirror.take_visits(&mut |visit| {
                if visit.page.0 >= core.pages() {
                    core.recorder.add(Counter::VisitsCut, 1);
                    return;
                }
                visits += u64::from(visit.times);
                record(core, device, visit);
                // The page may have moved since; then there is nothing to say about it.
                if let Residency::Device(place) = core.table.word(visit.page).residency()
                    && place.device == device.id
                {
                    eviction.touched(place.folio_frame(visit.page), visit.times);
                }
            });
        }
        if visits > 0 {
            core.recorder.add(Counter::Visits, visits);
        }
    }

    /// Asks the device's eviction policy for victims, after telling it of all visits.
    pub(crate) fn victims(&self, device: &Device, frames: u32) -> Vec<Frame> {
        let core = &self.core;
        let mirrors = core.mirrors.all();
        let mut eviction = device.eviction();
        let telling = mirrors.telling(device.id, Fidelity::All);
        self.pass_on(device, telling, &mut eviction);
        let mut bits = Bits {
            core,
            device,
            mirrors: &mirrors,
            read: 0,
        };
        let mut victims = eviction.victims(frames, &mut bits);
        // A policy may name frames that the device does not have.
        victims.retain(|frame| frame.0 < device.reserved());
        if bits.read > 0 {
            core.recorder.add(Counter::BitsRead, bits.read);
        }
        victims
    }
}

/// Records a visit, so that a replay of the run sees it, too. A replay takes events in the order in which they began, and the
/// visits before a fault must come before it.
fn record(core: &Core, device: &Device, visit: Visit) {
    core.recorder.event(|| Event {
        device: Some(device.id),
        access: Some(visit.access),
        repeats: visit.times,
        ..Event::new(
            device.fault_began().unwrap_or_else(|| core.clock.now()),
            EventKind::Access,
            PageRange::single(visit.page),
        )
    });
}

/// The accessed bits of a device's mirrors.
struct Bits<'a> {
    core: &'a Core,
    device: &'a Device,
    mirrors: &'a AllMirrors<'a>,
    read: u64,
}

impl AccessedBits for Bits<'_> {
    fn there(&self) -> bool {
        let mut mirrors = self.mirrors.telling(self.device.id, Fidelity::Bits);
        mirrors.next().is_some()
    }

    fn take(&mut self, head: Frame) -> Option<Access> {
        if !self.there() || head.0 >= self.device.reserved() {
            return None;
        }
        let page = self.device.page_of(head)?;
        let Residency::Device(place) = self.core.table.word(page).residency() else {
            return None;
        };
        let range = PageRange::with_len(page, 1 << place.order);
        self.read += u64::from(range.len());
        let mut strongest = None;
        for mirror in self.mirrors.telling(self.device.id, Fidelity::Bits) {
            mirror.take_bits(range, &mut |page, access| {
                // Bits of other pages than those that were asked for say nothing.
                if range.contains(page) {
                    strongest = strongest.max(Some(access));
                    let times = 1;
                    record(
                        self.core,
                        self.device,
                        Visit {
                            page,
                            access,
                            times,
                        },
                    );
                }
            });
        }
        strongest
    }
}
