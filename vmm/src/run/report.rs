//! The report of a run: its figures, and their stable names in JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hmm_backend::Backend;
use hmm_backend::engine::Engine;
use hmm_backend::links::{LinkTraffic, Route};
use hmm_backend::observe::{Cause, Latency, Stats};
use hmm_backend::pages::{Fidelity, Place};
use hmmvisor_abi::control;
use hmmvisor_devices::Accelerator;
use hmmvisor_policies::ScriptFigures;
use hmmvisor_torture::Figures;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::config::Config;
use crate::config::console_choice::ConsoleChoice;
use crate::ending::End;
use crate::ending::failure::Failure;
use crate::outlet::OutletFigures;
use crate::run::balloon::BalloonReport;
use crate::run::recording::RecordingFigures;
use crate::run::signals;
use hmmvisor_experiments::size::Size;

/// A run's outcome and figures. There is one as soon as a guest has been started, however it ended.
#[derive(Clone, Debug)]
pub struct Report {
    /// How the run ended; none while it goes on.
    pub end: Option<End>,
    /// Name of the workload; none if a guest of the user's ran without one.
    pub workload: Option<String>,
    /// The guest's file; none for the embedded guest and for operating systems.
    pub guest: Option<String>,
    /// The kernel's file, if an operating system ran.
    pub kernel: Option<String>,
    /// The engine that migrated pages.
    pub engine: Engine,
    /// The policies' names and parameters.
    pub policy: String,
    /// The same with every parameter, and checksums of the files that it was read from, as they were at the end.
    pub policy_exact: String,
    /// How the policy scripts did; none if there were none.
    pub scripts: Option<ScriptFigures>,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Number of accelerators.
    pub devices: u32,
    /// How much the accelerators told of their accesses.
    pub fidelity: Fidelity,
    /// Managed memory.
    pub memory: Size,
    /// The run's seed.
    pub seed: u64,
    /// The backend's figures.
    pub stats: Stats,
    /// CPU faults of each vCPU. Those of the VMM's own accesses are in none.
    pub vcpu_faults: Vec<u64>,
    /// The figures of each accelerator.
    pub accelerators: Vec<AcceleratorReport>,
    /// What crossed the accelerators' links.
    pub links: Vec<LinkTraffic>,
    /// From the vCPUs' start to the end.
    pub elapsed: Duration,
    /// From the process's start to the first sign of life of the guest.
    pub first_instruction: Option<Duration>,
    /// Resident bytes of the process that are no guest or device memory, at the end.
    pub overhead: Option<u64>,
    /// Operations whose outcome was compared with what it must be, as far as the guest counts them.
    pub operations_checked: u64,
    /// Rounds that the guest began, if its work has rounds.
    pub rounds: u64,
    /// What the host did to the guest, if it tortured it.
    pub chaos: Option<Figures>,
    /// How to see a torture's failure again.
    pub replay: Option<Replay>,
    /// The trace, if one was recorded.
    pub recording: Option<RecordingFigures>,
    /// The balloon, if there was one.
    pub balloon: Option<BalloonReport>,
    /// What the accelerators' drivers were told.
    pub drivers: DriverReport,
    /// What was not written of the guest's output.
    pub output: OutputReport,
    /// Threads that did not end when the machine stopped.
    pub left_behind: Vec<String>,
}

/// What was not written of the guest's output.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct OutputReport {
    /// The file it went to; none for standard output.
    pub to: Option<PathBuf>,
    /// Bytes that were not written.
    pub dropped_bytes: u64,
    /// Why writing failed; none if it did not.
    pub error: Option<String>,
}

impl OutputReport {
    /// Makes the figures of output that went where the configuration says.
    pub(super) fn new(console: &ConsoleChoice, figures: OutletFigures) -> OutputReport {
        OutputReport {
            to: match console {
                ConsoleChoice::File(path) => Some(path.clone()),
                ConsoleChoice::Auto | ConsoleChoice::Stdio => None,
            },
            dropped_bytes: figures.dropped,
            error: figures.error,
        }
    }

