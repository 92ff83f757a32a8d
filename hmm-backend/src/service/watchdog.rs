//! Watches over the service threads: a driver that does not return is reported and costs nobody else service. The
//! watching thread is also the clock of policies that want one.

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

/// Most threads that stand in for others: each costs memory, and a driver that blocks so many calls blocks
/// everything.
const STAND_INS: usize = 8;

/// How long a failure of the host waits to be reported, at most.
const LOOK_FOR_FAILURES: Duration = Duration::from_millis(250);

struct Threads {
    running: Vec<JoinHandle<()>>,
    /// Those among them that have nothing left to do.
    ended: Vec<ThreadId>,
    stand_ins: usize,
    stopping: bool,
}

/// What the watching thread and the service's owner share.
struct Shared {
    spawner: WorkerSpawner,
    limit: Duration,
    threads: Mutex<Threads>,
    /// A thread has ended, or the service is to stop.
    changed: Condvar,
}

/// The service threads with the thread that watches over them.
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    watcher: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(crate) fn start(
        spawner: WorkerSpawner,
        cpus: Vec<Option<usize>>,
        slow_driver: Duration,
    ) -> Result<Watchdog, Error> {
        let shared = Arc::new(Shared {
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

    /// Stops the threads after they have served what they have read. A thread that a driver does not give back is
    /// left to it: it keeps what it uses alive, and ends if the call ever returns.
    pub(crate) fn stop(&mut self) {
        let shared = &*self.shared;
        let mut threads = shared.threads();
        threads.stopping = true;
        let told = shared.spawner.stop.ring().is_ok();
        shared.changed.notify_all();
        let calls = &shared.spawner.faults.core.driver_calls;
        loop {
            let all = std::mem::take(&mut threads.running);
            let (ended, running): (Vec<_>, Vec<_>) = all
                .into_iter()
                .partition(|thread| threads.ended.contains(&thread.thread().id()));
            // A panic has been reported by the thread itself.
            ended.into_iter().for_each(|thread| drop(thread.join()));
            threads.running = running;
            shared.report(&mut threads);
            // A thread that could not be told to stop is left behind like one that a driver keeps.
            let left_behind =
                |thread: &JoinHandle<()>| !told || calls.is_slow(thread.thread().id());
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

impl Shared {
    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock()
    }

    /// Waits until something changes, at most this long; but looks at the drivers several times within the limit, and at what the
    /// host has refused.
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
                    // Without memory for a thread there is no stand-in; the next slow call tries again.
                    if self.spawn(&mut threads, name, None).is_ok() {
                        threads.stand_ins += 1;
                    }
                }
            }
            // A policy may take its time: nobody is to wait for it with the threads locked.
            drop(threads);
            self.spawner.report_host_failure();
            let next_tick = self.spawner.faults.tick_policies();
            threads = self.threads();
            if !threads.stopping {
                self.wait(&mut threads, next_tick);
            }
        }
    }

    /// Reports the calls that have become slow.
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
