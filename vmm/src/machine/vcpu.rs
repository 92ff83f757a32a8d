//! One vCPU: enters the guest and serves its exits until the guest ends the run or the vCPU is stopped.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hmm_backend::limits::{self, Resource};
use hmm_backend::service::FatalFault;
use kvm_bindings::KVM_EXIT_MEMORY_FAULT;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use crate::ending::failure::{Code, Failure};
use crate::ending::{End, Ending};
use crate::machine::bus::{Bus, Next};
use crate::machine::exception::{ExceptionFrame, MACHINE_CHECK};
use crate::machine::kvm_machine::Machine;
use crate::machine::machine_check;
use crate::machine::memory_errors::{self, MemoryErrors};
use crate::machine::pause::Gate;

/// What all vCPUs of a machine share.
pub struct VcpuContext {
    /// The machine. A vCPU can write guest memory for as long as it exists, so its thread keeps that
    /// memory from being unmapped.
    pub machine: Machine,
    /// Devices by guest-physical address.
    pub mmio: Bus,
    /// Devices by port.
    pub ports: Bus,
    /// Reports of pages that cannot be supplied; none if such a page ends the run.
    pub memory_errors: Option<Arc<MemoryErrors>>,
    /// The end of the run, for a vCPU that must end it.
    pub ending: Arc<Ending>,
    /// Set when no vCPU is to enter the guest again.
    pub stop: AtomicBool,
    /// When the guest first accessed a device: the first sign that it executes instructions.
    pub first_exit: Arc<OnceLock<Instant>>,
    /// What vCPUs pass before they enter the guest; closed while the machine is paused.
    pub gate: Arc<Gate>,
    /// Accesses to devices so far: the guest's signs of life.
    pub accesses: AtomicU64,
}

impl VcpuContext {
    /// Makes what the vCPUs of this machine share, before any of them runs.
    pub(crate) fn new(
        machine: Machine,
        mmio: Bus,
        ports: Bus,
        memory_errors: Option<Arc<MemoryErrors>>,
        ending: Arc<Ending>,
        gate: Arc<Gate>,
    ) -> Arc<VcpuContext> {
        Arc::new(VcpuContext {
            machine,
            mmio,
            ports,
            memory_errors,
            ending,
            stop: AtomicBool::new(false),
            first_exit: Arc::default(),
            gate,
            accesses: AtomicU64::new(0),
        })
    }
}

/// A vCPU, to be run by a thread of its own.
pub struct Vcpu {
    index: u32,
    fd: VcpuFd,
    shared: Arc<VcpuContext>,
    /// The memory error that the guest was told of last.
    memory_error: Option<FatalFault>,
    put_off: PutOff,
}

/// Counts how often in a row KVM has put a vCPU off (EAGAIN). KVM does so once or twice to have `KVM_RUN` called again, for
/// instance when another vCPU has started this one; and without end where it gets no helper thread.
#[derive(Default)]
struct PutOff {
    tries: u32,
    since: Option<Instant>,
    /// How often in a row a signal has interrupted it, and since when.
    interruptions: u32,
    interrupted: Option<Instant>,
}

impl PutOff {
    /// This many interruptions in a row, less than [`Self::APART`] apart, are not caused by signals, which come every millisecond at
    /// most.
    const INTERRUPTIONS: u32 = 20_000;
    const APART: Duration = Duration::from_micros(50);

    /// Tries without a pause.
    const AT_ONCE: u32 = 16;
    /// Pause between two further tries.
    const PAUSE: Duration = Duration::from_millis(1);
    /// Tries, and time, after which the vCPU gives up: a temporary cause is over by then.
    const TRIES: u32 = 200;
    const TIME: Duration = Duration::from_secs(1);

    /// Counts a try, and pauses if there have been many. An error with the number of tries and of seconds if there have been too
    /// many.
    fn again(&mut self) -> Result<(), (u32, u64)> {
        self.tries += 1;
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.tries >= Self::TRIES && since.elapsed() >= Self::TIME {
            return Err((self.tries, since.elapsed().as_secs()));
        }
        if self.tries > Self::AT_ONCE {
            std::thread::sleep(Self::PAUSE);
        }
        Ok(())
    }

    /// Counts an interruption. False if there have been too many to be signals.
    fn interrupted(&mut self) -> bool {
        self.interruptions += 1;
        let since = *self.interrupted.get_or_insert_with(Instant::now);
        if self.interruptions < Self::INTERRUPTIONS {
            return true;
        }
        let apart = since.elapsed() / self.interruptions;
        self.interruptions = 0;
        self.interrupted = None;
        apart >= Self::APART
    }
}

/// Why `KVM_RUN` returned.
enum Exit {
    /// A device was accessed.
    Device(Next),
    /// A signal came.
    Interrupted,
}

/// Why `KVM_RUN` returned, where the vCPU cannot run on.
enum Problem {
    TripleFault,
    Internal,
    Entry(u64),
    Memory,
    Run(kvm_ioctls::Error),
    PutOff(u32, u64),
    Unknown(String),
}

impl Vcpu {
    /// Makes a vCPU whose registers are set, ready to run the guest.
    pub fn new(index: u32, fd: VcpuFd, shared: Arc<VcpuContext>) -> Vcpu {
        Vcpu {
            index,
            fd,
            shared,
            memory_error: None,
            put_off: PutOff::default(),
        }
    }

