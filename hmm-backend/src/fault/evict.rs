//! Makes room in device memory, and empties it when a device is detached. Both start from frames, not from
//! guest addresses.

use std::sync::Arc;

use smallvec::SmallVec;

use super::faults::Faults;
use super::retry::Unresolved;
use crate::migrate::{Device, Reason, Sources, to_system};
use crate::observe::{Cause, Counter};
use crate::pages::Frame;

impl Faults {
    /// Evicts until `want` frames of the device are free or nothing more can be evicted. Returns the number of
    /// free frames; other threads may allocate them at any time.
    pub(crate) fn make_room(&self, device: &Arc<Device>, want: u32) -> u32 {
        let mut tried = 0;
        let mut there = None;
        loop {
            let free = device.free_frames();
            if free >= want {
                return free;
            }
            // As many folios have been proposed as there can have been: those that are left are held or busy. While the memory
            // shrinks, there are more than it can hold.
            let there = *there.get_or_insert_with(|| device.capacity().max(device.used_frames()));
            if tried >= there {
                self.core.recorder.add(Counter::DeviceMemoryFull, 1);
                return free;
            }
            let batch = (want - free).max(self.eviction_batch.min(device.capacity() / 8));
            let victims = self.victims(device, batch);
            if victims.is_empty() {
                self.core.recorder.add(Counter::DeviceMemoryFull, 1);
                return free;
            }
            tried += victims.len() as u32;
            // An error means that the driver keeps its pages; `tried` bounds the loop.
            let _ = self.evict(device, &victims, Cause::Eviction);
        }
    }

    /// Migrates the folios that start at these frames to system memory and returns how many pages moved.
    /// Reports folios that cannot move now to the eviction policy, so that it proposes other folios next.
    pub(crate) fn evict(
        &self,
        device: &Arc<Device>,
        frames: &[Frame],
        cause: Cause,
    ) -> Result<u32, Unresolved> {
        if self.lockstep {
            // Before the first lock: a thread that holds locks never sleeps for another lock, least of all for its
            // own, if the policy proposes a folio twice.
            for page in frames.iter().filter_map(|frame| device.page_of(*frame)) {
                self.core.table.settle(page);
            }
        }
        let now = self.core.clock.now();
        let mut sources = Sources::new();
        for frame in frames {
            let locked = device
                .page_of(*frame)
                .and_then(|page| self.core.lock_device_folio(page));
            // Between the proposal and the lock, the page may have moved and another page may have got the
            // frame.
            let same = locked.filter(|(d, s)| d.id == device.id && s.folio.frame == *frame);
            let held = device.held(*frame, now).is_some();
            match same {
                Some((_, source)) if !held => sources.push(source),
                _ => device.eviction().refused(*frame),
            }
        }
        if sources.is_empty() {
            return Ok(0);
        }
        // Sort by page, so that neighbours form runs.
        sources.sort_by_key(|s| s.lock.head());
        let victims: SmallVec<[Frame; 8]> = sources.iter().map(|s| s.folio.frame).collect();
        let result = to_system(&self.core, device, sources, Reason::of(cause), None);
        // Whatever the driver has answered, the policy should not propose the folios that are still there again
        // at once.
        for frame in victims {
            if device.page_of(frame).is_some() {
                device.eviction().refused(frame);
            }
        }
        result.map(|done| done.pages).map_err(Unresolved::from)
    }
}
