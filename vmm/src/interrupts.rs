//! Device interrupts: one eventfd for each line, delivered by KVM as a message to a vCPU's local APIC.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use hmmvisor_abi::map;
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

/// KVM's numbers of our lines begin behind those of the I/O APIC.
const FIRST_GSI: u32 = 24;
/// Messages to this address, plus the APIC's number at bit 12, are interrupts.
const MESSAGE_ADDRESS: u32 = 0xfee0_0000;

const LINES: usize = map::IRQ_LINES as usize;

/// The interrupt lines of a machine and where they lead.
pub struct InterruptLines {
    vm: Arc<VmFd>,
    vcpus: u32,
    /// For each line its vCPU. KVM takes all routes at once.
    routes: Mutex<[Option<u32>; LINES]>,
}

impl InterruptLines {
    /// Lines that lead nowhere yet.
    pub fn new(vm: Arc<VmFd>, vcpus: u32) -> Arc<InterruptLines> {
        Arc::new(InterruptLines {
            vm,
            vcpus,
            routes: Mutex::default(),
        })
    }

    /// Line `number`, to be given to a device. Until it is routed, triggering it does nothing.
    pub fn line(self: &Arc<Self>, number: u32) -> io::Result<Line> {
        assert!((number as usize) < LINES);
        let event = EventFd::new(libc::EFD_NONBLOCK)?;
        self.vm
            .register_irqfd(&event, FIRST_GSI + number)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        Ok(Line {
            lines: self.clone(),
            number,
            event,
        })
    }

    fn route(&self, line: u32, vcpu: u32) -> bool {
        if vcpu >= self.vcpus {
            return false;
        }
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
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
                    gsi: FIRST_GSI + line,
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
}

impl hmmvisor_devices::Interrupt for Line {
    fn route(&self, vcpu: u32) -> bool {
        self.lines.route(self.number, vcpu)
    }

    fn trigger(&self) {
        // Cannot fail: KVM takes the count at once.
        let _ = self.event.write(1);
    }
}
