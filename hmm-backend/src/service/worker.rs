//! The fault service: threads that read userfaultfd messages and serve them.
//!
//! Each thread reads a batch of messages, sorts them by page, drops duplicates, and serves them block by block.
//! Then it serves the faults that it had put off and that are due. If there was no message, it also prefetches
//! a bounded number of pages. Service threads never touch managed memory themselves, because they would wait
//! for their own service.

use std::collections::BinaryHeap;
use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::fault::{
    CpuFaults, Deferred, Fatal, FatalFault, Fault, Faults, History, Prefetch, Unresolved,
    sort_and_deduplicate,
};
use crate::host::doorbell::Doorbell;
use crate::host::limits::{Refusal, Resource};
use crate::host::patience::Patience;
use crate::memory::{BATCH, FaultMessage, Uffd};
use crate::observe::{Counter, Event, EventKind, FaultCause};
use crate::pages::{Access, Error, FatalCause, PageRange, PageSet, Place, ServiceFailure};

pub(crate) type OnFatal = dyn Fn(Fatal) + Send + Sync;

/// Starts service threads, and has what they share.
pub(crate) struct WorkerSpawner {
    pub(crate) faults: Arc<Faults>,
    pub(crate) stop: Arc<Doorbell>,
    pub(super) on_fatal: Arc<OnFatal>,
    pub(super) on_begin: fn(&str),
}

impl WorkerSpawner {
    /// Reports to the service's user if the host has refused a call without which CPUs or devices may wait for
    /// ever.
    pub(crate) fn report_host_failure(&self) {
        if let Some(failure) = self.faults.core.guest.host_failures().unreported() {
            let failure = ServiceFailure::HostFailed(failure.to_string());
            (self.on_fatal)(Fatal::Service(failure));
        }
    }

    /// Reports to the service's user that the watching thread has panicked.
    pub(crate) fn report_panic(&self) {
        let failure = ServiceFailure::Died("the thread hmm-watch panicked".into());
        (self.on_fatal)(Fatal::Service(failure));
    }

    /// Starts a service thread, bound to a CPU if one is given. The thread calls `ended` when it has ended.
    pub(crate) fn spawn(
        &self,
        name: String,
        cpu: Option<usize>,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<JoinHandle<()>, Error> {
        let mut worker = Worker {
            faults: self.faults.clone(),
            stop: self.stop.clone(),
            on_fatal: self.on_fatal.clone(),
            deferred: BinaryHeap::new(),
        };
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let (on_begin, its_name) = (self.on_begin, name.clone());
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                on_begin(&its_name);
                let bound = cpu.map_or(Ok(()), bind_to_cpu);
                let go = bound.is_ok();
                let _ = ready.send(bound);
                if go {
                    worker.run_to_the_end();
                }
                ended();
            })
            .map_err(|error| Error::Thread(Refusal::new(Resource::Thread, error)))?;
        if let Ok(Err(error)) = started.recv() {
            return Err(Error::Bind {
                thread: name,
                cpu: cpu.unwrap_or_default(),
                error,
            });
        }
        Ok(thread)
    }
}

/// Detects a userfaultfd that stays readable but gives no message to any thread: its faults would wait for
/// ever.
#[derive(Clone, Default)]
struct Fruitless {
    patience: Patience,
    /// The number of messages that all threads together had read from it at the last look.
    read: u64,
}

impl Fruitless {
    /// Notes that the descriptor was readable and that this thread got so many messages. Returns an error
    /// after too many looks in a row without a message for any thread.
    fn look(&mut self, shard: &Uffd, messages: usize) -> io::Result<()> {
        let read = shard.messages_read();
        // Without a message for this thread, another thread has usually read it first.
        if messages > 0 || read != self.read {
            self.read = read;
            self.patience.progress();
            return Ok(());
        }
        match self.patience.again() {
            true => Ok(()),
            false => Err(io::Error::other(
                "read of a userfaultfd: the kernel reports faults, but returns none",
            )),
        }
    }
}

struct Worker {
    faults: Arc<Faults>,
    stop: Arc<Doorbell>,
    on_fatal: Arc<OnFatal>,
    deferred: BinaryHeap<Deferred>,
}

