//! Counters of one accelerator.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of an accelerator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AcceleratorStats {
    /// Commands completed, failed ones included.
    pub commands: u64,
    /// Commands that failed.
    pub errors: u64,
    /// Translations found in the TLB.
    pub tlb_hits: u64,
    /// Translations not found there.
    pub tlb_misses: u64,
    /// Device faults: accesses that neither TLB nor device page table could translate.
    pub faults: u64,
    /// Faults on virtual addresses, which the guest had to answer.
    pub guest_faults: u64,
    /// Folios that came into use in device memory, the upper halves of those that were split included.
    pub folios_allocated: u64,
    /// Folios whose `page_free` came. Those that came into use and were not freed still are in use.
    pub folios_freed: u64,
    /// Times the backend broke the driver contract, for example freed a folio twice. Not 0 means a
    /// bug in the backend.
    pub contract_violations: u64,
}

/// The counters behind [`AcceleratorStats`], whose fields they are named after.
#[derive(Debug, Default)]
pub struct AcceleratorCounters {
    /// See [`AcceleratorStats::commands`].
    pub commands: AtomicCounter,
    /// See [`AcceleratorStats::errors`].
    pub errors: AtomicCounter,
    /// See [`AcceleratorStats::tlb_hits`].
    pub tlb_hits: AtomicCounter,
    /// See [`AcceleratorStats::tlb_misses`].
    pub tlb_misses: AtomicCounter,
    /// See [`AcceleratorStats::faults`].
    pub faults: AtomicCounter,
    /// See [`AcceleratorStats::guest_faults`].
    pub guest_faults: AtomicCounter,
    /// See [`AcceleratorStats::folios_allocated`].
    pub folios_allocated: AtomicCounter,
    /// See [`AcceleratorStats::folios_freed`].
    pub folios_freed: AtomicCounter,
    /// See [`AcceleratorStats::contract_violations`].
    pub contract_violations: AtomicCounter,
}

impl AcceleratorCounters {
    /// Returns what all counters are now.
    pub fn stats(&self) -> AcceleratorStats {
        AcceleratorStats {
            commands: self.commands.get(),
            errors: self.errors.get(),
            tlb_hits: self.tlb_hits.get(),
            tlb_misses: self.tlb_misses.get(),
            faults: self.faults.get(),
            guest_faults: self.guest_faults.get(),
            folios_allocated: self.folios_allocated.get(),
            folios_freed: self.folios_freed.get(),
            contract_violations: self.contract_violations.get(),
        }
    }
}

/// A number that any thread may read and change. Its accesses order no others.
#[derive(Debug, Default)]
pub struct AtomicCounter(AtomicU64);

impl AtomicCounter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets the number.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Returns the number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
