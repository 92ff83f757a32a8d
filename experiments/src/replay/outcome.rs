//! The result of a replay.

use hmm_backend::observe::Event;
use serde::Serialize;

use super::optimal::{Optimal, OptimalError};
use crate::trace::limits::{NAMED, NAMED_PER_BYTE};

/// Why a replay could not continue.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The configuration is not possible.
    #[error(transparent)]
    Backend(#[from] hmm_backend::Error),
    /// The trace has more memory than a replay can keep accounts of.
    #[error(
        "{} MiB of managed memory and {devices} devices with {} MiB each: a replay keeps account of 1048576 MiB of managed memory at most, and of as much on all devices together", memory >> 20, device_memory >> 20
    )]
    TooLarge {
        /// Bytes of managed memory.
        memory: u64,
        /// Devices.
        devices: u8,
        /// Bytes of each one's memory.
        device_memory: u64,
    },
    /// The trace's events name so many pages that a replay would take too long.
    #[error(
        "event {event}: with it, the trace's events name {pages} pages besides the first of each, too many for a file of {bytes} bytes, of which {NAMED} and {NAMED_PER_BYTE} for each byte are replayed; its counts are damaged or stand for many accesses each: say how often the same pages are accessed by `repeats`, or replay a part"
    )]
    TooManyPages {
        /// The event's number, from 0.
        event: u64,
        /// Pages so far.
        pages: u64,
        /// The file's length.
        bytes: u64,
    },
    /// The trace accesses a page that is not in memory.
    #[error(
        "event {event}: page {page} is beyond the {pages} pages of managed memory; replay with more"
    )]
    OutOfMemory {
        /// The event's number, from 0.
        event: u64,
        /// The page.
        page: u32,
        /// Pages there are.
        pages: u32,
    },
    /// The trace names a device that the machine does not have.
    #[error("event {event}: device {device} is not among the {devices} devices of the replay")]
    NoDevice {
        /// The event's number, from 0.
        event: u64,
        /// The device.
        device: u8,
        /// Devices there are.
        devices: u8,
    },
    /// A fault could not be resolved.
    #[error("event {event}: the fault on page {page} cannot be resolved: {cause}")]
    Fatal {
        /// The event's number, from 0.
        event: u64,
        /// The page.
        page: u32,
        /// The cause.
        cause: String,
    },
    /// The optimum to compare with could not be computed.
    #[error(transparent)]
    Optimal(#[from] OptimalError),
}

/// The result of a replay.
#[derive(Clone, Debug, Serialize)]
pub struct Replayed {
    /// The policy, with all its parameters.
    pub policy: String,
    /// Pages accessed, each access counted.
    pub accesses: u64,
    /// Accesses of devices to pages of system memory in place, among them.
    pub remote_accesses: u64,
    /// Faults of CPUs.
    pub cpu_faults: u64,
    /// Faults of devices.
    pub device_faults: u64,
    /// Times a device was given a translation of a system page in place.
    pub mapped_in_place: u64,
    /// Pages that migrated to devices; first touches there count.
    pub pages_to_device: u64,
    /// Pages that migrated to system memory.
    pub pages_to_system: u64,
    /// Bytes that crossed the link towards devices: without first touches, which have no contents.
    pub bytes_to_device: u64,
    /// Bytes that crossed the link towards system memory.
    pub bytes_to_system: u64,
    /// Pages that migrated from one device directly to another.
    pub pages_between_devices: u64,
    /// Bytes that went from one device directly to another.
    pub bytes_between_devices: u64,
    /// Pages that left device memory because it was short.
    pub evicted: u64,
    /// Pages that migrated because the policy prefetched them.
    pub prefetched: u64,
    /// Accessed bits that the eviction policy looked at.
    pub bits_read: u64,
    /// Those of the prefetched pages that moved on before they were accessed. Only known of access traces:
    /// those of live runs do not hold accesses that needed no service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unused: Option<u64>,
    /// Pages that returned to a device three times or more after they had been brought back.
    pub thrashing_pages: u64,
    /// Times that advice had to be cut to what is possible.
    pub advice_cut: u64,
    /// Transfers, each of one migration call.
    pub transfers: u64,
    /// Nanoseconds: all accesses, faults and transfers, one after the other; in modelled time also the waits that the
    /// policy asked for.
    pub modelled_ns: u64,
    /// The result of the optimal eviction, if it was computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optimal: Option<Optimal>,
    /// The migrations in order, if asked for.
    #[serde(skip)]
    pub moves: Vec<Event>,
}

impl Replayed {
    /// Whether a device has accessed a page.
    pub fn has_device_accesses(&self) -> bool {
        self.device_faults + self.mapped_in_place + self.pages_to_device > 0
    }
}
