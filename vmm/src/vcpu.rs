//! One vCPU: enters the guest and serves its exits until the guest or somebody else ends that.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hmm_backend::FatalFault;
use kvm_bindings::KVM_EXIT_MEMORY_FAULT;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use crate::bus::{Bus, Next};
use crate::ending::{End, Ending};
use crate::failure::Failure;
use crate::machine::Machine;
use crate::machine_check;
use crate::memory_errors::{self, MemoryErrors};
use crate::ring0::{ExceptionFrame, MACHINE_CHECK};

/// What all vCPUs of a machine share.
pub struct Shared {
    /// The machine. A vCPU can write guest memory for as long as it exists, so its thread keeps that
    /// memory from being unmapped.
    pub machine: Machine,
    /// Devices by guest-physical address.
    pub mmio: Bus,
    /// Devices by port.
    pub ports: Bus,
    /// Pages that cannot be supplied; none if that ends the run.
    pub memory_errors: Option<Arc<MemoryErrors>>,
    /// Where a vCPU says that the run is over.
    pub ending: Arc<Ending>,
    /// No vCPU is to enter the guest any more.
    pub stop: AtomicBool,
    /// When the first instruction of the guest made itself felt.
    pub first_exit: OnceLock<Instant>,
    /// Accesses to devices so far: the guest's signs of life.
    pub accesses: AtomicU64,
}

/// A vCPU, to be run by a thread of its own.
pub struct Vcpu {
    index: u32,
    fd: VcpuFd,
    shared: Arc<Shared>,
    /// What the guest was told last.
    memory_error: Option<FatalFault>,
}

/// Why `KVM_RUN` returned.
enum Exit {
    /// A device was accessed.
    Device(Next),
    /// A signal came.
    Interrupted,
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
        Vcpu {
            index,
            fd,
            shared,
            memory_error: None,
        }
    }

    /// Runs the guest until it leaves, fails or is stopped.
    pub fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            let errors = self.shared.memory_errors.as_ref();
            let entered = errors.map(|errors| errors.now());
            let exit = self.enter();
            let interrupted = matches!(exit, Ok(Exit::Interrupted));
            if let Some(fault) = entered.and_then(|at| self.untold_error(at, interrupted))
                && let Err(failure) = self.machine_check(fault)
            {
                return self.shared.ending.set(End::Failed(failure));
            }
            match exit {
                Ok(Exit::Interrupted | Exit::Device(Next::Continue)) => {}
                Ok(Exit::Device(Next::Leave)) => return,
                Ok(Exit::Device(Next::Exception)) => {
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

    /// The memory error that this vCPU, which entered the guest at this time, must be told of now.
    fn untold_error(&self, entered: Duration, interrupted: bool) -> Option<FatalFault> {
        let errors = self.shared.memory_errors.as_ref()?;
        errors.take(self.index, entered, interrupted)
    }

    /// Makes the guest take a machine check. Where KVM refuses, the error ends the run.
    fn machine_check(&mut self, fault: FatalFault) -> Result<(), Failure> {
        let base = self.shared.machine.managed_base();
        let delivered = machine_check::deliver(&self.fd, &fault, base);
        let failure = memory_errors::failure(&fault, Some(self.index), base);
        self.memory_error = Some(fault);
        delivered.map_err(|_| failure)
    }

    fn enter(&mut self) -> Result<Exit, Problem> {
        let shared = &*self.shared;
        // Only an instruction of the guest can cause an exit to a device.
        let seen = || {
            shared.first_exit.get_or_init(Instant::now);
            shared.accesses.fetch_add(1, Ordering::Relaxed);
        };
        match self.fd.run() {
            Ok(VcpuExit::MmioRead(address, data)) => {
                seen();
                shared.mmio.read(address, data);
                Ok(Exit::Device(Next::Continue))
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                seen();
                Ok(Exit::Device(shared.mmio.write(address, data)))
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                seen();
                shared.ports.read(port.into(), data);
                Ok(Exit::Device(Next::Continue))
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                seen();
                Ok(Exit::Device(shared.ports.write(port.into(), data)))
            }
            Ok(VcpuExit::Intr) => Ok(Exit::Interrupted),
            Ok(VcpuExit::Shutdown) => Err(Problem::TripleFault),
            Ok(VcpuExit::InternalError) => Err(Problem::Internal),
            Ok(VcpuExit::FailEntry(reason, _)) => Err(Problem::Entry(reason)),
            Ok(VcpuExit::MemoryFault { .. }) => Err(Problem::Memory),
            Ok(other) => Err(Problem::Unknown(format!("{other:?}"))),
            Err(error) => match error.errno() {
                // A kick.
                libc::EINTR => Ok(Exit::Interrupted),
                // KVM wants to be asked again.
                libc::EAGAIN => Ok(Exit::Device(Next::Continue)),
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
        if frame.vector == MACHINE_CHECK
            && let Some(fault) = &self.memory_error
        {
            // A page that could not be supplied, and the guest has no way to recover.
            let base = self.shared.machine.managed_base();
            return Some(memory_errors::failure(fault, Some(self.index), base));
        }
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
