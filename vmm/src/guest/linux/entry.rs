//! The registers with which a kernel's first vCPU begins. The others wait for start-up interrupts, as on hardware.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::kernel::{Loaded, Protocol};
use super::layout::{GDT, PAGE_TABLES_END, PML4, START_INFO, ZERO_PAGE};
use crate::guest::x86::{
    CR0_EXTENSION_TYPE, CR0_PAGING, CR0_PROTECTED, CR4_PHYSICAL_ADDRESS_EXTENSION,
    EFER_LONG_MODE_ACTIVE, EFER_LONG_MODE_ENABLE, Flat, RFLAGS_FIXED, segment, task,
};

/// The code segment that Linux's boot protocol asks for.
const CODE: u16 = 0x10;
/// The data segment that Linux's boot protocol asks for.
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

const PAGE: u64 = 0x1000;
const LARGE_PAGE: u64 = 2 << 20;
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// Memory ranges have types, and that of all of them is write-back.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Writes the tables that [`system`] points to.
pub fn install(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let put = |address: u64, value: u64| memory.write_obj(value.to_le(), GuestAddress(address));
    let code = descriptor(&segment(CODE, Flat::LongCode));
    let data = descriptor(&segment(DATA, Flat::Data));
    for (index, entry) in [0, 0, code, data].into_iter().enumerate() {
        put(GDT + 8 * index as u64, entry)?;
    }
    // One to one, 4 GiB.
    let directories = PML4 + 2 * PAGE;
    put(PML4, (PML4 + PAGE) | PRESENT_WRITABLE)?;
    for gib in 0..4 {
        let directory = directories + gib * PAGE;
        assert!(directory < PAGE_TABLES_END);
        put(PML4 + PAGE + 8 * gib, directory | PRESENT_WRITABLE)?;
    }
    for large in 0..4 * 512 {
        put(
            directories + 8 * large,
            (large * LARGE_PAGE) | PRESENT_WRITABLE | LARGE,
        )?;
    }
    Ok(())
}

/// Returns a flat segment's entry in a descriptor table.
fn descriptor(it: &kvm_segment) -> u64 {
    let attributes = u64::from(it.type_)
        | u64::from(it.s) << 4
        | u64::from(it.present) << 7
        | u64::from(it.l) << 13
        | u64::from(it.db) << 14
        | u64::from(it.g) << 15;
    // Limit 0xfffff, base 0.
    0xffff | attributes << 40 | 0xf << 48
}

/// Returns the general registers of the first vCPU.
pub fn general(kernel: &Loaded) -> kvm_regs {
    let (rsi, rbx) = match kernel.protocol {
        Protocol::Linux(_) => (ZERO_PAGE, 0),
        Protocol::Pvh => (0, START_INFO),
    };
    kvm_regs {
        rip: kernel.entry,
        rsi,
        rbx,
        // Interrupts are off.
        rflags: RFLAGS_FIXED,
        ..Default::default()
    }
}

/// Returns the segments, tables and control registers of the first vCPU; the rest stays as it is in `reset`.
pub fn system(kernel: &Loaded, mut reset: kvm_sregs) -> kvm_sregs {
    let code = match kernel.protocol {
        Protocol::Linux(_) => Flat::LongCode,
        Protocol::Pvh => Flat::ProtectedCode,
    };
    let data = segment(DATA, Flat::Data);
    reset.cs = segment(CODE, code);
    (reset.ds, reset.es, reset.ss) = (data, data, data);
    (reset.fs, reset.gs) = (data, data);
    reset.tr = task(TASK, 0, 0x67);
    reset.gdt.base = GDT;
    reset.gdt.limit = 4 * 8 - 1;
    reset.idt.base = 0;
    reset.idt.limit = 0;
    reset.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
    if code == Flat::LongCode {
        reset.cr0 |= CR0_PAGING;
        reset.cr3 = PML4;
        reset.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
        reset.efer = EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
    }
    reset
}

/// Returns the model-specific registers that firmware would have set on every vCPU.
pub fn model_specific() -> Msrs {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[
        entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS),
        entry(MSR_MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK),
    ])
    .expect("two are not too many")
}

#[cfg(test)]
mod tests {
    use super::*;
    use linux_loader::loader::bootparam::setup_header;

    fn read(memory: &GuestMemoryMmap, address: u64) -> u64 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn tables_map_four_gibibytes_one_to_one() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        install(&memory).unwrap();
        for address in [0u64, 0x1234, 16 << 20, 0xbfff_ffff, 0xffff_ffff] {
            let top = read(&memory, PML4 + (address >> 39) * 8);
            let gib = read(&memory, (top & !0xfff) + (address >> 30) * 8);
            let entry = read(&memory, (gib & !0xfff) + (address >> 21 & 511) * 8);
            assert!(top & gib & entry & PRESENT_WRITABLE == PRESENT_WRITABLE);
            assert_eq!(entry & !0xff, address & !(LARGE_PAGE - 1));
        }
        assert_eq!(read(&memory, GDT + u64::from(CODE)), 0x00af_9b00_0000_ffff);
        assert_eq!(read(&memory, GDT + u64::from(DATA)), 0x00cf_9300_0000_ffff);
        // Nothing else was written.
        assert_eq!(read(&memory, PAGE_TABLES_END), 0);
        assert_eq!(read(&memory, PML4 + 8), 0);
    }

    #[test]
    fn each_protocol_has_its_mode() {
        let header = Box::new(setup_header::default());
        for (protocol, cs_long, cr0, registers) in [
            (Protocol::Linux(header), 1, CR0_PAGING, (ZERO_PAGE, 0)),
            (Protocol::Pvh, 0, 0, (0, START_INFO)),
        ] {
            let kernel = Loaded {
                entry: 0x100_0200,
                protocol,
            };
            let sregs = system(&kernel, kvm_sregs::default());
            assert_eq!((sregs.cs.l, sregs.cr0 & CR0_PAGING), (cs_long, cr0));
            assert_eq!(sregs.cs.db, 1 - cs_long);
            let regs = general(&kernel);
            assert_eq!(((regs.rsi, regs.rbx), regs.rip), (registers, 0x100_0200));
        }
    }
}
