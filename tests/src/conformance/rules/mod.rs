//! The rules: what a driver can break, one entry each.

mod books;
mod device;
mod migration;
mod threads;

use std::fmt;

use super::bench::{Bench, Checked};

/// Something a driver can do wrong.
pub struct Rule {
    /// Its name in reports.
    pub name: &'static str,
    /// The part of the contract: the number of the semantic, and rows of the table of features.
    pub contract: &'static str,
    /// What the contract says.
    pub sentence: &'static str,
    pub(super) device_pages: u32,
    /// Subjects on one backend.
    pub(super) subjects: usize,
    /// Only for subjects with access through their device.
    pub(super) needs_access: bool,
    pub(super) steps: fn(&mut Bench) -> Checked,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const fn rule(
    name: &'static str,
    contract: &'static str,
    sentence: &'static str,
    steps: fn(&mut Bench) -> Checked,
) -> Rule {
    Rule {
        name,
        contract,
        sentence,
        device_pages: 1024,
        subjects: 1,
        needs_access: false,
        steps,
    }
}

/// All rules. After each, the driver's books must balance, and it must not have panicked or complained.
pub static RULES: &[Rule] = &[
    rule(
        "cpu-fault",
        "1, 10: F01 F02",
        "a CPU that touches a device page gets it back, with its contents",
        migration::cpu_fault,
    ),
    rule(
        "every-size",
        "12: F28",
        "folios of every order from 0 to 9 are taken, and given back",
        migration::every_size,
    ),
    rule(
        "round-trip",
        "2: F08 F28",
        "contents survive the way to the device and back, whatever the folio's size",
        migration::round_trip,
    ),
    rule(
        "zero-pages",
        "7: F10",
        "untouched pages are zeros on the device and after it",
        migration::zero_pages,
    ),
    rule(
        "pinned-skipped",
        "3, 4: F09 F11",
        "pinned pages stay where they are, and the other pages move",
        migration::pinned_skipped,
    ),
    rule(
        "busy-to-device",
        "3, 4: F09 F11",
        "pages that drop out on the way to the device are unharmed, and the other pages move",
        migration::busy_to_device,
    ),
    rule(
        "busy-to-system",
        "3, 10: F03 F09",
        "pages that drop out on the way back are tried again, never lost",
        migration::busy_to_system,
    ),
    rule(
        "out-of-memory",
        "10: F03",
        "a host short of memory is a reason to try again, and then the access succeeds",
        migration::out_of_memory,
    ),
    rule(
        "cookies",
        "6: F05",
        "each folio has a cookie of its own, by which page_free finds it",
        books::cookies,
    ),
    rule(
        "split",
        "6, 12: F06 F26",
        "after folio_split each half's cookie finds its own half",
        books::split,
    ),
    rule(
        "free-by-guest",
        "5: F04 F26",
        "page_free comes for folios that the guest has freed, and the driver forgets them",
        books::free_by_guest,
    ),
    rule(
        "free-after-migration",
        "5: F04",
        "page_free comes for folios that have moved away, and the driver forgets them",
        books::free_after_migration,
    ),
    Rule {
        device_pages: 16,
        ..rule(
            "eviction",
            "11: F14",
            "a full device gives pages away to make room for others",
            books::eviction,
        )
    },
    rule(
        "detach",
        "11: F15",
        "a device that goes away gives every page back first",
        books::detach,
    ),
    rule(
        "memory-failure",
        "10: F07",
        "a page whose contents are lost is an error, never data; its neighbours are unharmed",
        books::memory_failure,
    ),
    Rule {
        subjects: 2,
        ..rule(
            "two-devices",
            "11: F12 F31",
            "two devices of one kind do not take each other's pages for their own",
            books::two_devices,
        )
    },
    Rule {
        subjects: 2,
        ..rule(
            "between-devices",
            "2, 5: F04 F31",
            "pages that go directly to another device arrive whole, and their folios' page_free comes once",
            books::between_devices,
        )
    },
    Rule {
        device_pages: 64,
        ..rule(
            "concurrent",
            "1: F02",
            "faults, migrations, evictions and frees of many threads at once lose nothing",
            threads::concurrent,
        )
    },
    rule(
        "no-global-lock",
        "1, 5: F02 F04",
        "while one page's migration waits, other pages migrate and are freed",
        threads::no_global_lock,
    ),
    Rule {
        device_pages: 1,
        needs_access: true,
        ..rule(
            "device-invalidation",
            "8: F18",
            "after an invalidation the device uses no old translation",
            device::invalidation,
        )
    },
    Rule {
        device_pages: 1,
        needs_access: true,
        ..rule(
            "device-reuse",
            "10: F04 F10",
            "a frame that is used again shows nothing of its earlier page",
            device::reuse,
        )
    },
    Rule {
        needs_access: true,
        ..rule(
            "device-read-only",
            "9: F17 F23",
            "the device does not write pages that are read-only for it",
            device::read_only,
        )
    },
];
