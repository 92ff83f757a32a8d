//! The tables a vCPU needs before its first instruction: descriptor tables, task state segments,
//! page tables, ring-0 stacks.
//!
//! There is no boot code: the VMM writes these tables and sets the registers so that a vCPU's very
//! first instruction is the guest's, in ring 3.

use hmmvisor_abi::map;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::guest::program::ring0;

/// Selector of the ring-0 code segment.
pub const KERNEL_CODE: u16 = 0x08;
/// Selector of the ring-0 data segment.
pub const KERNEL_DATA: u16 = 0x10;
/// Selector of the ring-3 data segment.
pub const USER_DATA: u16 = 0x18 | 3;
/// Selector of the ring-3 code segment.
pub const USER_CODE: u16 = 0x20 | 3;
/// Selector of vCPU 0's task state segment; each one's descriptor takes 16 bytes.
const FIRST_TSS: u16 = 0x28;

const PAGE: u64 = 0x1000;

/// The global descriptor table, shared by all vCPUs.
pub const GDT: u64 = map::FIRMWARE_BASE;
/// Last byte of the global descriptor table.
pub const GDT_LIMIT: u16 = FIRST_TSS + 16 * map::MAX_VCPUS as u16 - 1;
/// The interrupt descriptor table, shared by all vCPUs.
pub const IDT: u64 = GDT + PAGE;
/// Last byte of the interrupt descriptor table.
pub const IDT_LIMIT: u16 = 256 * 16 - 1;
const CODE: u64 = IDT + PAGE;
const TSS: u64 = CODE + PAGE;
const TSS_STRIDE: u64 = 256;
const STACKS: u64 = TSS + TSS_STRIDE * map::MAX_VCPUS;
const STACK_SIZE: u64 = PAGE;
/// Root of the page tables, shared by all vCPUs.
pub const PML4: u64 = STACKS + STACK_SIZE * map::MAX_VCPUS;
const PDPT: u64 = PML4 + PAGE;
/// Page table of the first 2 MiB.
const LOW_PT: u64 = PDPT + PAGE;
/// Page directory of boot RAM.
const BOOT_PD: u64 = LOW_PT + PAGE;
/// Page directory of the device windows and the local APIC.
const DEVICE_PD: u64 = BOOT_PD + PAGE;
/// Page directories of managed memory, one for each GiB.
const MANAGED_PD: u64 = DEVICE_PD + PAGE;

const BREAKPOINT: u8 = 3;

const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;
const LOCAL_APIC: u64 = 0xfee0_0000;

const _: () = assert!(GDT_LIMIT as u64 <= PAGE);
const _: () = assert!(TSS_BYTES <= TSS_STRIDE);
const _: () = assert!(MANAGED_PD + PAGE * map::MANAGED_MAX.div_ceil(GIB) <= map::FIRMWARE_END);
// One top-level entry covers everything.
const _: () = assert!(map::MANAGED + map::MANAGED_MAX <= 512 * GIB);

// Page table entry bits.
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
// These bits are set from the start, so that the processor need not write the tables.
const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;

const KERNEL_PAGE: u64 = PRESENT | WRITABLE | ACCESSED_DIRTY;
const USER_PAGE: u64 = KERNEL_PAGE | USER;
const UNCACHED: u64 = WRITE_THROUGH | CACHE_DISABLE;

/// Offset of the I/O permission bitmap in a task state segment.
const IO_BITMAP: u64 = 104;
/// Ports with a bit in the bitmap; the processor refuses all others.
const IO_PORTS: u64 = 0x400;
/// The bitmap has to be followed by a byte of ones.
const TSS_BYTES: u64 = IO_BITMAP + IO_PORTS / 8 + 1;
/// Last byte of a task state segment.
pub const TSS_LIMIT: u32 = TSS_BYTES as u32 - 1;

/// Selector of a vCPU's task state segment.
pub fn tss_selector(vcpu: u32) -> u16 {
    FIRST_TSS + 16 * vcpu as u16
}

/// Returns the address of a vCPU's task state segment.
pub fn tss(vcpu: u32) -> u64 {
    TSS + TSS_STRIDE * u64::from(vcpu)
}

/// Writes all tables for `vcpus` vCPUs and `managed` bytes of managed memory into boot RAM.
pub fn install(ram: &GuestMemoryMmap, vcpus: u32, managed: u64) -> Result<(), GuestMemoryError> {
    assert!(u64::from(vcpus) <= map::MAX_VCPUS && managed <= map::MANAGED_MAX);
    ram.write_slice(ring0::code(), GuestAddress(CODE))?;
    descriptors(ram, vcpus)?;
    for vcpu in 0..vcpus {
        task(ram, vcpu)?;
    }
    page_tables(ram, managed)
}

