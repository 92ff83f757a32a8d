//! The description in a trace.

use std::collections::BTreeMap;

use super::limits::{BLOCKS, THREADS};
use hmm_backend::pages::PAGE_SIZE;
use serde::{Deserialize, Serialize};

/// The kind of a trace's events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TraceKind {
    /// The events of a run with migrating memory; times are real.
    #[default]
    Live,
    /// A program's accesses in program order; an event's time counts the accesses before it, one nanosecond each, unless
    /// [`TraceTotals::own_times`].
    Access,
}

/// The header of a trace: the origin of the events. Readers ignore keys they do not know, and absent ones
/// have defaults, so that keys may be added without another format version.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TraceMeta {
    /// The kind of events.
    pub kind: TraceKind,
    /// The version of the program that wrote it.
    pub hmmvisor: String,
    /// The workload, or the imported program.
    pub workload: Option<String>,
    /// The workload's parameters.
    pub params: BTreeMap<String, String>,
    /// The guest's file, if it was not the embedded one.
    pub guest: Option<String>,
    /// The seed of all pseudo-random choices.
    pub seed: u64,
    /// The policy; empty for access traces.
    pub policy: String,
    /// The files that the policy was read from, with the SHA-256 of what was in them when the run began.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub policy_files: BTreeMap<String, String>,
    /// How pages migrated; empty for access traces.
    pub engine: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Number of accelerators.
    pub devices: u32,
    /// Managed memory in bytes; pages are numbered within it.
    pub memory: u64,
    /// Guest-physical address of page 0; if absent, where small guests have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<u64>,
    /// Memory of each accelerator in bytes; 0 for access traces.
    pub device_memory: u64,
    /// `private` or `coherent`; empty for access traces.
    pub device_kind: String,
    /// How much the accelerators told of their accesses: `faults`, `bits` or `all`; empty for access traces.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fidelity: String,
    /// The least number of pages that were evicted at a time; absent for access traces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eviction_batch: Option<u32>,
    /// The accelerators' links: `latency=10us,bandwidth=25G`, and after semicolons those that differ from it and those between
    /// accelerators ([`hmm_backend::links::LinkMatrix`]). Until version 3 empty if the accelerators' links differed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub link: String,
    /// The origin of an imported trace: the format, and the name of the input.
    pub source: Option<String>,
}

/// Events that were lost because they came faster than they were written, by the name of their kind.
pub type Dropped = BTreeMap<String, u64>;

impl TraceMeta {
    /// Returns what ran: the workload, the guest's file or the imported file.
    pub fn name(&self) -> &str {
        let names = [&self.workload, &self.guest, &self.source];
        let mut named = names.into_iter().flatten();
        named.next().map_or("an unknown program", String::as_str)
    }

    /// Whether the accelerators' memory was coherent: CPUs reached it in place, without faults.
    pub fn is_coherent(&self) -> bool {
        self.device_kind == "coherent"
    }

    /// Pages that there can be: more than that many need not be kept account of.
    pub fn pages(&self) -> u32 {
        // An imported trace that was not finished does not know.
        let memory = if self.memory == 0 {
            MEMORY_MAX
        } else {
            self.memory
        };
        u32::try_from(memory.min(MEMORY_MAX) / PAGE_SIZE).unwrap_or(u32::MAX)
    }
}

/// No machine has more memory, no imported trace more addresses.
const MEMORY_MAX: u64 = 1 << 44;

/// The parts of its [`TraceMeta`] that an imported trace knows only at its end; these count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// Bytes of memory, in whole blocks of 2 MiB.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Number of accelerators.
    pub devices: u32,
}

/// The facts that are known only when a trace ends.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TraceTotals {
    /// Events in the file.
    pub events: u64,
    /// Events lost.
    pub dropped: Dropped,
    /// The vCPU that a host thread ran: from the numbers in [`hmm_backend::observe::Event::thread`] to vCPUs' numbers.
    pub threads: BTreeMap<u32, u32>,
    /// For imported traces, what the header could not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// For imported traces, whether events have times of their own rather than numbers of accesses.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub own_times: bool,
    /// For imported traces, which addresses the pages had: `(first page, pages, first address)`, by page.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mapping: Vec<(u32, u32, u64)>,
}

impl TraceTotals {
    /// Whether a trace can have these totals.
    pub(super) fn possible(&self) -> bool {
        let vcpus = self.threads.values().all(|vcpu| *vcpu < THREADS as u32);
        vcpus && self.threads.len() <= THREADS && self.mapping.len() <= BLOCKS
    }

    /// Returns how many events were lost.
    pub fn dropped_events(&self) -> u64 {
        let all = self.dropped.values();
        all.fold(0, |sum: u64, n| sum.saturating_add(*n))
    }

    /// Returns how many events were lost, and of which kinds, if any were.
    pub fn lost(&self) -> Option<String> {
        let sum = self.dropped_events();
        let kinds = self.dropped.iter().map(|(kind, n)| format!("{kind} {n}"));
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        (sum > 0).then(|| format!("{sum} events were lost when it was recorded ({kinds})"))
    }
}
