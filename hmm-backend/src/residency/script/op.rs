//! The steps of a script.

/// One step. Numbers are taken modulo the number of pages or locks; a step that is impossible at the moment is
/// skipped.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "fuzzing", derive(arbitrary::Arbitrary))]
#[allow(missing_docs)]
pub enum Op {
    /// Locks the folio of a page.
    Lock(u8),
    /// Drops a lock.
    Unlock(u8),
    /// Cuts a locked folio in two.
    Halve(u8),
    /// Cuts a locked folio until only `len` pages from `from` are left locked.
    Carve {
        lock: u8,
        from: u8,
        len: u8,
    },
    /// Locks the single pages of an aligned group and merges them into one device folio.
    ToDevice {
        page: u8,
        order: u8,
        device: u8,
        frame: u32,
    },
    /// Publishes a locked folio as one in system memory.
    ToSystem {
        lock: u8,
        until: u32,
    },
    /// Publishes a locked folio as single pages in system memory.
    ToSystemPages {
        lock: u8,
        until: u32,
    },
    /// Publishes a locked device folio as a duplicate.
    Duplicate(u8),
    /// Publishes a locked duplicate as a folio of the device alone.
    Alone(u8),
    /// Publishes a locked folio as freed pages.
    Free(u8),
    /// Publishes a locked folio as poisoned pages.
    Poison(u8),
    /// Changes the permission of a locked folio.
    SetReadOnly {
        lock: u8,
        value: bool,
    },
    /// Clears the mirrored flag of a locked folio.
    ClearMirrored(u8),
    /// Sets the mirrored flag of a page's folio.
    Mark(u8),
    Pin(u8),
    Unpin(u8),
    /// Sets the waiters bit for a CPU.
    Announce(u8),
}
