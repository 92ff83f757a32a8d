//! The virtual machine as KVM sees it: memory slots, interrupt controller, vCPUs.

use std::sync::Arc;

use hmm_backend::Backend;
use hmm_backend::limits::{Refusal, Resource};
use kvm_bindings::{
    CpuId, KVM_CAP_X86_DISABLE_EXITS, KVM_MAX_CPUID_ENTRIES, KVM_X86_DISABLE_EXITS_HLT,
    kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use super::guest_memory::{GuestMemoryPartError, Part};
use super::interrupts::InterruptLines;
use super::kvm;

/// KVM's slot number of the first part of memory.
const FIRST_SLOT: u32 = 1;

/// Address of three pages that KVM needs for itself on some Intel processors; no guest has memory there.
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
        /// The step of the set-up.
        what: String,
        /// The kernel's answer.
        #[source]
        error: Refusal,
    },
    /// A device's connection to KVM.
    #[error("connecting {what} of device {index} to KVM: {error}")]
    Connect {
        /// The interrupt or the doorbell.
        what: &'static str,
        /// The device's window.
        index: u32,
        /// The cause.
        #[source]
        error: Refusal,
    },
    /// No host memory for boot RAM.
    #[error("reserving the guest's 16 MiB of boot RAM: {0}")]
    BootRam(#[source] Refusal),
    /// Managed memory could not be looked at as guest memory.
    #[error("describing guest memory: {0}; this is a bug in Hmmvisor")]
    GuestMemory(#[from] GuestMemoryPartError),
    /// The firmware's tables could not be written.
    #[error("writing the firmware into boot RAM: {0}; this is a bug in Hmmvisor")]
    Firmware(#[from] vm_memory::GuestMemoryError),
}

/// Memory and interrupts of a machine, as its guest wants them.
pub(crate) struct MachineConfig<'a> {
    /// Number of vCPUs.
    pub(crate) vcpus: u32,
    /// The memory that the VMM writes for the guest.
    pub(crate) ram: GuestMemoryMmap,
    /// Managed memory, kept mapped for as long as the machine exists.
    pub(crate) backend: Option<Arc<Backend>>,
    /// The guest's memory: parts of `ram` or `backend` that do not overlap.
    pub(crate) parts: &'a [Part],
    /// Guest-physical address of page 0 of managed memory.
    pub(crate) managed_base: u64,
    /// How devices interrupt the guest: [`InterruptLines::new`] or [`InterruptLines::pins`].
    pub(crate) lines: fn(Arc<VmFd>, u32) -> Arc<InterruptLines>,
}

/// A KVM virtual machine with its memory, without devices and not yet running.
pub struct Machine {
    kvm: Kvm,
    vm: Arc<VmFd>,
    lines: Arc<InterruptLines>,
    managed_base: u64,
    ram: GuestMemoryMmap,
    // Keeps managed memory mapped for as long as a slot, or `ram`, refers to it.
    backend: Option<Arc<Backend>>,
    vcpus: u32,
}

impl Machine {
    /// Makes a machine of this memory.
    pub(crate) fn new(config: MachineConfig<'_>) -> Result<Machine, MachineError> {
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

        for (slot, part) in (FIRST_SLOT..).zip(config.parts) {
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
        // takes the fault. Then it cannot be told which vCPU it was, and closing the machine while such a
        // fault is unresolved waits for it for ever, unkillably. Halting without an exit rules it out, as long
        // as the guest is not offered such faults (`guest::linux::cpuid`). Ring 3 cannot halt anyway; an operating
        // system's idle vCPUs look busy to the host.
        let mut no_halt_exits = kvm_enable_cap {
            cap: KVM_CAP_X86_DISABLE_EXITS,
            ..Default::default()
        };
        no_halt_exits.args[0] = u64::from(KVM_X86_DISABLE_EXITS_HLT);
        vm.enable_cap(&no_halt_exits)
            .map_err(refused("halting without exits"))?;

        // The interrupt controller is made after the memory is set: it starts something in KVM that a change of memory would
        // wait for, some milliseconds.
        vm.create_irq_chip()
            .map_err(refused("an interrupt controller"))?;
        Ok(Machine {
            lines: (config.lines)(vm.clone(), config.vcpus),
            kvm,
            vm,
            managed_base: config.managed_base,
            ram: config.ram,
            backend: config.backend,
            vcpus: config.vcpus,
        })
    }

    /// Returns the KVM virtual machine, for devices' events and interrupts.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// Wakes vCPUs that sleep in a fault on managed memory, see [`Backend::abandon_faults`]. They must not enter the guest again.
    pub fn abandon_faults(&self) {
        if let Some(backend) = &self.backend {
            backend.abandon_faults();
        }
    }

    /// Returns the number of vCPUs.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// Managed memory, if there is some.
    pub fn backend(&self) -> Option<&Arc<Backend>> {
        self.backend.as_ref()
    }

    /// Guest-physical address of page 0 of managed memory.
    pub fn managed_base(&self) -> u64 {
        self.managed_base
    }

    /// Lines for devices' interrupts.
    pub fn interrupt_lines(&self) -> &Arc<InterruptLines> {
        &self.lines
    }

    /// Boot RAM; or, of a machine for an operating system, all of its memory. Accesses to managed memory through it fault like a
    /// vCPU's.
    pub fn ram(&self) -> &GuestMemoryMmap {
        &self.ram
    }

    /// Makes vCPU number `index`, with registers as after a reset.
    pub(crate) fn new_vcpu(&self, index: u32) -> Result<VcpuFd, MachineError> {
        assert!(index < self.vcpus);
        self.vm
            .create_vcpu(u64::from(index))
            .map_err(refusal("to make", index))
    }

    /// Returns what KVM can offer this vCPU of the host's processor.
    pub(crate) fn supported_cpuid(&self, index: u32) -> Result<CpuId, MachineError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refusal("to describe the processor for", index))
    }

    /// Whether KVM has the deadline mode of the local APIC's timer.
    pub(crate) fn has_deadline_timer(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }
}

/// Returns the error of a step in making a vCPU: KVM refused `what`.
pub(crate) fn refusal(
    what: &str,
    vcpu: u32,
) -> impl FnOnce(kvm_ioctls::Error) -> MachineError + use<> {
    let what = format!("{what} vCPU {vcpu}");
    move |error| MachineError::Refused {
        what,
        error: Refusal::new(Resource::Kvm, error.into()),
    }
}