    /// Says what went wrong; none if nothing did.
    fn problem(&self) -> Option<String> {
        let to = match &self.to {
            Some(path) => format!(" to {}", path.display()),
            None => String::new(),
        };
        let dropped = self.dropped_bytes;
        match (&self.error, dropped) {
            (Some(error), _) => Some(format!(
                "writing the guest's output{to} failed: {error}; {dropped} bytes were dropped, the run went on"
            )),
            (None, 0) => None,
            (None, _) => Some(format!(
                "{dropped} bytes of the guest's output{to} were dropped, because they were not read in time"
            )),
        }
    }
}

/// The books that the accelerators' drivers keep of the folios in device memory, all together.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct DriverReport {
    /// Folios that came into use, the upper halves of those that were split included.
    pub folios_allocated: u64,
    /// Folios whose `page_free` came. The others are in use.
    pub folios_freed: u64,
    /// Calls that made no sense, such as a second `page_free` of the same folio: not 0 means a bug in Hmmvisor.
    pub contract_violations: u64,
}

impl DriverReport {
    /// Adds up the books as they are now.
    pub fn of(accelerators: &[Arc<Accelerator>]) -> DriverReport {
        let mut all = DriverReport::default();
        for stats in accelerators.iter().map(|it| it.stats()) {
            all.folios_allocated += stats.folios_allocated;
            all.folios_freed += stats.folios_freed;
            all.contract_violations += stats.contract_violations;
        }
        all
    }
}

/// The figures of one accelerator.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct AcceleratorReport {
    /// Commands completed, failed ones included.
    pub commands: u64,
    /// Commands that failed.
    pub errors: u64,
    /// Accesses that neither its TLB nor its page table could translate. Some of them found their page in its memory.
    pub faults: u64,
    /// Faults on virtual addresses, which the guest had to answer.
    pub guest_faults: u64,
    /// Bytes of contents that came to its memory.
    pub bytes_in: u64,
    /// Bytes of contents that left it.
    pub bytes_out: u64,
}

impl AcceleratorReport {
    /// Makes those of all, with what has crossed their links.
    pub(super) fn of(all: &[Arc<Accelerator>], links: &[LinkTraffic]) -> Vec<AcceleratorReport> {
        let report = |it: &Arc<Accelerator>| {
            let (stats, here) = (it.stats(), Place::Device(it.device_id()));
            let bytes = |end: fn(&LinkTraffic) -> Place| {
                let its = links.iter().filter(|link| end(link) == here);
                its.map(|link| link.bytes).sum()
            };
            AcceleratorReport {
                commands: stats.commands,
                errors: stats.errors,
                faults: stats.faults,
                guest_faults: stats.guest_faults,
                bytes_in: bytes(|link| link.to),
                bytes_out: bytes(|link| link.from),
            }
        };
        all.iter().map(report).collect()
    }
}

/// A round of a torture that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Its number.
    pub round: u64,
    /// The command that starts with it.
    pub command: String,
}

impl Report {
    /// Makes a report of a run with this configuration. It has the backend's figures; all others are 0 or none.
    pub(super) fn new(config: &Config, backend: &Backend, end: Option<End>) -> Report {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        Report {
            end,
            workload: None,
            guest: path(&config.guest),
            kernel: path(&config.boot.kernel),
            engine: backend.engine(),
            policy: backend.policy_name(),
            policy_exact: backend.policy_exact(),
            scripts: None,
            vcpus: config.machine.vcpus,
            devices: config.devices.count,
            fidelity: config.devices.accesses,
            memory: config.machine.memory,
            seed: config.seed,
            stats: backend.stats(),
            vcpu_faults: Vec::new(),
            accelerators: Vec::new(),
            links: backend.link_traffic(),
            elapsed: Duration::ZERO,
            first_instruction: None,
            overhead: None,
            operations_checked: 0,
            rounds: 0,
            chaos: None,
            replay: None,
            recording: None,
            balloon: None,
            drivers: DriverReport::default(),
            output: OutputReport::default(),
            left_behind: Vec::new(),
        }
    }

    /// Whether the guest verified all of its results.
    pub fn verified(&self) -> bool {
        self.end == Some(End::Exit(0))
    }

