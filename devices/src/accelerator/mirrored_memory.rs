//! Guest memory through the mirror: TLB, then device page table, then device fault. In an address space, the guest's
//! translation comes first; if there is none, the guest is asked for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hmm_backend::Backend;
use hmm_backend::mirror::{Mirror, MirrorError};
use hmm_backend::pages::{Access, DeviceId, PAGE_SIZE, Page, PageRange};
use hmmvisor_abi::accel::{PHYSICAL, SPACE_BLOCK};

use super::guest_fault::GuestFault;
use super::mmu::Mmu;
use super::shared::ControlBlock;
use super::spaces::{Lookup, SpacesGuard, VIRTUAL};
use crate::commands::command::Direction;
use crate::commands::error::CommandError;
use crate::commands::guest_hint::GuestHint;
use crate::commands::managed::{Addresses, WORD, Words};
use crate::commands::memory::Memory;
use crate::guest_bytes::GuestBytes;

/// The most visits under one guard. Then the guard is dropped even if no invalidation waits for it, to check whether the
/// device is to stop.
const VISITS_PER_GUARD: usize = 1024;

/// Words that one access to system memory in place fetches: 64 bytes.
const LINE: usize = 8;

/// Exclusive additions under one guard: few, so that a vCPU or device that faults on the page does not wait for long.
const ADDS_PER_GUARD: u64 = 64;

/// The accelerator's access to guest memory.
pub struct MirroredMemory {
    /// The backend, for what commands ask of it besides accesses: migrations, frees and hints.
    pub backend: Arc<Backend>,
    /// The device's number in the backend.
    pub device: DeviceId,
    /// The place of managed memory.
    pub managed: Addresses,
    /// The address space of the current command, or [`PHYSICAL`].
    pub space: u16,
    /// The mirror of managed memory, with the device's page table and TLB.
    pub mirror: Mirror<Mmu>,
    /// What the device's thread shares with the vCPUs' side.
    pub shared: Arc<ControlBlock>,
}

/// Why an access cannot go on.
enum Missing {
    /// The device has no translation for this page: the backend must supply it.
    Host(Page),
    /// The guest maps this virtual address to no page: the guest must answer the fault.
    Guest(u64),
    /// The address space is closed.
    Closed,
}

