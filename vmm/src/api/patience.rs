//! How long a connection may last, which connections make room for others, and how many carry streams.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What one connection is doing.
#[derive(Clone)]
pub(super) struct Patience(Arc<Mutex<State>>);

struct State {
    /// It carries a stream, and lasts as long as the client reads.
    without_end: bool,
    /// Since when it has waited for its client: for a request, for the rest of one, or for an answer to be read. None while
    /// the machine is at work on a request.
    waits_since: Option<Instant>,
}

impl Default for Patience {
    /// That of a connection whose first request has not come.
    fn default() -> Patience {
        Patience(Arc::new(Mutex::new(State {
            without_end: false,
            waits_since: Some(Instant::now()),
        })))
    }
}

/// The machine is at work on a request.
pub(super) struct Answering(Patience);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.waits();
    }
}

/// The client is sending the body of a request.
pub(super) struct Receiving(Patience);

impl Drop for Receiving {
    fn drop(&mut self) {
        self.0.works();
    }
}

/// The connection carries a stream.
pub(super) struct Lasting(Patience);

impl Drop for Lasting {
    fn drop(&mut self) {
        self.0.0.lock().without_end = false;
        self.0.waits();
    }
}

impl Patience {
    /// The connection lasts as long as the client wants, until the guard is dropped.
    pub(super) fn without_end(&self) -> Lasting {
        self.0.lock().without_end = true;
        Lasting(self.clone())
    }

    /// Returns whether the connection lasts as long as the client wants.
    pub(super) fn is_without_end(&self) -> bool {
        self.0.lock().without_end
    }

    /// The head of a request has come; the request is answered when the guard is dropped.
    pub(super) fn answer(&self) -> Answering {
        self.works();
        Answering(self.clone())
    }

    /// The body of the request is to come; it has come when the guard is dropped.
    pub(super) fn receive(&self) -> Receiving {
        self.waits();
        Receiving(self.clone())
    }

    /// How long the connection has waited for its client. None if the client waits for the machine, or reads a stream.
    pub(super) fn waited(&self) -> Option<Duration> {
        let state = self.0.lock();
        let since = state.waits_since.filter(|_| !state.without_end);
        since.map(|since| since.elapsed())
    }

    fn waits(&self) {
        self.0.lock().waits_since = Some(Instant::now());
    }

    fn works(&self) {
        self.0.lock().waits_since = None;
    }
}

/// The streams of a machine that are open. Each keeps a connection, and events for a client that does not read.
pub(crate) struct OpenStreams(Arc<Semaphore>);

/// One of them, until it is dropped.
pub(super) struct OpenStream {
    _permit: OwnedSemaphorePermit,
}

impl Default for OpenStreams {
    fn default() -> OpenStreams {
        OpenStreams(Arc::new(Semaphore::new(OpenStreams::MOST)))
    }
}

impl OpenStreams {
    /// The most at a time.
    pub(super) const MOST: usize = 32;

    /// Opens one; none if there are [`Self::MOST`].
    pub(super) fn open(&self) -> Option<OpenStream> {
        let permit = self.0.clone().try_acquire_owned().ok()?;
        Some(OpenStream { _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_waits_for_its_client_again_when_its_stream_has_ended() {
        let patience = Patience::default();
        let lasting = patience.without_end();
        assert!(patience.is_without_end() && patience.waited().is_none());
        // As after HEAD: the answer has no body.
        drop(lasting);
        assert!(!patience.is_without_end() && patience.waited().is_some());
    }
}
