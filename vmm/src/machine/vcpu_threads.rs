//! The threads that run vCPUs: started together, stopped at any moment.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use hmm_backend::Backend;
use hmmvisor_devices::thread::{self, Thread};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::host::cpus;
use crate::machine::vcpu::{Vcpu, VcpuContext};

/// How long a vCPU may take to notice a kick before it gets another one.
const KICK_AGAIN: Duration = Duration::from_millis(1);

/// How many kicks a vCPU may miss before page faults are abandoned: at least 200 ms. Kicks are counted, not time: on an overloaded
/// machine a vCPU needs longer to notice a kick, but kicks also become fewer.
const ABANDON_FAULTS: u32 = 200;

/// How long stopping all vCPUs may take before page faults are abandoned, however few kicks there were.
const ABANDON_FAULTS_AFTER: Duration = Duration::from_secs(1);

/// How long stopping all vCPUs may take before the rest is left behind.
const GIVE_UP: Duration = Duration::from_secs(3);

/// Maps the ids of host threads to the vCPUs that they run.
#[derive(Clone)]
pub struct ThreadIds(Arc<[AtomicU32]>);

impl ThreadIds {
    /// Makes an empty map for this many vCPUs.
    pub fn new(vcpus: u32) -> ThreadIds {
        ThreadIds((0..vcpus).map(|_| AtomicU32::new(0)).collect())
    }

    /// Returns the vCPU run by the thread with this id, as `gettid` returns it.
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

    /// Returns the threads' ids and their vCPUs, as far as the threads have started.
    pub fn all(&self) -> BTreeMap<u32, u32> {
        let ids = self.0.iter().map(|id| id.load(Ordering::Acquire));
        ids.zip(0..).filter(|(id, _)| *id != 0).collect()
    }

    /// Returns how many CPU faults each vCPU has had.
    pub fn faults(&self, backend: &Backend) -> Vec<u64> {
        let by_thread = backend.faults_by_thread();
        let ids = self.0.iter().map(|id| id.load(Ordering::Acquire));
        ids.map(|id| match id {
            // Not started yet. Faults that the kernel gives no thread have this number, too.
            0 => 0,
            id => by_thread.get(&id).copied().unwrap_or(0),
        })
        .collect()
    }

    /// Interrupts the threads that have started, wherever they sleep.
    pub(crate) fn kick(&self) {
        for thread in self.all().into_keys() {
            // SAFETY: has no memory to touch. A thread that has ended gets no signal, and one that now has its number does
            // nothing about it.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGRTMIN()) };
        }
    }

    fn enter(&self, vcpu: u32) {
        // SAFETY: has no arguments and cannot fail.
        let id = unsafe { libc::gettid() };
        self.0[vcpu as usize].store(id as u32, Ordering::Release);
    }
}

/// Running vCPU threads; stopped and joined when dropped.
pub struct VcpuThreads {
    /// The threads that have not ended yet.
    threads: Vec<Thread<()>>,
    shared: Arc<VcpuContext>,
}

impl VcpuThreads {
    /// Starts one thread for each vCPU; `cpus` are the host CPUs to pin them to, cyclically, or
    /// empty.
    pub fn start(
        vcpus: Vec<Vcpu>,
        cpus: &[usize],
        ids: &ThreadIds,
        shared: &Arc<VcpuContext>,
    ) -> io::Result<VcpuThreads> {
        install_kick_handler()?;
        // From here on a failure drops, and thereby stops, what has been started.
        let mut threads = VcpuThreads {
            threads: Vec::new(),
            shared: shared.clone(),
        };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let ids = ids.clone();
            let cpu = cpus.iter().cycle().nth(index).copied();
            let body = move || {
                ids.enter(index as u32);
                // A vCPU is woken in the middle of the service of its fault, when its page is there. The
                // service thread, often on the same CPU, is about to bring the pages that the vCPU will
                // touch next, so the vCPU does not preempt it. A failure costs speed only.
                let _ = cpus::do_not_preempt_wakers();
                if let Some(cpu) = cpu {
                    // A failure costs speed only; for example, the CPU may have gone offline.
                    let _ = cpus::pin_this_thread(cpu);
                }
                vcpu.run();
            };
            let name = format!("vcpu{index}");
            let thread = thread::spawn(&name, shared.ending.on_panic(), body)?;
            threads.threads.push(thread);
        }
        Ok(threads)
    }

    /// Makes every vCPU leave the guest and waits for its thread. Idempotent.
    ///
    /// Where KVM emulates an instruction and itself accesses a page that is not supplied, only a deadly signal interrupts it. The page
    /// is then supplied as zeros, which the guest never sees. If that does not help either, because the page is not the backend's,
    /// the thread is left behind until the process ends: it owns what it uses, and never enters the guest again.
    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.gate.look_again();
        // A kick makes KVM_RUN return, also when the vCPU sleeps in it on a userfaultfd fault. One
        // that arrives between the thread's look at `stop` and its KVM_RUN is lost. So kick until
        // the thread is gone.
        let begin = Instant::now();
        let mut abandoned = false;
        let mut kicks = 0;
        while !self.threads.is_empty() && begin.elapsed() < GIVE_UP {
            for thread in &self.threads {
                // Fails only for a thread that has just ended.
                let _ = thread.handle().kill(SIGRTMIN());
            }
            kicks += 1;
            let deaf = kicks > ABANDON_FAULTS || begin.elapsed() >= ABANDON_FAULTS_AFTER;
            if !abandoned && deaf {
                abandoned = true;
                self.shared.machine.abandon_faults();
            }
            if let Some(first) = self.threads.first_mut() {
                first.wait(KICK_AGAIN);
            }
            for mut thread in std::mem::take(&mut self.threads) {
                if thread.wait(Duration::ZERO) {
                    // A panic has been reported already.
                    let _ = thread.join_within(Duration::ZERO);
                } else {
                    self.threads.push(thread);
                }
            }
        }
        for thread in self.threads.drain(..) {
            let name = thread.handle().thread().name();
            self.shared.ending.leave_behind(name.unwrap_or("vcpu"));
        }
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Installs the handler of the kick, which does nothing: the signal is there to interrupt system calls.
fn install_kick_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = register_signal_handler(SIGRTMIN(), nothing));
    result.map_err(|error| io::Error::from_raw_os_error(error.errno()))
}
