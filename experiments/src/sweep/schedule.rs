//! The order of runs.

use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use hmm_backend::limits::{Refusal, Resource};
use parking_lot::{Condvar, Mutex};

use super::Runner;
use super::error::SweepError;
use super::plan::{Source, SweepRun};
use super::row::Measured;

/// How many runs at a time.
#[derive(Clone, Copy, Debug)]
pub struct Parallel {
    /// All runs.
    pub jobs: usize,
    /// Live runs among them. They measure wall-clock time, and each has threads of its own.
    pub live: usize,
}

/// A run that is over.
pub(super) struct Finished<'a> {
    pub(super) run: &'a SweepRun,
    pub(super) outcome: Result<Measured, String>,
}

/// Does all runs, and gives `collect` what comes of them, in the order in which they finish. Stops early, after the
/// runs that have begun, when it returns an error.
pub(super) fn run_all<'a>(
    runs: impl Iterator<Item = &'a SweepRun>,
    runner: &dyn Runner,
    parallel: Parallel,
    collect: impl FnOnce(Receiver<Finished<'a>>) -> Result<(), SweepError>,
) -> Result<(), SweepError> {
    let (live, replayed) = runs.partition(|run| matches!(run.source, Source::Live(_)));
    let queue = Queue {
        state: Mutex::new(State {
            live,
            replayed,
            live_running: 0,
        }),
        freed: Condvar::new(),
        live_limit: parallel.live.max(1),
    };
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        // No run begins before all threads are there.
        let mut ready = Vec::new();
        for _ in 0..parallel.jobs.max(1) {
            let (queue, sender) = (&queue, sender.clone());
            let (go, all_there) = mpsc::sync_channel(1);
            let worker = move || {
                if all_there.recv().is_err() {
                    return;
                }
                while let Some(run) = queue.take() {
                    let outcome = runner.run(run);
                    queue.done(run);
                    // The receiver is gone: the sweep has been given up.
                    if sender.send(Finished { run, outcome }).is_err() {
                        queue.clear();
                    }
                }
            };
            let spawned = thread::Builder::new().spawn_scoped(scope, worker);
            spawned.map_err(|error| SweepError::Thread(Refusal::new(Resource::Thread, error)))?;
            ready.push(go);
        }
        for go in ready {
            // The thread waits for it.
            let _ = go.send(());
        }
        drop(sender);
        let result = collect(receiver);
        // Nothing left to do unless there was an error.
        queue.clear();
        result
    })
}

struct State<'a> {
    live: VecDeque<&'a SweepRun>,
    replayed: VecDeque<&'a SweepRun>,
    live_running: usize,
}

struct Queue<'a> {
    state: Mutex<State<'a>>,
    freed: Condvar,
    live_limit: usize,
}

impl<'a> Queue<'a> {
    /// Returns the next run; live ones first, because fewer of them can run at a time.
    fn take(&self) -> Option<&'a SweepRun> {
        let mut state = self.state.lock();
        loop {
            if state.live_running < self.live_limit
                && let Some(run) = state.live.pop_front()
            {
                state.live_running += 1;
                return Some(run);
            }
            if let Some(run) = state.replayed.pop_front() {
                return Some(run);
            }
            if state.live.is_empty() {
                return None;
            }
            self.freed.wait(&mut state);
        }
    }

    fn done(&self, run: &SweepRun) {
        if matches!(run.source, Source::Live(_)) {
            let mut state = self.state.lock();
            state.live_running -= 1;
            drop(state);
            self.freed.notify_all();
        }
    }

    fn clear(&self) {
        let mut state = self.state.lock();
        state.live.clear();
        state.replayed.clear();
        drop(state);
        self.freed.notify_all();
    }
}
