//! The emulated accelerator as a guest sees it: registers, command queue, commands.
//!
//! A queue is one contiguous, page-aligned piece of *managed* memory, pinned by the device while
//! it is enabled:
//!
//! | offset | what |
//! |---|---|
//! | 0 | [`QueueHeader`], 64 bytes |
//! | 64 | `n` [`Command`]s, 64 bytes each |
//! | 64 + 64·n | `n` [`Completion`]s, 32 bytes each |
//!
//! Addresses in commands are guest-physical, unless the command names an *address space*: then they are virtual, and
//! the device asks the guest for translations. It may forget any of them; it must forget those that the guest invalidates.
//!
//! Command number `i` (from 0, counting for ever) is in slot `i % n`; its completion is in the slot
//! of the same number. Commands complete in order.

/// Read: [`ID_VALUE`].
pub const REG_ID: u64 = 0x00;
/// Read: version of this interface, 1.
pub const REG_VERSION: u64 = 0x08;
/// Read: device memory in bytes.
pub const REG_MEMORY_SIZE: u64 = 0x10;
/// Read/write: guest-physical address of the queue. Writable while disabled.
pub const REG_QUEUE_BASE: u64 = 0x18;
/// Read/write: number of slots, a power of two from 1 to [`MAX_QUEUE_ENTRIES`]. Writable while
/// disabled.
pub const REG_QUEUE_ENTRIES: u64 = 0x20;
/// Read/write: 0 = no interrupts; otherwise `vcpu + 1`: the vCPU that gets the interrupt of this
/// accelerator's line.
pub const REG_IRQ: u64 = 0x28;
/// Write 1: pin the queue and start, write 0: stop after the current command, drop the queue.
/// Read: 1 when enabled.
pub const REG_ENABLE: u64 = 0x30;
/// Write (any value): there are new commands. Handled without leaving the kernel (ioeventfd).
pub const REG_DOORBELL: u64 = 0x38;
/// Read: number of completed commands.
pub const REG_COMPLETED: u64 = 0x40;
/// Write a number of completed commands: returns as soon as the device has completed *more* than
/// that, or after a few milliseconds; the vCPU sleeps meanwhile.
pub const REG_WAIT: u64 = 0x48;
/// Read: the last register error (`ERR_*`), cleared by reading.
pub const REG_ERROR: u64 = 0x50;

/// Read: the number of the last address space; they are numbered from 1.
pub const REG_SPACES: u64 = 0x58;
/// Read: guest-physical address of managed memory.
pub const REG_MANAGED_BASE: u64 = 0x60;
/// Read: bytes of managed memory.
pub const REG_MANAGED_SIZE: u64 = 0x68;
/// Read/write: guest-physical address of the page in which the guest hands over translations, in managed memory; 0 if
/// there is none. Writable while disabled.
pub const REG_TRANSLATIONS: u64 = 0x70;
/// Write the number of an address space: commands may use it from now on. It has no translations.
pub const REG_SPACE_OPEN: u64 = 0x78;
/// Write the number of an address space: its translations are forgotten and no longer in use when the write returns; its
/// commands, the current one included, end as [`STATUS_ABORTED`].
pub const REG_SPACE_CLOSE: u64 = 0x80;
/// Write a virtual address, a multiple of [`SPACE_BLOCK`], plus the number of an address space: takes the translations of
/// the block's pages from the page at [`REG_TRANSLATIONS`]. Those that are 0 there stay as they are.
pub const REG_MAP: u64 = 0x88;
/// Read/write: the first virtual address of the next [`REG_INVALIDATE`], page-aligned.
pub const REG_INVALIDATE_START: u64 = 0x90;
/// Write the virtual address behind the last one, page-aligned, plus the number of an address space: translations of this
/// range are forgotten and no longer in use when the write returns.
pub const REG_INVALIDATE: u64 = 0x98;
/// Read: the fault that waits for the guest, 0 if none does. Bits 0–15: address space; bit 16: the access is a write; bits
/// 32–63: the fault's number, never 0.
pub const REG_FAULT: u64 = 0xa0;
/// Read: the virtual address of the page on which the fault is.
pub const REG_FAULT_ADDRESS: u64 = 0xa8;
/// Write a fault's number in bits 32–63, and in bits 0–31 the answer: 0 = the device tries again, otherwise the
/// command fails with this `STATUS_*` ([`STATUS_ADDRESS`], [`STATUS_FAULT`], [`STATUS_PERMISSION`]). Ignored if another or
/// no fault is waiting.
pub const REG_RESUME: u64 = 0xb0;

