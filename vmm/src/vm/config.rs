//! The parts of which a virtual machine is made.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use hmm_backend::Backend;
use hmm_backend::driver::Driver;
use hmm_backend::pages::Fidelity;
use hmmvisor_abi::map;
use hmmvisor_devices::{Accelerator, AcceleratorConfig, NewDevice, Slot};

use super::error::VmError;
use crate::guest::Guest;
use crate::guest::program::Program;
use crate::machine::bus::Device;
use crate::machine::memory_errors::OnMemoryError;
use crate::machine::slots::Slots;

/// The parts of which to make a virtual machine.
pub struct VmConfig<'a> {
    /// Number of vCPUs, 1 to [`map::MAX_VCPUS`].
    pub vcpus: u32,
    /// Host CPUs to pin vCPUs to, cyclically; empty for none.
    pub vcpu_cpus: Vec<usize>,
    /// Managed memory and the accelerators that share it. Without, the guest has boot RAM only.
    pub managed: Option<Managed>,
    /// The guest that runs in it.
    pub guest: Box<dyn Guest + 'a>,
    /// Where the guest's serial output goes.
    pub console: Box<dyn Write + Send>,
    /// Additions by tests; none by default.
    pub hooks: Hooks,
}

impl<'a> VmConfig<'a> {
    /// Describes a machine of one vCPU that runs this ELF file in boot RAM, whose output is dropped.
    pub fn new(guest: &'a [u8]) -> VmConfig<'a> {
        VmConfig {
            vcpus: 1,
            vcpu_cpus: Vec::new(),
            managed: None,
            guest: Box::new(Program::new(guest, "", 1)),
            console: Box::new(io::sink()),
            hooks: Hooks::default(),
        }
    }
}

/// Devices and drivers that tests add to a machine.
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
    /// Further devices, built in or third-party, in the windows behind the accelerators.
    pub foreign: Vec<NewDevice>,
}

impl Managed {
    /// Describes this memory, with one thread that serves faults and no devices.
    pub fn new(backend: Arc<Backend>) -> Managed {
        Managed {
            backend,
            service: vec![None],
            devices: Vec::new(),
            on_memory_error: OnMemoryError::default(),
            foreign: Vec::new(),
        }
    }

    /// Makes the devices, each in its slot, and returns the accelerators. `wrap` may put a driver in front of an accelerator's own.
    pub(crate) fn plug_into(
        self,
        slots: &mut Slots<'_>,
        wrap: Option<&WrapDriver>,
    ) -> Result<Vec<Arc<Accelerator>>, VmError> {
        let count = self.devices.len() + self.foreign.len();
        if count > map::MAX_ACCELS as usize {
            return Err(VmError::TooManyDevices(count));
        }
        let mut accelerators = Vec::new();
        for device in self.devices {
            let accelerator = device.make(slots.next(&self.backend)?, wrap)?;
            slots.plug(accelerator.clone())?;
            accelerators.push(accelerator);
        }
        for make in self.foreign {
            let slot = slots.next(&self.backend)?;
            let index = slot.index;
            slots.plug(make(slot).map_err(|error| VmError::Device { index, error })?)?;
        }
        Ok(accelerators)
    }
}

/// One accelerator.
#[derive(Clone, Copy, Debug)]
pub struct DeviceConfig {
    /// Device memory in bytes.
    pub memory: u64,
    /// Bytes up to which it can grow; at least `memory`.
    pub memory_max: u64,
    /// Whether CPUs reach it in place; otherwise pages migrate on faults.
    pub coherent: bool,
    /// How much it tells of its accesses.
    pub fidelity: Fidelity,
    /// Host CPU to pin its thread to.
    pub cpu: Option<usize>,
}

impl DeviceConfig {
    /// Makes the accelerator for a slot; `wrap` may put a driver in front of its own.
    pub(crate) fn make(
        self,
        slot: Slot<'_>,
        wrap: Option<&WrapDriver>,
    ) -> Result<Arc<Accelerator>, VmError> {
        let config = AcceleratorConfig {
            memory: self.memory,
            memory_max: self.memory_max,
            coherent: self.coherent,
            fidelity: self.fidelity,
            managed_base: slot.managed_base,
            vcpus: slot.vcpus,
            cpu: self.cpu,
        };
        let wrap = |own| match wrap {
            Some(wrap) => wrap(slot.index, own),
            None => own,
        };
        let (index, backend) = (slot.index, slot.backend);
        let accelerator = Accelerator::with_driver(index, config, backend, slot.irq, wrap)?;
        Ok(Arc::new(accelerator))
    }
}
