//! The guest-physical memory map. The boot page tables map it one to one.

/// Boot RAM: firmware, boot information, guest image and stacks. Never managed, never migrates.
pub const BOOT_RAM_BASE: u64 = 0;
/// Size of boot RAM in bytes.
pub const BOOT_RAM_SIZE: u64 = 16 << 20;

/// First byte of the firmware area (descriptor tables, page tables, ring-0 code); page 0 stays
/// unmapped so that null pointers fault. Ring 3 cannot reach this area.
pub const FIRMWARE_BASE: u64 = 0x1000;
/// End (exclusive) of the firmware area.
pub const FIRMWARE_END: u64 = 0x10_0000;

/// Address of [`crate::BootInfo`], followed by the command line.
pub const BOOT_INFO: u64 = 0x10_0000;
/// Bytes available for the boot information and the command line together.
pub const BOOT_INFO_SIZE: u64 = 0x1000;

/// Interrupt counters, see [`irq_counter`].
pub const IRQ_COUNTERS: u64 = 0x10_1000;
/// Interrupt lines per vCPU: one for each accelerator window.
pub const IRQ_LINES: u64 = 16;
/// The vector of line 0; line `n` uses `IRQ_VECTOR_BASE + n`.
pub const IRQ_VECTOR_BASE: u8 = 0x40;

/// Address of the 64-bit counter that the firmware increments for each interrupt on `line` taken
/// by `vcpu`.
pub const fn irq_counter(vcpu: u64, line: u64) -> u64 {
    IRQ_COUNTERS + (vcpu * IRQ_LINES + line) * 8
}

/// Reports of memory errors, one for each vCPU, see [`memory_error`].
pub const MEMORY_ERRORS: u64 = 0x10_3000;

/// Address of the [`crate::MemoryError`] of `vcpu`.
pub const fn memory_error(vcpu: u64) -> u64 {
    MEMORY_ERRORS + vcpu * size_of::<crate::MemoryError>() as u64
}

/// Address at which the embedded guest is linked; ELF segments may use `IMAGE_BASE..IMAGE_END` and managed
/// memory.
pub const IMAGE_BASE: u64 = 0x20_0000;
/// End (exclusive) of the image area.
pub const IMAGE_END: u64 = 0xc0_0000;

/// Base of the vCPU stacks, [`STACK_SIZE`] bytes each, growing down.
pub const STACKS: u64 = 0xc0_0000;
/// Size of one vCPU's stack in bytes.
pub const STACK_SIZE: u64 = 0x1_0000;
/// The most vCPUs this map has stacks for.
pub const MAX_VCPUS: u64 = 64;

/// Base of the control device's registers (`crate::control`).
pub const CONTROL: u64 = 0xd000_0000;
/// Base of the 16550 serial port's eight byte-wide registers.
pub const SERIAL: u64 = 0xd000_1000;
/// Base of accelerator 0's registers (`crate::accel`).
pub const ACCEL: u64 = 0xd001_0000;
/// Distance between two accelerators' windows.
pub const ACCEL_STRIDE: u64 = 0x1000;
/// The most accelerators this map has windows for.
pub const MAX_ACCELS: u64 = IRQ_LINES;

/// Base of managed memory: the range whose pages migrate.
pub const MANAGED: u64 = 0x1_0000_0000;
/// The most managed memory the boot page tables can map.
pub const MANAGED_MAX: u64 = 128 << 30;

const _: () = assert!(STACKS + STACK_SIZE * MAX_VCPUS <= BOOT_RAM_SIZE);
const _: () = assert!(irq_counter(MAX_VCPUS, 0) <= MEMORY_ERRORS);
const _: () = assert!(memory_error(MAX_VCPUS) <= IMAGE_BASE);
const _: () = assert!(ACCEL + ACCEL_STRIDE * MAX_ACCELS < 0xfee0_0000);
