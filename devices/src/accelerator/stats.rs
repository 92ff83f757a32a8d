//! Counters of one accelerator.

use std::sync::atomic::{AtomicU64, Ordering};

/// Defines the counters: their names, as numbers and as counters that any thread may change.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The counters of an accelerator.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct AcceleratorStats {
            $($(#[$doc])* pub $name: u64),*
        }

        /// The counters behind [`AcceleratorStats`].
        #[derive(Debug, Default)]
        pub struct AcceleratorCounters {
            $($(#[$doc])* pub $name: AtomicCounter),*
        }

        impl AcceleratorCounters {
            /// Returns what all counters are now.
            pub fn stats(&self) -> AcceleratorStats {
                AcceleratorStats { $($name: self.$name.get()),* }
            }
        }
    };
}

counters! {
    /// Commands completed, failed ones included.
    commands,
    /// Commands that failed.
    errors,
    /// Translations found in the TLB.
    tlb_hits,
    /// Translations not found there.
    tlb_misses,
    /// Device faults: accesses that neither TLB nor device page table could translate.
    faults,
    /// Faults on virtual addresses, which the guest had to answer.
    guest_faults,
    /// Folios that came into use in device memory, the upper halves of those that were split included.
    folios_allocated,
    /// Folios whose `page_free` came. Those that came into use and were not freed still are in use.
    folios_freed,
    /// Times the backend broke the driver contract, for example freed a folio twice. Not 0 means a
    /// bug in the backend.
    contract_violations,
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
