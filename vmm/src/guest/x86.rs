//! What both kinds of guests' first registers are made of: bits of control registers, and flat segments.

use kvm_bindings::kvm_segment;

// Control register bits.
pub const CR0_PROTECTED: u64 = 1;
pub const CR0_EXTENSION_TYPE: u64 = 1 << 4;
pub const CR0_PAGING: u64 = 1 << 31;
pub const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
pub const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
pub const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;

/// Bit 1 always reads as one.
pub const RFLAGS_FIXED: u64 = 1 << 1;

/// What a flat segment is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flat {
    /// Code of 64 bits.
    LongCode,
    /// Code of 32 bits.
    ProtectedCode,
    /// Data, in either mode.
    Data,
}

/// Makes a flat segment of ring 0. It is marked as accessed: hardware checks that, like the other attributes, when it
/// enters the guest.
pub fn segment(selector: u16, it: Flat) -> kvm_segment {
    let long = it == Flat::LongCode;
    kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_: if it == Flat::Data { 3 } else { 11 },
        present: 1,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// Makes the segment of a busy task state.
pub fn task(selector: u16, base: u64, limit: u32) -> kvm_segment {
    kvm_segment {
        base,
        limit,
        selector,
        type_: 11,
        present: 1,
        ..Default::default()
    }
}