fn put(ram: &GuestMemoryMmap, table: u64, index: u64, entry: u64) -> Result<(), GuestMemoryError> {
    ram.write_obj(entry.to_le(), GuestAddress(table + index * 8))
}

fn descriptors(ram: &GuestMemoryMmap, vcpus: u32) -> Result<(), GuestMemoryError> {
    // Flat segments, accessed: 64-bit code, read/write data.
    let gdt = |selector: u16, entry| put(ram, GDT, u64::from(selector >> 3), entry);
    gdt(KERNEL_CODE, 0x00af_9b00_0000_ffff)?;
    gdt(KERNEL_DATA, 0x00cf_9300_0000_ffff)?;
    gdt(USER_DATA, 0x00cf_f300_0000_ffff)?;
    gdt(USER_CODE, 0x00af_fb00_0000_ffff)?;
    for vcpu in 0..vcpus {
        // Type 11: a busy 64-bit task state segment, as it is in use from the start.
        let (base, limit) = (tss(vcpu), u64::from(TSS_LIMIT));
        let low = limit | (base & 0xff_ffff) << 16 | 0x8b << 40 | (base >> 24 & 0xff) << 56;
        gdt(tss_selector(vcpu), low)?;
        gdt(tss_selector(vcpu) + 8, base >> 32)?;
    }
    for vector in 0..=u8::MAX {
        // Interrupt gates to ring 0; vectors without a handler stay absent. Ring 3 may use only the
        // breakpoint's by an instruction, so that `int3` is reported as what it is.
        if let Some(offset) = ring0::entry_offset(vector) {
            let handler = CODE + offset;
            let attributes = if vector == BREAKPOINT { 0xee } else { 0x8e };
            let low = handler & 0xffff
                | u64::from(KERNEL_CODE) << 16
                | attributes << 40
                | (handler >> 16 & 0xffff) << 48;
            put(ram, IDT, u64::from(vector) * 2, low)?;
            put(ram, IDT, u64::from(vector) * 2 + 1, handler >> 32)?;
        }
    }
    Ok(())
}

/// One vCPU's task state segment and ring-0 stack.
fn task(ram: &GuestMemoryMmap, vcpu: u32) -> Result<(), GuestMemoryError> {
    // The handlers find the addresses of what belongs to their vCPU where their stack begins.
    let stack = STACKS + STACK_SIZE * (u64::from(vcpu) + 1) - 16;
    put(ram, stack, 0, map::irq_counter(u64::from(vcpu), 0))?;
    put(ram, stack, 1, map::memory_error(u64::from(vcpu)))?;

    let mut segment = [0u8; TSS_BYTES as usize];
    segment[4..12].copy_from_slice(&stack.to_le_bytes());
    segment[102..104].copy_from_slice(&(IO_BITMAP as u16).to_le_bytes());
    let bitmap = &mut segment[IO_BITMAP as usize..];
    bitmap.fill(0xff);
    // The serial port's eight registers.
    bitmap[0x3f8 / 8] = 0;
    ram.write_slice(&segment, GuestAddress(tss(vcpu)))
}