/// In place of an address space's number: addresses are guest-physical.
pub const PHYSICAL: u16 = 0;
/// Value of [`REG_SPACES`].
pub const SPACES: u64 = 1023;
/// Virtual addresses are below this.
pub const SPACE_END: u64 = 1 << 57;
/// Bytes of virtual addresses whose translations are handed over together.
pub const SPACE_BLOCK: u64 = 2 << 20;
/// Translations handed over together: 64-bit words, guest-physical addresses of pages plus [`TRANSLATION_VALID`] and,
/// perhaps, [`TRANSLATION_WRITABLE`].
pub const TRANSLATIONS: usize = 512;
/// In a translation: there is one.
pub const TRANSLATION_VALID: u64 = 1;
/// In a translation: the device may write.
pub const TRANSLATION_WRITABLE: u64 = 2;
/// [`REG_FAULT`]: the access is a write.
pub const FAULT_WRITE: u64 = 1 << 16;

/// Value of [`REG_ID`]: `"HMMACCEL"`, little-endian.
pub const ID_VALUE: u64 = u64::from_le_bytes(*b"HMMACCEL");
/// The most slots a queue may have.
pub const MAX_QUEUE_ENTRIES: u64 = 1024;

/// Register error: none.
pub const ERR_NONE: u64 = 0;
/// Register error: the queue is not page-aligned or not wholly inside managed memory.
pub const ERR_QUEUE_BASE: u64 = 1;
/// Register error: the number of slots is 0, too large or no power of two.
pub const ERR_QUEUE_ENTRIES: u64 = 2;
/// Register error: written while enabled, or a register that cannot be written.
pub const ERR_NOT_WRITABLE: u64 = 3;
/// Register error: no such vCPU, or the interrupt could not be routed.
pub const ERR_IRQ: u64 = 4;
/// Register error: the queue's memory could not be pinned.
pub const ERR_PIN: u64 = 5;
/// Register error: the guest claimed more outstanding commands than there are slots; the device
/// has disabled itself.
pub const ERR_QUEUE_OVERRUN: u64 = 6;
/// Register error: no such address space, a virtual address that is misaligned or out of range, or an unknown way to
/// resume.
pub const ERR_SPACE: u64 = 7;
/// Register error: there is no page to take translations from, or some of them, which were left out, were bad: unknown
/// bits, or outside managed memory.
pub const ERR_TRANSLATION: u64 = 8;

/// The first 64 bytes of a queue.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct QueueHeader {
    /// Number of commands submitted since the queue was enabled; written by the guest after the
    /// commands.
    pub submitted: u64,
    /// Number of commands completed; written by the device after the completions.
    pub completed: u64,
    /// Zero.
    pub reserved: [u64; 6],
}

/// A command.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// `OP_*`.
    pub opcode: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// Returned in the completion.
    pub tag: u64,
    /// Meaning depends on the opcode. Addresses are 8-byte aligned, counts are in 8-byte elements unless said
    /// otherwise.
    pub args: [u64; 6],
}

/// The answer to a command.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// The command's tag.
    pub tag: u64,
    /// `STATUS_*`.
    pub status: u32,
    /// Zero.
    pub reserved: u32,
    /// The command's result, 0 if it has none.
    pub result: u64,
    /// For [`STATUS_ADDRESS`], [`STATUS_FAULT`] and [`STATUS_INDEX`]: the offending address or index.
    pub address: u64,
}

const _: () = assert!(size_of::<QueueHeader>() == 64);
const _: () = assert!(size_of::<Command>() == 64);
const _: () = assert!(size_of::<Completion>() == 32);

/// Bytes a queue with `entries` slots needs.
pub const fn queue_bytes(entries: u64) -> u64 {
    commands_offset() + entries * (size_of::<Command>() + size_of::<Completion>()) as u64
}

/// Offset of the first command.
pub const fn commands_offset() -> u64 {
    size_of::<QueueHeader>() as u64
}

/// Offset of the first completion of a queue with `entries` slots.
pub const fn completions_offset(entries: u64) -> u64 {
    commands_offset() + entries * size_of::<Command>() as u64
}

/// Raise the interrupt when this command has completed.
pub const FLAG_INTERRUPT: u32 = 1;
/// Bits of the flags from here on: the address space that addresses are in, or [`PHYSICAL`].
pub const FLAG_SPACE_SHIFT: u32 = 16;

