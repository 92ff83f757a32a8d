//! Plugging devices in: a register window, an interrupt line and a doorbell for each.

use std::ops::Range;
use std::sync::Arc;

use hmm_backend::Backend;
use hmm_backend::limits::{Refusal, Resource};
use hmmvisor_abi::map;
use hmmvisor_devices::{Accelerator, AcceleratorConfig, MmioDevice, Slot, SlotKind};
use kvm_ioctls::{IoEventAddress, NoDatamatch};

use crate::ending::Ending;
use crate::machine::bus::{Device, Next};
use crate::machine::interrupts::InterruptLines;
use crate::machine::kvm_machine::Machine;
use crate::vm::{DeviceConfig, VmError, WrapDriver};

impl DeviceConfig {
    /// The accelerator for a place; `wrap` may put a driver in front of its own.
    pub(crate) fn make(
        self,
        slot: Slot<'_>,
        wrap: Option<&WrapDriver>,
    ) -> Result<Arc<Accelerator>, VmError> {
        let config = AcceleratorConfig {
            memory: self.memory,
            coherent: self.coherent,
            managed_base: slot.managed_base,
            vcpus: slot.vcpus,
            cpu: self.cpu,
        };
        let wrap = |own| match wrap {
            Some(wrap) => wrap(slot.index, own),
            None => own,
        };
        let (index, backend) = (slot.index, slot.backend);
        let accelerator = Accelerator::with_driver(index, config, backend, slot.irq, wrap)?;
        Ok(Arc::new(accelerator))
    }
}

/// A slot in use, as the guest's operating system is told of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotInfo {
    /// What is in it.
    pub kind: SlotKind,
    /// Guest-physical addresses of its registers.
    pub window: Range<u64>,
    /// Number of its interrupt, a pin of the I/O APIC: edge-triggered, active high, not shared.
    pub gsi: u32,
}

/// Windows and interrupt lines, given to one device after the other.
pub struct Slots<'a> {
    machine: &'a Machine,
    lines: Arc<InterruptLines>,
    vcpus: u32,
    ending: Arc<Ending>,
    pub devices: Devices,
}

impl Slots<'_> {
    /// Nothing is plugged in yet. `ending` will learn when a device fails.
    pub fn new<'a>(machine: &'a Machine, vcpus: u32, ending: &Arc<Ending>) -> Slots<'a> {
        Slots {
            machine,
            lines: machine.interrupt_lines(),
            vcpus,
            ending: ending.clone(),
            devices: Devices(Vec::new()),
        }
    }

    /// The slots in use, in the order of their windows.
    pub fn infos(&self) -> Vec<SlotInfo> {
        let devices = (0..).zip(&self.devices.0);
        devices
            .map(|(index, device)| SlotInfo {
                kind: device.kind(),
                window: window(index)..window(index) + map::ACCEL_STRIDE,
                gsi: self.lines.gsi(index),
            })
            .collect()
    }

    /// The place of the next device.
    pub fn next<'b>(&self, backend: &'b Arc<Backend>) -> Result<Slot<'b>, VmError> {
        let index = self.devices.0.len() as u32;
        let line = self.lines.line(index, &self.ending);
        let line = line.map_err(|error| VmError::Connect {
            what: "the interrupt",
            index,
            error: Refusal::new(Resource::Kvm, error),
        })?;
        Ok(Slot {
            index,
            backend,
            managed_base: self.machine.managed_base(),
            vcpus: self.vcpus,
            irq: Box::new(line),
        })
    }

    /// The device for that place: connects its doorbell to KVM.
    pub fn plug(&mut self, device: Arc<dyn MmioDevice>) -> Result<(), VmError> {
        let index = self.devices.0.len() as u32;
        self.devices.0.push(device.clone());
        if let Some((offset, event)) = device.doorbell() {
            // Any value and any size of access: the value says nothing.
            let address = IoEventAddress::Mmio(window(index) + offset);
            let vm = self.machine.vm();
            vm.register_ioevent(event, &address, NoDatamatch)
                .map_err(|error| VmError::Connect {
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
    pub fn stop(&self) {
        self.0.iter().for_each(|device| device.stop());
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Address of a device's register window.
pub fn window(index: u32) -> u64 {
    map::ACCEL + map::ACCEL_STRIDE * u64::from(index)
}

/// A device's register window.
pub struct Window(pub Arc<dyn MmioDevice>);

impl Device for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Next {
        self.0.write(offset, data);
        Next::Continue
    }
}
