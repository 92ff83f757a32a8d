//! An operating system as a guest: its machine, its devices, its vCPUs.

use std::ops::Range;
use std::sync::Arc;

use hmm_backend::{Backend, BackendConfig};
use kvm_ioctls::VcpuFd;

use super::boot::{Linux, LoadError, Plan};
use super::cpuid::Processor;
use super::entry;
use super::kernel::Loaded;
use super::layout::Layout;
use super::power::{self, Power};
use crate::console::serial::{self, Console};
use crate::guest::{Board, BoardParts, Guest, GuestError};
use crate::machine::bus::Bus;
use crate::machine::guest_memory::{self, Part};
use crate::machine::interrupts::{InterruptLines, pin_event};
use crate::machine::kvm_machine::{Machine, MachineConfig, MachineError, refusal};
use crate::machine::machine_check;
use crate::machine::slots::SlotInfo;

/// A kernel in memory of a given layout. All of its memory is managed.
pub struct LinuxGuest {
    linux: Linux,
    layout: Layout,
    plan: Plan,
    /// The kernel, once it has been loaded.
    loaded: Option<Loaded>,
}

impl LinuxGuest {
    /// Finds places for everything in memory, or says why there are none, before anything has been made.
    pub fn new(linux: Linux, layout: Layout) -> Result<LinuxGuest, LoadError> {
        Ok(LinuxGuest {
            plan: linux.plan(&layout)?,
            linux,
            layout,
            loaded: None,
        })
    }

    /// Returns the kernel's command line.
    pub fn cmdline(&self) -> &str {
        &self.linux.cmdline
    }
}

impl Guest for LinuxGuest {
    /// Describes memory in which a first touch fills a whole block: Linux uses its memory by and large, in huge pages of its own,
    /// and on other hosts finds huge pages under them.
    fn memory(&self, _: u64) -> BackendConfig {
        BackendConfig {
            hole: self.layout.hole(),
            present: self.plan.written(&self.layout),
            fill_blocks: true,
            ..BackendConfig::new(self.layout.end())
        }
    }

    fn machine(&self, vcpus: u32, managed: Option<Arc<Backend>>) -> Result<Machine, GuestError> {
        let backend = managed.ok_or(GuestError::NoMemory)?;
        let (start, size) = backend.host_memory();
        assert_eq!(size, self.layout.end());
        let part = |range: Range<u64>| Part {
            guest: range.start,
            host: start.wrapping_add(range.start as usize),
            size: range.end - range.start,
        };
        let parts: Vec<_> = self.layout.parts().map(part).collect();
        Ok(Machine::new(MachineConfig {
            vcpus,
            ram: guest_memory::of(&parts).map_err(MachineError::GuestMemory)?,
            backend: Some(backend),
            parts: &parts,
            managed_base: 0,
            lines: InterruptLines::pins,
        })?)
    }

    fn load(&mut self, machine: &Machine, slots: &[SlotInfo]) -> Result<(), GuestError> {
        let backend = machine.backend().ok_or(GuestError::NoMemory)?;
        let (vcpus, ram) = (machine.vcpus(), machine.ram());
        let linux = &mut self.linux;
        let loaded = linux.load(&self.plan, &self.layout, vcpus, slots, ram, backend)?;
        self.loaded = Some(loaded);
        Ok(())
    }

    fn board(&self, machine: &Machine, parts: BoardParts<'_>) -> Result<Board, GuestError> {
        let BoardParts { output, ending, .. } = parts;
        let pin = pin_event(machine.vm(), serial::PIN)
            .map_err(GuestError::event("the serial port's interrupt"))?;
        let console = Console::with_interrupt(Box::new(output.clone()), pin, ending.clone())
            .map_err(GuestError::event("an event"))?;
        let console = Arc::new(console.through(output));
        let mut ports = Bus::floating();
        let power = Power::new(ending.clone(), console.clone());
        ports.insert(power::PORTS, Arc::new(power));
        ports.insert(serial::PORTS, console.clone());
        let button = pin_event(machine.vm(), power::BUTTON_PIN)
            .map_err(GuestError::event("the power button's interrupt"))?;
        Ok(Board {
            console,
            power_button: Some(button),
            mmio: Bus::floating(),
            ports,
        })
    }

    /// Makes a vCPU. The first one is ready to enter the kernel, the others wait for start-up interrupts.
    fn vcpu(&self, machine: &Machine, index: u32) -> Result<VcpuFd, MachineError> {
        let refused = |what: &str| refusal(what, index);
        let vcpu = machine.new_vcpu(index)?;
        let mut cpuid = machine.supported_cpuid(index)?;
        let processor = Processor {
            vcpu: index,
            vcpus: machine.vcpus(),
            tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
            deadline_timer: machine.has_deadline_timer(),
        };
        let too_many = |_| kvm_ioctls::Error::new(libc::E2BIG);
        self.linux
            .cpu
            .apply(&mut cpuid, &processor)
            .map_err(too_many)
            .and_then(|()| vcpu.set_cpuid2(&cpuid))
            .map_err(refused("the processor description of"))?;

        machine_check::set_up(&vcpu).map_err(refused("machine checks of"))?;
        vcpu.set_msrs(&entry::model_specific())
            .map_err(refused("the model-specific registers of"))?;
        if let Some(kernel) = self.loaded.as_ref().filter(|_| index == 0) {
            let reset = vcpu
                .get_sregs()
                .map_err(refused("to read the registers of"))?;
            vcpu.set_sregs(&entry::system(kernel, reset))
                .map_err(refused("the system registers of"))?;
            vcpu.set_regs(&entry::general(kernel))
                .map_err(refused("the registers of"))?;
        }
        Ok(vcpu)
    }

    /// Does nothing: the kernel finds everything in the tables that [`Self::load`] has written.
    fn describe(&self, _: &Machine, _: u32, _: u32) -> Result<(), GuestError> {
        Ok(())
    }
}
