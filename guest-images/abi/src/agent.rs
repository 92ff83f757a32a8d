//! The interface between the test kit and the embedded guest's workload `agent`: one command at a time for each vCPU.
//!
//! Each vCPU has a [`Mailbox`] in boot RAM, which is not managed, so that commands themselves never fault. The host
//! writes a command and then counts [`Mailbox::submitted`] up; the vCPU executes it, writes the answer and then sets
//! [`Mailbox::completed`] to the same number. In between the vCPU sleeps in [`REG_NEXT`], a register of a device that
//! only the test kit has.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// Address of vCPU 0's mailbox, in boot RAM between the interrupt counters and the image.
pub const MAILBOXES: u64 = 0x18_0000;
/// Distance between two vCPUs' mailboxes.
pub const MAILBOX_STRIDE: u64 = 0x100;

/// Address of a vCPU's mailbox.
pub const fn mailbox(vcpu: u64) -> u64 {
    MAILBOXES + vcpu * MAILBOX_STRIDE
}

const _: () = assert!(size_of::<Mailbox>() as u64 <= MAILBOX_STRIDE);
const _: () = assert!(MAILBOXES >= crate::map::irq_counter(crate::map::MAX_VCPUS, 0));
const _: () = assert!(mailbox(crate::map::MAX_VCPUS) <= crate::map::IMAGE_BASE);

/// Base of the test kit's device.
pub const WINDOW: u64 = 0xd000_2000;
/// Size of its window in bytes.
pub const WINDOW_SIZE: u64 = 0x1000;
/// Read: [`ID_VALUE`].
pub const REG_ID: u64 = 0x00;
/// Write, by vCPU `value`: it has completed what it had to do; returns when there is a new command, or
/// after a while.
pub const REG_NEXT: u64 = 0x08;
/// Write, by vCPU `value`: the host executes the command in the mailbox and writes the answer.
pub const REG_CALL: u64 = 0x10;
/// Value of [`REG_ID`]: `"HMMAGENT"`, little-endian.
pub const ID_VALUE: u64 = u64::from_le_bytes(*b"HMMAGENT");

/// Bytes at the end of managed memory that the agent keeps for the accelerators' queues, if there are accelerators:
/// one block, so that no policy moves it along with other pages.
pub const RESERVED: u64 = 2 << 20;

/// A vCPU's command and its answer.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Mailbox {
    /// Number of commands so far; written by the host after the command.
    pub submitted: AtomicU64,
    /// Number of commands executed; written by the guest after the answer.
    pub completed: AtomicU64,
    /// The command: `OP_*`.
    pub opcode: AtomicU64,
    /// Its arguments. Addresses are guest-physical, pages and words wholly in managed memory.
    pub args: [AtomicU64; 8],
    /// Not 0: [`OP_LOOP`] is to end after this round.
    pub stop: AtomicU64,
    /// The answer: `STATUS_*`.
    pub status: AtomicU32,
    /// With [`STATUS_ACCELERATOR`]: the completion's status.
    pub accel_status: AtomicU32,
    /// The result.
    pub result: AtomicU64,
    /// The address that an error is about.
    pub address: AtomicU64,
    /// The address that the command is about to access or has accessed last, 0 for none.
    pub at: AtomicU64,
    /// Rounds of [`OP_LOOP`] done so far.
    pub rounds: AtomicU64,
}

/// `address`: result = the word.
pub const OP_READ: u64 = 1;
/// `address, value`.
pub const OP_WRITE: u64 = 2;
/// `address, expected, new`: result = the word before; `new` is written if that is `expected`.
pub const OP_COMPARE_EXCHANGE: u64 = 3;
/// `address, value`: result = the word before.
pub const OP_ADD: u64 = 4;
/// `address, pages, value, rounds`: adds to the word at `address` and to those at the same place in the pages that
/// follow, atomically; `rounds` times, or until [`Mailbox::stop`] if that is 0. Result = rounds done.
pub const OP_LOOP: u64 = 5;
/// `address, pages, start`: word `i` becomes `start + i`.
pub const OP_FILL: u64 = 6;
/// `address, pages`: result = [`checksum`] of the words.
pub const OP_CHECKSUM: u64 = 7;
/// `address, pages, start`: the words must be as [`OP_FILL`] writes them; otherwise [`STATUS_WRONG_DATA`] with the
/// first wrong word's address, and the word as result.
pub const OP_VERIFY: u64 = 8;
/// `address, pages`: the contents are no longer needed. By accelerator 0 if there is one, by [`REG_CALL`]
/// otherwise. Result = pages freed that had contents.
pub const OP_FREE: u64 = 9;
/// `address, pages, on`: makes pages read-only (1) or lifts that (0), by [`REG_CALL`].
pub const OP_READ_ONLY: u64 = 10;
/// `accelerator, opcode, arguments …`: executes an accelerator's command. Result = its result.
pub const OP_SUBMIT: u64 = 11;
/// `accelerator`: disables and enables its queue.
pub const OP_RESET: u64 = 12;

/// Done.
pub const STATUS_OK: u32 = 0;
/// No such command, or one with arguments out of range.
pub const STATUS_REFUSED: u32 = 1;
/// The page at the address cannot be supplied. The result is the reason, see [`crate::memory_error`].
pub const STATUS_LOST: u32 = 2;
/// The page at the address is read-only. The result is the reason, see [`crate::memory_error`].
pub const STATUS_PERMISSION: u32 = 3;
/// The word at the address is wrong.
pub const STATUS_WRONG_DATA: u32 = 4;
/// The accelerator's command failed.
pub const STATUS_ACCELERATOR: u32 = 5;
/// The accelerator is disabled, because it was stopped.
pub const STATUS_DISABLED: u32 = 6;

/// A sum that depends on the words' order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum(u64);

impl Checksum {
    /// One more word.
    pub fn add(&mut self, word: u64) {
        self.0 = self.0.rotate_left(5).wrapping_add(word);
    }

    /// The sum so far.
    pub fn value(self) -> u64 {
        self.0
    }
}

/// The [`Checksum`] of these words.
pub fn checksum(words: impl IntoIterator<Item = u64>) -> u64 {
    let mut sum = Checksum::default();
    words.into_iter().for_each(|word| sum.add(word));
    sum.value()
}
