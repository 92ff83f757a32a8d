//! The gate that vCPUs pass between two entries of the guest: closed while the machine is paused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Where vCPUs wait while their machine is paused.
#[derive(Default)]
pub struct Gate {
    /// A copy of `State::closed`, which costs the vCPUs less to read.
    closed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    /// Threads that may be in the guest, or on their way to it.
    inside: u32,
}

impl Gate {
    /// Closes the gate: vCPUs that leave the guest do not enter it again. Those that are in it have to be kicked.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.closed.store(true, Ordering::Release);
    }

    /// Opens the gate and wakes all that wait there.
    pub(crate) fn open(&self) {
        self.state.lock().closed = false;
        self.closed.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    /// Whether the gate is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits for at most this long until no vCPU is inside; returns whether that is so.
    pub(crate) fn wait_until_empty(&self, limit: Duration) -> bool {
        let mut state = self.state.lock();
        self.changed
            .wait_while_for(&mut state, |state| state.inside > 0, limit);
        state.inside == 0
    }

    /// A vCPU's thread begins. It is inside until the guard is dropped, except in [`Self::pass`].
    pub(super) fn enter(&self) -> Inside<'_> {
        self.state.lock().inside += 1;
        Inside(self)
    }

    /// Called by a vCPU that is not in the guest: waits while the gate is closed, unless `stop` is set. Returns whether it
    /// has waited.
    pub(super) fn pass(&self, stop: &AtomicBool) -> bool {
        if !self.is_closed() {
            return false;
        }
        let mut state = self.state.lock();
        state.inside -= 1;
        self.changed.notify_all();
        self.changed.wait_while(&mut state, |state| {
            state.closed && !stop.load(Ordering::Acquire)
        });
        state.inside += 1;
        true
    }

    /// Wakes the vCPUs at the gate, because they are to stop.
    pub(crate) fn look_again(&self) {
        // The lock is held, so that no vCPU goes to sleep after it has seen that the flag is not set.
        let _state = self.state.lock();
        self.changed.notify_all();
    }
}

/// A vCPU's thread that may be in the guest.
pub(super) struct Inside<'g>(&'g Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.state.lock().inside -= 1;
        self.0.changed.notify_all();
    }
}
