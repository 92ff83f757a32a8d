//! What a script is made of.

/// One step. Numbers are taken modulo what there is; what is not possible just now is skipped.
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
    /// Cuts a locked folio until only `len` pages from `from` are left.
    Carve {
        lock: u8,
        from: u8,
        len: u8,
    },
    /// Locks all that is single in an aligned group and makes one device folio of it.
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
    /// Publishes a locked duplicate as the device's alone.
    Alone(u8),
    /// Publishes a locked folio as freed pages.
    Free(u8),
    /// Publishes a locked folio as lost pages.
    Poison(u8),
    /// Changes the permission of a locked folio.
    SetReadOnly {
        lock: u8,
        value: bool,
    },
    /// Notes that no translation is left.
    ClearMirrored(u8),
    /// Notes a translation.
    Mark(u8),
    Pin(u8),
    Unpin(u8),
    /// A CPU announces itself.
    Announce(u8),
}
