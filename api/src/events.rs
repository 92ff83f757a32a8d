//! What has happened.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One line of the stream of events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Event {
    /// Something has happened to pages.
    Happened {
        /// Seconds since the machine's memory was made.
        time_s: f64,
        /// What: a kind as in traces, like `cpu-fault`, `to-device`.
        kind: String,
        /// The first page.
        first: u32,
        /// The number of pages.
        pages: u32,
        /// The accelerator concerned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<u8>,
        /// For a CPU's fault: the vCPU.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vcpu: Option<u32>,
        /// For migrations: why, like `demand`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<String>,
        /// For faults and accesses: `read` or `write`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        access: Option<String>,
        /// How long it took, in microseconds, where that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        latency_us: Option<f64>,
    },
    /// Events found no room, because they were not read in time: how many of each kind.
    Dropped {
        /// By kind.
        dropped: BTreeMap<String, u64>,
    },
}
