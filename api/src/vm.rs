//! The machine as a whole.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Whether the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are outside the guest and its accelerators have halted.
    Paused,
    /// Its run has ended; the process is about to end, too.
    Ended,
}

/// The machine, and what it was started with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Whether it runs.
    pub state: VmState,
    /// Seconds since its vCPUs were started.
    pub uptime_s: f64,
    /// The program of the embedded guest; none for other guests.
    pub workload: Option<String>,
    /// The file of a guest program of the user's.
    pub guest: Option<String>,
    /// The file of the kernel, if an operating system runs.
    pub kernel: Option<String>,
    /// How pages migrate: `remap` or `copy`.
    pub engine: String,
    /// What decides what migrates now.
    pub policy: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Number of accelerators.
    pub devices: u32,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// Bytes of memory of each accelerator.
    pub device_memory_bytes: u64,
    /// Where the metrics can be scraped by TCP, if they can.
    pub metrics: Option<String>,
    /// The seed of the guest's pseudo-random numbers.
    pub seed: u64,
}

/// How a machine is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Pause {
    /// What becomes of the commands that accelerators are executing.
    #[serde(default)]
    #[param(inline)]
    pub commands: PausedCommands,
}

/// What becomes of a command that an accelerator is executing when the machine is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PausedCommands {
    /// The accelerator finishes it before the machine counts as paused.
    #[default]
    Finish,
    /// It halts where it is, between two accesses to memory, and goes on there afterwards.
    Halt,
}

/// The balloon, with which the guest gives memory back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Balloon {
    /// How much the guest is to give back, in bytes.
    pub target_bytes: u64,
    /// How much it has given back, by its last statement, in bytes.
    pub actual_bytes: u64,
}

/// Asks the guest to give memory back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetBalloon {
    /// How much, in bytes.
    pub target_bytes: u64,
}

/// Begins a recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The trace's file, in the file system of the machine's process. One that is there is replaced when the new one is
    /// whole.
    pub path: String,
}

/// The recording.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Recording {
    /// Whether events are being recorded.
    pub active: bool,
    /// The trace's file: of the present recording, or of the last one. None if there was none.
    pub path: Option<String>,
    /// Events in the trace, once the recording has ended.
    pub events: u64,
    /// The trace's size in bytes, once the recording has ended.
    pub bytes: u64,
    /// Events that are not in it.
    pub dropped: u64,
    /// Why the trace is not whole, if it is not.
    pub error: Option<String>,
}
