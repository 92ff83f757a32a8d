//! The virtio devices of a configuration, as constructors for the slots behind the accelerators.

use std::sync::{Arc, OnceLock};

use hmm_backend::pages::Permission;
use hmmvisor_devices::virtio::{self, Balloon, Disk, DiskError, GuestRam, Parts, VirtioDevice};
use hmmvisor_devices::{NewDevice, Slot};

use crate::config::Config;
use crate::config::virtio::BalloonConfig;

/// The virtio devices of a machine that is about to be made.
pub struct VirtioDevices {
    /// Their constructors, for [`crate::vm::Managed::foreign`]: disks in their order, then the balloon, then the entropy
    /// device.
    pub new: Vec<NewDevice>,
    /// The balloon, once it has been made, if there is one.
    pub balloon: Arc<OnceLock<Balloon>>,
}

/// Opens the disks, and returns the constructors of all virtio devices.
pub fn devices(config: &Config) -> Result<VirtioDevices, DiskError> {
    let mut new: Vec<NewDevice> = Vec::new();
    for (number, disk) in config.disk.iter().enumerate() {
        let access = match disk.read_only {
            true => Permission::ReadOnly,
            false => Permission::Writable,
        };
        let disk = Disk::open(&disk.file, access)?;
        new.push(device(virtio::block(number, disk)));
    }
    let made_balloon = Arc::new(OnceLock::new());
    if let Some(BalloonConfig { size, .. }) = config.effective_balloon() {
        let made = made_balloon.clone();
        new.push(Box::new(move |slot: Slot<'_>| {
            let (ram, irq) = connect(slot);
            let balloon = Balloon::new(size.0, ram, irq)?;
            let device = balloon.device().clone();
            // Setting it cannot fail, because there is one balloon only.
            let _ = made.set(balloon);
            Ok(device)
        }));
    }
    if config.has_entropy() {
        new.push(device(virtio::rng()));
    }
    Ok(VirtioDevices {
        new,
        balloon: made_balloon,
    })
}

fn device(parts: Parts) -> NewDevice {
    Box::new(move |slot: Slot<'_>| {
        let (ram, irq) = connect(slot);
        Ok(Arc::new(VirtioDevice::new(parts, ram, irq)?))
    })
}

fn connect(slot: Slot<'_>) -> (GuestRam, Box<dyn hmmvisor_devices::Interrupt>) {
    // Virtio has no register for it. An operating system routes its interrupts itself; in a small guest, vCPU 0 has them
    // all. There always is a vCPU 0, and if KVM refuses the route, the driver polls in vain: nothing worse.
    slot.irq.route(0);
    (GuestRam::managed(slot.backend, slot.managed_base), slot.irq)
}
