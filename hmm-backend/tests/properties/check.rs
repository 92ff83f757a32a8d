//! What must hold between any two steps.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use hmm_backend::engine::Engine;
use hmm_backend::pages::{MAX_ORDER, PAGE_SIZE};
use hmm_backend::residency::{Placed, Residency, Word};

use crate::world::{COHERENT, PAGES, World, patience};

impl World {
    /// Returns the frame and order of a page if it is on device `d`.
    pub fn on(&self, d: usize, word: Word) -> Option<(u32, u8)> {
        let place = word.residency().placed()?;
        (place.device == self.devices[d].id).then_some((place.frame.0, place.order))
    }

    /// Waits until the conditions of [`Self::consistent`] hold. The service thread may still be prefetching,
    /// and it completes a fault a moment after it has woken the CPU, so the conditions must hold in the end,
    /// not at once. Panics if they do not.
    pub fn check(&self) {
        let started = Instant::now();
        while let Err(why) = self.consistent() {
            assert!(started.elapsed() < patience(), "{why}");
            std::thread::yield_now();
        }
        self.devices.iter().for_each(|d| d.driver.assert_clean());
        let fatal = self.rig.fatal.lock().unwrap();
        assert!(fatal.is_empty(), "{fatal:?}");
    }

    pub fn consistent(&self) -> Result<(), String> {
        let backend = &self.rig.backend;
        let all = self.rig.range(0..PAGES);
        backend.settle(all).unwrap();
        let words = self.words();
        let complain = |page: u32, what: &str| {
            Err(format!(
                "page {page}: {:?}: {what}; contents {}",
                words[page as usize], self.contents[page as usize]
            ))
        };
        for (page, word) in (0..PAGES).zip(&words) {
            let (p, residency) = (page as usize, word.residency());
            if word.locked() {
                return complain(page, "locked");
            }
            if word.pins() != self.pins(page) {
                return complain(page, "wrong number of pins");
            }
            if self.pins(page) > 0 && residency != Residency::System {
                return complain(page, "has moved although it is pinned");
            }
            if (residency == Residency::Poisoned) != self.lost[p] {
                return complain(page, "lost or not");
            }
            if residency == Residency::Untouched && self.contents[p] != 0 {
                return complain(page, "its contents are gone");
            }
            if word.read_only() != self.read_only[p] {
                return complain(page, "wrong permission");
            }
        }
        self.folios_are_whole(&words)?;
        for (d, device) in self.devices.iter().enumerate() {
            // Compute the expected bytes from the model and the words, not with the snapshot's code.
            let byte = |(p, word): (usize, &Word)| {
                let permission = if self.read_only[p] { 1 } else { 2 };
                match word.residency() {
                    Residency::Untouched => 0,
                    Residency::Poisoned => 0xff,
                    Residency::System => permission,
                    Residency::Device(Placed { order, .. }) => {
                        let large = if order == MAX_ORDER { 4 } else { 0 };
                        let place = if self.on(d, *word).is_some() {
                            0x20
                        } else {
                            0x30
                        };
                        place | permission | large
                    }
                    Residency::Coherent(Placed { order, .. }) => {
                        let large = if order == MAX_ORDER { 4 } else { 0 };
                        let place = if d == COHERENT { 0x40 } else { 0x50 };
                        place | permission | large
                    }
                    Residency::Duplicated(Placed { order, .. }) if self.on(d, *word).is_some() => {
                        0x21 | if order == MAX_ORDER { 4 } else { 0 }
                    }
                    Residency::Duplicated(_) => 1,
                    Residency::Exclusive(owner) if owner == device.id => 0x60 | permission,
                    Residency::Exclusive(_) => 0x70 | permission,
                }
            };
            let expected: Vec<u8> = words.iter().enumerate().map(byte).collect();
            if backend.snapshot(device.id, all).unwrap() != expected {
                return Err(format!("device {d}: snapshot"));
            }
        }
        if self.words() != words {
            return Err("words still change".into());
        }
        Ok(())
    }

    /// Checks each device's folios: they are aligned and complete, no frame is used twice, and the driver knows
    /// the same folios.
    pub fn folios_are_whole(&self, words: &[Word]) -> Result<(), String> {
        for (d, device) in self.devices.iter().enumerate() {
            let mut frames = BTreeSet::new();
            let mut folios = BTreeMap::new();
            for (page, word) in (0..PAGES).zip(words) {
                let Some((frame, order)) = self.on(d, *word) else {
                    continue;
                };
                if !self.attached[d] || frame >= self.sizes[d] || !frames.insert(frame) {
                    return Err(format!("page {page}: frame {frame} of device {d}"));
                }
                let at = page % (1 << order);
                if frame % (1 << order) != at {
                    return Err(format!("page {page}: frame {frame}, order {order}"));
                }
                *folios.entry((frame - at, order)).or_insert(0) += 1;
            }
            if let Some((folio, n)) = folios.iter().find(|((_, order), n)| **n != 1 << order) {
                return Err(format!("device {d}: folio {folio:?} has {n} pages"));
            }
            let known: BTreeSet<(u32, u8)> = folios.into_keys().collect();
            let live = device.driver.live_folios();
            if live != known || device.driver.live() != known.len() {
                return Err(format!(
                    "device {d}: its driver knows {live:?}, the words {known:?}"
                ));
            }
            if d == COHERENT {
                continue;
            }
            let mapping = &self.rig.backend.host_ranges()[d + 1];
            let present = resident(mapping.start, self.sizes[d]);
            let reused = self.rig.backend.engine() == Engine::Remap;
            if reused && present.iter().any(|f| !frames.contains(f)) {
                return Err(format!("device {d}: free frames have memory: {present:?}"));
            }
        }
        // Pages that CPUs do not reach have no system memory.
        let (base, _) = self.rig.backend.host_memory();
        for page in resident(base as u64, PAGES) {
            if !words[page as usize].residency().reached_by_cpus() {
                return Err(format!("page {page} still has system memory"));
            }
        }
        let alone = self.rig.backend.host_ranges().pop().unwrap_or_default();
        for page in resident(alone.start, PAGES) {
            if !matches!(words[page as usize].residency(), Residency::Exclusive(_)) {
                return Err(format!("page {page} is left where exclusive pages are"));
            }
        }
        Ok(())
    }
}

/// Returns the pages of a mapping that have memory.
fn resident(start: u64, pages: u32) -> Vec<u32> {
    let mut present = vec![0u8; pages as usize];
    let len = present.len() * PAGE_SIZE as usize;
    // SAFETY: the call only reads the page tables of this range and writes a byte for each page.
    let ret = unsafe { libc::mincore(start as *mut _, len, present.as_mut_ptr()) };
    assert_eq!(ret, 0);
    let pages = (0..).zip(present).filter(|(_, p)| p & 1 != 0);
    pages.map(|(page, _)| page).collect()
}
