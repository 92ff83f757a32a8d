//! Plugging devices in: a register window, an interrupt line and a doorbell for each.

use std::ops::Range;
use std::sync::Arc;

use hmm_backend::Backend;
use hmm_backend::limits::{Refusal, Resource};
use hmmvisor_abi::map;
use hmmvisor_devices::{MmioDevice, Slot, SlotKind};
use kvm_ioctls::{IoEventAddress, NoDatamatch};

use super::bus::{Bus, Device, Next};
use super::kvm_machine::{Machine, MachineError};
use crate::ending::Ending;

/// What a guest's operating system is told of a slot in use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotInfo {
    /// The kind of device in it.
    pub kind: SlotKind,
    /// Guest-physical addresses of its registers.
    pub window: Range<u64>,
    /// Number of its interrupt, a pin of the I/O APIC: edge-triggered, active high, not shared.
    pub gsi: u32,
}

/// Windows and interrupt lines, given to one device after the other.
pub struct Slots<'a> {
    machine: &'a Machine,
    ending: Arc<Ending>,
    /// The devices that have been plugged in.
    pub devices: Devices,
}

impl Slots<'_> {
    /// Makes slots without devices. A device that fails ends the run by `ending`.
    pub fn new<'a>(machine: &'a Machine, ending: &Arc<Ending>) -> Slots<'a> {
        Slots {
            machine,
            ending: ending.clone(),
            devices: Devices(Vec::new()),
        }
    }

    /// Lists the slots in use, in the order of their windows.
    pub fn infos(&self) -> Vec<SlotInfo> {
        let devices = (0..).zip(&self.devices.0);
        devices
            .map(|(index, device)| SlotInfo {
                kind: device.kind(),
                window: window(index)..window(index) + map::ACCEL_STRIDE,
                gsi: self.machine.interrupt_lines().gsi(index),
            })
            .collect()
    }

    /// Makes the next device's slot.
    pub fn next<'b>(&self, backend: &'b Arc<Backend>) -> Result<Slot<'b>, MachineError> {
        let index = self.devices.0.len() as u32;
        let line = self.machine.interrupt_lines().line(index, &self.ending);
        let line = line.map_err(|error| MachineError::Connect {
            what: "the interrupt",
            index,
            error: Refusal::new(Resource::Kvm, error),
        })?;
        Ok(Slot {
            index,
            backend,
            managed_base: self.machine.managed_base(),
            vcpus: self.machine.vcpus(),
            irq: Box::new(line),
        })
    }

    /// Puts a device into the slot that [`Self::next`] has made, and connects its doorbell to KVM.
    pub fn plug(&mut self, device: Arc<dyn MmioDevice>) -> Result<(), MachineError> {
        let index = self.devices.0.len() as u32;
        self.devices.0.push(device.clone());
        if let Some((offset, event)) = device.doorbell() {
            // Any value and any size of access rings: the value has no meaning.
            let address = IoEventAddress::Mmio(window(index) + offset);
            let vm = self.machine.vm();
            vm.register_ioevent(event, &address, NoDatamatch)
                .map_err(|error| MachineError::Connect {
                    what: "the doorbell",
                    index,
                    error: Refusal::new(Resource::Kvm, error.into()),
                })?;
        }
        Ok(())
    }
}

/// All devices in the order of their windows, the accelerators first. Dropping it stops them.
pub struct Devices(pub Vec<Arc<dyn MmioDevice>>);

impl Devices {
    /// Puts the devices' register windows on a bus.
    pub fn insert_windows(&self, mmio: &mut Bus) {
        for (index, device) in (0..).zip(&self.0) {
            let window = window(index);
            let range = window..window + map::ACCEL_STRIDE;
            mmio.insert(range, Arc::new(Window(device.clone())));
        }
    }

    /// Stops all devices. Idempotent, as [`MmioDevice::stop`] is.
    pub fn stop(&self) {
        self.0.iter().for_each(|device| device.stop());
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Returns the address of a device's register window.
fn window(index: u32) -> u64 {
    map::ACCEL + map::ACCEL_STRIDE * u64::from(index)
}

/// A device's register window.
struct Window(Arc<dyn MmioDevice>);

impl Device for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Next {
        self.0.write(offset, data);
        Next::Continue
    }
}