fn page_tables(ram: &GuestMemoryMmap, managed: u64) -> Result<(), GuestMemoryError> {
    put(ram, PML4, 0, PDPT | USER_PAGE)?;
    put(ram, PDPT, 0, BOOT_PD | USER_PAGE)?;
    put(ram, PDPT, map::CONTROL / GIB, DEVICE_PD | USER_PAGE)?;

    // The first 2 MiB by small pages: page 0 absent, the firmware out of ring 3's reach.
    put(ram, BOOT_PD, 0, LOW_PT | USER_PAGE)?;
    for page in 1..LARGE_PAGE / PAGE {
        let address = page * PAGE;
        let flags = if address < map::FIRMWARE_END {
            KERNEL_PAGE
        } else {
            USER_PAGE
        };
        put(ram, LOW_PT, page, address | flags)?;
    }
    for large in 1..map::BOOT_RAM_SIZE / LARGE_PAGE {
        put(
            ram,
            BOOT_PD,
            large,
            (large * LARGE_PAGE) | LARGE | USER_PAGE,
        )?;
    }

    let device = |address: u64, flags| {
        put(
            ram,
            DEVICE_PD,
            address % GIB / LARGE_PAGE,
            address | LARGE | UNCACHED | flags,
        )
    };
    device(map::CONTROL, USER_PAGE)?;
    device(LOCAL_APIC, KERNEL_PAGE)?;

    for large in 0..managed / LARGE_PAGE {
        let address = map::MANAGED + large * LARGE_PAGE;
        let gib = large * LARGE_PAGE / GIB;
        let directory = MANAGED_PD + gib * PAGE;
        if (large * LARGE_PAGE).is_multiple_of(GIB) {
            put(ram, PDPT, map::MANAGED / GIB + gib, directory | USER_PAGE)?;
        }
        put(
            ram,
            directory,
            address % GIB / LARGE_PAGE,
            address | LARGE | USER_PAGE,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(vcpus: u32, managed: u64) -> GuestMemoryMmap {
        let size = map::BOOT_RAM_SIZE as usize;
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap();
        install(&ram, vcpus, managed).unwrap();
        ram
    }

    fn word(ram: &GuestMemoryMmap, address: u64) -> u64 {
        ram.read_obj(GuestAddress(address)).unwrap()
    }

    /// Walks the tables: the physical address and whether ring 3 may use it.
    fn translate(ram: &GuestMemoryMmap, address: u64) -> Option<(u64, bool)> {
        let (mut table, mut user) = (PML4, true);
        for shift in [39, 30, 21, 12] {
            let entry = word(ram, table + (address >> shift & 0x1ff) * 8);
            if entry & PRESENT == 0 {
                return None;
            }
            user &= entry & USER != 0;
            let frame = entry & 0x000f_ffff_ffff_f000;
            if shift == 12 || entry & LARGE != 0 {
                return Some((frame + address % (1 << shift), user));
            }
            table = frame;
        }
        unreachable!()
    }

    #[test]
    fn mapping_is_one_to_one_with_the_documented_rights() {
        let managed = GIB + 4 * LARGE_PAGE;
        let ram = installed(2, managed);
        for (address, user) in [
            (map::FIRMWARE_BASE, false),
            (map::FIRMWARE_END - 1, false),
            (map::BOOT_INFO, true),
            (map::IMAGE_BASE, true),
            (map::BOOT_RAM_SIZE - 1, true),
            (map::CONTROL, true),
            (map::ACCEL + map::ACCEL_STRIDE * map::MAX_ACCELS - 1, true),
            (LOCAL_APIC + 0xb0, false),
            (map::MANAGED, true),
            (map::MANAGED + GIB, true),
            (map::MANAGED + managed - 1, true),
        ] {
            assert_eq!(
                translate(&ram, address),
                Some((address, user)),
                "{address:#x}"
            );
        }
        for address in [
            0,
            8,
            0xfff,
            map::BOOT_RAM_SIZE,
            map::CONTROL - 1,
            map::MANAGED + managed,
        ] {
            assert_eq!(translate(&ram, address), None, "{address:#x}");
        }
    }

    #[test]
    fn the_largest_machine_fits() {
        let ram = installed(64, map::MANAGED_MAX);
        let last = map::MANAGED + map::MANAGED_MAX - 1;
        assert_eq!(translate(&ram, last), Some((last, true)));
        // Nothing was written beyond the firmware's part of memory.
        assert_eq!(word(&ram, map::BOOT_INFO), 0);
    }

    #[test]
    fn only_the_serial_ports_are_open() {
        let ram = installed(1, 0);
        let open: Vec<u64> = (0..IO_PORTS)
            .filter(|port| {
                let byte: u8 = ram
                    .read_obj(GuestAddress(tss(0) + IO_BITMAP + port / 8))
                    .unwrap();
                byte >> (port % 8) & 1 == 0
            })
            .collect();
        assert_eq!(open, (0x3f8..0x400).collect::<Vec<_>>());
    }

    #[test]
    fn descriptors_are_what_the_manual_says() {
        let ram = installed(2, 0);
        let low = word(&ram, GDT + u64::from(tss_selector(1)));
        let base = low >> 16 & 0xff_ffff | (low >> 56) << 24;
        assert_eq!(base, tss(1));
        assert_eq!(low >> 40 & 0xff, 0x8b);
        assert_eq!(low & 0xffff, u64::from(TSS_LIMIT));

        let gate = word(&ram, IDT + 14 * 16);
        assert_eq!(gate & 0xffff | (gate >> 48) << 16, CODE + 14 * 16);
        assert_eq!(gate >> 16 & 0xffff, u64::from(KERNEL_CODE));
        assert_eq!(word(&ram, IDT + 0x80 * 16), 0, "int 0x80 has no gate");
    }
}
