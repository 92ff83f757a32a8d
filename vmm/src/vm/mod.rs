//! A virtual machine put together: memory, devices, guest, vCPUs.
//!
//! [`crate::run()`] takes a configuration to a report. Use a [`Vm`] directly to look at a guest, or disturb it, while it runs.
//!
//! | module | what |
//! |---|---|
//! | `config` | what a machine is made of |
//! | `faults` | the threads that serve CPU faults |
//! | `pausing` | pausing the machine |
//! | `error` | why a machine could not be made |

mod config;
mod error;
mod faults;
mod pausing;

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hmmvisor_devices::Accelerator;
use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use crate::console::serial::Console;
use crate::ending::Ending;
use crate::guest::program::control::Control;
use crate::guest::{BoardParts, Guest};
use crate::machine::kvm_machine::Machine;
use crate::machine::pause::Gate;
use crate::machine::slots::{Devices, Slots};
use crate::machine::vcpu::{Vcpu, VcpuContext};
use crate::machine::vcpu_threads::{ThreadIds, VcpuThreads};
use crate::outlet::{Outlet, OutletFigures, OutletThread};
use faults::FaultServing;

pub use config::{DeviceConfig, Hooks, Managed, VmConfig, WrapDriver};
pub use error::VmError;
pub use pausing::{PauseError, Pausing};

/// A virtual machine. Dropping it stops everything it has started.
pub struct Vm {
    // The fields are in the order in which they must be dropped: vCPUs first, then what serves them.
    threads: Option<VcpuThreads>,
    waiting: Vec<Vcpu>,
    accelerators: Vec<Arc<Accelerator>>,
    devices: Devices,
    faults: Option<FaultServing>,
    shared: Arc<VcpuContext>,
    vcpu_cpus: Vec<usize>,
    ids: ThreadIds,
    control: Arc<Control>,
    console: Arc<Console>,
    power_button: Option<EventFd>,
    output: OutletThread,
    /// The output's figures, once the machine has stopped.
    written: Option<OutletFigures>,
}

/// How long a machine that stops waits for what is left of the guest's output to be written, as long as that makes progress.
const OUTPUT_WITHIN: Duration = Duration::from_secs(10);

impl Vm {
    /// Makes a machine with the guest loaded and the devices and the fault service running, but no
    /// vCPU yet.
    pub fn new(config: VmConfig<'_>) -> Result<Vm, VmError> {
        let VmConfig {
            vcpus,
            vcpu_cpus,
            managed,
            mut guest,
            console: console_output,
            hooks,
        } = config;
        let backend = managed.as_ref().map(|managed| managed.backend.clone());
        let machine = guest.machine(vcpus, backend)?;
        let ending = Arc::new(Ending::new().map_err(VmError::system("an event"))?);
        let ids = ThreadIds::new(vcpus);
        let gate = Arc::<Gate>::default();
        let faults = managed.as_ref();
        let faults =
            faults.map(|managed| FaultServing::start(managed, &machine, &ids, &ending, &gate));
        let faults = faults.transpose()?;
        let mut slots = Slots::new(&machine, &ending);
        let accelerators = match managed {
            Some(managed) => managed.plug_into(&mut slots, hooks.driver.as_deref())?,
            None => Vec::new(),
        };
        let infos = slots.infos();
        let devices = slots.devices;
        guest.load(&machine, &infos)?;

        let control = Arc::new(Control::new(vcpus, ending.clone()));
        let output = Outlet::start("output", console_output, ending.on_panic())
            .map_err(VmError::system("the thread of the guest's output"))?;
        let parts = BoardParts {
            output: output.outlet().clone(),
            control: &control,
            ending: &ending,
        };
        let mut board = guest.board(&machine, parts)?;
        devices.insert_windows(&mut board.mmio);
        for (range, device) in hooks.devices {
            board.mmio.insert(range, device);
        }

        let errors = faults.as_ref().and_then(|faults| faults.errors.clone());
        let shared = VcpuContext::new(machine, board.mmio, board.ports, errors, ending, gate);
        let (waiting, tsc_khz) = make_vcpus(&*guest, &shared)?;
        guest.describe(&shared.machine, accelerators.len() as u32, tsc_khz)?;
        Ok(Vm {
            threads: None,
            waiting,
            accelerators,
            devices,
            faults,
            shared,
            vcpu_cpus,
            ids,
            control,
            console: board.console,
            power_button: board.power_button,
            output,
            written: None,
        })
    }

