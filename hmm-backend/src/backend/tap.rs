//! Several readers of one backend's events, which come and go while the machine runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Backend;
use crate::observe::Events;

/// Passes a backend's events on to readers. The backend records events only while there is a reader.
pub struct EventTap {
    backend: Arc<Backend>,
    readers: Mutex<Readers>,
}

#[derive(Default)]
struct Readers {
    next: u64,
    waiting: BTreeMap<u64, Queue>,
}

/// What one reader has not taken yet.
struct Queue {
    events: Events,
    most: usize,
    ring: usize,
}

/// Gets every event from its making on. Dropping it ends that.
pub struct EventReader {
    tap: Arc<EventTap>,
    number: u64,
}

impl EventTap {
    /// Makes a tap without readers. A backend has one tap, or one user of [`Backend::drain_events`].
    pub fn new(backend: Arc<Backend>) -> Arc<EventTap> {
        Arc::new(EventTap {
            backend,
            readers: Mutex::default(),
        })
    }

    /// Adds a reader. The ring of each of the backend's threads holds at least `ring` events between two calls of
    /// [`EventReader::take`], by any reader; the others are counted as dropped. `most` events wait for this reader while
    /// other readers take theirs.
    pub fn reader(self: &Arc<Self>, ring: usize, most: usize) -> EventReader {
        let mut readers = self.readers.lock();
        // What was recorded before is not for this reader.
        self.distribute(&mut readers);
        let number = readers.next;
        readers.next += 1;
        let events = Events::default();
        readers.waiting.insert(number, Queue { events, most, ring });
        self.set_ring(&readers);
        EventReader {
            tap: self.clone(),
            number,
        }
    }

    /// Gives the rings the size that the most demanding reader wants; without readers nothing is recorded.
    fn set_ring(&self, readers: &Readers) {
        let rings = readers.waiting.values().map(|queue| queue.ring);
        self.backend.record_events(rings.max().unwrap_or(0));
    }

    fn distribute(&self, readers: &mut Readers) {
        let events = self.backend.drain_events();
        for queue in readers.waiting.values_mut() {
            queue.events.add(&events, queue.most);
        }
    }
}

impl EventReader {
    /// Takes the events since the last call, in order of time, and how many were dropped.
    pub fn take(&self) -> Events {
        let mut readers = self.tap.readers.lock();
        self.tap.distribute(&mut readers);
        let queue = readers.waiting.get_mut(&self.number);
        queue.map_or_else(Events::default, |queue| std::mem::take(&mut queue.events))
    }
}

impl Drop for EventReader {
    fn drop(&mut self) {
        let mut readers = self.tap.readers.lock();
        readers.waiting.remove(&self.number);
        self.tap.set_ring(&readers);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::backend::{BackendConfig, ModelBackend};
    use crate::observe::EventKind;
    use crate::pages::{Page, PageRange};

    fn free(backend: &Backend, times: u32) {
        for _ in 0..times {
            backend.guest_freed(PageRange::single(Page(3))).unwrap();
        }
    }

    #[test]
    fn each_reader_gets_every_event_of_its_time() {
        let model = ModelBackend::new(BackendConfig::new(2 << 20)).unwrap();
        let backend = model.backend();
        let tap = EventTap::new(backend.clone());
        free(backend, 5);
        let first = tap.reader(100, 100);
        free(backend, 2);
        let second = tap.reader(100, 100);
        free(backend, 3);
        let seen = |reader: &EventReader| reader.take().events.len();
        assert_eq!((seen(&second), seen(&first), seen(&second)), (3, 5, 0));
        drop(first);
        free(backend, 1);
        assert_eq!(seen(&second), 1);
        drop(second);
        // Nothing is recorded without a reader.
        free(backend, 4);
        assert_eq!(backend.drain_events().events.len(), 0);
        let third = tap.reader(100, 100);
        assert_eq!(seen(&third), 0);
    }

    #[test]
    fn a_reader_that_does_not_read_loses_events_and_is_told() {
        let model = ModelBackend::new(BackendConfig::new(2 << 20)).unwrap();
        let backend = model.backend();
        let tap = EventTap::new(backend.clone());
        let (slow, quick) = (tap.reader(100, 2), tap.reader(100, 100));
        for _ in 0..3 {
            free(backend, 1);
            assert_eq!(quick.take().events.len(), 1);
        }
        let events = slow.take();
        assert_eq!(events.events.len(), 2);
        assert_eq!(events.dropped(EventKind::Freed), 1);
        // It starts anew.
        free(backend, 1);
        let events = slow.take();
        assert_eq!(
            (events.events.len(), events.dropped(EventKind::Freed)),
            (1, 0)
        );
    }
}
