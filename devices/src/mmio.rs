//! The traits by which a machine uses a device: registers, a constructor, a way to stop it. The
//! accelerator is connected through this trait and nothing else; so is any device of a user of this crate.

use std::error::Error;
use std::sync::Arc;

use hmm_backend::Backend;
pub use vmm_sys_util::eventfd::EventFd;

use crate::Interrupt;

/// The kind of a device: how the machine describes the device's slot to a guest's operating system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotKind {
    /// An [`Accelerator`](crate::Accelerator), or a device with the same registers.
    Accelerator,
    /// A virtio device whose registers are as virtio-mmio has them.
    Virtio,
    /// Some other device; operating systems get no description of it.
    Foreign,
}

/// A device with a register window of 4 KiB.
pub trait MmioDevice: Send + Sync {
    /// The kind that the machine's description gives an operating system. Small guests do not read it.
    fn kind(&self) -> SlotKind {
        SlotKind::Foreign
    }

    /// A vCPU reads `data.len()` bytes (1, 2, 4 or 8) at `offset`; `data` is zero. Called from all vCPU threads at once.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// A vCPU writes. It may sleep here for a few milliseconds, and in a reset until the device has finished what it has in
    /// hand, but takes no interrupts meanwhile.
    fn write(&self, offset: u64, data: &[u8]);

    /// A register whose writes KVM turns into events on a descriptor, without a call of [`MmioDevice::write`] and without
    /// a detour through this process's user space: its offset and the event.
    fn doorbell(&self) -> Option<(u64, &EventFd)> {
        None
    }

    /// Stops the device: when it returns, no thread of the device runs any more, and no vCPU sleeps in one of its
    /// registers. Must return within seconds: a thread that does not end by then is left behind ([`crate::thread`]). May be called more than once. The device stays attached to the backend, so that what is in its memory
    /// can still migrate back.
    fn stop(&self);
}

/// The place of a device that is about to be made, and what the machine offers it.
pub struct Slot<'a> {
    /// Number of the register window, and of the interrupt line.
    pub index: u32,
    /// Managed memory, to attach to.
    pub backend: &'a Arc<Backend>,
    /// Guest-physical address of page 0 of managed memory; guest-physical address and page are this far apart everywhere.
    pub managed_base: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// The interrupt line.
    pub irq: Box<dyn Interrupt>,
}

/// Makes a device. On an error, whatever it has attached to the backend must be detached again.
pub type NewDevice = Box<dyn FnOnce(Slot<'_>) -> Result<Arc<dyn MmioDevice>, NewDeviceError>>;

/// Why a device could not be made.
pub type NewDeviceError = Box<dyn Error + Send + Sync>;
