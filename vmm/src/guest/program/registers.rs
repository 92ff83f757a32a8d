//! A vCPU's state before its first instruction: 64-bit ring 3 at the guest's entry point.

use hmmvisor_abi::map;
use kvm_bindings::{CpuId, kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};

use crate::guest::program::{firmware, ring0};
use crate::guest::x86::{
    CR0_EXTENSION_TYPE, CR0_PAGING, CR0_PROTECTED, CR4_PHYSICAL_ADDRESS_EXTENSION,
    EFER_LONG_MODE_ACTIVE, EFER_LONG_MODE_ENABLE, Flat, RFLAGS_FIXED, segment, task,
};

// Control register bits that only these guests need.
const CR0_MONITOR_COPROCESSOR: u64 = 1 << 1;
const CR0_NUMERIC_ERROR: u64 = 1 << 5;
const CR0_WRITE_PROTECT: u64 = 1 << 16;
const CR4_MACHINE_CHECK: u64 = 1 << 6;
const CR4_SSE: u64 = 1 << 9;
const CR4_SSE_EXCEPTIONS: u64 = 1 << 10;

const RFLAGS_INTERRUPTS: u64 = 1 << 9;

/// Returns the general registers at the guest's entry point.
pub fn general(vcpu: u32, entry: u64) -> kvm_regs {
    let stack_top = map::STACKS + map::STACK_SIZE * (u64::from(vcpu) + 1);
    kvm_regs {
        rip: entry,
        // The stack is as after a call: the pointer is 8 off a multiple of 16, and the return address is zero.
        rsp: stack_top - 8,
        rdi: map::BOOT_INFO,
        rsi: u64::from(vcpu),
        rflags: RFLAGS_FIXED | RFLAGS_INTERRUPTS,
        ..Default::default()
    }
}

/// Returns the segments, tables and control registers; what is not about the mode (the local APIC's base) stays
/// as it is in `reset`.
pub fn system(vcpu: u32, reset: kvm_sregs) -> kvm_sregs {
    let user = |selector, it| kvm_segment {
        dpl: 3,
        ..segment(selector, it)
    };
    let data = user(firmware::USER_DATA, Flat::Data);
    let table = |base, limit| kvm_dtable {
        base,
        limit,
        ..Default::default()
    };
    kvm_sregs {
        cs: user(firmware::USER_CODE, Flat::LongCode),
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        tr: task(
            firmware::tss_selector(vcpu),
            firmware::tss(vcpu),
            firmware::TSS_LIMIT,
        ),
        ldt: kvm_segment {
            unusable: 1,
            ..Default::default()
        },
        gdt: table(firmware::GDT, firmware::GDT_LIMIT),
        idt: table(firmware::IDT, firmware::IDT_LIMIT),
        cr0: CR0_PROTECTED
            | CR0_MONITOR_COPROCESSOR
            | CR0_EXTENSION_TYPE
            | CR0_NUMERIC_ERROR
            | CR0_WRITE_PROTECT
            | CR0_PAGING,
        cr3: firmware::PML4,
        cr4: CR4_PHYSICAL_ADDRESS_EXTENSION | CR4_MACHINE_CHECK | CR4_SSE | CR4_SSE_EXCEPTIONS,
        efer: EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE,
        ..reset
    }
}

/// Floating point as a C program expects it.
pub fn floating_point() -> kvm_fpu {
    kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    }
}

/// The spurious-interrupt vector register that switches a local APIC on.
pub const APIC_SPURIOUS_OFFSET: usize = 0xf0;
/// The value of that register: enabled, and the vector of spurious interrupts.
pub const APIC_SPURIOUS_VALUE: u32 = 1 << 8 | ring0::SPURIOUS_VECTOR as u32;

/// Changes the host's processor description to this vCPU's: puts its number wherever there is a processor's number.
pub fn identify(cpuid: &mut CpuId, vcpu: u32, vcpus: u32) {
    for leaf in cpuid.as_mut_slice() {
        if leaf.function == 1 {
            leaf.ebx = leaf.ebx & 0xffff | vcpus << 16 | vcpu << 24;
            // This is a virtual machine.
            leaf.ecx |= 1 << 31;
        }
    }
    identify_topology(cpuid, vcpu, vcpus);
}

/// The part of [`identify`] that is about leaves with a level of the topology in each subleaf.
pub fn identify_topology(cpuid: &mut CpuId, vcpu: u32, vcpus: u32) {
    for leaf in cpuid.as_mut_slice() {
        // One thread in each core, all cores in one package.
        if matches!(leaf.function, 0xb | 0x1f) {
            leaf.edx = vcpu;
            let (shift, count, kind) = match leaf.index {
                0 => (0, 1, 1),
                1 => (vcpus.next_power_of_two().trailing_zeros(), vcpus, 2),
                _ => (0, 0, 0),
            };
            leaf.eax = shift;
            leaf.ebx = count;
            leaf.ecx = leaf.index | kind << 8;
        }
    }
}