    /// Returns the exit code for a process that did nothing but this run: 0 only if everything was verified, or an operating
    /// system ended the run in good order, everything was written that was to be, and the figures are those of the policy's scripts.
    pub fn exit_code(&self) -> u8 {
        match self.end {
            None | Some(End::Exit(0) | End::PowerOff | End::Reboot | End::Quit) => {
                u8::from(self.lost().is_some())
            }
            // Codes from 126 on have meanings of their own in shells.
            Some(End::Exit(code @ 1..=125)) => code as u8,
            Some(End::Exit(_) | End::Failed(_)) => 1,
            Some(End::Signal(signal)) => 128 + signal as u8,
        }
    }

    /// Says what went wrong; none if everything was verified and recorded, under the policy that was to be.
    pub fn error(&self) -> Option<String> {
        let lost = self.lost();
        let Some(error) = self.end_error() else {
            return lost;
        };
        let error = match lost {
            Some(lost) => format!("{error}\n{lost}"),
            None => error,
        };
        Some(match &self.replay {
            None => error,
            Some(Replay { round, command }) => format!(
                "{error}\nseed {}, round {round}, engine {}, policy {}; the same draws again, with the machine's own timing:\n  {command}",
                self.seed, self.engine, self.policy
            ),
        })
    }

    /// Says which outputs of the run were lost, which threads did not end, and whether the figures are not those of the policy's
    /// scripts.
    fn lost(&self) -> Option<String> {
        let recording = self.recording.as_ref().and_then(|it| it.error.as_deref());
        let recording = recording.map(str::to_owned);
        let left = match self.left_behind.is_empty() {
            true => None,
            false => Some(format!(
                "threads that did not end when the machine stopped: {}",
                self.left_behind.join(", ")
            )),
        };
        let script = self.scripts.as_ref().and_then(ScriptFigures::failure);
        let all: Vec<_> = [recording, self.output.problem(), left, script]
            .into_iter()
            .flatten()
            .collect();
        (!all.is_empty()).then(|| all.join("\n"))
    }

    fn end_error(&self) -> Option<String> {
        match self.end.as_ref()? {
            End::Exit(0) | End::PowerOff | End::Reboot | End::Quit => None,
            End::Exit(code) => {
                // The codes of a user's guest mean what its author says.
                let meaning = match *code {
                    _ if self.guest.is_some() => "see its output",
                    control::EXIT_WRONG_DATA => "it found wrong data",
                    control::EXIT_PANIC => "it panicked",
                    control::EXIT_USAGE => "it could not start",
                    _ => "see its output",
                };
                Some(format!("the guest exited with code {code}: {meaning}"))
            }
            End::Signal(signal) => Some(format!("interrupted by {}", signals::name(*signal))),
            // The ways in which kernels fail on hosts that cannot run them.
            End::Failed(failure @ (Failure::Internal { .. } | Failure::Hang(_)))
                if self.kernel.is_some() =>
            {
                Some(format!(
                    "{failure}; if no kernel boots, see what `hmmvisor check` says about guest kernel mode"
                ))
            }
            End::Failed(failure) => Some(failure.to_string()),
        }
    }

    /// Returns the JSON object, in one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and strings")
    }
}

