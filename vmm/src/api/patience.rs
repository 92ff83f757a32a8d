//! How long a connection may last, and which connections make room for others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What one connection is doing.
#[derive(Clone, Default)]
pub(super) struct Patience(Arc<State>);

#[derive(Default)]
struct State {
    /// It carries a stream, and lasts as long as the client reads.
    without_end: AtomicBool,
    /// Requests of it that have not been answered: 0 or 1.
    requests: AtomicUsize,
}

/// A request that is being answered.
pub(super) struct Answering(Patience);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Patience {
    /// From now on the connection lasts as long as the client wants.
    pub(super) fn without_end(&self) {
        self.0.without_end.store(true, Ordering::Relaxed);
    }

    /// Whether it does.
    pub(super) fn is_without_end(&self) -> bool {
        self.0.without_end.load(Ordering::Relaxed)
    }

    /// A request has come; it is answered when the guard is dropped.
    pub(super) fn answer(&self) -> Answering {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        Answering(self.clone())
    }

    /// Whether the connection waits for its client.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_without_end() && self.0.requests.load(Ordering::Relaxed) == 0
    }
}
