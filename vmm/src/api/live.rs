//! The machine that requests are about.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use hmm_backend::{Backend, EventTap};
use hmmvisor_api::{self as api, Recording, SetBalloon, Vm, VmState};
use hmmvisor_devices::virtio::Balloon;
use hmmvisor_devices::{Accelerator, CommandInFlight, bell};
use hmmvisor_policies::{Log, Scripts};
use vmm_sys_util::eventfd::EventFd;

use super::error::Refusal;
use super::memory::PinBoard;
use super::operations::OperationBoard;
use super::patience::OpenStreams;
use super::provoke::Provoker;
use crate::config::Config;
use crate::ending::{End, Ending};
use crate::machine::vcpu_threads::ThreadIds;
use crate::vm::{PauseError, Pausing};

/// A running machine, as far as requests may see and change it. It has no descriptor of the machine's, and reads or writes
/// no byte of the guest's memory.
pub(crate) struct Live {
    pub(crate) config: Config,
    pub(crate) workload: Option<String>,
    pub(crate) backend: Arc<Backend>,
    pub(crate) tap: Arc<EventTap>,
    pub(crate) ending: Arc<Ending>,
    pub(crate) accelerators: Vec<Arc<Accelerator>>,
    pub(crate) balloon: Arc<OnceLock<Balloon>>,
    pub(crate) pausing: Pausing,
    /// Writing to it presses the guest's power button, if it knows one.
    pub(crate) power_button: Option<EventFd>,
    pub(crate) threads: ThreadIds,
    pub(crate) provoker: Arc<Provoker>,
    pub(crate) pins: PinBoard,
    pub(crate) operations: Arc<OperationBoard>,
    pub(crate) streams: OpenStreams,
    /// Takes what policy scripts print.
    pub(crate) log: Log,
    /// When the vCPUs started.
    pub(crate) began: Instant,
    /// Where the metrics are served by TCP, if they are.
    pub(crate) metrics: Option<SocketAddr>,
    /// What is around the machine.
    pub(crate) run: Arc<dyn Run>,
}

/// The run around a machine: what belongs to the whole process.
pub(crate) trait Run: Send + Sync {
    /// Returns the figures so far, as the object that `--json` writes at the end.
    fn report(&self) -> String;
    /// Has the figures of these scripts count, too.
    fn uses(&self, scripts: Vec<Arc<Scripts>>);
    /// Begins a recording into a file.
    fn record(&self, path: &Path) -> Result<(), Refusal>;
    /// Ends the recording, and returns when its file is complete.
    fn end_recording(&self) -> Result<Recording, Refusal>;
    /// Returns the recording, or the last one.
    fn recording(&self) -> Recording;
}

impl Live {
    pub(super) fn vm(&self) -> Vm {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        Vm {
            state: match self.ending.get() {
                Some(_) => VmState::Ended,
                None if self.pausing.is_paused() => VmState::Paused,
                None => VmState::Running,
            },
            uptime_s: self.began.elapsed().as_secs_f64(),
            workload: self.workload.clone(),
            guest: path(&self.config.guest),
            kernel: path(&self.config.boot.kernel),
            engine: self.backend.engine().to_string(),
            policy: self.backend.policy_name(),
            vcpus: self.config.machine.vcpus,
            devices: self.config.devices.count,
            memory_bytes: self.config.machine.memory.0,
            device_memory_bytes: self.config.devices.memory.0,
            metrics: self.metrics.map(|address| address.to_string()),
            seed: self.config.seed,
        }
    }

    /// Ends the run, as the user at the console can.
    pub(super) fn stop(&self) {
        self.ending.set(End::Quit);
    }

    /// Presses the guest's power button; returns at once.
    pub(super) fn press_power_button(&self) -> Result<(), Refusal> {
        let Some(button) = &self.power_button else {
            let detail = "the guest has no power button: only an operating system (--kernel) has one; POST /v1/vm/stop ends the run";
            return Err(Refusal::conflict(detail));
        };
        self.going_on()?;
        bell::ring(button)
            .map_err(|error| Refusal::conflict(format!("the host refused the event: {error}")))
    }

    pub(super) fn pause(&self, how: api::Pause) -> Result<Vm, Refusal> {
        self.pausing.pause(match how.commands {
            api::PausedCommands::Finish => CommandInFlight::Finishes,
            api::PausedCommands::Halt => CommandInFlight::Halts,
        })?;
        Ok(self.vm())
    }

    pub(super) fn resume(&self) -> Vm {
        self.pausing.resume();
        self.vm()
    }

    /// Refuses what needs a running machine once the run has ended.
    pub(super) fn going_on(&self) -> Result<(), Refusal> {
        match self.ending.get() {
            None => Ok(()),
            Some(_) => Err(Refusal::conflict("the run has ended")),
        }
    }

    fn balloon_device(&self) -> Result<&Balloon, Refusal> {
        self.balloon.get().ok_or_else(|| {
            let detail = "the machine has no balloon; start it with --balloon";
            Refusal::missing("no balloon", detail)
        })
    }

    pub(super) fn balloon(&self) -> Result<api::Balloon, Refusal> {
        let balloon = self.balloon_device()?;
        Ok(api::Balloon {
            target_bytes: balloon.target(),
            actual_bytes: balloon.last_actual(),
        })
    }

    pub(super) fn set_balloon(&self, to: SetBalloon) -> Result<api::Balloon, Refusal> {
        let set = self.balloon_device()?.set_target(to.target_bytes);
        set.map_err(|error| Refusal::bad("target_bytes", error))?;
        self.balloon()
    }
}

impl From<PauseError> for Refusal {
    fn from(error: PauseError) -> Refusal {
        Refusal::conflict(error)
    }
}
