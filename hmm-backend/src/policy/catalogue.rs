//! The list of all policy components.

use std::time::Duration;

use super::params::{Accepts, PolicyInfo, PolicyParam};
use crate::pages::time::MAX_HOLD;

const fn integer(min: u32, max: u32) -> Accepts {
    Accepts::Integer { min, max }
}

const fn time(min: Duration, max: Duration) -> Accepts {
    Accepts::Time { min, max }
}

/// The kinds of which every specification has exactly one component.
pub(super) const FAULTS: &str = "faults";
pub(super) const EVICTION: &str = "eviction";
/// The kind of which a specification can have any number of components.
pub(super) const MODIFIER: &str = "modifier";

const HOUR: Duration = Duration::from_secs(3600);

/// All components, in the order in which they are printed.
pub(super) static POLICIES: [PolicyInfo; 16] = [
    PolicyInfo {
        name: "on-demand",
        kind: FAULTS,
        summary: "migrate the faulting page only",
        params: &[],
    },
    PolicyInfo {
        name: "density",
        kind: FAULTS,
        summary: "prefetch the largest surrounding region that is dense enough (NVIDIA UVM's tree)",
        params: &[
            PolicyParam {
                name: "threshold",
                summary: "percent of a region that must be exceeded, 1 to 100",
                default: "51",
                accepts: integer(1, 100),
            },
            PolicyParam {
                name: "min_faults",
                summary: "faults on a 2 MiB block before anything is prefetched, 1 to 512",
                default: "1",
                accepts: integer(1, 512),
            },
        ],
    },
    PolicyInfo {
        name: "sequential",
        kind: FAULTS,
        summary: "find strides among the faults and prefetch the next pages",
        params: &[
            PolicyParam {
                name: "window",
                summary: "pages to prefetch, 1 to 512",
                default: "32",
                accepts: integer(1, 512),
            },
            PolicyParam {
                name: "min_run",
                summary: "equal strides in a row before anything is prefetched, 1 to 64",
                default: "2",
                accepts: integer(1, 64),
            },
        ],
    },
    PolicyInfo {
        name: "first-touch",
        kind: FAULTS,
        summary: "create pages where they are first touched; later, devices access system pages in place",
        params: &[],
    },
    PolicyInfo {
        name: "access-counter",
        kind: FAULTS,
        summary: "devices access system pages in place; pages that they use often migrate (NVIDIA UVM's counters)",
        params: &[PolicyParam {
            name: "threshold",
            summary: "accesses to a 64 KiB group before its pages migrate, 1 to 65535",
            default: "256",
            accepts: integer(1, 65535),
        }],
    },
    PolicyInfo {
        name: "adaptive",
        kind: FAULTS,
        summary: "learn for each region whether to bring pages, neighbours or strides, or to use pages in place",
        params: &[],
    },
    PolicyInfo {
        name: "static",
        kind: FAULTS,
        summary: "place pages as a file says; all other pages move on demand",
        params: &[
            PolicyParam {
                name: "file",
                summary: "lines of `start-page end-page system|device`, the end not included",
                default: "",
                accepts: Accepts::Placement,
            },
            PolicyParam {
                name: "hold",
                summary: "how long pages placed on the device stay after a device fault, 0 to 1s",
                default: "1ms",
                accepts: time(Duration::ZERO, MAX_HOLD),
            },
        ],
    },
    PolicyInfo {
        name: "lru",
        kind: EVICTION,
        summary: "evict the folio that the device used longest ago",
        params: &[],
    },
    PolicyInfo {
        name: "fifo",
        kind: EVICTION,
        summary: "evict the folio that was migrated longest ago, used or not",
        params: &[],
    },
    PolicyInfo {
        name: "clock",
        kind: EVICTION,
        summary: "fifo with a second chance for folios that were used meanwhile",
        params: &[],
    },
    PolicyInfo {
        name: "lfu",
        kind: EVICTION,
        summary: "evict the folio that the device used least often",
        params: &[],
    },
    PolicyInfo {
        name: "s3-fifo",
        kind: EVICTION,
        summary: "small, main and ghost queue: pages that are used once leave first (SOSP 2023)",
        params: &[PolicyParam {
            name: "fill",
            summary: "queue of new folios while there is room: main, as in libCacheSim, or small, as in the paper",
            default: "main",
            accepts: Accepts::Word(&["main", "small"]),
        }],
    },
    PolicyInfo {
        name: "by-migration",
        kind: EVICTION,
        summary: "evict the 2 MiB of device memory whose last migration is longest ago (NVIDIA UVM)",
        params: &[],
    },
    PolicyInfo {
        name: "timeslice",
        kind: MODIFIER,
        summary: "a page stays where it was migrated on demand for a minimum time, against ping-pong",
        params: &[PolicyParam {
            name: "min",
            summary: "the minimum time, 0 to 1s (us, ms, s)",
            default: "100us",
            accepts: time(Duration::ZERO, MAX_HOLD),
        }],
    },
    PolicyInfo {
        name: "hints",
        kind: MODIFIER,
        summary: "follow hints: preferred location, accessed by, read mostly (NVIDIA UVM's choice)",
        params: &[],
    },
    PolicyInfo {
        name: "thrash",
        kind: MODIFIER,
        summary: "find pages that migrate back and forth; throttle one side, then pin them (NVIDIA UVM's tree)",
        params: &[
            PolicyParam {
                name: "threshold",
                summary: "migrations of a page, each within the lapse after the one before, 1 to 7",
                default: "3",
                accepts: integer(1, 7),
            },
            PolicyParam {
                name: "lapse",
                summary: "the lapse at first, 5us to 500ms; it adapts",
                default: "500us",
                accepts: time(SHORTEST_LAPSE, LONGEST_LAPSE),
            },
            PolicyParam {
                name: "nap",
                summary: "how long one side waits, 0 to 1s",
                default: "500us",
                accepts: time(Duration::ZERO, MAX_HOLD),
            },
            PolicyParam {
                name: "pin",
                summary: "how long a pinned page stays pinned, 0 (for ever) to 3600s",
                default: "150ms",
                accepts: time(Duration::ZERO, HOUR),
            },
            PolicyParam {
                name: "pin_threshold",
                summary: "naps before a page is pinned, 1 to 255",
                default: "10",
                accepts: integer(1, 255),
            },
            PolicyParam {
                name: "max_resets",
                summary: "how often the state of a 2 MiB block is reset, 0 to 65535",
                default: "4",
                accepts: integer(0, 65535),
            },
            PolicyParam {
                name: "epoch",
                summary: "the state of a block that has not thrashed for this time is reset, 1ms to 3600s",
                default: "1s",
                accepts: time(Duration::from_millis(1), HOUR),
            },
        ],
    },
];

/// Bounds within which the lapse of `thrash` adapts.
pub(super) const SHORTEST_LAPSE: Duration = Duration::from_micros(5);
pub(super) const LONGEST_LAPSE: Duration = Duration::from_millis(500);

/// Returns all policy components.
pub fn policies() -> &'static [PolicyInfo] {
    &POLICIES
}
