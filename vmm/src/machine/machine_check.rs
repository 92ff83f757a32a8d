//! Machine checks: how a vCPU is made to take one, and what the guest reads in it.

use hmm_backend::service::{FatalCause, FatalFault};
use hmmvisor_abi::memory_error;
use kvm_bindings::kvm_x86_mce;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

// kvm-ioctls has no such calls, and kvm-bindings only the structure.
vmm_sys_util::ioctl_iow_nr!(KVM_X86_SETUP_MCE, kvm_bindings::KVMIO, 0x9c, u64);
vmm_sys_util::ioctl_iow_nr!(KVM_X86_SET_MCE, kvm_bindings::KVMIO, 0x9e, kvm_x86_mce);

/// Recovery from software is supported: errors that require action are signalled.
const MCG_SOFTWARE_RECOVERY: u64 = 1 << 24;

/// Gives a new vCPU its machine-check banks.
pub fn set_up(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let banks = u64::from(memory_error::BANK) + 1;
    let capabilities = MCG_SOFTWARE_RECOVERY | banks;
    // SAFETY: the descriptor is a vCPU's, the argument is valid for the call and only read.
    let ret = unsafe { ioctl_with_ref(vcpu, KVM_X86_SETUP_MCE(), &capabilities) };
    check(ret)
}

/// Makes the vCPU take a machine check about this fault before its next instruction. The vCPU must be in no `KVM_RUN`, nor in
/// the middle of an access to a device. Managed memory begins at the guest-physical address `base`.
pub fn deliver(vcpu: &VcpuFd, fault: &FatalFault, base: u64) -> Result<(), kvm_ioctls::Error> {
    let error = kvm_x86_mce {
        status: memory_error::STATUS | reason(&fault.cause) << 16,
        addr: base + fault.page.offset(),
        misc: memory_error::MISC,
        mcg_status: memory_error::MCG_STATUS_VALUE,
        bank: memory_error::BANK,
        ..Default::default()
    };
    // SAFETY: the descriptor is a vCPU's, the argument is valid for the call and only read.
    let ret = unsafe { ioctl_with_ref(vcpu, KVM_X86_SET_MCE(), &error) };
    check(ret)
}

fn check(ret: libc::c_int) -> Result<(), kvm_ioctls::Error> {
    match ret {
        0.. => Ok(()),
        _ => Err(kvm_ioctls::Error::last()),
    }
}

/// Returns the reason that the guest reads.
fn reason(cause: &FatalCause) -> u64 {
    match cause {
        FatalCause::ContentsLost | FatalCause::Vanished => memory_error::REASON_LOST,
        FatalCause::DriverFailed(_) => memory_error::REASON_DEVICE,
        FatalCause::OutOfMemory { .. } => memory_error::REASON_OUT_OF_MEMORY,
        FatalCause::Busy { .. } => memory_error::REASON_BUSY,
        FatalCause::ReadOnly => memory_error::REASON_READ_ONLY,
        FatalCause::Host(_) => memory_error::REASON_HOST,
    }
}
