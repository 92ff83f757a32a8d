//! A virtual machine put together: memory, devices, guest, vCPUs.
//!
//! [`crate::run()`] is the way from a configuration to a report; this is for those who want to look at
//! or disturb a guest while it runs.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hmm_backend::limits::{Refusal, Resource};
use hmm_backend::{Backend, Driver, FatalFault, FaultService, ServiceConfig};
use hmmvisor_abi::map;
use hmmvisor_devices::{Accelerator, AcceleratorError, NewDevice, NewDeviceError};
use thiserror::Error;

use crate::console::outlet::{Outlet, OutletFigures, OutletThread};
use crate::console::serial::{self, Console};
use crate::ending::{End, Ending};
use crate::guest::linux::LoadError;
use crate::guest::linux::power::{self, Power};
use crate::guest::program::boot::{self, BootError, BootParameters};
use crate::guest::program::control::Control;
use crate::guest::program::image::ImageError;
use crate::guest::{LoadedGuest, Prepared};
use crate::machine::bus::{Bus, Device};
use crate::machine::interrupts::pin_event;
use crate::machine::kvm_machine::{Machine, MachineError};
use crate::machine::memory_errors::{self, Kicker, MemoryErrors, OnMemoryError, Reporter};
use crate::machine::slots::{self, Devices, Slots, Window};
use crate::machine::vcpu::{Shared, Vcpu};
use crate::machine::vcpu_threads::{ThreadIds, VcpuThreads};

pub use crate::guest::Guest;

/// Bytes of the address range of a device without a distance of its own.
const WINDOW: u64 = 0x1000;

/// What to make a virtual machine of.
pub struct VmConfig<'a> {
    /// Number of vCPUs, 1 to [`map::MAX_VCPUS`].
    pub vcpus: u32,
    /// Host CPUs to pin vCPUs to, cyclically; empty for none.
    pub vcpu_cpus: Vec<usize>,
    /// Managed memory and the accelerators that share it. Without, the guest has boot RAM only.
    pub managed: Option<Managed>,
    /// What runs in it.
    pub guest: Guest<'a>,
    /// Where the guest's serial output goes.
    pub console: Box<dyn Write + Send>,
    /// What tests add; nothing by default.
    pub hooks: Hooks,
}

