//! One vCPU runs at a time, so that a trace is the same every time.

use std::cell::Cell;
use std::panic;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// The vCPU whose turn it is.
pub struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    current: u64,
    /// vCPUs that still run, by number.
    running: Vec<bool>,
    failed: bool,
}

thread_local! {
    /// The vCPU that this thread runs.
    static VCPU: Cell<u64> = const { Cell::new(0) };
}

/// The panic of a vCPU that stops because another one has failed.
pub struct Stopped;

impl Turns {
    /// The turns of no vCPUs yet.
    pub const fn new() -> Turns {
        Turns {
            state: Mutex::new(State {
                current: 0,
                running: Vec::new(),
                failed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Prepares for this many vCPUs, of which the first one has the first turn.
    pub fn reset(&self, vcpus: u64) {
        *self.state.lock() = State {
            current: 0,
            running: vec![true; vcpus as usize],
            failed: false,
        };
    }

    /// Makes this thread a vCPU and waits for its first turn.
    pub fn begin(&self, vcpu: u64) {
        VCPU.set(vcpu);
        self.wait(self.state.lock());
    }

    /// Lets the next vCPU run until this one's turn comes again.
    pub fn pass(&self) {
        let mut state = self.state.lock();
        state.next();
        self.changed.notify_all();
        self.wait(state);
    }

    /// Ends this vCPU; the others go on.
    pub fn end(&self) {
        self.leave(self.state.lock());
    }

    /// Ends this vCPU, which has failed, and stops all others.
    pub fn fail(&self) {
        let mut state = self.state.lock();
        state.failed = true;
        self.leave(state);
    }

    fn leave(&self, mut state: MutexGuard<'_, State>) {
        state.running[VCPU.get() as usize] = false;
        if state.current == VCPU.get() {
            state.next();
        }
        self.changed.notify_all();
    }

    /// Waits until it is this vCPU's turn. Stops this vCPU if another one has failed.
    fn wait(&self, mut state: MutexGuard<'_, State>) {
        while state.current != VCPU.get() && !state.failed {
            self.changed.wait(&mut state);
        }
        if state.failed {
            drop(state);
            panic::resume_unwind(Box::new(Stopped));
        }
    }
}

/// The vCPU that this thread runs.
pub fn this_vcpu() -> u64 {
    VCPU.get()
}

impl State {
    /// The next one that runs; the same if there is no other.
    fn next(&mut self) {
        let count = self.running.len() as u64;
        let others = (1..=count).map(|step| (self.current + step) % count);
        if let Some(next) = others.into_iter().find(|vcpu| self.running[*vcpu as usize]) {
            self.current = next;
        }
    }
}