/// Returns the page of an address. If the address is in a space, the page is right for as long as the space's guard lives.
fn page_of(
    managed: &Addresses,
    space: Option<(u16, &SpacesGuard<'_>)>,
    addr: u64,
    access: Access,
) -> Result<Page, Missing> {
    let Some((space, guard)) = space else {
        return Ok(managed.page(addr));
    };
    match guard.translate(space, addr, access) {
        Lookup::Page(page) => Ok(page),
        Lookup::Missing => Err(Missing::Guest(addr)),
        Lookup::Closed => Err(Missing::Closed),
    }
}

impl MirroredMemory {
    /// Called between two accesses, with no lock held: halts here in a pause that wants it, and ends the command if the device
    /// stops.
    fn halt_or_stop(&self) -> Result<(), CommandError> {
        self.shared.halt_in_command();
        match self.shared.stopping() {
            true => Err(CommandError::Aborted),
            false => Ok(()),
        }
    }

    /// Supplies what was missing, or returns why that is impossible. It may be missing again before the next access.
    fn resolve(&mut self, missing: Missing, addr: u64, access: Access) -> Result<(), CommandError> {
        match missing {
            Missing::Host(page) => self.fault(page, addr, access),
            Missing::Guest(addr) => self.shared.guest_fault(GuestFault {
                space: self.space,
                addr: addr - addr % PAGE_SIZE,
                access,
            }),
            Missing::Closed => Err(CommandError::Aborted),
        }
    }

    /// Visits words under one guard, until the run is empty, an invalidation waits for the guard, or a translation is
    /// missing, which is returned. Afterwards `run` is what comes next.
    fn visit_mapped(
        &mut self,
        access: Access,
        run: &mut Words,
        step: &mut impl FnMut(&[AtomicU64]) -> Words,
    ) -> Option<Missing> {
        let mut missing = None;
        // The guard of the guest's translations first: a thread that waits for one of the two guards never holds the other.
        let spaces = (self.space != PHYSICAL).then(|| self.shared.spaces.lock());
        let spaces = spaces.as_ref().map(|guard| (self.space, guard));
        let mut guard = self.mirror.lock();
        for _ in 0..VISITS_PER_GUARD {
            let page = match page_of(&self.managed, spaces, run.addr, access) {
                Ok(page) => page,
                Err(reason) => {
                    missing = Some(reason);
                    break;
                }
            };
            let Some(words) = guard.translate(page, access) else {
                missing = Some(Missing::Host(page));
                break;
            };
            let start = (run.addr % PAGE_SIZE / WORD) as usize;
            let len = run.len.min((words.len() - start) as u64) as usize;
            *run = step(&words[start..start + len]);
            if guard.last_was_remote {
                let last = (start + len - 1) / LINE;
                guard.remote.count(page, (last - start / LINE + 1) as u32);
            }
            // This is looked at only after a visit, so that each guard brings some progress.
            let wanted = guard.wanted() || spaces.is_some_and(|(_, guard)| guard.wanted());
            if run.is_empty() || wanted {
                break;
            }
        }
        let counters = self.shared.counters();
        counters.tlb_hits.set(guard.tlb_hits);
        counters.tlb_misses.set(guard.tlb_misses);
        let hot = guard.remote.take_hot();
        let tell = guard.is_full_of_visits();
        drop(guard);
        if tell {
            self.mirror.tell_visits();
        }
        if let Some((groups, count)) = hot {
            for group in groups {
                // The pages exist: they had translations.
                let _ = self.mirror.used_in_place(group, count);
            }
        }
        missing
    }

    /// Makes a device fault on a page, which `addr` is in.
    fn fault(&mut self, page: Page, addr: u64, access: Access) -> Result<(), CommandError> {
        self.shared.counters().faults.add(1);
        let threshold = self.mirror.remote_access_threshold();
        self.mirror
            .fault(page, access, |mmu, mapping| {
                mmu.remote.set_threshold(threshold);
                mmu.map(mapping);
            })
            .map_err(|error| refused(addr, error))
    }

    /// Adds to the word at `addr` up to `n` times under one guard, if the device has its page for itself. Returns how
    /// often, and what the word held at first.
    fn add_under_guard(&mut self, addr: u64, n: u64, value: u64) -> Result<(u64, u64), Missing> {
        let spaces = (self.space != PHYSICAL).then(|| self.shared.spaces.lock());
        let spaces = spaces.as_ref().map(|guard| (self.space, guard));
        let mut guard = self.mirror.lock();
        let page = page_of(&self.managed, spaces, addr, Access::Write)?;
        let words = guard.translate_exclusive(page).ok_or(Missing::Host(page))?;
        let word = &words[(addr % PAGE_SIZE / WORD) as usize];
        let before = word.load(Ordering::Relaxed);
        let done = n.min(ADDS_PER_GUARD);
        for _ in 0..done {
            // A load and a store are one operation here, because no vCPU and no other device reaches the page.
            let old = word.load(Ordering::Relaxed);
            word.store(old.wrapping_add(value), Ordering::Relaxed);
        }
        Ok((done, before))
    }

    /// Applies `act` block by block, so that a stop need not wait for all of them.
    fn each_block(
        &self,
        pages: PageRange,
        act: impl Fn(PageRange) -> Result<u64, hmm_backend::Error>,
    ) -> Result<u64, CommandError> {
        let mut sum = 0;
        for part in pages.split_by_block() {
            self.halt_or_stop()?;
            sum += act(part).map_err(|_| CommandError::Fault(self.managed.addr(part.start)))?;
        }
        Ok(sum)
    }

    /// The pages of a command that virtual addresses are not allowed in.
    fn physical_pages(&self, span: GuestBytes) -> Result<PageRange, CommandError> {
        match self.space {
            PHYSICAL => self.managed.pages(span.addr, span.len),
            _ => Err(CommandError::Argument),
        }
    }

    fn migrate_pages(&self, pages: PageRange, direction: Direction) -> Result<u64, CommandError> {
        self.each_block(pages, |part| match direction {
            Direction::ToDevice => self.backend.migrate_to_device(self.device, part),
            Direction::ToSystem => self.backend.migrate_to_system(part),
        })
    }

    /// Finds the page that an address is in now; it may be in another one by the time that the caller looks.
    fn find_page(&mut self, addr: u64) -> Result<Page, CommandError> {
        loop {
            self.halt_or_stop()?;
            let guard = self.shared.spaces.lock();
            let found = page_of(
                &self.managed,
                Some((self.space, &guard)),
                addr,
                Access::Read,
            );
            drop(guard);
            match found {
                Ok(page) => return Ok(page),
                Err(missing) => self.resolve(missing, addr, Access::Read)?,
            }
        }
    }

    /// Migrates the pages behind virtual addresses, neighbours together. If the guest changes a translation meanwhile, another
    /// page may move than the guest means, which changes no contents.
    fn migrate_virtual(
        &mut self,
        span: GuestBytes,
        direction: Direction,
    ) -> Result<u64, CommandError> {
        let mut moved = 0;
        let mut run: Option<PageRange> = None;
        let first = span.addr - span.addr % PAGE_SIZE;
        let end = span.addr + span.len;
        let mut addr = first;
        while span.len > 0 && addr < end {
            let page = self.find_page(addr)?;
            run = match run {
                Some(run) if run.end == page && !addr.is_multiple_of(SPACE_BLOCK) => {
                    Some(PageRange::new(run.start, Page(page.0 + 1)))
                }
                run => {
                    if let Some(run) = run {
                        moved += self.migrate_pages(run, direction)?;
                    }
                    Some(PageRange::with_len(page, 1))
                }
            };
            addr += PAGE_SIZE;
        }
        if let Some(run) = run {
            moved += self.migrate_pages(run, direction)?;
        }
        Ok(moved)
    }
}

/// Converts a mirror's error into a command's.
fn refused(addr: u64, error: MirrorError) -> CommandError {
    let addr = addr - addr % PAGE_SIZE;
    match error {
        MirrorError::OutOfRange(_) => CommandError::Address(addr),
        MirrorError::Permission(_) | MirrorError::NotExclusive(_) => CommandError::Permission(addr),
        MirrorError::Fatal { .. } | MirrorError::Detached => CommandError::Fault(addr),
    }
}

impl Memory for MirroredMemory {
    fn addresses(&self) -> Addresses {
        match self.space {
            PHYSICAL => self.managed,
            _ => VIRTUAL,
        }
    }

    fn visit(
        &mut self,
        access: Access,
        first: Words,
        mut step: impl FnMut(&[AtomicU64]) -> Words,
    ) -> Result<(), CommandError> {
        let mut run = first;
        while !run.is_empty() {
            self.halt_or_stop()?;
            if let Some(missing) = self.visit_mapped(access, &mut run, &mut step) {
                self.resolve(missing, run.addr, access)?;
            }
        }
        Ok(())
    }

    fn add_exclusively(&mut self, addr: u64, n: u64, value: u64) -> Result<u64, CommandError> {
        let mut left = n;
        let mut first = None;
        while left > 0 {
            self.halt_or_stop()?;
            match self.add_under_guard(addr, left, value) {
                Ok((done, before)) => {
                    first = first.or(Some(before));
                    left -= done;
                }
                Err(Missing::Host(page)) => {
                    self.shared.counters().faults.add(1);
                    self.mirror
                        .fault_exclusive(page, |mmu, mapping| mmu.map(mapping))
                        .map_err(|error| refused(addr, error))?;
                }
                Err(missing) => self.resolve(missing, addr, Access::Write)?,
            }
        }
        match first {
            Some(before) => Ok(before),
            None => self.read_word(addr),
        }
    }

    fn migrate(&mut self, span: GuestBytes, direction: Direction) -> Result<u64, CommandError> {
        match self.space {
            PHYSICAL => self.migrate_pages(self.physical_pages(span)?, direction),
            _ => self.migrate_virtual(span, direction),
        }
    }

    fn free(&mut self, span: GuestBytes) -> Result<u64, CommandError> {
        // The page behind a virtual address may be another process's by the time that it is freed, and only the guest's
        // kernel knows.
        let pages = self.physical_pages(span)?;
        self.each_block(pages, |part| self.backend.guest_freed(part))
    }

    fn hint(&mut self, span: GuestBytes, hint: GuestHint) -> Result<(), CommandError> {
        // What is behind a virtual address may change; hints are about pages of memory.
        let pages = self.physical_pages(span)?;
        let hint = hint.by(self.device);
        let no_result = |()| 0;
        self.each_block(pages, |part| self.backend.hint(part, hint).map(no_result))
            .map(drop)
    }
}