impl<'a> VmConfig<'a> {
    /// One vCPU that runs this ELF file in boot RAM, whose output nobody reads.
    pub fn new(guest: &'a [u8]) -> VmConfig<'a> {
        VmConfig {
            vcpus: 1,
            vcpu_cpus: Vec::new(),
            managed: None,
            guest: Guest::Program {
                image: guest,
                cmdline: "",
                seed: 1,
            },
            console: Box::new(io::sink()),
            hooks: Hooks::default(),
        }
    }
}

/// What tests put between a machine and the rest of the world.
#[derive(Default)]
pub struct Hooks {
    /// More devices for the vCPUs, by guest-physical address; the memory map's own must not be in the way. A vCPU
    /// that sleeps in one of them must not do so for long: nothing else ends that sleep.
    pub devices: Vec<(Range<u64>, Arc<dyn Device>)>,
    /// Puts a driver in front of the one of each accelerator, which it gets with the accelerator's index.
    pub driver: Option<Box<WrapDriver>>,
}

/// See [`Hooks::driver`].
pub type WrapDriver = dyn Fn(u32, Arc<dyn Driver>) -> Arc<dyn Driver>;

/// Managed memory and what works on it besides vCPUs.
pub struct Managed {
    /// The memory.
    pub backend: Arc<Backend>,
    /// Threads that serve CPU faults, with the host CPU to pin each to.
    pub service: Vec<Option<usize>>,
    /// The accelerators.
    pub devices: Vec<DeviceConfig>,
    /// What becomes of an access to a page that cannot be supplied.
    pub on_memory_error: OnMemoryError,
    /// Devices of others, in the windows behind the accelerators.
    pub foreign: Vec<NewDevice>,
}

impl Managed {
    /// This memory, with one thread that serves faults and no devices.
    pub fn new(backend: Arc<Backend>) -> Managed {
        Managed {
            backend,
            service: vec![None],
            devices: Vec::new(),
            on_memory_error: OnMemoryError::default(),
            foreign: Vec::new(),
        }
    }
}

/// One accelerator.
#[derive(Clone, Copy, Debug)]
pub struct DeviceConfig {
    /// Device memory in bytes.
    pub memory: u64,
    /// Whether CPUs reach it in place; otherwise pages migrate on faults.
    pub coherent: bool,
    /// Host CPU to pin its thread to.
    pub cpu: Option<usize>,
}

/// Why a virtual machine could not be made.
#[derive(Debug, Error)]
pub enum VmError {
    /// The guest's image.
    #[error("loading the guest: {0}")]
    Image(#[from] ImageError),
    /// KVM.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Memory contents.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The fault service.
    #[error("starting the fault service: {0}")]
    Service(#[source] hmm_backend::Error),
    /// An accelerator.
    #[error(transparent)]
    Accelerator(#[from] AcceleratorError),
    /// A device of somebody else.
    #[error("making the device in window {index}: {error}")]
    Device {
        /// Its window.
        index: u32,
        /// Why not.
        #[source]
        error: NewDeviceError,
    },
    /// More devices than the memory map has windows for.
    #[error("{0} devices: there are windows for {max}", max = map::MAX_ACCELS)]
    TooManyDevices(usize),
    /// A kernel, its ramdisk or its command line.
    #[error(transparent)]
    Linux(#[from] LoadError),
    /// An operating system without the memory for it.
    #[error("booting a kernel: it needs managed memory")]
    NoMemory,
    /// A device's connection to KVM.
    #[error("connecting {what} of device {index} to KVM: {error}")]
    Connect {
        /// What.
        what: &'static str,
        /// The device's window.
        index: u32,
        /// Why not.
        #[source]
        error: Refusal,
    },
    /// An event or a thread.
    #[error("making {what}: {error}")]
    System {
        /// What.
        what: &'static str,
        /// The system's answer.
        #[source]
        error: Refusal,
    },
}

impl VmError {
    /// The system's answer to a request for an event or a thread.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> VmError {
        move |error| VmError::System {
            what,
            error: Refusal::new(Resource::Thread, error),
        }
    }
}

/// A virtual machine. Dropping it stops everything it has started.
pub struct Vm {
    // In the order in which they are to be dropped: vCPUs first, then what serves them.
    threads: Option<VcpuThreads>,
    waiting: Vec<Vcpu>,
    accelerators: Vec<Arc<Accelerator>>,
    devices: Devices,
    service: Option<FaultService>,
    kicker: Option<Kicker>,
    shared: Arc<Shared>,
    vcpu_cpus: Vec<usize>,
    ids: ThreadIds,
    control: Arc<Control>,
    console: Arc<Console>,
    output: OutletThread,
    /// What became of the output, once the machine has stopped.
    written: Option<OutletFigures>,
}

/// How long a machine that stops waits for what is left of the guest's output to be written, as long as that makes progress.
const OUTPUT_WITHIN: Duration = Duration::from_secs(10);

impl Vm {
    /// Makes a machine with the guest loaded and the devices and the fault service running, but no
    /// vCPU yet.
    pub fn new(config: VmConfig<'_>) -> Result<Vm, VmError> {
        let system = VmError::system;
        let VmConfig {
            vcpus,
            vcpu_cpus,
            managed,
            guest,
            console: console_output,
            hooks,
        } = config;
        let backend = managed.as_ref().map(|managed| managed.backend.clone());
        let managed_size = backend
            .as_ref()
            .map_or(0, |backend| backend.host_memory().1);
        let (prepared, machine) = Prepared::new(guest, vcpus, backend.as_ref())?;
        let base = machine.managed_base();
        let ending = Arc::new(Ending::new().map_err(system("an event"))?);
        let ids = ThreadIds::new(vcpus);
        // In this order: should something fail, the kicker must be dropped after the service, which reports to it.
        let mut memory_errors = None;
        let mut kicker = None;
        let mut service = None;
        let mut slots = Slots::new(&machine, vcpus, &ending);
        let mut accelerators = Vec::new();
        if let Some(Managed {
            backend,
            service: threads,
            devices,
            on_memory_error,
            foreign,
        }) = managed
        {
            let count = devices.len() + foreign.len();
            if count > map::MAX_ACCELS as usize {
                return Err(VmError::TooManyDevices(count));
            }
            let mut reporter = None;
            if on_memory_error == OnMemoryError::MachineCheck {
                let errors = Arc::new(MemoryErrors::new(vcpus, backend.clone(), base));
                let started = Kicker::start(&errors, &ending).map_err(system("a thread"))?;
                (kicker, reporter) = (Some(started.0), Some(started.1));
                memory_errors = Some(errors);
            }
            service = Some(start_service(
                &backend, threads, &ids, &ending, reporter, base,
            )?);
            for device in devices {
                let slot = slots.next(&backend)?;
                let accelerator = device.make(slot, hooks.driver.as_deref())?;
                slots.plug(accelerator.clone())?;
                accelerators.push(accelerator);
            }
            for make in foreign {
                let slot = slots.next(&backend)?;
                let index = slot.index;
                slots.plug(make(slot).map_err(|error| VmError::Device { index, error })?)?;
            }
        }
        let infos = slots.infos();
        let devices = slots.devices;
        let loaded = prepared.load(&machine, backend.as_ref(), &infos)?;

        let control = Arc::new(Control::new(vcpus, ending.clone()));
        let output = Outlet::start("output", console_output, ending.on_panic())
            .map_err(system("the thread of the guest's output"))?;
        let outlet = output.outlet();
        let out = Box::new(outlet.clone());
        let (console, mut mmio, mut ports);
        match &loaded {
            LoadedGuest::Program { .. } => {
                console = Arc::new(Console::new(out).through(outlet.clone()));
                (mmio, ports) = (Bus::default(), Bus::default());
                mmio.insert(map::CONTROL..map::CONTROL + WINDOW, control.clone());
                mmio.insert(map::SERIAL..map::SERIAL + WINDOW, console.clone());
            }
            LoadedGuest::Linux { .. } => {
                let pin = pin_event(machine.vm(), serial::PIN)
                    .map_err(system("the serial port's interrupt"))?;
                let new = Console::with_interrupt(out, pin, ending.clone());
                let new = new.map_err(system("an event"))?;
                console = Arc::new(new.through(outlet.clone()));
                (mmio, ports) = (Bus::floating(), Bus::floating());
                let power = Power::new(ending.clone(), console.clone());
                ports.insert(power::PORTS, Arc::new(power));
            }
        }
        ports.insert(serial::PORTS, console.clone());
        for (index, device) in (0..).zip(&devices.0) {
            let window = slots::window(index);
            mmio.insert(
                window..window + map::ACCEL_STRIDE,
                Arc::new(Window(device.clone())),
            );
        }
        for (range, device) in hooks.devices {
            mmio.insert(range, device);
        }

        let shared = Arc::new(Shared {
            machine,
            mmio,
            ports,
            memory_errors,
            ending,
            stop: AtomicBool::new(false),
            first_exit: OnceLock::new(),
            accesses: AtomicU64::new(0),
        });
        let mut waiting = Vec::new();
        let mut tsc_khz = 0;
        for index in 0..vcpus {
            let fd = match &loaded {
                LoadedGuest::Program { entry, .. } => shared.machine.vcpu(index, *entry)?,
                LoadedGuest::Linux { kernel, cpu } => {
                    shared.machine.linux_vcpu(index, kernel, *cpu)?
                }
            };
            tsc_khz = fd.get_tsc_khz().unwrap_or(0);
            waiting.push(Vcpu::new(index, fd, shared.clone()));
        }
        if let LoadedGuest::Program { cmdline, seed, .. } = loaded {
            let parameters = BootParameters {
                vcpus,
                devices: accelerators.len() as u32,
                managed: managed_size,
                seed,
                tsc_khz,
                cmdline,
            };
            boot::describe(shared.machine.ram(), &parameters)?;
        }
        Ok(Vm {
            threads: None,
            waiting,
            accelerators,
            devices,
            service,
            kicker,
            shared,
            vcpu_cpus,
            ids,
            control,
            console,
            output,
            written: None,
        })
    }

    /// Lets the vCPUs run.
    pub fn start(&mut self) -> Result<(), VmError> {
        let vcpus = std::mem::take(&mut self.waiting);
        let threads = VcpuThreads::start(vcpus, &self.vcpu_cpus, &self.ids, &self.shared)
            .map_err(VmError::system("the vCPUs' threads"))?;
        self.threads = Some(threads);
        Ok(())
    }

    /// How the run ends: an event to wait for and, then, the reason.
    pub fn ending(&self) -> &Arc<Ending> {
        &self.shared.ending
    }

    /// Stops vCPUs, devices and the fault service, in this order, and writes out what is left of
    /// the guest's output. Memory and statistics remain. Idempotent.
    ///
    /// A vCPU that cannot be stopped (see [`VcpuThreads::stop`]) is left behind.
    pub fn stop(&mut self) {
        // A vCPU that waits for room in the output is let go.
        self.output.outlet().hurry();
        // A vCPU may be asleep in a register of a device, and a device's thread never waits for a
        // vCPU.
        self.shared.stop.store(true, Ordering::Release);
        self.devices.stop();
        self.threads = None;
        self.service = None;
        self.kicker = None;
        self.console.finish();
        if self.written.is_none() {
            self.written = Some(self.output.finish(OUTPUT_WITHIN));
        }
    }

    /// What became of the guest's output; none before [`Self::stop`].
    pub fn written(&self) -> Option<&OutletFigures> {
        self.written.as_ref()
    }

    /// When the first instruction of the guest made itself felt, if one did.
    pub fn first_exit(&self) -> Option<Instant> {
        self.shared.first_exit.get().copied()
    }

    /// The control device, which knows how far the guest says it is.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// The serial port.
    pub fn console(&self) -> &Arc<Console> {
        &self.console
    }

    /// The guest's signs of life: how often it has accessed devices, other than a serial port whose output nothing takes.
    pub fn accesses(&self) -> u64 {
        let all = self.shared.accesses.load(Ordering::Relaxed);
        all.saturating_sub(self.console.unheard())
    }

    /// The machine, for a look at boot RAM.
    pub fn machine(&self) -> &Machine {
        &self.shared.machine
    }

    /// The accelerators.
    pub fn accelerators(&self) -> &[Arc<Accelerator>] {
        &self.accelerators
    }

    /// Which thread runs which vCPU.
    pub fn thread_ids(&self) -> &ThreadIds {
        &self.ids
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stop();
    }
}

fn start_service(
    backend: &Arc<Backend>,
    threads: Vec<Option<usize>>,
    ids: &ThreadIds,
    ending: &Arc<Ending>,
    reporter: Option<Reporter>,
    base: u64,
) -> Result<FaultService, VmError> {
    let (ids, ending) = (ids.clone(), ending.clone());
    let on_fatal = move |fault: FatalFault| match (ids.vcpu(fault.thread), &reporter) {
        (Some(vcpu), Some(reporter)) => reporter.put(vcpu, fault),
        (vcpu, _) => ending.set(End::Failed(memory_errors::failure(&fault, vcpu, base))),
    };
    backend
        .start_service(
            ServiceConfig {
                threads,
                ..ServiceConfig::default()
            },
            Box::new(on_fatal),
        )
        .map_err(VmError::Service)
}