impl Worker {
    /// Runs the service and reports its death: otherwise CPUs would sleep for ever without a report.
    fn run_to_the_end(&mut self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run()));
        let cause = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("the fault service cannot read faults: {error}"),
            Err(_) => "a fault service thread panicked".to_string(),
        };
        (self.on_fatal)(Fatal::Service(ServiceFailure::Died(cause)));
    }

    fn run(&mut self) -> io::Result<()> {
        let shards = self.faults.core.guest.shards();
        let poll_in = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds: Vec<_> = shards.iter().map(|s| poll_in(s.as_raw_fd())).collect();
        fds.push(poll_in(self.faults.prefetches.fd()));
        fds.push(poll_in(self.stop.as_raw_fd()));
        let mut messages = Vec::with_capacity(BATCH);
        let mut interrupted = Patience::default();
        let mut fruitless = vec![Fruitless::default(); shards.len()];
        loop {
            match poll(&mut fds, self.timeout()) {
                Ok(()) => interrupted.progress(),
                Err(error) if is_interruption(&error) && interrupted.again() => {}
                Err(error) => return Err(context("ppoll", error)),
            }
            let faults = self.faults.clone();
            // Taken before the messages are read, because each faulting thread was asleep in its access after
            // this moment. A time taken after the read could be later than the thread's return from the access;
            // a report with that time would then answer the thread's next access.
            let before = faults.core.clock.now();
            let shards = faults.core.guest.shards().iter();
            for ((shard, fd), fruitless) in shards.zip(&fds).zip(&mut fruitless) {
                if fd.revents != 0 {
                    let before = messages.len();
                    let read = shard.read(&mut messages);
                    read.map_err(|error| context("read of a userfaultfd", error))?;
                    fruitless.look(shard, messages.len() - before)?;
                }
            }
            let idle = messages.is_empty();
            if !idle {
                let batch = self.sorted(&mut messages, before);
                self.serve(&batch, None);
            }
            self.serve_due();
            if idle {
                if fds.last().is_some_and(|stop| stop.revents != 0) {
                    self.finish();
                    return Ok(());
                }
                // In lockstep, the thread that asked the policy serves its wishes itself.
                if !self.faults.lockstep {
                    self.faults.serve_prefetch();
                }
            }
        }
    }

    /// Returns how long to sleep for messages: not at all if prefetching is left, otherwise until the next
    /// deferred fault is due; `None` without one.
    fn timeout(&self) -> Option<Duration> {
        if self.faults.prefetches.has_for_faults() {
            return Some(Duration::ZERO);
        }
        let next = self.deferred.peek()?;
        Some(next.due.saturating_sub(self.faults.core.clock.now()))
    }

    /// Returns the batch in page order, one entry for each page and thread. `before` is a moment before the
    /// first message was read.
    fn sorted(&self, messages: &mut Vec<FaultMessage>, before: Duration) -> Vec<Fault> {
        let since = self.faults.core.clock.now();
        let reading = since.saturating_sub(before).as_micros() + 1;
        let reading = u32::try_from(reading).unwrap_or(u32::MAX);
        let mut faults: Vec<Fault> = messages
            .drain(..)
            .map(|m| {
                let page = self.faults.core.guest.page_at(m.address);
                Fault {
                    page,
                    access: m.access,
                    thread: m.thread,
                    since,
                    reading,
                    generation: self.faults.core.table.word(page).generation(),
                }
            })
            .collect();
        sort_and_deduplicate(&mut faults);
        faults
    }

    /// Serves faults, which must be in page order, block by block. `retried` is set for a single fault that had
    /// been put off.
    fn serve(&mut self, faults: &[Fault], retried: Option<History>) {
        for group in faults.chunk_by(|a, b| a.page.block() == b.page.block()) {
            let block = group[0].page.block();
            let pages: PageSet = group.iter().map(|f| f.page.index_in_block()).collect();
            let writes = group.iter().filter(|f| f.access == Access::Write);
            let writes: PageSet = writes.map(|f| f.page.index_in_block()).collect();
            let strongest = group.iter().map(|f| f.access).max();
            let access = strongest.unwrap_or(Access::Read);
            let served = self.faults.serve_cpu_faults(&CpuFaults {
                block,
                pages,
                access,
                writes,
                waited: retried.is_some_and(|history| history.waited),
            });
            self.faults
                .core
                .recorder
                .add(Counter::FirstTouchFaults, served.first_touches);
            let now = self.faults.core.clock.now();
            let mut readers = Vec::new();
            for fault in group {
                let unresolved = served
                    .unresolved
                    .iter()
                    .find(|(page, _)| *page == fault.page);
                match unresolved {
                    None => self.resolved(fault, served.cause(fault.page), now),
                    // The refusal is for a thread that wrote to the page in the same batch. This fault is a
                    // read: serve it again without the writer.
                    Some((_, Unresolved::Fatal(FatalCause::ReadOnly)))
                        if fault.access == Access::Read =>
                    {
                        readers.push(*fault);
                    }
                    Some((_, reason)) => self.put_off(fault, reason, retried, now),
                }
            }
            // There is no writer among the readers, so this call does not recurse again.
            self.serve(&readers, retried);
            if !served.prefetch.is_empty() {
                let dropped = self.faults.prefetches.add_for_fault(Prefetch {
                    block,
                    pages: served.prefetch,
                    to: Place::System,
                    duplicate: served.duplicate,
                    access,
                    wished: false,
                });
                if dropped > 0 {
                    let recorder = &self.faults.core.recorder;
                    recorder.add(Counter::PrefetchDropped, dropped as u64);
                }
            }
        }
    }

    fn resolved(&self, fault: &Fault, cause: FaultCause, now: Duration) {
        let latency = now.saturating_sub(fault.since);
        let recorder = &self.faults.core.recorder;
        recorder.cpu_fault(fault.thread, cause, latency);
        recorder.event(|| Event {
            access: Some(fault.access),
            thread: fault.thread,
            latency,
            ..Event::new(now, EventKind::CpuFault, PageRange::single(fault.page))
        });
    }

    fn put_off(
        &mut self,
        fault: &Fault,
        reason: &Unresolved,
        retried: Option<History>,
        now: Duration,
    ) {
        let mut history = retried.unwrap_or_default();
        let wait = match history.attempts.next(reason) {
            Ok(wait) => wait,
            Err(cause) => {
                self.faults
                    .core
                    .page_event(EventKind::Fatal, fault.page, None, now - fault.since);
                (self.on_fatal)(Fatal::Fault(FatalFault {
                    page: fault.page,
                    thread: fault.thread,
                    cause,
                    since: fault.before(),
                    generation: fault.generation,
                }));
                return;
            }
        };
        let counter = match reason {
            Unresolved::Wait(_) => {
                history.waited = true;
                Counter::FaultsDeferred
            }
            _ => Counter::FaultsRetried,
        };
        self.faults.core.recorder.add(counter, 1);
        self.faults
            .core
            .page_event(EventKind::Deferred, fault.page, None, wait);
        self.deferred.push(Deferred {
            due: now + wait,
            fault: *fault,
            generation: self.faults.core.table.word(fault.page).generation(),
            history,
        });
    }

    fn serve_due(&mut self) {
        let now = self.faults.core.clock.now();
        while self.deferred.peek().is_some_and(|next| next.due <= now) {
            let Some(next) = self.deferred.pop() else {
                return;
            };
            let page = next.fault.page;
            if self.faults.core.table.word(page).generation() == next.generation {
                self.serve(&[next.fault], Some(next.history));
            } else {
                // The page has moved since the fault was put off. Wake the CPU: if it has not made its access
                // yet, it faults again, and that fault meets the present holds and throttles.
                self.faults.core.guest.wake_range(PageRange::single(page));
            }
        }
    }

    /// Serves the faults that were put off at once, without their waits: no CPU may be left asleep.
    fn finish(&mut self) {
        while let Some(next) = self.deferred.pop() {
            let fault = CpuFaults::one(next.fault.page, next.fault.access);
            // A fault that is still unresolved cannot be resolved: its CPU must be stopped by a signal.
            let _ = self.faults.serve_cpu_faults(&CpuFaults {
                waited: true,
                ..fault
            });
        }
    }
}

/// Waits until one of the descriptors is ready, at most `timeout`.
fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let timespec = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs() as libc::time_t,
        tv_nsec: t.subsec_nanos().into(),
    });
    let timeout = timespec
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the descriptors are valid for the call, the timeout is null or a valid timespec, and no
    // signal mask is given.
    let n = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as _, timeout, std::ptr::null()) };
    if n < 0 {
        fds.iter_mut().for_each(|fd| fd.revents = 0);
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Returns whether a failed wait for descriptors is to be repeated.
fn is_interruption(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), Interrupted | WouldBlock)
}

fn context(call: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{call}: {error}"))
}

fn bind_to_cpu(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: an all-zero CPU set is valid, the index is within it, and the call reads it only.
    let ret = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    if ret != 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