    /// Runs the guest until it leaves, fails or is stopped.
    pub fn run(mut self) {
        let shared = self.shared.clone();
        let _inside = shared.gate.enter();
        while !shared.stop.load(Ordering::Acquire) {
            if shared.gate.pass(&shared.stop) {
                self.tell_of_pause();
                continue;
            }
            let errors = self.shared.memory_errors.as_ref();
            let entered = errors.map(|errors| errors.now());
            let exit = self.enter();
            let error = match exit {
                Ok(Exit::Interrupted) => entered.and_then(|at| self.undelivered_error(at)),
                _ => {
                    self.drop_report();
                    None
                }
            };
            if let Some(fault) = error
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

    /// Tells a guest with KVM's clock that it was paused, so that it does not take the time for a lockup. All its clocks
    /// have gone on, as the host's have.
    fn tell_of_pause(&self) {
        // Refused where the guest has no such clock.
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Takes the memory error that this vCPU must be told of now. A signal has interrupted `KVM_RUN`, which began at this time.
    fn undelivered_error(&self, entered: Duration) -> Option<FatalFault> {
        let errors = self.shared.memory_errors.as_ref()?;
        errors.take_report(self.index, entered)
    }

    /// Drops this vCPU's report: no signal has interrupted `KVM_RUN`, so the vCPU has executed the access after all, or faults
    /// again when it executes it.
    fn drop_report(&self) {
        if let Some(errors) = &self.shared.memory_errors {
            errors.drop_report(self.index);
        }
    }

    /// Makes the guest take a machine check. Where KVM refuses, the error ends the run.
    fn machine_check(&mut self, fault: FatalFault) -> Result<(), Failure> {
        // The guest makes progress by it, so the interruptions so far do not count.
        self.put_off = PutOff::default();
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
        let run = self.fd.run();
        if !matches!(run, Ok(VcpuExit::Intr) | Err(_)) {
            self.put_off = PutOff::default();
        }
        match run {
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
            Ok(VcpuExit::Intr) => self.interrupted(),
            Ok(VcpuExit::Shutdown) => Err(Problem::TripleFault),
            Ok(VcpuExit::InternalError) => Err(Problem::Internal),
            Ok(VcpuExit::FailEntry(reason, _)) => Err(Problem::Entry(reason)),
            Ok(VcpuExit::MemoryFault { .. }) => Err(Problem::Memory),
            Ok(other) => Err(Problem::Unknown(format!("{other:?}"))),
            Err(error) => match error.errno() {
                // A signal: a kick.
                libc::EINTR => self.interrupted(),
                // KVM wants `KVM_RUN` to be called again.
                libc::EAGAIN => match self.put_off.again() {
                    Ok(()) => Ok(Exit::Device(Next::Continue)),
                    Err((tries, seconds)) => Err(Problem::PutOff(tries, seconds)),
                },
                libc::EFAULT => Err(Problem::Memory),
                _ => Err(Problem::Run(error)),
            },
        }
    }

    /// Counts a signal, such as a kick, that has interrupted `KVM_RUN`.
    fn interrupted(&mut self) -> Result<Exit, Problem> {
        match self.put_off.interrupted() {
            true => Ok(Exit::Interrupted),
            false => Err(Problem::Run(kvm_ioctls::Error::new(libc::EINTR))),
        }
    }

    fn describe(&mut self, problem: Problem) -> Failure {
        let vcpu = self.index;
        let rip = self.fd.get_regs().map_or(0, |registers| registers.rip);
        match problem {
            Problem::TripleFault => Failure::TripleFault { vcpu, rip },
            Problem::Entry(reason) => Failure::Entry { vcpu, rip, reason },
            Problem::Run(error) => Failure::Run { vcpu, rip, error },
            Problem::PutOff(tries, seconds) => Failure::PutOff {
                vcpu,
                tries,
                seconds,
                advice: no_helper_thread(),
            },
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
                // Only newer kernels give the address; others leave the reason of an earlier exit here.
                let is_known = run.exit_reason == KVM_EXIT_MEMORY_FAULT;
                // SAFETY: for this exit KVM fills this variant of the union, and every bit pattern of
                // its integers is valid anyway.
                let address = unsafe { run.__bindgen_anon_1.memory_fault.gpa };
                let address = is_known.then_some(address);
                Failure::Memory { vcpu, rip, address }
            }
        }
    }

    /// Returns the exception that the firmware reports; none if it was not the firmware that wrote the register.
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
            code: match frame.cs & 3 {
                0 => Code::Firmware,
                _ => Code::Guest,
            },
        })
    }
}

/// Says what to do where KVM gets no helper thread: names the limit that is reached, if that can be found out.
fn no_helper_thread() -> String {
    let refused = io::Error::from_raw_os_error(libc::EAGAIN);
    limits::advice(Resource::Thread, &refused).unwrap_or_else(|| {
        "raise the limits on processes and threads: `ulimit -u`, pids.max of the control group"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interruptions_without_signals_are_noticed() {
        let mut put_off = PutOff::default();
        let most = PutOff::INTERRUPTIONS;
        assert!((0..2 * most).any(|_| !put_off.interrupted()));
        // Interruptions with time between them are signals.
        let mut put_off = PutOff {
            interrupted: Instant::now().checked_sub(PutOff::APART * 2 * most),
            ..PutOff::default()
        };
        assert!((0..most).all(|_| put_off.interrupted()));
    }

    #[test]
    fn a_vcpu_that_is_put_off_for_ever_gives_up() {
        let mut put_off = PutOff::default();
        let begin = Instant::now();
        let tries = (1..).find(|_| put_off.again().is_err()).unwrap();
        assert!(tries >= PutOff::TRIES && begin.elapsed() >= PutOff::TIME);
        // Sleeps in between, so that it is not many more than there are milliseconds.
        assert!(
            u128::from(tries) <= begin.elapsed().as_millis() + 100,
            "{tries}"
        );
    }
}