/// The names are an interface: they may be added to, but not changed.
impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let stats = &self.stats;
        let (end, guest_exit) = match self.end {
            None => (None, None),
            Some(End::Exit(code)) => (Some("exit"), Some(code)),
            Some(End::PowerOff) => (Some("power-off"), None),
            Some(End::Reboot) => (Some("reboot"), None),
            Some(End::Quit) => (Some("quit"), None),
            Some(End::Signal(_)) => (Some("signal"), None),
            Some(End::Failed(_)) => (Some("failed"), None),
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("workload", &self.workload)?;
        map.serialize_entry("guest", &self.guest)?;
        map.serialize_entry("kernel", &self.kernel)?;
        map.serialize_entry("end", &end)?;
        map.serialize_entry("engine", &self.engine.to_string())?;
        map.serialize_entry("policy", &self.policy)?;
        map.serialize_entry("policy_exact", &self.policy_exact)?;
        map.serialize_entry("scripts", &self.scripts)?;
        map.serialize_entry("vcpus", &self.vcpus)?;
        map.serialize_entry("devices", &self.devices)?;
        map.serialize_entry("fidelity", self.fidelity.name())?;
        map.serialize_entry("memory_bytes", &self.memory.0)?;
        map.serialize_entry("seed", &self.seed)?;
        map.serialize_entry("verified", &self.verified())?;
        map.serialize_entry("guest_exit", &guest_exit)?;
        map.serialize_entry("error", &self.error())?;
        map.serialize_entry("cpu_faults", &stats.cpu_faults)?;
        map.serialize_entry("vcpu_faults", &self.vcpu_faults)?;
        map.serialize_entry("first_touch_faults", &stats.first_touch_faults)?;
        map.serialize_entry("device_faults", &stats.device_faults)?;
        map.serialize_entry("pages_to_device", &stats.pages_to_device())?;
        map.serialize_entry("pages_to_system", &stats.pages_to_system())?;
        let both = [&stats.to_device, &stats.to_system];
        map.serialize_entry("migrations", &pages(&both))?;
        map.serialize_entry("migrations_to_device", &pages(&both[..1]))?;
        map.serialize_entry("migrations_to_system", &pages(&both[1..]))?;
        map.serialize_entry("pages_between_devices", &stats.pages_between_devices())?;
        let between = [&stats.between_devices];
        map.serialize_entry("migrations_between_devices", &pages(&between))?;
        map.serialize_entry("page_free_calls", &stats.page_free_calls)?;
        map.serialize_entry("pages_freed", &stats.pages_freed)?;
        map.serialize_entry("device_pages_peak", &stats.device_pages_peak)?;
        map.serialize_entry("device_pages_capacity", &stats.device_pages_capacity)?;
        map.serialize_entry("fault_latency_us", &Micros(stats.fault_latency))?;
        let of_devices = Micros(stats.device_fault_latency);
        map.serialize_entry("device_fault_latency_us", &of_devices)?;
        let counters: BTreeMap<_, _> = stats.counters.named().collect();
        map.serialize_entry("counters", &counters)?;
        map.serialize_entry("operations_checked", &self.operations_checked)?;
        map.serialize_entry("rounds", &self.rounds)?;
        map.serialize_entry("chaos", &self.chaos)?;
        map.serialize_entry("recording", &self.recording)?;
        map.serialize_entry("balloon", &self.balloon)?;
        let links: Vec<_> = self.links.iter().map(JsonLink::from).collect();
        map.serialize_entry("links", &links)?;
        map.serialize_entry("accelerators", &self.accelerators)?;
        map.serialize_entry("drivers", &self.drivers)?;
        map.serialize_entry("output", &self.output)?;
        map.serialize_entry("elapsed_s", &self.elapsed.as_secs_f64())?;
        let milliseconds = self.first_instruction.map(|time| time.as_secs_f64() * 1e3);
        map.serialize_entry("first_instruction_ms", &milliseconds)?;
        map.serialize_entry("vmm_overhead_bytes", &self.overhead)?;
        map.end()
    }
}

/// Pages by the cause of their migration, of all these counts together.
fn pages(counts: &[&BTreeMap<Cause, u64>]) -> BTreeMap<&'static str, u64> {
    let sum = |cause: Cause| counts.iter().filter_map(|counts| counts.get(&cause)).sum();
    let causes = Cause::ALL.iter();
    causes.map(|cause| (cause.name(), sum(*cause))).collect()
}

/// What crossed from one place to another.
#[derive(Serialize)]
struct JsonLink {
    from: String,
    to: String,
    route: &'static str,
    link: String,
    transfers: u64,
    bytes: u64,
    time_s: f64,
}

impl From<&LinkTraffic> for JsonLink {
    fn from(traffic: &LinkTraffic) -> JsonLink {
        let name = |place| match place {
            Place::System => "system".to_owned(),
            Place::Device(device) => format!("device{}", device.0),
        };
        JsonLink {
            from: name(traffic.from),
            to: name(traffic.to),
            route: match traffic.route {
                Route::Host => "host",
                Route::Peer => "peer",
            },
            link: traffic.model.to_string(),
            transfers: traffic.transfers,
            bytes: traffic.bytes,
            time_s: traffic.time.as_secs_f64(),
        }
    }
}

/// A latency in a report.
#[derive(Serialize)]
struct Micros(#[serde(with = "JsonLatency")] Latency);

#[derive(Serialize)]
#[serde(remote = "Latency")]
struct JsonLatency {
    p50: f64,
    p99: f64,
    max: f64,
    count: u64,
}
