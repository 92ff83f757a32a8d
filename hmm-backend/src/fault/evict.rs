//! Making room in device memory, and emptying it when a device goes away. Both start from frames, not from
//! guest addresses.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::backend::Backend;
use crate::fault::retry::{Attempts, Unresolved};
use crate::migrate::{Device, Reason};
use crate::observe::{Cause, Counter};
use crate::pages::{DeviceId, Error, Frame, Page, PageRange};

/// Frames evicted at a time, at least: neighbours move together, and the next faults find room.
const BATCH: u32 = 64;

impl Backend {
    /// Evicts until `want` frames of the device are free or nothing more can be evicted. Returns the number of
    /// free frames; others may take them.
    pub(crate) fn make_room(&self, device: &Arc<Device>, want: u32) -> u32 {
        let mut tried = 0;
        loop {
            let free = device.free_frames();
            if free >= want {
                return free;
            }
            // Every folio has been proposed: what is left is held or busy.
            if tried >= device.capacity() {
                self.recorder.add(Counter::DeviceMemoryFull, 1);
                return free;
            }
            let batch = (want - free).max(BATCH.min(device.capacity() / 8));
            let mut victims = device.eviction().victims(batch);
            victims.retain(|frame| frame.0 < device.capacity());
            if victims.is_empty() {
                self.recorder.add(Counter::DeviceMemoryFull, 1);
                return free;
            }
            tried += victims.len() as u32;
            // Errors are the driver's way to keep its pages: the loop is bounded by `tried`.
            let _ = self.evict(device, &victims, Cause::Eviction);
        }
    }

    /// Migrates the folios that start at these frames to system memory. The policy hears of those that cannot
    /// go now, so that others are proposed next.
    fn evict(
        &self,
        device: &Arc<Device>,
        frames: &[Frame],
        cause: Cause,
    ) -> Result<u32, Unresolved> {
        let mut sources = Vec::new();
        for frame in frames {
            if let (true, Some(page)) = (self.lockstep, device.page_of(*frame)) {
                self.table.settle(page);
            }
            let locked = device
                .page_of(*frame)
                .and_then(|page| self.lock_device_folio(page));
            // Between the proposal and the lock, the page may have moved and the frame found another use.
            let same = locked.filter(|(d, s)| d.id == device.id && s.folio.frame == *frame);
            let held = device.held(*frame, self.clock.now()).is_some();
            match same {
                Some((_, source)) if !held => sources.push(source),
                _ => device.eviction().refused(*frame),
            }
        }
        if sources.is_empty() {
            return Ok(0);
        }
        // In page order, neighbours form runs.
        sources.sort_by_key(|s| s.lock.head());
        let victims: Vec<Frame> = sources.iter().map(|s| s.folio.frame).collect();
        let result = self.send_back(device, sources, Reason::of(cause), None);
        // Whatever the driver says: what is still there is not to be proposed again at once.
        for frame in victims {
            if device.page_of(frame).is_some() {
                device.eviction().refused(frame);
            }
        }
        result.map(|done| done.pages).map_err(Unresolved::from)
    }

    /// Removes a device: no page can come there any more, every page that is there comes back, and only
    /// then does the call return. On an error the remaining pages are still in the device's memory
    /// and CPUs can still fault them back, but nothing new goes there; it can be tried again.
    pub fn detach(&self, id: DeviceId) -> Result<(), Error> {
        let device = self.any_device(id)?;
        device.start_detaching();
        self.pauses.look_again();
        // Between two looks at the frames, whoever holds pages lets go of them.
        const PATIENCE: Duration = Duration::from_millis(10);
        let mut attempts = Attempts::default();
        // No frame is given out any more: this only falls.
        let mut used = device.used_frames();
        while used > 0 {
            let mut unresolved = Unresolved::Retry;
            for victims in device.folios().chunks(BATCH as usize) {
                if let Err(error) = self.evict(device, victims, Cause::Detach) {
                    unresolved = error;
                }
            }
            let before = std::mem::replace(&mut used, device.used_frames());
            if used == before {
                let wait = attempts.next(&unresolved).map_err(|cause| Error::Detach {
                    device: id,
                    left: used,
                    cause: cause.to_string(),
                })?;
                used = device.wait_for_frames(before, PATIENCE + wait);
            }
            if used < before {
                attempts = Attempts::default();
            }
        }
        // What it has for itself goes back to everybody. Whoever is at work on such a page while it is looked at
        // takes it away from the device as well.
        let all = PageRange::new(Page(0), Page(self.pages()));
        self.end_exclusive_access(all, |device| device == id);
        // It may still have translations of system pages in place.
        let mirrors = self.mirrors.read().unwrap_or_else(PoisonError::into_inner);
        for mirror in mirrors.iter().filter(|m| m.device() == id) {
            mirror.invalidate(all);
        }
        Ok(())
    }
}
