//! Guest memory through the mirror: TLB, then device page table, then device fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hmm_backend::{Access, Backend, DeviceId, Mirror, MirrorError, PAGE_SIZE, Page, PageRange};

use crate::command::{Direction, GuestHint};
use crate::error::CommandError;
use crate::managed::{Managed, WORD, Words};
use crate::memory::Memory;
use crate::mmu::Mmu;
use crate::stats::Counters;

/// After this many visits the guard is let go of even if nobody wants it, to look whether the device
/// is to stop.
const VISITS_PER_GUARD: usize = 1024;

/// Words that one access to system memory in place fetches: 64 bytes.
const LINE: usize = 8;

/// Exclusive additions under one guard: few, so that whoever wants the page back need not wait for long.
const ADDS_PER_GUARD: u64 = 64;

/// The accelerator's access to guest memory.
pub struct GuestMemory {
    pub backend: Arc<Backend>,
    pub device: DeviceId,
    pub managed: Managed,
    pub mirror: Mirror<Mmu>,
    pub counters: Arc<Counters>,
    /// The device is to stop: every access fails from now on.
    pub stop: Arc<AtomicBool>,
}

impl GuestMemory {
    fn check_stop(&self) -> Result<(), CommandError> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(CommandError::Aborted),
            false => Ok(()),
        }
    }

    /// Visits words under one guard, until the run is empty, somebody wants the guard, or a page that has
    /// no translation, which is returned. `run` is what comes next.
    fn visit_mapped(
        &mut self,
        access: Access,
        run: &mut Words,
        step: &mut impl FnMut(&[AtomicU64]) -> Words,
    ) -> Option<Page> {
        let mut missing = None;
        let mut guard = self.mirror.lock();
        for _ in 0..VISITS_PER_GUARD {
            let page = self.managed.page(run.addr);
            let Some(words) = guard.translate(page, access) else {
                missing = Some(page);
                break;
            };
            let start = (run.addr % PAGE_SIZE / WORD) as usize;
            let len = run.len.min((words.len() - start) as u64) as usize;
            *run = step(&words[start..start + len]);
            if guard.last_was_remote {
                let last = (start + len - 1) / LINE;
                guard.remote.count(page, (last - start / LINE + 1) as u32);
            }
            // Looked at only after a visit: a guard is always good for some progress.
            if run.is_empty() || guard.wanted() {
                break;
            }
        }
        self.counters.tlb_hits.set(guard.tlb_hits);
        self.counters.tlb_misses.set(guard.tlb_misses);
        let hot = guard.remote.take_hot();
        drop(guard);
        if let Some((groups, count)) = hot {
            for group in groups {
                // The pages exist: they had translations.
                let _ = self.mirror.used_in_place(group, count);
            }
        }
        missing
    }

    fn fault(&mut self, page: Page, access: Access) -> Result<(), CommandError> {
        self.counters.faults.add(1);
        let threshold = self.mirror.remote_access_threshold();
        self.mirror
            .fault(page, access, |mmu, mapping| {
                mmu.remote.set_threshold(threshold);
                mmu.map(mapping);
            })
            .map_err(|error| self.refused(page, error))
    }

    fn refused(&self, page: Page, error: MirrorError) -> CommandError {
        let addr = self.managed.addr(page);
        match error {
            MirrorError::OutOfRange(_) => CommandError::Address(addr),
            MirrorError::Permission(_) | MirrorError::NotExclusive(_) => {
                CommandError::Permission(addr)
            }
            MirrorError::Fatal { .. } | MirrorError::Detached => CommandError::Fault(addr),
        }
    }

    /// Adds to the word at `addr` up to `n` times under one guard, if the device has its page for itself. Returns how
    /// often, and what the word held at first.
    fn add_under_guard(&mut self, addr: u64, n: u64, value: u64) -> Option<(u64, u64)> {
        let mut guard = self.mirror.lock();
        let words = guard.translate_exclusive(self.managed.page(addr))?;
        let word = &words[(addr % PAGE_SIZE / WORD) as usize];
        let before = word.load(Ordering::Relaxed);
        let done = n.min(ADDS_PER_GUARD);
        for _ in 0..done {
            // A load and a store: only because nobody else reaches the page do they make one operation.
            let old = word.load(Ordering::Relaxed);
            word.store(old.wrapping_add(value), Ordering::Relaxed);
        }
        Some((done, before))
    }

    /// Applies `act` block by block, so that a stop need not wait for all of them.
    fn each_block(
        &self,
        pages: PageRange,
        act: impl Fn(PageRange) -> Result<u64, hmm_backend::Error>,
    ) -> Result<u64, CommandError> {
        let mut sum = 0;
        for part in pages.split_by_block() {
            self.check_stop()?;
            sum += act(part).map_err(|_| CommandError::Fault(self.managed.addr(part.start)))?;
        }
        Ok(sum)
    }
}

impl Memory for GuestMemory {
    fn managed(&self) -> Managed {
        self.managed
    }

    fn visit(
        &mut self,
        access: Access,
        first: Words,
        mut step: impl FnMut(&[AtomicU64]) -> Words,
    ) -> Result<(), CommandError> {
        let mut run = first;
        while !run.is_empty() {
            self.check_stop()?;
            if let Some(missing) = self.visit_mapped(access, &mut run, &mut step) {
                // The page may be gone again before the next visit: then it faults again.
                self.fault(missing, access)?;
            }
        }
        Ok(())
    }

    fn add_exclusively(&mut self, addr: u64, n: u64, value: u64) -> Result<u64, CommandError> {
        let page = self.managed.page(addr);
        let mut left = n;
        let mut first = None;
        while left > 0 {
            self.check_stop()?;
            match self.add_under_guard(addr, left, value) {
                Some((done, before)) => {
                    first = first.or(Some(before));
                    left -= done;
                }
                None => {
                    self.counters.faults.add(1);
                    self.mirror
                        .fault_exclusive(page, |mmu, mapping| mmu.map(mapping))
                        .map_err(|error| self.refused(page, error))?;
                }
            }
        }
        match first {
            Some(before) => Ok(before),
            None => self.read_word(addr),
        }
    }

    fn migrate(&mut self, pages: PageRange, direction: Direction) -> Result<u64, CommandError> {
        self.each_block(pages, |part| match direction {
            Direction::ToDevice => self.backend.migrate_to_device(self.device, part),
            Direction::ToSystem => self.backend.migrate_to_system(part),
        })
    }

    fn free(&mut self, pages: PageRange) -> Result<u64, CommandError> {
        self.each_block(pages, |part| self.backend.guest_freed(part))
    }

    fn hint(&mut self, pages: PageRange, hint: GuestHint) -> Result<(), CommandError> {
        let hint = hint.by(self.device);
        let no_result = |()| 0;
        self.each_block(pages, |part| self.backend.hint(part, hint).map(no_result))
            .map(drop)
    }
}
