//! The ACPI tables, which describe the machine to an operating system.
//!
//! The hardware-reduced kind of ACPI: no fixed hardware, no legacy devices, power off and reset by registers of their own, the power
//! button as an event.

use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, Package,
    Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use hmmvisor_devices::SlotKind;

use super::power;

use crate::console::serial;
use crate::machine::slots::SlotInfo;

/// The hardware ID that a driver for the accelerator binds to.
pub const ACCELERATOR_ID: &str = "HMMV0001";
/// ACPI's own hardware ID of a device that makes events of interrupts.
const EVENTS_ID: &str = "ACPI0013";
/// ACPI's value for "the button was pressed".
const PRESSED: u8 = 0x80;
/// The hardware ID that Linux's driver for virtio-mmio binds to.
const VIRTIO_ID: &str = "LNRO0005";

const OEM: [u8; 6] = *b"HMMVSR";
const OEM_TABLE: [u8; 8] = *b"HMMVISOR";
const OEM_REVISION: u32 = 1;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
const IO_APIC_ID: u8 = 0;

// Of the FADT's boot architecture flags: what a PC would have.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

/// Tables start at multiples of this.
const ALIGN: usize = 64;

/// Returns all tables as they lie in memory from `base` on. The first is the root pointer (RSDP).
pub fn tables(base: u64, vcpus: u32, slots: &[SlotInfo]) -> Vec<u8> {
    let mut memory = vec![0; size_of::<Rsdp>()];
    let mut add = |table: &dyn Aml| {
        memory.resize(memory.len().next_multiple_of(ALIGN), 0);
        let address = base + memory.len() as u64;
        table.to_aml_bytes(&mut memory);
        address
    };
    let dsdt = add(&dsdt(slots));
    let fadt = add(&fadt(dsdt));
    let madt = add(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = add(&xsdt);
    let mut root = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut root);
    memory[..root.len()].copy_from_slice(&root);
    memory
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            port.into(),
        )
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        // No buttons of the fixed kind.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.reset_reg = port(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE).into();
    fadt.finalize()
}

fn madt(vcpus: u32) -> impl Aml {
    let address = LocalInterruptController::Address(LOCAL_APIC);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, address);
    for vcpu in 0..vcpus {
        // At most 64 of them.
        let number = vcpu as u8;
        madt.add_structure(ProcessorLocalApic::new(
            number,
            number,
            EnabledStatus::Enabled,
        ));
    }
    madt.add_structure(IoApic::new(IO_APIC_ID, IO_APIC, 0));
    madt
}

fn dsdt(slots: &[SlotInfo]) -> impl Aml {
    let mut contents = Vec::new();
    let (off, zero) = (power::SLEEP_TYPE_OFF, 0u8);
    Name::new(
        Path::new("_S5_"),
        &Package::new(vec![&off, &zero, &zero, &zero]),
    )
    .to_aml_bytes(&mut contents);
    let devices = Devices(slots);
    let devices: Vec<&dyn Aml> = vec![&SerialPort, &PowerButton, &devices];
    Scope::new(Path::new("_SB_"), devices).to_aml_bytes(&mut contents);
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&contents);
    table
}

/// The PC's first serial port.
struct SerialPort;

