//! How to replay.

use std::sync::Arc;
use std::time::Duration;

use hmm_backend::pages::{Fidelity, PAGE_SIZE};
use hmm_backend::policy::{LinkMatrix, PolicyFactory};

use super::ReplayError;
use crate::trace::limits;

/// The source of a replay's time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Time {
    /// Time comes from the events: for traces of live runs, whose times hold everything that happened.
    Trace,
    /// Time is the sum of the costs of what happens: for access traces, which know no time.
    Modelled,
}

/// The costs of accesses and faults, besides the transfers of the link model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Costs {
    /// The cost of one access, wherever the page is.
    pub access: Duration,
    /// The cost of one fault, without its transfers.
    pub fault: Duration,
    /// The additional cost of a device's access to a page of system memory in place.
    pub remote: Duration,
    /// The cost of testing and clearing the accessed bit of one page.
    pub bit: Duration,
    /// The cost of flushing the device's TLB after a look at accessed bits.
    pub flush: Duration,
}

impl Default for Costs {
    /// 4 ns for an access, 20 µs for a fault, about what a GPU fault takes, and 1 µs for an access in place, about
    /// one round trip over PCIe. Accessed bits cost 10 ns a page, an eighth of a cache line that has to come from memory, and 2 µs a
    /// look, about one invalidation of an IOMMU's TLB through its queue. An access of a trace may stand for several to the same page, one after the other.
    fn default() -> Self {
        Costs {
            access: Duration::from_nanos(4),
            fault: Duration::from_micros(20),
            remote: Duration::from_micros(1),
            bit: Duration::from_nanos(10),
            flush: Duration::from_micros(2),
        }
    }
}

/// How to replay.
#[derive(Clone)]
pub struct ReplayConfig {
    /// The policy.
    pub policy: Arc<dyn PolicyFactory>,
    /// Bytes of managed memory; rounded up to 2 MiB.
    pub memory: u64,
    /// Bytes of each device's memory, a multiple of the page size.
    pub device_memory: u64,
    /// How many devices there are.
    pub devices: u8,
    /// The costs of transfers.
    pub links: LinkMatrix,
    /// The costs of accesses and faults.
    pub costs: Costs,
    /// How much the devices tell of their accesses.
    pub fidelity: Fidelity,
    /// The least number of frames that are evicted at a time ([`hmm_backend::BackendConfig::eviction_batch`]).
    pub eviction_batch: u32,
    /// The source of the time that policies see.
    pub time: Time,
    /// Whether to compare with [`super::Optimal`]: keeps up to 12 bytes for each access, of
    /// which there may be at most 2^32. Says something only of access traces.
    pub optimal: bool,
    /// Whether to keep the migrations.
    pub moves: bool,
}

/// The most pages of all devices' memory together, as many as of managed memory: each takes up to 16 bytes of books.
const MOST_FRAMES: u64 = limits::PAGES as u64;

impl ReplayConfig {
    /// Whether the books of so much managed memory, and of the devices', have a size that is worth a try: sizes come
    /// from files, which may be damaged. What nothing happens to takes no memory.
    pub(super) fn check_books(&self, memory: u64) -> Result<(), ReplayError> {
        let frames = (self.device_memory / PAGE_SIZE).saturating_mul(self.devices.into());
        match memory / PAGE_SIZE > limits::PAGES.into() || frames > MOST_FRAMES {
            true => Err(ReplayError::TooLarge {
                memory,
                devices: self.devices,
                device_memory: self.device_memory,
            }),
            false => Ok(()),
        }
    }
}
