//! The state of a guest at boot.
//!
//! Every vCPU enters the image's ELF entry point in 64-bit ring 3 with `rdi` = address of
//! [`BootInfo`], `rsi` = its index (from 0), `rsp` = its own stack, aligned as at the entry of a
//! System V function.

/// `"HMMVGST1"`, little-endian.
pub const BOOT_MAGIC: u64 = u64::from_le_bytes(*b"HMMVGST1");
/// Version of the whole binary interface.
pub const BOOT_VERSION: u32 = 1;

/// The boot information block at [`crate::map::BOOT_INFO`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootInfo {
    /// [`BOOT_MAGIC`].
    pub magic: u64,
    /// [`BOOT_VERSION`].
    pub version: u32,
    /// Number of vCPUs; all of them start at once.
    pub vcpus: u32,
    /// Number of accelerators.
    pub devices: u32,
    /// Zero.
    pub reserved: u32,
    /// Guest-physical base of managed memory.
    pub memory_base: u64,
    /// Size of managed memory in bytes.
    pub memory_size: u64,
    /// Base of the control device.
    pub control_base: u64,
    /// Base of the serial port.
    pub serial_base: u64,
    /// Base of accelerator 0.
    pub accel_base: u64,
    /// Distance between accelerators' windows in bytes.
    pub accel_stride: u64,
    /// Base of the interrupt counters ([`crate::map::irq_counter`]).
    pub irq_counters: u64,
    /// The run's seed.
    pub seed: u64,
    /// Time-stamp counter frequency in kHz, 0 if unknown.
    pub tsc_khz: u64,
    /// Address of the command line: UTF-8, `key=value` words separated by single spaces. The
    /// embedded guest finds `workload=NAME` and each of the workload's parameters there.
    pub cmdline: u64,
    /// Length of the command line in bytes; it has no terminator.
    pub cmdline_len: u64,
}

const _: () = assert!(size_of::<BootInfo>() == 112);
