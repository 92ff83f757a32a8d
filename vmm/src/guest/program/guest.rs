//! A small program as a guest: its machine, its devices, its vCPUs.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use hmm_backend::limits::{Refusal, Resource};
use hmm_backend::{Backend, BackendConfig};
use hmmvisor_abi::map;
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use kvm_ioctls::VcpuFd;
use vm_memory::mmap::{FromRangesError, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::boot::{self, BootParameters};
use super::image::Image;
use super::{firmware, registers};
use crate::console::serial::{self, Console};
use crate::guest::{Board, BoardParts, Guest, GuestError};
use crate::host::process_memory;
use crate::machine::bus::Bus;
use crate::machine::guest_memory::Part;
use crate::machine::interrupts::InterruptLines;
use crate::machine::kvm_machine::{Machine, MachineConfig, MachineError, refusal};
use crate::machine::machine_check;
use crate::machine::slots::SlotInfo;

/// Bytes of the register window of the control device, and of the serial port.
const WINDOW: u64 = 0x1000;

/// A program in ring 3 that knows its machine (docs/guest-abi.md).
pub struct Program<'a> {
    /// The program's ELF file.
    image: Cow<'a, [u8]>,
    cmdline: Cow<'a, str>,
    seed: u64,
    /// The program's entry point, once it has been loaded.
    entry: u64,
}

impl<'a> Program<'a> {
    /// Makes a program in this ELF file, which gets this command line and this seed.
    pub fn new(
        image: impl Into<Cow<'a, [u8]>>,
        cmdline: impl Into<Cow<'a, str>>,
        seed: u64,
    ) -> Program<'a> {
        Program {
            image: image.into(),
            cmdline: cmdline.into(),
            seed,
            entry: 0,
        }
    }

    /// Checks the image for a machine with this managed memory.
    fn image(&self, backend: Option<&Arc<Backend>>) -> Result<Image<'_>, GuestError> {
        Ok(Image::parse(&self.image, size(backend))?)
    }
}

/// Returns the size of managed memory.
fn size(backend: Option<&Arc<Backend>>) -> u64 {
    backend.map_or(0, |backend| backend.host_memory().1)
}

impl Guest for Program<'_> {
    fn memory(&self, bytes: u64) -> BackendConfig {
        BackendConfig::new(bytes)
    }

    fn machine(&self, vcpus: u32, managed: Option<Arc<Backend>>) -> Result<Machine, GuestError> {
        self.image(managed.as_ref())?;
        let (ram, host) = boot_ram()?;
        let boot_ram = Part {
            guest: map::BOOT_RAM_BASE,
            host,
            size: map::BOOT_RAM_SIZE,
        };
        let managed_size = size(managed.as_ref());
        let managed_part = managed.as_ref().map(|backend| Part {
            guest: map::MANAGED,
            host: backend.host_memory().0,
            size: managed_size,
        });
        let parts: Vec<_> = [boot_ram].into_iter().chain(managed_part).collect();
        let machine = Machine::new(MachineConfig {
            vcpus,
            ram,
            backend: managed,
            parts: &parts,
            managed_base: map::MANAGED,
            lines: InterruptLines::new,
        })?;
        firmware::install(machine.ram(), vcpus, managed_size).map_err(MachineError::Firmware)?;
        Ok(machine)
    }

    fn load(&mut self, machine: &Machine, _: &[SlotInfo]) -> Result<(), GuestError> {
        let image = self.image(machine.backend())?;
        boot::load(&image, machine.ram(), machine.backend())?;
        self.entry = image.entry;
        Ok(())
    }

    fn board(&self, _: &Machine, parts: BoardParts<'_>) -> Result<Board, GuestError> {
        let output = Box::new(parts.output.clone());
        let console = Arc::new(Console::new(output).through(parts.output));
        let (mut mmio, mut ports) = (Bus::default(), Bus::default());
        mmio.insert(map::CONTROL..map::CONTROL + WINDOW, parts.control.clone());
        mmio.insert(map::SERIAL..map::SERIAL + WINDOW, console.clone());
        ports.insert(serial::PORTS, console.clone());
        Ok(Board {
            console,
            power_button: None,
            mmio,
            ports,
        })
    }

    fn vcpu(&self, machine: &Machine, index: u32) -> Result<VcpuFd, MachineError> {
        let refused = |what: &str| refusal(what, index);
        let vcpu = machine.new_vcpu(index)?;
        let mut cpuid = machine.supported_cpuid(index)?;
        registers::identify(&mut cpuid, index, machine.vcpus());
        vcpu.set_cpuid2(&cpuid)
            .map_err(refused("the processor description of"))?;

        machine_check::set_up(&vcpu).map_err(refused("machine checks of"))?;
        let reset = vcpu
            .get_sregs()
            .map_err(refused("to read the registers of"))?;
        vcpu.set_sregs(&registers::system(index, reset))
            .map_err(refused("the system registers of"))?;
        vcpu.set_regs(&registers::general(index, self.entry))
            .map_err(refused("the registers of"))?;
        vcpu.set_fpu(&registers::floating_point())
            .map_err(refused("the floating-point state of"))?;

        let mut apic = vcpu
            .get_lapic()
            .map_err(refused("to read the local APIC of"))?;
        let at = registers::APIC_SPURIOUS_OFFSET;
        for (byte, value) in apic.regs[at..at + 4]
            .iter_mut()
            .zip(registers::APIC_SPURIOUS_VALUE.to_le_bytes())
        {
            *byte = value as _;
        }
        vcpu.set_lapic(&apic)
            .map_err(refused("to enable the local APIC of"))?;
        // All but the first would wait for a start-up interrupt.
        let runnable = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        vcpu.set_mp_state(runnable).map_err(refused("to start"))?;
        Ok(vcpu)
    }

    fn describe(
        &self,
        machine: &Machine,
        accelerators: u32,
        tsc_khz: u32,
    ) -> Result<(), GuestError> {
        let parameters = BootParameters {
            vcpus: machine.vcpus(),
            devices: accelerators,
            managed: size(machine.backend()),
            seed: self.seed,
            tsc_khz,
            cmdline: &self.cmdline,
        };
        Ok(boot::describe(machine.ram(), &parameters)?)
    }
}

/// Reserves boot RAM; returns it with its address in this process.
fn boot_ram() -> Result<(GuestMemoryMmap, *mut u8), MachineError> {
    let size = map::BOOT_RAM_SIZE as usize;
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(map::BOOT_RAM_BASE), size)]).map_err(
        |error| {
            let error = match error {
                FromRangesError::MmapRegion(MmapRegionError::Mmap(error)) => error,
                other => io::Error::other(other),
            };
            MachineError::BootRam(Refusal::new(Resource::Memory(map::BOOT_RAM_SIZE), error))
        },
    )?;
    let host = ram
        .get_host_address(GuestAddress(map::BOOT_RAM_BASE))
        .map_err(|error| MachineError::BootRam(io::Error::other(error).into()))?;
    process_memory::name(host, size, c"hmm-boot");
    Ok((ram, host))
}
