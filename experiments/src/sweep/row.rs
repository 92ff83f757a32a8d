//! The results' columns.

use serde::{Deserialize, Serialize};

/// The type of a column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Column {
    /// UTF-8.
    Text,
    /// A whole number.
    Integer,
    /// A floating-point number.
    Number,
}

trait Typed {
    const COLUMN: Column;
}
impl Typed for String {
    const COLUMN: Column = Column::Text;
}
impl Typed for u64 {
    const COLUMN: Column = Column::Integer;
}
impl Typed for f64 {
    const COLUMN: Column = Column::Number;
}

macro_rules! columns {
    (
        configuration { $($(#[$conf_doc:meta])* $conf:ident: $conf_type:ty,)* }
        measured { $($(#[$doc:meta])* $name:ident: $type:ty,)* }
    ) => {
        /// The results of a run. Figures that its kind of run does not have stay empty.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Measured {
            /// The engine that ran, where the configuration leaves it open.
            pub engine: Option<String>,
            $($(#[$doc])* pub $name: Option<$type>,)*
        }

        /// One run: its exact configuration and its results.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Row {
            $($(#[$conf_doc])* pub $conf: Option<$conf_type>,)*
            $($(#[$doc])* pub $name: Option<$type>,)*
        }

        /// The names and types of the columns, in order.
        pub const COLUMNS: &[(&str, Column)] = &[
            $((stringify!($conf), <$conf_type as Typed>::COLUMN),)*
            $((stringify!($name), <$type as Typed>::COLUMN),)*
        ];

        impl Row {
            /// Returns this row with the measured results.
            pub fn with(self, measured: Measured) -> Row {
                let engine = measured.engine.or(self.engine);
                Row { engine, $($name: measured.$name,)* ..self }
            }
        }
    };
}

columns! {
    configuration {
        /// The sweep: a hash of its configuration.
        sweep: String,
        /// The sweep's title.
        title: String,
        /// The version of Hmmvisor that did the run.
        version: String,
        /// The run's number in the sweep, from 0.
        run: u64,
        /// `live`, `model` (a workload's accesses, replayed) or `trace`.
        mode: String,
        /// The workload's or the trace's name.
        source: String,
        /// The workload's parameters, `n=1 rounds=2`; the trace's file.
        params: String,
        /// The migration engine of a live run.
        engine: String,
        /// vCPUs of a live run.
        vcpus: u64,
        /// Accelerators of a live run.
        devices: u64,
        /// Guest memory whose pages migrate, in bytes.
        memory_bytes: u64,
        /// The policy, as the sweep's file names it.
        policy: String,
        /// The policy's exact name, with all parameters and the checksums of its files.
        policy_exact: String,
        /// Memory of each device, in bytes.
        device_memory_bytes: u64,
        /// How much devices told of accesses that did not fault: `faults`, `bits` or `all`.
        fidelity: String,
        /// The link model's name.
        link: String,
        /// The latency of a transfer, in nanoseconds.
        link_latency_ns: u64,
        /// The link's bandwidth, in bytes per second.
        link_bandwidth: u64,
        /// The seed of all pseudo-random choices.
        seed: u64,
    }
    measured {
        /// Accesses that were replayed.
        accesses: u64,
        /// Faults of CPUs.
        cpu_faults: u64,
        /// Faults of devices.
        device_faults: u64,
        /// Times a device was given a translation of a page in system memory.
        mapped_in_place: u64,
        /// Accesses of devices to system memory in place; not counted in live runs.
        remote_accesses: u64,
        /// Pages migrated to devices.
        pages_to_device: u64,
        /// Pages migrated to system memory.
        pages_to_system: u64,
        /// Bytes migrated to devices.
        bytes_to_device: u64,
        /// Bytes migrated to system memory.
        bytes_to_system: u64,
        /// Pages migrated from one device directly to another.
        pages_between_devices: u64,
        /// Bytes migrated from one device directly to another.
        bytes_between_devices: u64,
        /// Pages evicted.
        evicted: u64,
        /// Pages prefetched by the policy.
        prefetched: u64,
        /// Accessed bits that the eviction policy looked at.
        bits_read: u64,
        /// Prefetched pages that moved on before they were accessed.
        unused: u64,
        /// Pages that went to a device three times or more.
        thrashing_pages: u64,
        /// Transfers over the link.
        transfers: u64,
        /// The time of faults and transfers on the modelled hardware, in nanoseconds.
        modelled_ns: u64,
        /// Pages that the best possible eviction (Belady's MIN) would bring to the device: no policy that migrates on access
        /// brings fewer.
        optimal_pages_to_device: u64,
        /// Wall-clock time of a live run, in seconds.
        elapsed_s: f64,
        /// Half of the CPU faults were faster, in microseconds; live.
        fault_p50_us: f64,
        /// 99 of 100 were faster, in microseconds; live.
        fault_p99_us: f64,
        /// Events in which the policy's script failed and density decided; empty without a script.
        script_failures: u64,
        /// Why the run failed; empty if it did not.
        error: String,
    }
}

impl Row {
    /// Returns the bytes that migrated in both directions.
    pub fn bytes_moved(&self) -> Option<u64> {
        Some(self.bytes_to_device?.saturating_add(self.bytes_to_system?))
    }

    /// Whether the row is about a trace in which no access is a device's, so that nothing migrates.
    pub(super) fn is_idle(&self) -> bool {
        let of_devices = [
            self.device_faults,
            self.mapped_in_place,
            self.pages_to_device,
        ];
        self.mode.as_deref() == Some("trace") && of_devices == [Some(0); 3]
    }
}