impl Aml for SerialPort {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ports = serial::PORTS;
        let length = (ports.end - ports.start) as u8;
        let first = ports.start as u16;
        Device::new(
            Path::new("COM1"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                &Name::new(Path::new("_UID"), &0u8),
                &Name::new(Path::new("_DDN"), &"COM1"),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![
                        &IO::new(first, first, 1, length),
                        &interrupt(serial::PIN),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// A power button, and the device that makes an event of its interrupt.
struct PowerButton;

impl Aml for PowerButton {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let button = Path::new("PWRB");
        Device::new(
            Path::new("PWRB"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C")),
                &Name::new(Path::new("_UID"), &0u8),
            ],
        )
        .to_aml_bytes(sink);
        let its = power::BUTTON_PIN as u8;
        let pressed = Notify::new(&button, &PRESSED);
        let is_its = Equal::new(&Arg(0), &its);
        Device::new(
            Path::new("GED0"),
            vec![
                &Name::new(Path::new("_HID"), &EVENTS_ID),
                &Name::new(Path::new("_UID"), &0u8),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&interrupt(power::BUTTON_PIN)]),
                ),
                &Method::new(
                    Path::new("_EVT"),
                    1,
                    true,
                    vec![&If::new(&is_its, vec![&pressed])],
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// Edge-triggered, active high, not shared.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// The devices in slots, those that an operating system has a name for. Numbered within their kind, in the order of the slots.
struct Devices<'a>(&'a [SlotInfo]);

impl Aml for Devices<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (mut accelerators, mut virtio) = (0u8, 0u8);
        for slot in self.0 {
            let (id, letter, number) = match slot.kind {
                SlotKind::Accelerator => (ACCELERATOR_ID, 'A', &mut accelerators),
                SlotKind::Virtio => (VIRTIO_ID, 'V', &mut virtio),
                SlotKind::Foreign => continue,
            };
            let unit = *number;
            *number += 1;
            let size = (slot.window.end - slot.window.start) as u32;
            Device::new(
                Path::new(&format!("{letter}{unit:03X}")),
                vec![
                    &Name::new(Path::new("_HID"), &id),
                    &Name::new(Path::new("_UID"), &unit),
                    // Sees what CPUs have in their caches.
                    &Name::new(Path::new("_CCA"), &1u8),
                    &Name::new(
                        Path::new("_CRS"),
                        &ResourceTemplate::new(vec![
                            // Windows are below 4 GiB.
                            &Memory32Fixed::new(true, slot.window.start as u32, size),
                            &interrupt(slot.gsi),
                        ]),
                    ),
                ],
            )
            .to_aml_bytes(sink);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const BASE: u64 = 0xe_0000;

    fn slots() -> Vec<SlotInfo> {
        let kinds = [
            SlotKind::Accelerator,
            SlotKind::Foreign,
            SlotKind::Virtio,
            SlotKind::Virtio,
        ];
        let slot = |(index, kind): (u32, SlotKind)| SlotInfo {
            kind,
            window: 0xd001_0000 + 0x1000 * u64::from(index)
                ..0xd001_1000 + 0x1000 * u64::from(index),
            gsi: 8 + index,
        };
        (0..).zip(kinds).map(slot).collect()
    }

    fn number(bytes: &[u8], at: usize, size: usize) -> usize {
        let bytes = bytes[at..at + size].iter().rev();
        bytes.fold(0, |value, byte| value << 8 | usize::from(*byte))
    }

    /// Follows the pointers from the root, as an operating system does, and checks every sum.
    fn found(memory: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let sums_up =
            |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0;
        assert_eq!(&memory[..8], b"RSD PTR ");
        assert!(sums_up(&memory[..20]) && sums_up(&memory[..36]));
        let mut tables = BTreeMap::new();
        let mut add = |address: usize| {
            let table = &memory[address - BASE as usize..];
            let table = table[..number(table, 4, 4)].to_vec();
            assert!(sums_up(&table));
            let signature = String::from_utf8(table[..4].to_vec()).unwrap();
            tables.insert(signature, table.clone());
            table
        };
        let xsdt = add(number(memory, 24, 8));
        for entry in (36..xsdt.len()).step_by(8) {
            let table = add(number(&xsdt, entry, 8));
            if table.starts_with(b"FACP") {
                add(number(&table, 140, 8));
            }
        }
        tables
    }

    fn contains(table: &[u8], part: &[u8]) -> usize {
        table.windows(part.len()).filter(|it| *it == part).count()
    }

    #[test]
    fn tables_are_found_from_the_root_and_sum_up() {
        let tables = found(&tables(BASE, 3, &slots()));
        let names: Vec<_> = tables.keys().map(String::as_str).collect();
        assert_eq!(names, ["APIC", "DSDT", "FACP", "XSDT"]);
    }

    #[test]
    fn the_fixed_table_has_the_power_registers() {
        let fadt = &found(&tables(BASE, 1, &[]))["FACP"];
        let flags = number(fadt, 112, 4);
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        // Address spaces and addresses: reset, sleep control, sleep status.
        for (at, port) in [(116, 0x602), (244, 0x600), (256, 0x601)] {
            assert_eq!((fadt[at], number(fadt, at + 4, 8)), (1, port));
        }
        assert_eq!(fadt[128], power::RESET_VALUE);
    }

    #[test]
    fn every_vcpu_and_the_io_apic_are_listed() {
        let madt = &found(&tables(BASE, 64, &[]))["APIC"];
        let mut vcpus = Vec::new();
        let mut at = 44;
        while at < madt.len() {
            match madt[at] {
                0 => vcpus.push((madt[at + 3], number(madt, at + 4, 4))),
                1 => assert_eq!(number(madt, at + 4, 4), 0xfec0_0000),
                other => panic!("structure {other}"),
            }
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(vcpus, (0..64).map(|id| (id, 1)).collect::<Vec<_>>());
    }

    #[test]
    fn slots_are_described_by_kind() {
        let dsdt = &found(&tables(BASE, 1, &slots()))["DSDT"];
        assert_eq!(contains(dsdt, b"HMMV0001\0"), 1);
        assert_eq!(contains(dsdt, b"LNRO0005\0"), 2);
        for (window, times) in [(0xd001_0000u32, 1), (0xd001_1000, 0), (0xd001_2000, 1)] {
            assert_eq!(contains(dsdt, &window.to_le_bytes()), times, "{window:#x}");
        }
    }

    /// Where ACPI's own compiler is installed (Debian's acpica-tools), it must understand the tables.
    #[test]
    fn the_compiler_understands_the_device_tree() {
        let folder = tempfile::tempdir().unwrap();
        let compiler = |file: &str| {
            let mut compiler = std::process::Command::new("iasl");
            compiler
                .current_dir(folder.path())
                .args(if file.ends_with(".aml") {
                    vec!["-d", file]
                } else {
                    vec!["-p", "again", file]
                });
            compiler.output().ok()
        };
        let dsdt = &found(&tables(BASE, 1, &slots()))["DSDT"];
        std::fs::write(folder.path().join("dsdt.aml"), dsdt).unwrap();
        let Some(output) = compiler("dsdt.aml") else {
            eprintln!("iasl is not installed");
            return;
        };
        let text = std::fs::read_to_string(folder.path().join("dsdt.dsl"));
        let text = text.unwrap_or_else(|_| panic!("{output:?}"));
        assert!(text.contains("Notify (PWRB, 0x80)"), "{text}");
        for device in [
            "Device (COM1)",
            "Device (PWRB)",
            "Device (GED0)",
            "Device (A000)",
            "Device (V000)",
            "Device (V001)",
        ] {
            assert!(text.contains(device), "{text}");
        }
        let output = compiler("dsdt.dsl").unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains(" 0 Errors"),
            "{said}"
        );
        let again = std::fs::read(folder.path().join("again.aml")).unwrap();
        // Behind the header, in which the compiler names itself.
        assert_eq!(again[36..], dsdt[36..]);
    }

    #[test]
    fn the_largest_machine_fits() {
        let slot = |index| SlotInfo {
            kind: SlotKind::Virtio,
            window: 0xd001_0000..0xd001_1000,
            gsi: index,
        };
        let slots: Vec<_> = (0..16).map(slot).collect();
        let room = super::super::layout::ACPI;
        assert!((tables(BASE, 64, &slots).len() as u64) < room.end - room.start);
    }
}
