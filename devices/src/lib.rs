//! The devices on a guest's bus: the emulated accelerator, and virtio devices ([`virtio`]). `docs/devices.md` is the data
//! sheet of all of them.
//!
//! The accelerator has registers, a command queue in managed memory, an MMU with a TLB, and compute kernels.
//!
//! It reaches guest memory only through an `hmm-backend` [`Mirror`](hmm_backend::mirror::Mirror) and knows of
//! migration only what a [`Driver`](hmm_backend::driver::Driver) is told: what it does here, any device model
//! can do.
//!
//! | module | what |
//! |---|---|
//! | `accelerator` | assembly, and the side that vCPUs see |
//! | `shared` | what vCPUs and the device's thread share |
//! | `registers` | the register file, a pure state machine |
//! | `processor` | the device's thread: fetches, executes and completes commands |
//! | `queue` | the ring in guest memory |
//! | `command` | decoding and validation, pure |
//! | `kernels` | what the commands compute, over any `memory::Memory` |
//! | `guest_memory` | that memory through the mirror |
//! | `mmu` | device page table and TLB |
//! | `spaces` | the guest's translations of virtual addresses |
//! | `space_registers`, `guest_fault` | the registers for them, and for what the device asks the guest |
//! | `driver` | the device's side of the migration contract |
//! | `thread`, `bell` | threads that report their panics, events that threads sleep on |
//! | `mmio` | the trait by which a machine uses a device; also for your own devices |
//! | `virtio` | virtio-mmio devices: balloon, block, entropy |

mod accelerator;
pub mod bell;
pub mod command;
mod driver;
pub mod error;
mod guest_fault;
pub mod guest_hint;
mod guest_memory;
mod interrupt;
pub mod kernels;
pub mod managed;
pub mod memory;
mod mmio;
mod mmu;
mod processor;
mod queue;
mod registers;
mod retry;
mod shared;
mod space_registers;
mod spaces;
mod stats;
pub mod thread;
pub mod virtio;

pub use accelerator::{Accelerator, AcceleratorConfig, AcceleratorError};
pub use driver::AcceleratorDriver;
pub use interrupt::{DeviceFailure, Interrupt};
pub use mmio::{EventFd, MmioDevice, NewDevice, NewDeviceError, Slot, SlotKind};
pub use stats::AcceleratorStats;
