//! The virtual machine as KVM sees it: memory slots, interrupt controller, vCPUs.

use std::sync::Arc;

use hmm_backend::Backend;
use hmmvisor_abi::map;
use kvm_bindings::{
    KVM_CAP_X86_DISABLE_EXITS, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE,
    KVM_X86_DISABLE_EXITS_HLT, kvm_enable_cap, kvm_mp_state, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::interrupts::InterruptLines;
use crate::{firmware, kvm, machine_check, process_memory, registers};

const BOOT_RAM_SLOT: u32 = 1;
const MANAGED_SLOT: u32 = 2;

/// Three pages that KVM needs for itself on some Intel processors; out of every guest's way.
const KVM_RESERVED: usize = 0xfffb_d000;

/// Why a virtual machine could not be made.
#[derive(Debug, Error)]
pub enum MachineError {
    /// There is no usable KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::KvmError),
    /// KVM refused a step of the set-up.
    #[error(
        "setting up the virtual machine: KVM refused {what}: {error}; `hmmvisor check` shows what this host lacks"
    )]
    Refused {
        /// The step.
        what: String,
        /// The kernel's answer.
        error: kvm_ioctls::Error,
    },
    /// No host memory for boot RAM.
    #[error("reserving the guest's 16 MiB of boot RAM: {0}; free some memory or lift `ulimit -v`")]
    BootRam(String),
    /// The firmware's tables could not be written.
    #[error("writing the firmware into boot RAM: {0}; this is a bug in Hmmvisor")]
    Firmware(#[from] vm_memory::GuestMemoryError),
}

/// A KVM virtual machine with its memory, without devices and not yet running.
pub struct Machine {
    kvm: Kvm,
    vm: Arc<VmFd>,
    ram: GuestMemoryMmap,
    // Keeps managed memory mapped for as long as the slot refers to it.
    backend: Option<Arc<Backend>>,
    vcpus: u32,
}

impl Machine {
    /// Makes a machine for `vcpus` vCPUs, with the backend's memory as managed memory.
    pub fn new(vcpus: u32, backend: Option<Arc<Backend>>) -> Result<Machine, MachineError> {
        let kvm = kvm::open()?;
        let refused = |what: &str| {
            let what = what.to_owned();
            move |error| MachineError::Refused { what, error }
        };
        let vm = Arc::new(kvm.create_vm().map_err(refused("a new virtual machine"))?);
        vm.set_tss_address(KVM_RESERVED)
            .map_err(refused("the place of its own task state segment"))?;

        let size = map::BOOT_RAM_SIZE as usize;
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(map::BOOT_RAM_BASE), size)])
            .map_err(|error| MachineError::BootRam(error.to_string()))?;
        let host = ram
            .get_host_address(GuestAddress(map::BOOT_RAM_BASE))
            .map_err(|error| MachineError::BootRam(error.to_string()))?;
        process_memory::name(host, size, c"hmm-boot");

        let managed = backend.as_ref().map(|backend| backend.host_memory());
        let mut slots = vec![(BOOT_RAM_SLOT, map::BOOT_RAM_BASE, host, map::BOOT_RAM_SIZE)];
        slots.extend(managed.map(|(host, size)| (MANAGED_SLOT, map::MANAGED, host, size)));
        for (slot, guest, host, size) in slots {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: guest,
                memory_size: size,
                userspace_addr: host as u64,
            };
            // SAFETY: both ranges are whole mappings of this process that outlive the machine: `ram`
            // and the backend are in it. They hold guest memory only, no Rust object, and they are
            // never accessed by Rust references, so that the guest may write them at any time. The
            // slots' guest ranges are constants of the memory map that do not overlap.
            unsafe { vm.set_user_memory_region(region) }.map_err(refused(&format!(
                "{} MiB of guest memory at {guest:#x}",
                size >> 20
            )))?;
        }

        // KVM serves a vCPU's page fault asynchronously if the vCPU could halt meanwhile: a kernel worker
        // takes the fault. Then nobody can tell which vCPU it was, and closing the machine while such a
        // fault is unresolved waits for it for ever, unkillably. Halting without an exit rules it out;
        // ring 3 cannot halt anyway.
        let mut no_halt_exits = kvm_enable_cap {
            cap: KVM_CAP_X86_DISABLE_EXITS,
            ..Default::default()
        };
        no_halt_exits.args[0] = u64::from(KVM_X86_DISABLE_EXITS_HLT);
        vm.enable_cap(&no_halt_exits)
            .map_err(refused("halting without exits"))?;

        // After the memory: a change of memory waits for what this one starts, some milliseconds.
        vm.create_irq_chip()
            .map_err(refused("an interrupt controller"))?;

        firmware::install(&ram, vcpus, managed.map_or(0, |(_, size)| size))?;
        Ok(Machine {
            kvm,
            vm,
            ram,
            backend,
            vcpus,
        })
    }

    /// The KVM virtual machine, for devices' events and interrupts.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// Lets go of vCPUs that sleep in a fault on managed memory, see [`Backend::abandon_faults`]. They
    /// must not enter the guest any more.
    pub fn abandon_faults(&self) {
        if let Some(backend) = &self.backend {
            backend.abandon_faults();
        }
    }

    /// Guest-physical address of page 0 of managed memory.
    pub fn managed_base(&self) -> u64 {
        map::MANAGED
    }

    /// Lines for devices' interrupts.
    pub fn interrupt_lines(&self) -> Arc<InterruptLines> {
        InterruptLines::new(self.vm.clone(), self.vcpus)
    }

    /// Boot RAM.
    pub fn ram(&self) -> &GuestMemoryMmap {
        &self.ram
    }

    /// Makes vCPU number `index`, ready to run from the guest's `entry` point.
    pub fn vcpu(&self, index: u32, entry: u64) -> Result<VcpuFd, MachineError> {
        assert!(index < self.vcpus);
        let refused = |what: &str| {
            let what = format!("{what} vCPU {index}");
            move |error| MachineError::Refused { what, error }
        };
        let vcpu = self
            .vm
            .create_vcpu(u64::from(index))
            .map_err(refused("to make"))?;

        let mut cpuid = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("to describe the processor for"))?;
        registers::identify(&mut cpuid, index, self.vcpus);
        vcpu.set_cpuid2(&cpuid)
            .map_err(refused("the processor description of"))?;

        machine_check::set_up(&vcpu).map_err(refused("machine checks of"))?;
        let reset = vcpu
            .get_sregs()
            .map_err(refused("to read the registers of"))?;
        vcpu.set_sregs(&registers::system(index, reset))
            .map_err(refused("the system registers of"))?;
        vcpu.set_regs(&registers::general(index, entry))
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
}
