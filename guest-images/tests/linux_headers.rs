//! The constants in the headers of the Linux driver and its programs are those of the device.

use std::collections::BTreeMap;

use hmmvisor_abi::accel::*;

const DEVICE: &str = include_str!("../linux/module/device.h");
const IOCTL: &str = include_str!("../linux/include/hmmvisor_ioctl.h");

/// The numbers that a header defines.
fn numbers(header: &str) -> BTreeMap<&str, u64> {
    header.lines().filter_map(number).collect()
}

fn number(line: &str) -> Option<(&str, u64)> {
    let mut words = line.strip_prefix("#define ")?.split_whitespace();
    let name = words.next()?;
    let value = words.next()?.trim_end_matches(['U', 'L']);
    let value = match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok()?,
        None => value.parse().ok()?,
    };
    Some((name, value))
}

/// Checks these names, and that the header defines no other numbers.
fn check(header: &str, expected: &[(&str, u64)]) {
    let found = numbers(header);
    let expected: BTreeMap<&str, u64> = expected.iter().copied().collect();
    assert_eq!(found, expected);
}

#[test]
fn registers_and_formats_are_the_devices() {
    check(
        DEVICE,
        &[
            ("REG_ID", REG_ID),
            ("REG_VERSION", REG_VERSION),
            ("REG_MEMORY_SIZE", REG_MEMORY_SIZE),
            ("REG_QUEUE_BASE", REG_QUEUE_BASE),
            ("REG_QUEUE_ENTRIES", REG_QUEUE_ENTRIES),
            ("REG_IRQ", REG_IRQ),
            ("REG_ENABLE", REG_ENABLE),
            ("REG_DOORBELL", REG_DOORBELL),
            ("REG_ERROR", REG_ERROR),
            ("REG_SPACES", REG_SPACES),
            ("REG_MANAGED_BASE", REG_MANAGED_BASE),
            ("REG_MANAGED_SIZE", REG_MANAGED_SIZE),
            ("REG_TRANSLATIONS", REG_TRANSLATIONS),
            ("REG_SPACE_OPEN", REG_SPACE_OPEN),
            ("REG_SPACE_CLOSE", REG_SPACE_CLOSE),
            ("REG_MAP", REG_MAP),
            ("REG_INVALIDATE_START", REG_INVALIDATE_START),
            ("REG_INVALIDATE", REG_INVALIDATE),
            ("REG_FAULT", REG_FAULT),
            ("REG_FAULT_ADDRESS", REG_FAULT_ADDRESS),
            ("REG_RESUME", REG_RESUME),
            ("ID_VALUE", ID_VALUE),
            ("DEVICE_VERSION", 1),
            ("SPACE_BLOCK_SHIFT", u64::from(SPACE_BLOCK.trailing_zeros())),
            ("TRANSLATION_VALID", TRANSLATION_VALID),
            ("TRANSLATION_WRITABLE", TRANSLATION_WRITABLE),
            ("COMMAND_INTERRUPT", FLAG_INTERRUPT.into()),
            ("COMMAND_SPACE_SHIFT", FLAG_SPACE_SHIFT.into()),
        ],
    );
}

#[test]
fn opcodes_and_statuses_are_the_devices() {
    let expected = [
        ("NOP", OP_NOP),
        ("FILL", OP_FILL),
        ("COPY", OP_COPY),
        ("VECTOR_ADD", OP_VECTOR_ADD),
        ("TRIAD", OP_TRIAD),
        ("REDUCE", OP_REDUCE),
        ("GATHER", OP_GATHER),
        ("SCATTER", OP_SCATTER),
        ("MATMUL", OP_MATMUL),
        ("SPMV", OP_SPMV),
        ("BFS_STEP", OP_BFS_STEP),
        ("ATOMIC_ADD", OP_ATOMIC_ADD),
        ("CHASE", OP_CHASE),
        ("MIGRATE", OP_MIGRATE),
        ("EXCLUSIVE_ADD", OP_EXCLUSIVE_ADD),
        ("OK", STATUS_OK),
        ("BAD_OPCODE", STATUS_OPCODE),
        ("BAD_ARGUMENT", STATUS_ARGUMENT),
        ("BAD_ADDRESS", STATUS_ADDRESS),
        ("FAULT", STATUS_FAULT),
        ("NOT_PERMITTED", STATUS_PERMISSION),
        ("BAD_INDEX", STATUS_INDEX),
        ("ABORTED", STATUS_ABORTED),
        ("OUTSTANDING", 128),
    ]
    .map(|(name, value)| (format!("HMMVISOR_{name}"), u64::from(value)));
    let expected: Vec<_> = expected.iter().map(|(name, it)| (&**name, *it)).collect();
    check(IOCTL, &expected);
}
