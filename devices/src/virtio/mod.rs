//! Virtio devices behind virtio-mmio registers: balloon, block and entropy. `docs/devices.md` says what each offers.
//!
//! | module | what |
//! |---|---|
//! | `registers` | the transport's registers, a pure state machine |
//! | `device` | a device put together, and what vCPUs see of it |
//! | `worker` | its thread |
//! | `queue` | the device's end of a virtqueue |
//! | `ram` | guest-physical memory, pinned while it is in use |
//! | `balloon`, `statistics` | memory that the guest gives back |
//! | `block`, `disk` | a disk, and the file behind it |
//! | `rng` | random bytes |

mod balloon;
mod block;
mod device;
mod disk;
mod queue;
mod ram;
mod registers;
mod rng;
mod statistics;
mod worker;

pub use crate::guest_bytes::{GuestBuffer, GuestBytes};
pub use balloon::{Balloon, BalloonError, BalloonFigures, Hinting};
pub use block::block;
pub use device::{DeviceError, Model, Parts, Port, Reply, VirtioDevice};
pub use disk::{Disk, DiskError};
pub use queue::{Chain, Malformed};
pub use ram::{GuestRam, RamError};
pub use registers::Profile;
pub use rng::parts as rng;
pub use statistics::Statistics;
