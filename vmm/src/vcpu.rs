//! One vCPU: enters the guest and serves its exits until the guest or somebody else ends that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use kvm_bindings::KVM_EXIT_MEMORY_FAULT;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use crate::bus::{Bus, Next};
use crate::ending::{End, Ending};
use crate::failure::Failure;
use crate::machine::Machine;
use crate::ring0::ExceptionFrame;

/// What all vCPUs of a machine share.
pub struct Shared {
    /// The machine. A vCPU can write guest memory for as long as it exists, so its thread keeps that
    /// memory from being unmapped.
    pub machine: Machine,
    /// Devices by guest-physical address.
    pub mmio: Bus,
    /// Devices by port.
    pub ports: Bus,
    /// Where a vCPU says that the run is over.
    pub ending: Arc<Ending>,
    /// No vCPU is to enter the guest any more.
    pub stop: AtomicBool,
    /// When the first instruction of the guest made itself felt.
    pub first_exit: OnceLock<Instant>,
}

/// A vCPU, to be run by a thread of its own.
pub struct Vcpu {
    index: u32,
    fd: VcpuFd,
    shared: Arc<Shared>,
}

/// Why `KVM_RUN` returned for good.
enum Problem {
    TripleFault,
    Internal,
    Entry(u64),
    Memory,
    Run(kvm_ioctls::Error),
    Unknown(String),
}

impl Vcpu {
    /// A vCPU that [`crate::machine::Machine::vcpu`] has prepared.
    pub fn new(index: u32, fd: VcpuFd, shared: Arc<Shared>) -> Vcpu {
        Vcpu { index, fd, shared }
    }

    /// Runs the guest until it leaves, fails or is stopped.
    pub fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            let next = self.enter();
            match next {
                Ok(Next::Continue) => {}
                Ok(Next::Leave) => return,
                Ok(Next::Exception) => {
                    // Only the firmware may report an exception; from ring 3 it is one more write
                    // to a register that does not exist.
                    if let Some(failure) = self.exception() {
                        return self.shared.ending.set(End::Failed(failure));
                    }
                }
                Err(problem) => {
                    let failure = self.describe(problem);
                    return self.shared.ending.set(End::Failed(failure));
                }
            }
        }
    }

    fn enter(&mut self) -> Result<Next, Problem> {
        let shared = &*self.shared;
        // Only an instruction of the guest can cause an exit to a device.
        let seen = || _ = shared.first_exit.get_or_init(Instant::now);
        match self.fd.run() {
            Ok(VcpuExit::MmioRead(address, data)) => {
                seen();
                shared.mmio.read(address, data);
                Ok(Next::Continue)
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                seen();
                Ok(shared.mmio.write(address, data))
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                seen();
                shared.ports.read(port.into(), data);
                Ok(Next::Continue)
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                seen();
                Ok(shared.ports.write(port.into(), data))
            }
            Ok(VcpuExit::Intr) => Ok(Next::Continue),
            Ok(VcpuExit::Shutdown) => Err(Problem::TripleFault),
            Ok(VcpuExit::InternalError) => Err(Problem::Internal),
            Ok(VcpuExit::FailEntry(reason, _)) => Err(Problem::Entry(reason)),
            Ok(VcpuExit::MemoryFault { .. }) => Err(Problem::Memory),
            Ok(other) => Err(Problem::Unknown(format!("{other:?}"))),
            Err(error) => match error.errno() {
                // A kick; or KVM wants to be asked again.
                libc::EINTR | libc::EAGAIN => Ok(Next::Continue),
                libc::EFAULT => Err(Problem::Memory),
                _ => Err(Problem::Run(error)),
            },
        }
    }

    fn describe(&mut self, problem: Problem) -> Failure {
        let vcpu = self.index;
        let rip = self.fd.get_regs().map_or(0, |registers| registers.rip);
        match problem {
            Problem::TripleFault => Failure::TripleFault { vcpu, rip },
            Problem::Entry(reason) => Failure::Entry { vcpu, rip, reason },
            Problem::Run(error) => Failure::Run { vcpu, rip, error },
            Problem::Unknown(exit) => Failure::UnknownExit { vcpu, rip, exit },
            Problem::Internal => {
                let run = self.fd.get_kvm_run();
                // SAFETY: for this exit KVM fills this variant of the union, and every bit pattern
                // of its integers is valid anyway.
                let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
                Failure::Internal {
                    vcpu,
                    rip,
                    suberror,
                }
            }
            Problem::Memory => {
                let run = self.fd.get_kvm_run();
                // Only newer kernels say where; the others leave an older exit's reason here.
                let is_known = run.exit_reason == KVM_EXIT_MEMORY_FAULT;
                // SAFETY: for this exit KVM fills this variant of the union, and every bit pattern of
                // its integers is valid anyway.
                let address = unsafe { run.__bindgen_anon_1.memory_fault.gpa };
                let address = is_known.then_some(address);
                Failure::Memory { vcpu, rip, address }
            }
        }
    }

    /// What the firmware saved; none if it was not the firmware that wrote the register.
    fn exception(&self) -> Option<Failure> {
        let system = self.fd.get_sregs().ok()?;
        if system.cs.selector & 3 != 0 {
            return None;
        }
        let stack = self.fd.get_regs().ok()?.rsp;
        let frame: ExceptionFrame = self
            .shared
            .machine
            .ram()
            .read_obj(GuestAddress(stack))
            .ok()?;
        Some(Failure::Exception {
            vcpu: self.index,
            vector: frame.vector,
            error_code: frame.error_code,
            rip: frame.rip,
            cr2: system.cr2,
            in_firmware: frame.cs & 3 == 0,
        })
    }
}
