//! The threads that run vCPUs: started together, stopped at any moment.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Once};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::cpus;
use crate::ending::End;
use crate::failure::Failure;
use crate::vcpu::{Shared, Vcpu};

/// How long a vCPU may take to notice a kick before it gets another one.
const KICK_AGAIN: Duration = Duration::from_millis(1);

/// How long all of them may take before their page faults are abandoned.
const ABANDON_FAULTS: Duration = Duration::from_millis(500);

/// How long all of them may take at all.
const GIVE_UP: Duration = Duration::from_secs(5);

/// Which vCPU a host thread runs.
#[derive(Clone)]
pub struct ThreadIds(Arc<[AtomicU32]>);

impl ThreadIds {
    /// No vCPU has a thread yet.
    pub fn new(vcpus: u32) -> ThreadIds {
        ThreadIds((0..vcpus).map(|_| AtomicU32::new(0)).collect())
    }

    /// The vCPU run by the thread with this id, as `gettid` returns it.
    pub fn vcpu(&self, thread: u32) -> Option<u32> {
        if thread == 0 {
            // Unknown to the kernel, or not started yet here.
            return None;
        }
        let position = self
            .0
            .iter()
            .position(|id| id.load(Ordering::Acquire) == thread);
        position.map(|index| index as u32)
    }

    /// The threads' ids and their vCPUs, as far as the threads have started.
    pub fn all(&self) -> BTreeMap<u32, u32> {
        let ids = self.0.iter().map(|id| id.load(Ordering::Acquire));
        ids.zip(0..).filter(|(id, _)| *id != 0).collect()
    }

    fn enter(&self, vcpu: u32) {
        // SAFETY: has no arguments and cannot fail.
        let id = unsafe { libc::gettid() };
        self.0[vcpu as usize].store(id as u32, Ordering::Release);
    }
}

/// Running vCPU threads; stopped and joined when dropped.
pub struct VcpuThreads {
    /// None for a thread that has ended and was joined.
    handles: Vec<Option<JoinHandle<()>>>,
    /// Each thread's index, when it ends.
    ended: Receiver<usize>,
    shared: Arc<Shared>,
}

impl VcpuThreads {
    /// Starts one thread for each vCPU; `cpus` are the host CPUs to pin them to, cyclically, or
    /// empty.
    pub fn start(
        vcpus: Vec<Vcpu>,
        cpus: &[usize],
        ids: &ThreadIds,
        shared: &Arc<Shared>,
    ) -> io::Result<VcpuThreads> {
        install_kick_handler()?;
        // From here on a failure drops, and thereby stops, what has been started.
        let (report_end, ended) = mpsc::channel();
        let mut threads = VcpuThreads {
            handles: Vec::new(),
            ended,
            shared: shared.clone(),
        };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let (ids, shared) = (ids.clone(), shared.clone());
            let cpu = cpus.iter().cycle().nth(index).copied();
            let report_end = report_end.clone();
            let body = move || {
                let _report = ReportEnd {
                    index,
                    report_end,
                    shared,
                };
                ids.enter(index as u32);
                // A vCPU is woken in the middle of the service of its fault, when its page is there. The
                // service thread, often on the same CPU, is about to bring the pages that the vCPU will
                // touch next: let it. Only costs speed if it fails.
                let _ = cpus::do_not_preempt_wakers();
                if let Some(cpu) = cpu {
                    // Only costs speed if it fails, for example because the CPU has gone offline.
                    let _ = cpus::pin_this_thread(cpu);
                }
                vcpu.run();
            };
            let builder = thread::Builder::new().name(format!("vcpu{index}"));
            threads.handles.push(Some(builder.spawn(body)?));
        }
        Ok(threads)
    }

    /// Makes every vCPU leave the guest and waits for its thread. Idempotent.
    ///
    /// There is one thing that no signal but a deadly one interrupts: KVM itself, on behalf of an
    /// instruction that it emulates, accessing a page that nobody supplies. If that is what keeps a
    /// vCPU, the page is supplied as zeros, which nobody will see. Where even that does not help, because
    /// the page is none of the backend's, the thread is left behind, to end with the process: it owns
    /// what it uses, and never enters the guest again.
    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // A kick makes KVM_RUN return, also when the vCPU sleeps in it on a userfaultfd fault. One
        // that arrives between the thread's look at `stop` and its KVM_RUN is lost. So kick until
        // the thread is gone.
        let begin = Instant::now();
        let mut abandoned = false;
        while self.handles.iter().any(Option::is_some) && begin.elapsed() < GIVE_UP {
            for handle in self.handles.iter().flatten() {
                // Fails only for a thread that has just ended.
                let _ = handle.kill(SIGRTMIN());
            }
            if !abandoned && begin.elapsed() >= ABANDON_FAULTS {
                abandoned = true;
                self.shared.machine.abandon_faults();
            }
            if let Ok(index) = self.ended.recv_timeout(KICK_AGAIN)
                && let Some(handle) = self.handles[index].take()
            {
                // A panic has been reported by `ReportEnd`.
                let _ = handle.join();
            }
        }
        self.handles.clear();
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Says that a vCPU's thread ends; and ends the run if that is because of a panic, so that nobody waits for
/// it for ever.
struct ReportEnd {
    index: usize,
    report_end: Sender<usize>,
    shared: Arc<Shared>,
}

impl Drop for ReportEnd {
    fn drop(&mut self) {
        if thread::panicking() {
            let vcpu = self.index as u32;
            let failure = Failure::Panicked { vcpu };
            self.shared.ending.set(End::Failed(failure));
        }
        // Nobody listens any more if the thread had been left behind.
        let _ = self.report_end.send(self.index);
    }
}

/// The kick is a signal with a handler that does nothing: it only interrupts system calls.
fn install_kick_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = register_signal_handler(SIGRTMIN(), nothing));
    result.map_err(|error| io::Error::from_raw_os_error(error.errno()))
}
