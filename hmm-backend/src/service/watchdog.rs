//! Watches the service threads: if a driver's call does not return, the watching thread reports it and starts
//! another service thread, so that only the faults of that call wait. The watching thread also gives policies
//! their ticks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::worker::WorkerSpawner;
use crate::fault::Faults;
use crate::host::limits::{Refusal, Resource};
use crate::migrate::SlowCall;
use crate::observe::{Counter, EventKind};
use crate::pages::Error;

/// The largest number of stand-ins: threads that replace service threads blocked in a driver. Each costs
/// memory, and a driver that blocks this many calls blocks the whole service anyway.
const STAND_INS: usize = 8;

/// A failure of the host is reported after at most this time.
const LOOK_FOR_FAILURES: Duration = Duration::from_millis(250);

struct Threads {
    running: Vec<JoinHandle<()>>,
    /// The threads in `running` that have ended or are about to.
    ended: Vec<ThreadId>,
    stand_ins: usize,
    stopping: bool,
}

/// What the watching thread and the service's owner share.
struct ServiceState {
    spawner: WorkerSpawner,
    limit: Duration,
    threads: Mutex<Threads>,
    /// Signalled when a thread has ended or the service is to stop.
    changed: Condvar,
}

/// Owner of the service threads and of the thread that watches them.
pub(crate) struct Watchdog {
    shared: Arc<ServiceState>,
    watcher: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(crate) fn start(
        spawner: WorkerSpawner,
        cpus: Vec<Option<usize>>,
        slow_driver: Duration,
    ) -> Result<Watchdog, Error> {
        let shared = Arc::new(ServiceState {
            spawner,
            limit: slow_driver,
            threads: Mutex::new(Threads {
                running: Vec::new(),
                ended: Vec::new(),
                stand_ins: 0,
                stopping: false,
            }),
            changed: Condvar::new(),
        });
        let mut watch = Watchdog {
            shared: shared.clone(),
            watcher: None,
        };
        for (i, cpu) in cpus.into_iter().enumerate() {
            let started = shared.spawn(&mut shared.threads(), format!("hmm-fault{i}"), cpu);
            if let Err(error) = started {
                watch.stop();
                return Err(error);
            }
        }
        let watcher = std::thread::Builder::new()
            .name("hmm-watch".into())
            .spawn(move || {
                (shared.spawner.on_begin)("hmm-watch");
                let watched = catch_unwind(AssertUnwindSafe(|| shared.watch()));
                if watched.is_err() {
                    shared.spawner.report_panic();
                }
            });
        match watcher {
            Ok(thread) => watch.watcher = Some(thread),
            Err(error) => {
                watch.stop();
                return Err(Error::Thread(Refusal::new(Resource::Thread, error)));
            }
        }
        Ok(watch)
    }

    /// Stops the threads after they have served the messages they have read. Does not wait for a thread that is
    /// blocked in a driver's call: that thread keeps alive what it uses, and ends if the call ever returns.
    pub(crate) fn stop(&mut self) {
        let shared = &*self.shared;
        let mut threads = shared.threads();
        threads.stopping = true;
        let stop_sent = shared.spawner.stop.ring().is_ok();
        shared.changed.notify_all();
        let calls = &shared.spawner.faults.core.driver_calls;
        loop {
            let all = std::mem::take(&mut threads.running);
            let (ended, running): (Vec<_>, Vec<_>) = all
                .into_iter()
                .partition(|thread| threads.ended.contains(&thread.thread().id()));
            // A thread that panicked has reported the panic itself.
            ended.into_iter().for_each(|thread| drop(thread.join()));
            threads.running = running;
            shared.report(&mut threads);
            // If the stop event could not be sent, leave the thread behind like one that is blocked in a
            // driver.
            let left_behind =
                |thread: &JoinHandle<()>| !stop_sent || calls.is_slow(thread.thread().id());
            if threads.running.iter().all(left_behind) {
                break;
            }
            shared.wait(&mut threads, None);
        }
        drop(threads);
        if let Some(watcher) = self.watcher.take() {
            drop(watcher.join());
        }
    }
}

impl ServiceState {
    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock()
    }

    /// Waits until something changes, at most `most`. Also returns several times within the limit of slow
    /// calls, and at least every [`LOOK_FOR_FAILURES`], so that the caller checks the drivers and the host's
    /// failures.
    fn wait(&self, threads: &mut MutexGuard<'_, Threads>, most: Option<Duration>) {
        let look = (self.limit / 4).min(LOOK_FOR_FAILURES);
        let time = most.map_or(look, |most| most.min(look));
        self.changed.wait_for(threads, time);
    }

    fn spawn(
        self: &Arc<Self>,
        threads: &mut Threads,
        name: String,
        cpu: Option<usize>,
    ) -> Result<(), Error> {
        let shared = Arc::downgrade(self);
        let ended = move || {
            if let Some(shared) = shared.upgrade() {
                shared.threads().ended.push(std::thread::current().id());
                shared.changed.notify_all();
            }
        };
        threads.running.push(self.spawner.spawn(name, cpu, ended)?);
        Ok(())
    }

    fn watch(self: &Arc<Self>) {
        let mut threads = self.threads();
        while !threads.stopping {
            for call in self.report(&mut threads) {
                let is_it = |thread: &JoinHandle<()>| thread.thread().id() == call.thread;
                if threads.running.iter().any(is_it) && threads.stand_ins < STAND_INS {
                    let name = format!("hmm-fault+{}", threads.stand_ins);
                    // If no thread can be made, there is no stand-in; the next slow call tries again.
                    if self.spawn(&mut threads, name, None).is_ok() {
                        threads.stand_ins += 1;
                    }
                }
            }
            // Unlock the threads first: a policy's tick may be slow, and other threads must not wait for it.
            drop(threads);
            self.spawner.report_host_failure();
            let next_tick = self.spawner.faults.tick_policies();
            threads = self.threads();
            if !threads.stopping {
                self.wait(&mut threads, next_tick);
            }
        }
    }

    /// Reports the driver calls that have become slow and returns them.
    fn report(&self, _: &mut Threads) -> Vec<SlowCall> {
        let faults: &Faults = &self.spawner.faults;
        let now = faults.core.clock.now();
        let slow = faults.core.driver_calls.newly_slow(now, self.limit);
        for call in &slow {
            faults.core.recorder.add(Counter::SlowDriverCalls, 1);
            let latency = now.saturating_sub(call.since);
            faults
                .core
                .page_event(EventKind::SlowDriver, call.page, Some(call.device), latency);
        }
        slow
    }
}
