//! The accelerators, and provoking their drivers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An accelerator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// Its number: `device0` has number 0.
    pub device: u8,
    /// False from the beginning of a detach on: no page migrates there any more. It is detached when `used_pages` is 0.
    pub attached: bool,
    /// Pages that its memory can hold.
    pub capacity_pages: u32,
    /// Pages up to which its memory can grow.
    pub capacity_max_pages: u32,
    /// Pages that its memory holds. While it shrinks, they may be more than it can hold.
    pub used_pages: u32,
    /// Commands completed, failed ones included.
    pub commands: u64,
    /// Commands that failed.
    pub errors: u64,
    /// Accesses that neither its TLB nor its page table could translate.
    pub faults: u64,
    /// Faults on virtual addresses, which the guest had to answer.
    pub guest_faults: u64,
    /// Translations found in its TLB.
    pub tlb_hits: u64,
    /// Translations not found there.
    pub tlb_misses: u64,
}

/// All accelerators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Devices {
    /// In the order of their numbers.
    pub devices: Vec<Device>,
}

/// Changes an accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetDevice {
    /// The size of its memory in bytes: a multiple of 4096 from 4096 on, not more than `capacity_max_pages`.
    #[schema(minimum = 4096, multiple_of = 4096)]
    pub memory_bytes: u64,
}

/// A point that a driver's migrations pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WayPoint {
    /// Towards the device: the pages are locked, nothing has moved.
    ToDeviceBeforeCopy,
    /// Towards the device: the frames hold the contents.
    ToDeviceCopied,
    /// Towards the device: the pages are there, and still locked. Only a delay is possible.
    ToDeviceCommitted,
    /// Directly to another device: that one's driver has not been called yet.
    Flush,
    /// Towards system memory: the pages are locked, nothing has moved.
    ToSystemBeforeCopy,
    /// Towards system memory: the device cannot reach the pages any more.
    ToSystemCopied,
    /// Towards system memory: the pages are there, and still locked. Only a delay is possible.
    ToSystemCommitted,
}

/// What happens to a migration at a way-point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The driver fails, as one that is busy: the migration is undone. A CPU's fault is tried again for about a second.
    Fail,
    /// The migration takes this much longer, in milliseconds: from 1 to 10,000.
    DelayMs(u64),
}

/// Provokes a driver: migrations of its device fail, or take longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Provoke {
    /// Where.
    pub at: WayPoint,
    /// What happens there.
    pub outcome: Outcome,
    /// How often, from 1; without, until it is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub times: Option<u64>,
}

/// A provocation in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Provocation {
    /// Where.
    pub at: WayPoint,
    /// What happens there.
    pub outcome: Outcome,
    /// How often it is still going to happen; none if until it is ended.
    pub left: Option<u64>,
    /// How often it has happened.
    pub happened: u64,
}

/// The provocations of a device; those that have happened often enough are among them until they are ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Provocations {
    /// In the order in which they were asked for.
    pub provocations: Vec<Provocation>,
}
