//! Device interrupts: one eventfd for each line.
//!
//! A small guest gets interrupts as messages to a vCPU's local APIC; a register of the device chooses the vCPU. An operating
//! system gets them through the pins of the I/O APIC, edge-triggered, and chooses the vCPU there.

use std::io;
use std::sync::Arc;

use hmmvisor_abi::map;
use hmmvisor_devices::{DeviceFailure, bell};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use crate::ending::Ending;

/// KVM's number of the first line that is a message: the numbers below are the I/O APIC's pins.
const FIRST_MESSAGE: u32 = 24;
/// The I/O APIC's pin of line 0, where lines are pins. Those below are the PC's own.
const FIRST_PIN: u32 = 8;
/// Messages to this address, plus the APIC's number at bit 12, are interrupts.
const MESSAGE_ADDRESS: u32 = 0xfee0_0000;

const LINES: usize = map::IRQ_LINES as usize;
const _: () = assert!(FIRST_PIN + map::IRQ_LINES as u32 <= FIRST_MESSAGE);

/// The interrupt lines of a machine, and the vCPUs that they interrupt.
pub struct InterruptLines {
    vm: Arc<VmFd>,
    vcpus: u32,
    /// KVM's number of line 0.
    first: u32,
    /// For each line that is a message, its vCPU; none where lines are pins. KVM takes all routes at once.
    routes: Option<Mutex<[Option<u32>; LINES]>>,
}

/// Returns an event. Writing it raises this pin of the I/O APIC for a moment.
pub fn pin_event(vm: &VmFd, pin: u32) -> io::Result<EventFd> {
    let event = EventFd::new(libc::EFD_NONBLOCK)?;
    vm.register_irqfd(&event, pin)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    Ok(event)
}

impl InterruptLines {
    /// Makes lines that are messages, to no vCPU yet.
    pub fn new(vm: Arc<VmFd>, vcpus: u32) -> Arc<InterruptLines> {
        Arc::new(InterruptLines {
            vm,
            vcpus,
            first: FIRST_MESSAGE,
            routes: Some(Mutex::default()),
        })
    }

    /// Makes lines that are pins of the I/O APIC, with the routes that KVM gives them.
    pub fn pins(vm: Arc<VmFd>, vcpus: u32) -> Arc<InterruptLines> {
        Arc::new(InterruptLines {
            vm,
            vcpus,
            first: FIRST_PIN,
            routes: None,
        })
    }

    /// Returns KVM's number of a line; for a pin that is also the guest's (its global system interrupt).
    pub fn gsi(&self, number: u32) -> u32 {
        self.first + number
    }

    /// Makes line `number` for a device. Until it is routed, triggering it does nothing. If the device fails, the line ends
    /// the run by `ending`.
    pub fn line(self: &Arc<Self>, number: u32, ending: &Arc<Ending>) -> io::Result<Line> {
        assert!((number as usize) < LINES);
        let event = pin_event(&self.vm, self.gsi(number))?;
        Ok(Line {
            lines: self.clone(),
            number,
            event,
            ending: ending.clone(),
        })
    }

    fn route(&self, line: u32, vcpu: u32) -> bool {
        if vcpu >= self.vcpus {
            return false;
        }
        let Some(routes) = &self.routes else {
            // The guest routes its pins itself.
            return true;
        };
        let mut routes = routes.lock();
        let mut changed = *routes;
        changed[line as usize] = Some(vcpu);
        let applied = self.apply(&changed);
        if applied {
            *routes = changed;
        }
        applied
    }

    fn apply(&self, routes: &[Option<u32>; LINES]) -> bool {
        let entries: Vec<_> = (0..)
            .zip(routes)
            .filter_map(|(line, vcpu)| {
                let mut entry = kvm_irq_routing_entry {
                    gsi: FIRST_MESSAGE + line,
                    type_: KVM_IRQ_ROUTING_MSI,
                    ..Default::default()
                };
                entry.u.msi = kvm_irq_routing_msi {
                    address_lo: MESSAGE_ADDRESS | (*vcpu)? << 12,
                    data: u32::from(map::IRQ_VECTOR_BASE) + line,
                    ..Default::default()
                };
                Some(entry)
            })
            .collect();
        KvmIrqRouting::from_entries(&entries)
            .is_ok_and(|table| self.vm.set_gsi_routing(&table).is_ok())
    }
}

/// A device's interrupt line.
pub struct Line {
    lines: Arc<InterruptLines>,
    number: u32,
    event: EventFd,
    ending: Arc<Ending>,
}

impl hmmvisor_devices::Interrupt for Line {
    fn route(&self, vcpu: u32) -> bool {
        self.lines.route(self.number, vcpu)
    }

    fn trigger(&self) {
        if let Err(error) = bell::ring(&self.event) {
            let what = "raising a device's interrupt (writing an eventfd)";
            self.ending.event_failed(what, &error);
        }
    }

    fn device_failed(&self, failure: DeviceFailure) {
        self.ending.device_failed(failure);
    }
}
