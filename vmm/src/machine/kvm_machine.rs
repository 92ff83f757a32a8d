//! The virtual machine as KVM sees it: memory slots, interrupt controller, vCPUs.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use hmm_backend::Backend;
use hmm_backend::limits::{Refusal, Resource};
use hmmvisor_abi::map;
use kvm_bindings::{
    CpuId, KVM_CAP_X86_DISABLE_EXITS, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE,
    KVM_X86_DISABLE_EXITS_HLT, kvm_enable_cap, kvm_mp_state, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::mmap::{FromRangesError, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::guest::linux::cpuid::{Processor, Template};
use crate::guest::linux::layout::Layout;
use crate::guest::linux::{Loaded, entry};
use crate::guest::program::{firmware, registers};
use crate::host::process_memory;
use crate::machine::guest_memory::{self, Part};
use crate::machine::interrupts::InterruptLines;
use crate::machine::{kvm, machine_check};

/// KVM's number of the first part of memory.
const FIRST_SLOT: u32 = 1;

/// Three pages that KVM needs for itself on some Intel processors; out of every guest's way.
const KVM_RESERVED: usize = 0xfffb_d000;

/// Why a virtual machine could not be made.
#[derive(Debug, Error)]
pub enum MachineError {
    /// There is no usable KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::KvmError),
    /// KVM refused a step of the set-up.
    #[error("setting up the virtual machine: KVM refused {what}: {error}{}", if error.has_advice() { "" } else { "; `hmmvisor check` shows what this host lacks" })]
    Refused {
        /// The step.
        what: String,
        /// The kernel's answer.
        #[source]
        error: Refusal,
    },
    /// No host memory for boot RAM.
    #[error("reserving the guest's 16 MiB of boot RAM: {0}")]
    BootRam(#[source] Refusal),
    /// Managed memory could not be looked at as guest memory.
    #[error("describing guest memory: {0}; this is a bug in Hmmvisor")]
    GuestMemory(#[from] guest_memory::GuestMemoryPartError),
    /// The firmware's tables could not be written.
    #[error("writing the firmware into boot RAM: {0}; this is a bug in Hmmvisor")]
    Firmware(#[from] vm_memory::GuestMemoryError),
}

/// What a machine is made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// A program in ring 3, which knows its machine.
    Program,
    /// An operating system, which is told of its machine.
    Linux,
}

/// A KVM virtual machine with its memory, without devices and not yet running.
pub struct Machine {
    kvm: Kvm,
    vm: Arc<VmFd>,
    kind: Kind,
    ram: GuestMemoryMmap,
    // Keeps managed memory mapped for as long as a slot, or `ram`, refers to it.
    backend: Option<Arc<Backend>>,
    vcpus: u32,
}

impl Machine {
    /// Makes a machine for `vcpus` vCPUs that run a program in ring 3, with the backend's memory as managed memory.
    pub fn new(vcpus: u32, backend: Option<Arc<Backend>>) -> Result<Machine, MachineError> {
        let size = map::BOOT_RAM_SIZE as usize;
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(map::BOOT_RAM_BASE), size)])
            .map_err(|error| {
                let error = match error {
                    FromRangesError::MmapRegion(MmapRegionError::Mmap(error)) => error,
                    other => io::Error::other(other),
                };
                MachineError::BootRam(Refusal::new(Resource::Memory(map::BOOT_RAM_SIZE), error))
            })?;
        let host = ram
            .get_host_address(GuestAddress(map::BOOT_RAM_BASE))
            .map_err(|error| MachineError::BootRam(io::Error::other(error).into()))?;
        process_memory::name(host, size, c"hmm-boot");

        let managed = backend.as_ref().map(|backend| backend.host_memory());
        let mut parts = vec![Part {
            guest: map::BOOT_RAM_BASE,
            host,
            size: map::BOOT_RAM_SIZE,
        }];
        parts.extend(managed.map(|(host, size)| Part {
            guest: map::MANAGED,
            host,
            size,
        }));
        let kind = Kind::Program;
        let machine = Machine::assemble(vcpus, kind, ram, backend, &parts)?;
        firmware::install(&machine.ram, vcpus, managed.map_or(0, |(_, size)| size))?;
        Ok(machine)
    }

    /// Makes a machine for `vcpus` vCPUs that run an operating system in the backend's memory, which is laid out like this.
    pub fn for_linux(
        vcpus: u32,
        backend: Arc<Backend>,
        layout: &Layout,
    ) -> Result<Machine, MachineError> {
        let (start, size) = backend.host_memory();
        assert_eq!(size, layout.end());
        let part = |range: Range<u64>| Part {
            guest: range.start,
            host: start.wrapping_add(range.start as usize),
            size: range.end - range.start,
        };
        let parts: Vec<_> = layout.parts().map(part).collect();
        let ram = guest_memory::of(&parts)?;
        Machine::assemble(vcpus, Kind::Linux, ram, Some(backend), &parts)
    }

    /// A machine with these parts of memory. They must be memory of `ram` or `backend` and not overlap.
    fn assemble(
        vcpus: u32,
        kind: Kind,
        ram: GuestMemoryMmap,
        backend: Option<Arc<Backend>>,
        parts: &[Part],
    ) -> Result<Machine, MachineError> {
        let kvm = kvm::open()?;
        let refused = |what: &str| {
            let what = what.to_owned();
            move |error: kvm_ioctls::Error| MachineError::Refused {
                what,
                error: Refusal::new(Resource::Kvm, error.into()),
            }
        };
        let vm = Arc::new(kvm.create_vm().map_err(refused("a new virtual machine"))?);
        vm.set_tss_address(KVM_RESERVED)
            .map_err(refused("the place of its own task state segment"))?;

        for (slot, part) in (FIRST_SLOT..).zip(parts) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: part.guest,
                memory_size: part.size,
                userspace_addr: part.host as u64,
            };
            // SAFETY: the parts are inside mappings of this process that outlive the machine: `ram`
            // and the backend are in it. They hold guest memory only, no Rust object, and they are
            // never accessed by Rust references, so that the guest may write them at any time. Their
            // guest ranges are those of a memory map and do not overlap.
            unsafe { vm.set_user_memory_region(region) }.map_err(refused(&format!(
                "{} MiB of guest memory at {:#x}",
                part.size >> 20,
                part.guest
            )))?;
        }

        // KVM serves a vCPU's page fault asynchronously if the vCPU could halt meanwhile: a kernel worker
        // takes the fault. Then nobody can tell which vCPU it was, and closing the machine while such a
        // fault is unresolved waits for it for ever, unkillably. Halting without an exit rules it out, as long
        // as the guest is not offered such faults (`linux::cpuid`). Ring 3 cannot halt anyway; an operating
        // system's idle vCPUs look busy to the host.
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
        Ok(Machine {
            kvm,
            vm,
            kind,
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
        match self.kind {
            Kind::Program => map::MANAGED,
            Kind::Linux => 0,
        }
    }

    /// Lines for devices' interrupts.
    pub fn interrupt_lines(&self) -> Arc<InterruptLines> {
        let lines = match self.kind {
            Kind::Program => InterruptLines::new,
            Kind::Linux => InterruptLines::pins,
        };
        lines(self.vm.clone(), self.vcpus)
    }

    /// Boot RAM; or, of a machine for an operating system, all of its memory. Accesses to managed memory through it fault like a
    /// vCPU's.
    pub fn ram(&self) -> &GuestMemoryMmap {
        &self.ram
    }

    /// Makes vCPU number `index`, ready to run a program from its `entry` point.
    pub fn vcpu(&self, index: u32, entry: u64) -> Result<VcpuFd, MachineError> {
        let refused = |what: &str| refusal(what, index);
        let vcpu = self.new_vcpu(index)?;
        let mut cpuid = self.supported_cpuid(index)?;
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

    /// Makes vCPU number `index` of a machine for an operating system: the first is ready to enter the kernel, the others wait
    /// for start-up interrupts.
    pub fn linux_vcpu(
        &self,
        index: u32,
        kernel: &Loaded,
        template: Template,
    ) -> Result<VcpuFd, MachineError> {
        let refused = |what: &str| refusal(what, index);
        let vcpu = self.new_vcpu(index)?;
        let mut cpuid = self.supported_cpuid(index)?;
        let processor = Processor {
            vcpu: index,
            vcpus: self.vcpus,
            tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
            deadline_timer: self.kvm.check_extension(Cap::TscDeadlineTimer),
        };
        let too_many = |_| kvm_ioctls::Error::new(libc::E2BIG);
        template
            .apply(&mut cpuid, &processor)
            .map_err(too_many)
            .and_then(|()| vcpu.set_cpuid2(&cpuid))
            .map_err(refused("the processor description of"))?;

        machine_check::set_up(&vcpu).map_err(refused("machine checks of"))?;
        vcpu.set_msrs(&entry::model_specific())
            .map_err(refused("the model-specific registers of"))?;
        if index == 0 {
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

    fn new_vcpu(&self, index: u32) -> Result<VcpuFd, MachineError> {
        assert!(index < self.vcpus);
        self.vm
            .create_vcpu(u64::from(index))
            .map_err(refusal("to make", index))
    }

    fn supported_cpuid(&self, index: u32) -> Result<CpuId, MachineError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refusal("to describe the processor for", index))
    }
}

fn refusal(what: &str, vcpu: u32) -> impl FnOnce(kvm_ioctls::Error) -> MachineError + use<> {
    let what = format!("{what} vCPU {vcpu}");
    move |error| MachineError::Refused {
        what,
        error: Refusal::new(Resource::Kvm, error.into()),
    }
}
