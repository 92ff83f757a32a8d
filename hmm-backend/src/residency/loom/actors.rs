//! The steps of CPUs, the service, pins, frees and devices, as in `fault/cpu.rs`, `ops/pin.rs`, `ops/free.rs` and
//! `fault/mirror/mod.rs`.

use super::*;

impl World {
    // --- CPUs (`fault/cpu.rs`)

    /// A CPU increments the page's number if it can write the page without a fault. Returns whether it could.
    pub(super) fn access(&self, page: u32) -> bool {
        let mut it = self.page(page);
        let writable = it.present && !it.protected;
        it.value += u64::from(writable);
        writable
    }

    /// A CPU increments the page's number, with as many faults as that takes.
    pub(super) fn cpu(&self, cpu: usize, page: u32) {
        while !self.access(page) {
            self.wait_in_fault(cpu, page, true);
        }
    }

    /// A CPU's fault: the CPU is queued, the kernel checks once more that the page is not accessible, and the service
    /// serves the fault. Returns when the CPU is awake.
    pub(super) fn wait_in_fault(&self, cpu: usize, page: u32, write: bool) {
        self.sleepers.asleep_on.lock().unwrap()[cpu] = Some(Page(page));
        let it = *self.page(page);
        if it.present && !(write && it.protected) {
            self.sleepers.asleep_on.lock().unwrap()[cpu] = None;
            return;
        }
        while !self.serve(Page(page), write) {
            thread::yield_now();
        }
        let mut asleep = self.sleepers.asleep_on.lock().unwrap();
        while asleep[cpu].is_some() {
            asleep = self.sleepers.woken.wait(asleep).unwrap();
        }
    }

    /// A service thread serves a fault: reads duplicate the page, writes bring it back. Returns false if it must be
    /// tried again.
    pub(super) fn serve(&self, page: Page, write: bool) -> bool {
        let resolved = |residency| match residency {
            Residency::System => true,
            Residency::Duplicated(_) => !write,
            _ => false,
        };
        if self.table.announce_waiter(page) {
            return true;
        }
        let before = self.table.word(page);
        if resolved(before.residency()) {
            self.sleepers.wake_faults(PageRange::single(page));
            return true;
        }
        if let Some(lock) = self.try_lock(page.0) {
            match lock.word().residency() {
                Residency::Device(_) if !write => {
                    self.duplicate(self.halve_for(page.0, lock));
                }
                Residency::Duplicated(_) if !write => {}
                Residency::Device(_) | Residency::Duplicated(_) => {
                    self.bring_back(self.halve_for(page.0, lock));
                }
                Residency::Untouched => {
                    self.page(page.0).present = true;
                    self.sleepers.wake_faults(PageRange::single(page));
                    lock.publish_pages(|w| w.to_system(Tick(0)));
                }
                _ => {}
            }
        }
        // `check_resolved`
        if self.table.announce_waiter(page) {
            return true;
        }
        let after = self.table.word(page);
        if resolved(after.residency()) {
            return true;
        }
        if after.generation() == before.generation() {
            return false;
        }
        self.sleepers.wake_faults(PageRange::single(page));
        true
    }

    /// Makes the page present for the calling thread (`fault_in`).
    pub(super) fn fault_in(&self, page: u32) {
        loop {
            if self.table.locked(Page(page)) {
                self.table.wait(Page(page));
            } else if self.table.word(Page(page)).residency() == Residency::System {
                return;
            } else {
                self.serve(Page(page), true);
            }
        }
    }

    /// Pins a page, and repeats that until it succeeds (`ops/pin.rs`).
    pub(super) fn pin(&self, page: u32) {
        loop {
            match self.table.pin(Page(page)) {
                Ok(()) => return,
                Err(PinError::NotNow) => self.fault_in(page),
                Err(PinError::InFolio) => {
                    let lock = self.lock_waiting(page);
                    if lock.word().residency() == Residency::System {
                        lock.carve(&|range| range.contains(Page(page)).into(), &mut Vec::new());
                    }
                }
                Err(PinError::TooMany) => panic!("more pins than a word can count"),
            }
        }
    }

    // --- frees by the guest (`ops/free.rs`)

    pub(super) fn free(&self, page: u32) {
        let lock = self.lock_waiting(page);
        match lock.word().residency() {
            Residency::System if lock.word().pins() > 0 => {}
            Residency::System => {
                let mut locks = Vec::new();
                lock.carve(&|range| range.contains(Page(page)).into(), &mut locks);
                for mut lock in locks {
                    self.invalidate(&mut lock);
                    *self.page(page) = SystemPage::default();
                    lock.publish_pages(|w| w.to_untouched());
                }
            }
            Residency::Device(_) | Residency::Duplicated(_) => {
                let mut lock = self.halve_for(page, lock);
                let (Residency::Device(Placed { frame, .. })
                | Residency::Duplicated(Placed { frame, .. })) = lock.word().residency()
                else {
                    panic!("a half of a device folio is one, too");
                };
                self.invalidate(&mut lock);
                if lock.word().residency().duplicated() {
                    // Both copies are dropped.
                    *self.page(page) = SystemPage::default();
                }
                lock.publish_pages(|w| w.to_untouched());
                self.release(frame.0, 1, true);
            }
            _ => {}
        }
    }

    // --- the device (`fault/mirror/mod.rs`)

    /// A device increments the page's number through its mirror.
    pub(super) fn device(&self, page: u32) {
        let p = page as usize;
        loop {
            let mmu = self.mmu.lock().unwrap();
            // Under the mirror's lock: a thread that takes the page away waits for this lock.
            match mmu[p] {
                Some(Target::Frame(frame)) => {
                    self.write_frame(frame, |value| value + 1);
                    return;
                }
                Some(Target::System) => {
                    assert!(self.access(page), "mapped, but not there");
                    return;
                }
                Some(Target::ReadOnly(_)) | None => {}
            }
            drop(mmu);
            self.device_fault(page, true);
        }
    }

    pub(super) fn device_fault(&self, page: u32, write: bool) {
        let sequence = self.sequence.load(SeqCst);
        let target = loop {
            self.table.settle(Page(page));
            let word = self.table.word(Page(page));
            let target = match word.residency() {
                Residency::Device(Placed { frame, .. }) => Target::Frame(frame.0),
                Residency::System => Target::System,
                Residency::Duplicated(Placed { frame, .. }) if !write => Target::ReadOnly(frame.0),
                Residency::Duplicated(_) => {
                    self.drop_system_copy(page);
                    continue;
                }
                _ => {
                    self.fault_in(page);
                    continue;
                }
            };
            match self.table.mark_mirrored(Page(page)) {
                Some(marked) if marked.generation() == word.generation() => break target,
                _ => thread::yield_now(),
            }
        };
        let mut mmu = self.mmu.lock().unwrap();
        if self.sequence.load(SeqCst) == sequence {
            mmu[page as usize] = Some(target);
        }
    }
}
