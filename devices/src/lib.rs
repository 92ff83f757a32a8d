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
//! | `accelerator` | the emulated accelerator: registers, queue, MMU, and the thread that executes commands |
//! | `commands` | what it can be told and what that computes, over any `memory::Memory`: pure |
//! | `guest_bytes` | bytes of guest memory that commands and requests name |
//! | `virtio` | virtio-mmio devices: balloon, block, entropy |
//! | `mmio`, `interrupt` | the trait by which a machine uses a device; also for your own devices |
//! | `thread`, `bell`, `retry` | threads that report their panics, events that threads sleep on, calls that signals interrupt |

mod accelerator;
pub mod bell;
pub mod commands;
pub mod guest_bytes;
mod interrupt;
mod mmio;
pub mod retry;
pub mod thread;
pub mod virtio;

pub use accelerator::{
    Accelerator, AcceleratorConfig, AcceleratorDriver, AcceleratorError, AcceleratorStats,
    CommandInFlight,
};
pub use interrupt::{DeviceFailure, Interrupt};
pub use mmio::{EventFd, MmioDevice, NewDevice, NewDeviceError, Slot, SlotKind};
