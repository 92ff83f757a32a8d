//! Reports to a vCPU that a page which it has accessed cannot be supplied.
//!
//! The vCPU sleeps in the kernel, in an access that can never complete. A signal gets it out of `KVM_RUN`;
//! its thread finds the report here, checks that it still holds, and lets the vCPU take a machine check.
//! A report that may be outdated is dropped: the vCPU executes the access again, and if the page is still not there, there is
//! another report.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use hmm_backend::Backend;
use hmm_backend::service::FatalFault;
use hmmvisor_devices::thread::{self, STOP_WITHIN, Thread};
use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::signal::SIGRTMIN;

use crate::ending::failure::Failure;
use crate::ending::{End, Ending};
use crate::machine::pause::Gate;

/// How long a vCPU may take to notice a kick before it gets another one.
const KICK_AGAIN: Duration = Duration::from_millis(1);

/// How many kicks a vCPU may miss. A vCPU misses more only where KVM itself emulates the access: KVM ignores the signal and
/// faults again, and each fault makes another report with another kick. Kicks are counted, not seconds: on a
/// machine that is overloaded or emulated, the kicks become fewer, too.
const GIVE_UP: u32 = 2000;

/// What becomes of a vCPU's access to a page that cannot be supplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnMemoryError {
    /// The vCPU takes a machine check. If the guest has no way to recover, the run ends.
    #[default]
    MachineCheck,
    /// The run ends.
    End,
}

impl FromStr for OnMemoryError {
    type Err = String;

    fn from_str(text: &str) -> Result<OnMemoryError, String> {
        [OnMemoryError::MachineCheck, OnMemoryError::End]
            .into_iter()
            .find(|choice| choice.to_string() == text)
            .ok_or_else(|| format!("`{text}` is neither machine-check nor end"))
    }
}

impl fmt::Display for OnMemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OnMemoryError::MachineCheck => "machine-check",
            OnMemoryError::End => "end",
        })
    }
}

/// Returns the failure with which a fault ends the run if no vCPU can recover from it. Managed memory begins at `base`.
pub fn failure(fault: &FatalFault, vcpu: Option<u32>, base: u64) -> Failure {
    Failure::Page {
        page: fault.page.0,
        address: base + fault.page.offset(),
        vcpu,
        cause: fault.cause.to_string(),
    }
}

/// A fault that its vCPU has not been told of.
struct PendingReport {
    fault: FatalFault,
    /// Kicks since the vCPU last took a report.
    kicks: u32,
}

/// Reports on their way from the fault service to vCPUs.
pub struct MemoryErrors {
    backend: Arc<Backend>,
    /// Guest-physical address of page 0.
    base: u64,
    /// One for each vCPU.
    reports: Box<[Mutex<Option<PendingReport>>]>,
    /// Closed while the machine is paused.
    gate: Arc<Gate>,
}

impl MemoryErrors {
    /// Makes an empty set of reports about this memory, whose page 0 has this guest-physical address, to vCPUs behind this gate.
    pub fn new(vcpus: u32, backend: Arc<Backend>, base: u64, gate: Arc<Gate>) -> MemoryErrors {
        MemoryErrors {
            backend,
            base,
            reports: (0..vcpus).map(|_| Mutex::new(None)).collect(),
            gate,
        }
    }

    fn report(&self, vcpu: u32) -> MutexGuard<'_, Option<PendingReport>> {
        self.reports[vcpu as usize].lock()
    }

    /// Notes that a fault of this vCPU cannot be resolved, in place of an older report: the newest one is about what the vCPU does
    /// now.
    fn put(&self, vcpu: u32, fault: FatalFault) {
        let mut report = self.report(vcpu);
        let missed = report.take().map_or(0, |old| old.kicks);
        let kicks = missed.saturating_add(1);
        *report = Some(PendingReport { fault, kicks });
    }

    /// Returns the time on the clock that [`Self::take_report`] compares with.
    pub fn now(&self) -> Duration {
        self.backend.now()
    }

    /// Takes the fault of which this vCPU must be told before it enters the guest again. Call it after each `KVM_RUN` that a signal
    /// has ended; `entered` is when that began. After any other `KVM_RUN`, call [`Self::drop_report`].
    pub fn take_report(&self, vcpu: u32, entered: Duration) -> Option<FatalFault> {
        let PendingReport { fault, .. } = self.report(vcpu).take()?;
        let is_now = fault.since >= entered && self.backend.is_current(&fault);
        is_now.then_some(fault)
    }

    /// Drops the report to this vCPU, which has executed the access after all, or will fault again.
    pub fn drop_report(&self, vcpu: u32) {
        *self.report(vcpu) = None;
    }
}