/// Does nothing.
pub const OP_NOP: u32 = 0;
/// `dst, n, start, step`: `dst[i] = start + i·step`, wrapping.
pub const OP_FILL: u32 = 1;
/// `dst, src, bytes` (a multiple of 8): the copy engine. The ranges must not overlap.
pub const OP_COPY: u32 = 2;
/// `c, a, b, n`: `c[i] = a[i] + b[i]`, 64-bit integers, wrapping.
pub const OP_VECTOR_ADD: u32 = 3;
/// `a, b, c, n, s`: `a[i] = b[i] + s·c[i]`, doubles; `s` is the bit pattern of a double.
pub const OP_TRIAD: u32 = 4;
/// `src, n`: result = wrapping sum of the 64-bit integers.
pub const OP_REDUCE: u32 = 5;
/// `dst, src, idx, n, len`: `dst[i] = src[idx[i]]`, every index < `len`.
pub const OP_GATHER: u32 = 6;
/// `dst, src, idx, n, len`: `dst[idx[i]] = src[i]`, every index < `len`.
pub const OP_SCATTER: u32 = 7;
/// `c, a, b, n`: `C = A·B` for row-major `n × n` doubles.
pub const OP_MATMUL: u32 = 8;
/// `y, row, col, val, x, n`: `y = M·x` for an `n`-row matrix in compressed sparse rows: `row` has
/// `n + 1` integers, `col` and `val` (doubles) have `row[n]`; columns are < `n`.
pub const OP_SPMV: u32 = 9;
/// `row, col, dist, n, level`: one step of a breadth-first search on a graph in compressed sparse
/// rows: each neighbour of a vertex with `dist == level` whose own `dist` is all ones gets
/// `level + 1`. Result = number of vertices reached.
pub const OP_BFS_STEP: u32 = 10;
/// `base, idx, n, value, len`: `base[idx[i]] += value` atomically, every index < `len`.
pub const OP_ATOMIC_ADD: u32 = 11;
/// `base, start, steps, len`: `p = base[p]`, `steps` times from `start`, every value < `len`.
/// Result = the last `p`.
pub const OP_CHASE: u32 = 12;
/// `addr, bytes, direction`: migrates the pages that lie wholly or partly in the range, as a
/// program's hint (cause *user*); [`TO_DEVICE`] or [`TO_SYSTEM`]. Result = pages moved.
pub const OP_MIGRATE: u32 = 13;
/// `addr, bytes` (page-aligned): the guest needs the contents no longer. Reads return zeros
/// afterwards. Result = pages freed that had contents. Not in an address space: there the guest's kernel frees.
pub const OP_FREE: u32 = 14;
/// `addr, n, value`: `n` times, adds `value` to the word, wrapping, while the device has the page for itself: for
/// devices whose atomic operations are not atomic towards CPUs. Result = what the word held before.
pub const OP_EXCLUSIVE_ADD: u32 = 15;
/// `addr, bytes, hint`: tells the migration policy something about the pages that lie wholly or partly in the range:
/// `HINT_*`. The policy decides what to do with it.
pub const OP_HINT: u32 = 16;
/// The largest `n` of [`OP_EXCLUSIVE_ADD`].
pub const MAX_EXCLUSIVE_ADDS: u64 = 1 << 20;

/// [`OP_MIGRATE`]: into this accelerator's memory.
pub const TO_DEVICE: u64 = 1;
/// [`OP_MIGRATE`]: into system memory.
pub const TO_SYSTEM: u64 = 0;

/// [`OP_HINT`]: the pages should be nowhere in particular (what is so without hints).
pub const HINT_PREFER_NONE: u64 = 0;
/// [`OP_HINT`]: the pages should be in system memory.
pub const HINT_PREFER_SYSTEM: u64 = 1;
/// [`OP_HINT`]: the pages should be in this accelerator's memory.
pub const HINT_PREFER_DEVICE: u64 = 2;
/// [`OP_HINT`]: this accelerator should reach the pages where they are.
pub const HINT_ACCESSED: u64 = 3;
/// [`OP_HINT`]: takes [`HINT_ACCESSED`] back.
pub const HINT_NOT_ACCESSED: u64 = 4;
/// [`OP_HINT`]: the pages are read far more often than written.
pub const HINT_READ_MOSTLY: u64 = 5;
/// [`OP_HINT`]: takes [`HINT_READ_MOSTLY`] back.
pub const HINT_NOT_READ_MOSTLY: u64 = 6;

/// The command completed.
pub const STATUS_OK: u32 = 0;
/// No such opcode.
pub const STATUS_OPCODE: u32 = 1;
/// An argument is misaligned or out of its range.
pub const STATUS_ARGUMENT: u32 = 2;
/// An address is not in managed memory, or not in the address space.
pub const STATUS_ADDRESS: u32 = 3;
/// The device fault could not be resolved.
pub const STATUS_FAULT: u32 = 4;
/// The page does not permit the access.
pub const STATUS_PERMISSION: u32 = 5;
/// An index, column or vertex read from memory is out of range.
pub const STATUS_INDEX: u32 = 6;
/// The device was stopped or the address space closed before the command had completed.
pub const STATUS_ABORTED: u32 = 7;