    /// Starts the vCPUs.
    pub fn start(&mut self) -> Result<(), VmError> {
        let vcpus = std::mem::take(&mut self.waiting);
        let threads = VcpuThreads::start(vcpus, &self.vcpu_cpus, &self.ids, &self.shared)
            .map_err(VmError::system("the vCPUs' threads"))?;
        self.threads = Some(threads);
        Ok(())
    }

    /// Returns the end of the run: an event to wait for and, then, the reason.
    pub fn ending(&self) -> &Arc<Ending> {
        &self.shared.ending
    }

    /// Stops vCPUs, devices and the fault service, in this order, and writes out what is left of
    /// the guest's output. Memory and statistics remain. Idempotent.
    ///
    /// A vCPU that cannot be stopped (see [`VcpuThreads::stop`]) is left behind.
    pub fn stop(&mut self) {
        // A vCPU that waits for room in the output's queue waits no longer.
        self.output.outlet().hurry();
        // Devices before vCPUs: a vCPU may sleep in a register of a device, while a device's thread never waits for a vCPU.
        self.shared.stop.store(true, Ordering::Release);
        self.devices.stop();
        self.threads = None;
        self.faults = None;
        self.console.finish();
        if self.written.is_none() {
            self.written = Some(self.output.finish(OUTPUT_WITHIN));
        }
    }

    /// Returns what became of the guest's output; none before [`Self::stop`].
    pub fn written(&self) -> Option<&OutletFigures> {
        self.written.as_ref()
    }

    /// Returns when the guest first accessed a device, if it has.
    pub fn first_exit(&self) -> Option<Instant> {
        self.shared.first_exit.get().copied()
    }

    /// Returns the place of the same time, for others who look while the machine runs.
    pub(crate) fn first_exit_place(&self) -> &Arc<OnceLock<Instant>> {
        &self.shared.first_exit
    }

    /// Returns what pauses the machine.
    pub fn pausing(&self) -> Pausing {
        Pausing {
            gate: self.shared.gate.clone(),
            ids: self.ids.clone(),
            accelerators: self.accelerators.clone(),
            turn: Mutex::new(()),
        }
    }

    /// Whether the machine is paused.
    pub fn is_paused(&self) -> bool {
        self.shared.gate.is_closed()
    }

    /// Returns the control device, which has the progress that the guest reports.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Returns the serial port.
    pub fn console(&self) -> &Arc<Console> {
        &self.console
    }

    /// Takes the power button of a guest that has one: each event presses it.
    pub(crate) fn take_power_button(&mut self) -> Option<EventFd> {
        self.power_button.take()
    }

    /// Counts the guest's signs of life: its accesses to devices, except to a serial port whose output is stalled.
    pub fn accesses(&self) -> u64 {
        let all = self.shared.accesses.load(Ordering::Relaxed);
        all.saturating_sub(self.console.unheard())
    }

    /// Returns the KVM machine, which gives access to boot RAM.
    pub fn machine(&self) -> &Machine {
        &self.shared.machine
    }

    /// Returns the accelerators.
    pub fn accelerators(&self) -> &[Arc<Accelerator>] {
        &self.accelerators
    }

    /// Returns the ids of the threads that run vCPUs.
    pub fn thread_ids(&self) -> &ThreadIds {
        &self.ids
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Makes all vCPUs. Returns them with the frequency of their time-stamp counters in kHz, 0 if that is unknown.
fn make_vcpus(guest: &dyn Guest, shared: &Arc<VcpuContext>) -> Result<(Vec<Vcpu>, u32), VmError> {
    let mut tsc_khz = 0;
    let mut vcpus = Vec::new();
    for index in 0..shared.machine.vcpus() {
        let fd = guest.vcpu(&shared.machine, index)?;
        tsc_khz = fd.get_tsc_khz().unwrap_or(0);
        vcpus.push(Vcpu::new(index, fd, shared.clone()));
    }
    Ok((vcpus, tsc_khz))
}