/// The thread that kicks vCPUs until they have taken their reports. Ends when all its [`Reporter`]s are gone.
pub struct Kicker(Option<Thread<()>>);

/// The fault service's end: takes its reports.
pub struct Reporter {
    errors: Arc<MemoryErrors>,
    kicker: Sender<Kick>,
}

/// A vCPU to be kicked, and the id of its thread.
struct Kick {
    vcpu: u32,
    thread: u32,
}

impl Kicker {
    /// Starts the thread. It ends the run by `ending` if a vCPU misses too many kicks.
    pub fn start(
        errors: &Arc<MemoryErrors>,
        ending: &Arc<Ending>,
    ) -> io::Result<(Kicker, Reporter)> {
        let (kicker, kicks) = mpsc::channel();
        let (errors, ending) = (errors.clone(), ending.clone());
        let reporter = Reporter {
            errors: errors.clone(),
            kicker,
        };
        let on_panic = ending.on_panic();
        let body = move || kick(&errors, &ending, &kicks);
        let thread = thread::spawn("memory-errors", on_panic, body)?;
        Ok((Kicker(Some(thread)), reporter))
    }
}

impl Drop for Kicker {
    /// Waits for the thread, which ends when the last reporter is dropped.
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // A panic has been reported already.
            let _ = thread.join_within(STOP_WITHIN);
        }
    }
}

impl Reporter {
    /// Reports a fault to the vCPU that the thread named in it runs.
    pub fn put(&self, vcpu: u32, fault: FatalFault) {
        let thread = fault.thread;
        self.errors.put(vcpu, fault);
        // This kick suffices usually; the kicker's thread repeats it if it was lost.
        interrupt(thread);
        // Fails only if the kicker has ended the run, or has panicked, which has been reported already.
        let _ = self.kicker.send(Kick { vcpu, thread });
    }
}

/// Kicks vCPUs until they have taken their reports: a kick that arrives between a vCPU's last look and its
/// `KVM_RUN` is lost.
fn kick(errors: &MemoryErrors, ending: &Ending, kicks: &Receiver<Kick>) {
    let mut waiting: Vec<Kick> = Vec::new();
    let mut kicked = Instant::now();
    loop {
        let next = if waiting.is_empty() {
            kicks.recv().map_err(RecvTimeoutError::from)
        } else {
            kicks.recv_timeout(KICK_AGAIN)
        };
        match next {
            Ok(kick) => {
                waiting.retain(|old| old.vcpu != kick.vcpu);
                waiting.push(kick);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // After every message, not only when none comes: the reports of one vCPU must not delay another one's kick.
        if kicked.elapsed() >= KICK_AGAIN {
            waiting.retain(|kick| kick_again(errors, kick));
            kicked = Instant::now();
        }
        if let Some(failure) = waiting.iter().find_map(|kick| deaf(errors, kick)) {
            // The first end counts.
            ending.set(End::Failed(failure));
            return;
        }
    }
}

/// Kicks a vCPU again if it has not taken its report; returns whether that was so. The report to a vCPU of a paused machine is
/// dropped: the vCPU executes its access again after the pause, and faults again.
fn kick_again(errors: &MemoryErrors, kick: &Kick) -> bool {
    let mut report = errors.report(kick.vcpu);
    if errors.gate.is_closed() {
        *report = None;
    }
    let Some(report) = &mut *report else {
        return false;
    };
    report.kicks = report.kicks.saturating_add(1);
    interrupt(kick.thread);
    true
}

/// Returns the failure that ends the run if this vCPU has missed too many kicks. A vCPU that cannot be interrupted faults again
/// at each kick, so there may never be a millisecond without a report.
fn deaf(errors: &MemoryErrors, kick: &Kick) -> Option<Failure> {
    let report = errors.report(kick.vcpu);
    let report = report.as_ref().filter(|report| report.kicks >= GIVE_UP)?;
    Some(failure(&report.fault, Some(kick.vcpu), errors.base))
}

/// Makes the system call return that this thread of the process is in. Has no effect if the thread has ended.
fn interrupt(thread: u32) {
    // SAFETY: takes integers; the signal's handler does nothing, in whatever thread of this process.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGRTMIN()) };
}
